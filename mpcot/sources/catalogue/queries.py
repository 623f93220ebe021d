"""Queries as shoppers type them: categories, attributes, brands, models, "X for Y", negations and typing errors."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from mpcot.sources.catalogue.derive_labels import Query, Want
from mpcot.sources.catalogue.world import Accessory, Category, World

TYPO_SHARE = 0.06


def make_queries(world: World, seed: int) -> Iterator[Query]:
    """Yield queries with different texts until the world has hardly any new ones to give."""
    rng = random.Random(f"queries/{seed}")
    seen: set[str] = set()
    tries = 0
    while tries < 2000:
        form = rng.choices(list(FORMS), list(FORMS.values()))[0]
        query = form(rng.choice(world.categories), rng)
        if query is None or query.text in seen:
            tries += 1
            continue
        tries = 0
        seen.add(query.text)
        yield _with_typo(replace(query, form=form.__name__), seen, rng)


def _with_typo(query: Query, seen: set[str], rng: random.Random) -> Query:
    words = query.text.split()
    long = [i for i, word in enumerate(words) if len(word) > 5 and word.isalpha()]
    if not long or rng.random() >= TYPO_SHARE:
        return query
    i, cut = rng.choice(long), rng.randrange(2, 5)
    words[i] = words[i][:cut] + words[i][cut + 1 :]
    text = " ".join(words)
    if text in seen:
        return query
    seen.add(text)
    return replace(query, text=text)


def _noun(thing: Category | Accessory, rng: random.Random) -> str:
    return rng.choice((thing.name, thing.plural))


def _attribute(category: Category, rng: random.Random) -> tuple[Want, str, str]:
    """Return a want and the words before and after the noun that express it."""
    slot = rng.choice(list(category.variants))
    value = rng.choice(category.variants[slot])
    after = slot == "size" and rng.random() < 0.5
    return Want(slot, value), "" if after else value, value if after else ""


def _text(*parts: str) -> str:
    return " ".join(" ".join(parts).split()).lower()


def _brand_model(category: Category, rng: random.Random) -> tuple[str, str]:
    brand = rng.choice(list(category.brands))
    return brand, rng.choice(category.brands[brand])


def category(c: Category, rng: random.Random) -> Query:
    return Query(_text(_noun(c, rng)), c.name)


def attribute(c: Category, rng: random.Random) -> Query:
    want, before, after = _attribute(c, rng)
    return Query(_text(before, _noun(c, rng), after), c.name, (want,))


def two_attributes(c: Category, rng: random.Random) -> Query | None:
    if len(c.variants) < 2:
        return None
    wants = tuple(Want(slot, rng.choice(values)) for slot, values in list(c.variants.items())[:2])
    return Query(_text(*(want.value for want in wants), _noun(c, rng)), c.name, wants)


def brand(c: Category, rng: random.Random) -> Query:
    name = rng.choice(list(c.brands))
    return Query(_text(name, _noun(c, rng)), c.name, (Want("brand", name),))


def brand_attribute(c: Category, rng: random.Random) -> Query:
    name = rng.choice(list(c.brands))
    want, before, after = _attribute(c, rng)
    return Query(_text(name, before, _noun(c, rng), after), c.name, (Want("brand", name), want))


def model(c: Category, rng: random.Random) -> Query:
    name, version = _brand_model(c, rng)
    noun = c.name if rng.random() < 0.6 else ""
    return Query(_text(name, version, noun), c.name, (Want("brand", name), Want("model", version)))


def model_attribute(c: Category, rng: random.Random) -> Query:
    name, version = _brand_model(c, rng)
    want, before, after = _attribute(c, rng)
    wants = (Want("brand", name), Want("model", version), want)
    return Query(_text(name, version, before, after), c.name, wants)


def accessory(c: Category, rng: random.Random) -> Query:
    part = rng.choice(c.accessories)
    return Query(_text(_noun(part, rng)), part.name, host=c.name)


def accessory_for_brand(c: Category, rng: random.Random) -> Query:
    part, name = rng.choice(c.accessories), rng.choice(list(c.brands))
    text = _text(_noun(part, rng), "for", name, c.name)
    return Query(text, part.name, host=c.name, fits=(name, ""))


def accessory_for_model(c: Category, rng: random.Random) -> Query:
    part, (name, version) = rng.choice(c.accessories), _brand_model(c, rng)
    noun = _noun(part, rng)
    text = rng.choice((_text(noun, "for", name, version), _text(name, version, noun)))
    return Query(text, part.name, host=c.name, fits=(name, version))


def accessory_attribute(c: Category, rng: random.Random) -> Query | None:
    part = rng.choice(c.accessories)
    if not part.colours:
        return None
    colour = rng.choice(part.colours)
    return Query(_text(colour, _noun(part, rng)), part.name, (Want("colour", colour),), host=c.name)


def without(c: Category, rng: random.Random) -> Query | None:
    if "colour" not in c.variants:
        return None
    colour = rng.choice(c.variants["colour"])
    return Query(_text(_noun(c, rng), "not", colour), c.name, (Want("colour", colour, negated=True),))


def like(c: Category, rng: random.Random) -> Query:
    name, version = _brand_model(c, rng)
    text = _text(rng.choice(("alternative to", "other brand than")), name, version, c.name)
    return Query(text, c.name, (Want("brand", name, negated=True),))


def bare_brand(c: Category, rng: random.Random) -> Query:
    name = rng.choice(list(c.brands))
    return Query(_text(name), None, (Want("brand", name),))


# How often each form comes, in parts of all draws.
FORMS: dict[Callable[[Category, random.Random], Query | None], int] = {
    category: 5,
    attribute: 18,
    two_attributes: 8,
    brand: 14,
    brand_attribute: 12,
    model: 14,
    model_attribute: 5,
    accessory: 5,
    accessory_for_brand: 6,
    accessory_for_model: 10,
    accessory_attribute: 4,
    without: 5,
    like: 3,
    bare_brand: 3,
}
