"""Whether those who ask one export can go on with another: its answers have the same labels, perspectives and parts."""

from __future__ import annotations

from cluster.base.errors import UserError
from serve.http.schemas import ModelInfo


def differences(before: ModelInfo, after: ModelInfo) -> list[str]:
    """Return in what the answers of `after` differ in form or scale, and what they lack."""
    found = []
    labels, others = ({label.code: label.gain for label in model.labels} for model in (before, after))
    if list(labels) != list(others):
        found.append(f"labels {', '.join(others)} instead of {', '.join(labels)}")
    elif labels != others:
        found.append("other gains of the labels, so that scores are on another scale")
    if before.perspectives != after.perspectives:
        names = (", ".join(model.perspectives) or "none" for model in (after, before))
        found.append("perspectives {} instead of {}".format(*names))
    if before.verdicts and not after.verdicts:
        found.append("no verdicts of the perspectives")
    if before.explanations and not after.explanations:
        found.append("no rationale index, so that nothing can be explained")
    return found


def check_compatible(before: ModelInfo, after: ModelInfo, way_out: str) -> None:
    """Refuse a model whose answers those who ask `before` may not understand.

    Args:
        way_out: what to do where the change is meant.

    Raises:
        UserError: it names each difference.
    """
    if found := differences(before, after):
        raise UserError(f"{after.id} has {'; '.join(found)}, compared with {before.id}. If that is meant, {way_out}.")
