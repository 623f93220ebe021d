"""Labels that follow from the structure: what a query asks for against what a product is.

- E: the type and every point asked for match.
- S: the type matches and exactly one point misses (for an accessory, never the model that it must fit).
- C: an accessory of the product asked for, or the product that the accessory asked for is made for.
- I: everything else; so also an accessory that does not fit, and two or more points that miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpcot.sources.catalogue.world import Product

Case = Literal[
    "exact", "one_miss", "accessory_of_asked", "host_of_asked",
    "does_not_fit", "many_misses", "foreign_accessory", "foreign_host", "other_type",
]  # fmt: skip
LABELS: dict[str, str] = {
    "exact": "E",
    "one_miss": "S",
    "accessory_of_asked": "C",
    "host_of_asked": "C",
    "does_not_fit": "I",
    "many_misses": "I",
    "foreign_accessory": "I",
    "foreign_host": "I",
    "other_type": "I",
}


@dataclass(frozen=True)
class Want:
    """One point that a query asks for; `negated` says that the value must not be there."""

    slot: str
    value: str
    negated: bool = False

    def met(self, offered: str | None) -> bool:
        return (offered != self.value) if self.negated else (offered == self.value)


@dataclass(frozen=True)
class Query:
    """A query's text and its meaning. `type` is None for a bare brand; `fits` names a host model."""

    text: str
    type: str | None
    wants: tuple[Want, ...] = ()
    host: str | None = None  # set where `type` is an accessory
    fits: tuple[str, str] | None = None  # (brand, model) of the host, or (brand, "")
    form: str = ""


@dataclass(frozen=True)
class Check:
    """One point compared: what was asked, what is offered, and whether that is as asked."""

    slot: str
    asked: str
    offered: str
    met: bool


@dataclass(frozen=True)
class Judgement:
    """The label of a query and a product, the case that it follows from, and the points compared."""

    case: Case
    checks: tuple[Check, ...]

    @property
    def label(self) -> str:
        return LABELS[self.case]

    @property
    def misses(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.met)


def judge(query: Query, product: Product) -> Judgement:
    """Return the label of `product` for `query` with its grounds."""
    checks = _checks(query, product)
    if query.type == product.type:
        return Judgement(_same_type(query, product, checks), checks)
    if query.type is None and all(check.met for check in checks):
        return Judgement("exact", checks)
    if product.fits and query.host is None and query.type in (None, product.fits[0]):
        return Judgement("accessory_of_asked" if _fits(query, product) else "foreign_accessory", checks)
    if query.host is not None and query.host == product.type:
        return Judgement("host_of_asked" if _hosts(query, product) else "foreign_host", checks)
    return Judgement("other_type", checks)


def _checks(query: Query, product: Product) -> tuple[Check, ...]:
    checks = []
    for want in query.wants:
        offered = product.attributes.get(want.slot)
        asked = f"not {want.value}" if want.negated else want.value
        checks.append(Check(want.slot, asked, offered or "none", want.met(offered)))
    other_brand = any(check.slot == "brand" and not check.met for check in checks)
    # A model belongs to its brand: another brand is one miss, not two.
    return tuple(check for check in checks if not (other_brand and check.slot == "model"))


def _same_type(query: Query, product: Product, checks: tuple[Check, ...]) -> Case:
    if query.fits and not _part_fits(query.fits, product):
        return "does_not_fit"
    misses = sum(not check.met for check in checks)
    return "exact" if misses == 0 else "one_miss" if misses == 1 else "many_misses"


def _part_fits(fits: tuple[str, str], part: Product) -> bool:
    assert part.fits is not None
    brand, model = fits
    return part.fits[1] == brand and model in ("", part.fits[2])


def _fits(query: Query, part: Product) -> bool:
    """Whether `part` fits what is asked for, as far as brand and model are asked for."""
    assert part.fits is not None
    host = {"brand": part.fits[1], "model": part.fits[2]}
    return all(want.met(host[want.slot]) for want in query.wants if want.slot in host)


def _hosts(query: Query, host: Product) -> bool:
    """Whether the accessory asked for goes with `host`."""
    if not query.fits:
        return True
    brand, model = query.fits
    return host.attributes["brand"] == brand and model in ("", host.attributes["model"])
