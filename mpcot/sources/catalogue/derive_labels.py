"""Derives the label of a pair by comparing what the query asks for with what the product is.

- E: the product has the type that was asked for, and every point that was asked for.
- S: the type is right and exactly one point is not (for an accessory, never the model that it has to fit).
- C: the product is an accessory of what was asked for, or what the accessory that was asked for is made for.
- I: everything else, such as an accessory that does not fit, or two points that are not as asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpcot.sources.catalogue.world import Product

# case -> label; the label of all other cases is I.
LABELS = {"exact": "E", "one_miss": "S", "accessory_of_asked": "C", "host_of_asked": "C"}


@dataclass(frozen=True)
class Want:
    """One point that a query asks for. If `negated`, the product must not have the value."""

    slot: str
    value: str
    negated: bool = False

    def met(self, offered: str | None) -> bool:
        return (offered != self.value) if self.negated else (offered == self.value)


@dataclass(frozen=True)
class Query:
    """A query's text and what it means. `type` is None for a bare brand, `form` the way it was made."""

    text: str
    type: str | None
    wants: tuple[Want, ...] = ()
    host: str | None = None  # set where `type` is an accessory
    fits: tuple[str, str] | None = None  # (brand, model) of the host, or (brand, "")
    form: str = ""


@dataclass(frozen=True)
class Check:
    """One point of the comparison: what was asked for, what the product has, and whether that is as asked."""

    slot: str
    asked: str
    offered: str
    met: bool


@dataclass(frozen=True)
class Judgement:
    """The case that a query and a product are, from which the label follows, and the points that were compared."""

    case: str
    checks: tuple[Check, ...]

    @property
    def label(self) -> str:
        return LABELS.get(self.case, "I")

    @property
    def misses(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.met)


def judge(query: Query, product: Product) -> Judgement:
    """Compare `product` with what `query` asks for."""
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
    # A model belongs to its brand, so another brand is one difference and not two.
    return tuple(check for check in checks if not (other_brand and check.slot == "model"))


def _same_type(query: Query, product: Product, checks: tuple[Check, ...]) -> str:
    if query.fits and not _part_fits(query.fits, product):
        return "does_not_fit"
    misses = sum(not check.met for check in checks)
    return "exact" if misses == 0 else "one_miss" if misses == 1 else "many_misses"


def _part_fits(fits: tuple[str, str], part: Product) -> bool:
    assert part.fits is not None
    brand, model = fits
    return part.fits[1] == brand and model in ("", part.fits[2])


def _fits(query: Query, part: Product) -> bool:
    """Return whether `part` fits the brand and model that the query names, if it names any."""
    assert part.fits is not None
    host = {"brand": part.fits[1], "model": part.fits[2]}
    return all(want.met(host[want.slot]) for want in query.wants if want.slot in host)


def _hosts(query: Query, host: Product) -> bool:
    """Return whether the accessory that was asked for fits `host`."""
    if not query.fits:
        return True
    brand, model = query.fits
    return host.attributes["brand"] == brand and model in ("", host.attributes["model"])
