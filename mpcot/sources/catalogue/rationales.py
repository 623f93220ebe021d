"""Seed rationales: what a person would write about a pair, for each of the three shipped perspectives.

They state facts of the pair's structure and lead to the label without naming its code. The wording is
drawn from `rationales.toml` by a digest of query and product, so it varies and never changes.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from cluster.artifacts import digest
from mpcot.sources.catalogue.generate import Pair
from mpcot.sources.catalogue.judge import Check
from mpcot.sources.catalogue.world import Category, load_world

PERSPECTIVES = ("intent", "attributes", "rules")
ORIGIN = "catalogue"
WORDINGS = Path(__file__).parent / "rationales.toml"


@cache
def _wordings() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads(WORDINGS.read_text(encoding="utf-8"))


@cache
def _nouns() -> dict[str, tuple[str, str, Category]]:
    """Return type -> (plural, purpose, category that it belongs to)."""
    categories = load_world().categories
    nouns = {c.name: (c.plural, c.purpose, c) for c in categories}
    return nouns | {a.name: (a.plural, a.purpose, c) for c in categories for a in c.accessories}


def rationale(pair: Pair, perspective: str) -> str:
    """Return one or two short sentences on `pair` from `perspective` (intent, attributes or rules)."""
    case = _case(pair)
    options = _wordings()[perspective][case]
    pick = int(digest([pair.query.text, pair.product.product_id, perspective]), 16)
    chosen = options[pick % len(options)]
    if perspective == "attributes":
        return _capital("; ".join([*_comparisons(pair, pick), chosen]))
    return chosen.format(**_facts(pair))


def _case(pair: Pair) -> str:
    if pair.query.type is not None:
        return pair.judgement.case
    brand_cases = {"exact": "brand_exact", "accessory_of_asked": "brand_accessory"}
    return brand_cases.get(pair.judgement.case, "brand_other")


def _a(noun: str) -> str:
    plural = _nouns()[noun][0] == noun
    return noun if plural else f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _branded(brand: str, noun: str) -> str:
    """Return "a Novaro laptop", or "Montaro running shoes" for a plural."""
    article = "" if _nouns()[noun][0] == noun else "an " if brand[0] in "AEIOU" else "a "
    return f"{article}{brand} {noun}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _slot(check: Check, pair: Pair) -> str:
    category = _nouns()[pair.product.type][2]
    return category.names.get(check.slot, check.slot)


def _value(check: Check, value: str, pair: Pair) -> str:
    """Drop a word that the value shares with its slot: "size size 42"."""
    return value.removeprefix(f"{_slot(check, pair)} ")


def _facts(pair: Pair) -> dict[str, str]:
    query, product, misses = pair.query, pair.product, pair.judgement.misses
    asked = query.type or product.type
    host = query.host or _nouns()[product.type][2].name
    facts = {
        "q": asked, "aq": _a(asked), "qdo": _nouns()[asked][1], "p": product.type, "ap": _a(product.type),
        "pdo": product.purpose, "ahost": _a(host),
        "pbrand": product.brand, "fits": " ".join(product.fits[1:]) if product.fits else "",
        "offered_host": f"{product.brand} {product.attributes.get('model', '')}".strip(),
        "wanted": _wanted(pair), "points": _points(pair),
        "misses": " and ".join(_slot(check, pair) for check in misses),
    }  # fmt: skip
    if misses:
        first = misses[0]
        asked_value, offered = (_value(first, value, pair) for value in (first.asked, first.offered))
        facts |= {"slot": _slot(first, pair), "asked": asked_value, "offered": offered}
    return facts


def _wanted(pair: Pair) -> str:
    """Return the brand and model that the query names, of the product or of the accessory's host."""
    if pair.query.fits:
        brand, model = pair.query.fits
        return f"{brand} {model}" if model else _branded(brand, pair.query.host or "")
    named = [want for want in pair.query.wants if want.slot in ("brand", "model")]
    return " ".join(f"another brand than {want.value}" if want.negated else want.value for want in named)


def _points(pair: Pair) -> str:
    """Return ", with brand Novaro and colour blue" for what the query asks beside the type."""
    points = [f"{_slot(c, pair)} {_value(c, c.asked, pair)}" for c in pair.judgement.checks]
    if pair.query.fits:
        return f", made for {_wanted(pair)}"
    return f", with {' and '.join(points)}" if points else ""


def _comparisons(pair: Pair, pick: int) -> list[str]:
    """Return one clause per point compared: type first, then the fit, then what the query names."""
    query, product = pair.query, pair.product
    same = query.type == product.type
    clauses = []
    if query.type is not None:
        match = (f"type {product.type} matches", f"type is {product.type} as asked")[pick // 7 % 2]
        clauses.append(match if same else f"type {query.type} asked but {product.type} offered")
    if same and query.fits and product.fits:
        fits, ok = " ".join(product.fits[1:]), pair.judgement.case != "does_not_fit"
        clauses.append(f"fits {fits} as asked" if ok else f"must fit {_wanted(pair)} but fits {fits}")
    if same or query.type is None:
        clauses += [_comparison(check, pair) for check in pair.judgement.checks]
    elif pair.judgement.case != "other_type":
        clauses.append(_link(pair))
    return clauses + ([] if len(clauses) > 1 else _unasked(pair, same))


def _comparison(check: Check, pair: Pair) -> str:
    slot = _slot(check, pair)
    asked, offered = (_value(check, value, pair) for value in (check.asked, check.offered))
    if check.met and asked == offered:
        return f"{slot} {asked} matches"
    if check.met:
        return f"{slot} {asked} asked and {offered} offered, which agrees"
    return f"{slot} {asked} asked but {offered} offered"


def _link(pair: Pair) -> str:
    """Say which host the accessory fits against which is asked."""
    wanted, product = _wanted(pair), pair.product
    if product.fits:
        return f"made for {' '.join(product.fits[1:])}" + (f" while {wanted} is asked" if wanted else "")
    offered = f"{product.brand} {product.attributes['model']}"
    return f"the part is for {wanted} and this is {offered}" if wanted else f"this is {offered}"


def _unasked(pair: Pair, same: bool) -> list[str]:
    if pair.query.type is None:
        return []
    return ["no brand, size or colour is asked"] if same else [f"this one is by {pair.product.brand}"]
