"""Writes seed rationales: what a person might say about a pair from each of the three shipped perspectives.

They state facts about the pair that lead to the label, but do not name the label. A digest of query and product picks
the wording from `rationales.toml`, so that wordings vary from pair to pair but not from run to run.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from cluster.base.stage_folder import digest
from mpcot.sources.catalogue.derive_labels import Check
from mpcot.sources.catalogue.make_pairs import Pair
from mpcot.sources.catalogue.world import Category, Product, load_world

PERSPECTIVES = ("intent", "attributes", "rules")
ORIGIN = "catalogue"
VOWEL_SOUNDS = (*"AEIOUaeiou8", "11", "18")
WORDINGS = Path(__file__).parent / "rationales.toml"


@cache
def _wordings() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads(WORDINGS.read_text(encoding="utf-8"))


@cache
def _nouns() -> dict[str, tuple[str, str, Category]]:
    """Return plural, purpose and category of each type of product."""
    categories = load_world().categories
    nouns = {c.name: (c.plural, c.purpose, c) for c in categories}
    return nouns | {a.name: (a.plural, a.purpose, c) for c in categories for a in c.accessories}


def rationale(pair: Pair, perspective: str) -> str:
    """Return one or two short sentences about `pair` from `perspective` (intent, attributes or rules)."""
    case = pair.judgement.case
    options = _wordings()[perspective]
    pick = int(digest([pair.query.text, pair.product.product_id, perspective]), 16)
    ending = options[case][pick % len(options[case])]
    if perspective == "attributes":
        return _capital("; ".join([*_comparisons(pair), ending]))
    openings = options["openings" if pair.query.type else "brand"]
    return f"{openings[pick // 7 % len(openings)]} {ending}".format(**_facts(pair))


def _a(noun: str, *before: str) -> str:
    """Return "a Maple laptop", "an 8 GB laptop", or "Summit running shoes" for a plural."""
    phrase = " ".join([*before, noun])
    if _nouns()[noun][0] == noun:
        return phrase
    return f"an {phrase}" if phrase.startswith(VOWEL_SOUNDS) else f"a {phrase}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _slot(check: Check, pair: Pair) -> str:
    category = _nouns()[pair.product.type][2]
    return category.names.get(check.slot, check.slot)


def _value(check: Check, value: str, pair: Pair) -> str:
    """Return the value without the name of its slot, which would otherwise come twice: "size size 42"."""
    return value.removeprefix(f"{_slot(check, pair)} ")


def _facts(pair: Pair) -> dict[str, str]:
    query, product = pair.query, pair.product
    return {
        "asked": _asked(pair), "offered": _offered(pair), "qdo": _nouns()[query.type or product.type][1],
        "ap": _a(product.type), "pdo": product.purpose, "pbrand": product.brand, "wanted": _wanted(pair),
    }  # fmt: skip


def _wanted(pair: Pair) -> str:
    """Return the brand and model that the query names for the product or for the accessory's host."""
    if pair.query.fits:
        brand, model = pair.query.fits
        return f"{brand} {model}" if model else _a(pair.query.host or "", brand)
    named = [want for want in pair.query.wants if want.slot in ("brand", "model")]
    return " ".join(f"another brand than {want.value}" if want.negated else want.value for want in named)


def _asked(pair: Pair) -> str:
    """Return what the query asks for as a phrase: "a Maple blue smartphone"."""
    query = pair.query
    if query.fits:
        return f"{_a(query.type or '')} for {_wanted(pair)}"
    named = [want.value for want in query.wants if not want.negated]
    denied = [f" other than {want.value}" for want in query.wants if want.negated]
    return _a(query.type or pair.product.type, *named) + "".join(denied)


def _offered(pair: Pair) -> str:
    """Return the product as a phrase that names what the query asks about, or how it relates to another type."""
    query, product = pair.query, pair.product
    other_type = query.type not in (None, product.type)
    if product.fits and (other_type or query.fits):
        return f"{_a(product.type)} for {_fitted(product)}"
    if other_type:
        return _a(product.type, _named(product))
    return _a(product.type, *(check.offered for check in pair.judgement.checks if check.offered != "none"))


def _fitted(product: Product) -> str:
    assert product.fits is not None
    return " ".join(product.fits[1:])


def _named(product: Product) -> str:
    return f"{product.brand} {product.attributes['model']}"


def _comparisons(pair: Pair) -> list[str]:
    """Return a clause for each point of the comparison: the type, then the fit, then what else the query names."""
    query, product = pair.query, pair.product
    same = query.type == product.type
    clauses = []
    if query.type is not None:
        clauses.append(_comparison("type", query.type, product.type, same))
    if same and query.fits:
        clauses.append(_comparison("fit", _wanted(pair), _fitted(product), pair.judgement.case != "does_not_fit"))
    elif same or query.type is None:
        for check in pair.judgement.checks:
            asked, offered = (_value(check, value, pair) for value in (check.asked, check.offered))
            clauses.append(_comparison(_slot(check, pair), asked, offered, check.met))
    elif pair.judgement.case != "other_type":
        clauses.append(_link(pair))
    return clauses


def _comparison(slot: str, asked: str, offered: str, met: bool) -> str:
    return f"{slot} {asked} asked, {offered} offered, {'agrees' if met else 'differs'}"


def _link(pair: Pair) -> str:
    """Return which host the accessory fits, whichever of the two was asked for."""
    wanted, product = _wanted(pair), pair.product
    if product.fits:
        return f"made for {_fitted(product)}" + (f" and {wanted} asked" if wanted else "")
    return f"{_named(product)} offered" + (f" and made for {wanted} asked" if wanted else "")
