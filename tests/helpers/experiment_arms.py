"""An experiment of three arms and a shadow, and the shoppers that are dealt to them."""

from __future__ import annotations

from serve.experiments.config import Arm

ARMS = (
    Arm(name="control", export="a", share=0.5),
    Arm(name="new", export="b", share=0.3),
    Arm(name="newer", export="c", share=0.2),
    Arm(name="dark", export="d", shadow=True),
)


def units(count: int) -> list[str]:
    return [f"shopper-{i}" for i in range(count)]
