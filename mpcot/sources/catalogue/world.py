"""The products of an invented shop, made from the categories in `world.toml`."""

from __future__ import annotations

import itertools
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORLD = Path(__file__).parent / "world.toml"
VARIANTS = 4  # products of one model


@dataclass(frozen=True)
class Accessory:
    """A kind of accessory or spare part. Each product of it fits one model of the host product."""

    name: str
    plural: str
    colours: tuple[str, ...]
    purpose: str


@dataclass(frozen=True)
class Category:
    """A kind of product: its brands and models, the attributes in which variants differ, its accessories."""

    name: str
    plural: str
    purpose: str
    brands: dict[str, tuple[str, ...]]
    variants: dict[str, tuple[str, ...]]  # slot -> values, in title order; slots: feature, size, colour
    names: dict[str, str]  # slot -> its name in this category: size -> "storage"
    accessories: tuple[Accessory, ...]


@dataclass(frozen=True)
class Product:
    """One product. `attributes` may have brand, model, feature, size and colour; `fits` is (host, brand, model).

    `shown` holds attributes under the names that the shop gives them.
    """

    product_id: str
    type: str
    title: str
    purpose: str
    attributes: dict[str, str] = field(hash=False)
    fits: tuple[str, str, str] | None = None
    description: str = ""
    shown: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def brand(self) -> str:
        return self.attributes["brand"]


@dataclass(frozen=True)
class World:
    """The categories, and the brands that make accessories for all of them."""

    categories: tuple[Category, ...]
    accessory_brands: tuple[str, ...]


def load_world(path: Path = WORLD) -> World:
    """Read the world's description."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    categories = tuple(_category(entry) for entry in data["category"])
    return World(categories, tuple(data["accessory_brands"]))


def _category(entry: dict[str, Any]) -> Category:
    slots = {"feature": "features", "size": "sizes", "colour": "colours"}
    return Category(
        name=entry["name"],
        plural=entry["plural"],
        purpose=entry["purpose"],
        brands={brand: tuple(models) for brand, models in entry["brands"].items()},
        variants={slot: tuple(entry[key]) for slot, key in slots.items() if entry.get(key)},
        names={slot: entry.get(slot, slot) for slot in slots},
        accessories=tuple(
            Accessory(a["name"], a["plural"], tuple(a["colours"]), a["purpose"]) for a in entry["accessories"]
        ),
    )


def make_products(world: World, seed: int) -> list[Product]:
    """Return the shop's products. The same seed gives the same list."""
    rng = random.Random(f"products/{seed}")
    products: list[Product] = []
    for category in world.categories:
        for drafts in (_hosts(category, rng), _parts(category, world.accessory_brands, rng)):
            for draft in drafts:
                products.append(Product(product_id=f"p{len(products) + 1:04d}", **draft))
    return products


def _models(category: Category) -> Iterator[tuple[str, str]]:
    return ((brand, model) for brand, models in category.brands.items() for model in models)


def _hosts(category: Category, rng: random.Random) -> Iterator[dict[str, Any]]:
    for brand, model in _models(category):
        combinations = list(itertools.product(*category.variants.values()))
        for values in rng.sample(combinations, min(VARIANTS, len(combinations))):
            variant = dict(zip(category.variants, values, strict=True))
            yield {
                "type": category.name,
                "title": _host_title(category.name, brand, model, variant, rng),
                "purpose": category.purpose,
                "attributes": {"brand": brand, "model": model, **variant},
                "description": f"{category.name.capitalize()} to {category.purpose}.",
                "shown": {"type": category.name, "model": model}
                | {category.names[slot]: value for slot, value in variant.items()},
            }


def _host_title(name: str, brand: str, model: str, variant: dict[str, str], rng: random.Random) -> str:
    feature, size, colour = (variant.get(slot, "") for slot in ("feature", "size", "colour"))
    noun, feature, colour = name.title(), feature.title(), colour.title()
    forms = (
        [f"{brand} {model} {feature} {noun}", size, colour],
        [f"{brand} {feature} {noun} {model}", size, colour],
        [f"{brand} {model} {size} {feature} {noun}", colour],
        [f"{brand} {model} {colour} {feature} {noun}", size],
    )
    return ", ".join(" ".join(part.split()) for part in rng.choice(forms) if part)


def _parts(category: Category, brands: tuple[str, ...], rng: random.Random) -> Iterator[dict[str, Any]]:
    for part in category.accessories:
        for host_brand, model in _models(category):
            for colour in rng.sample(part.colours, min(2, len(part.colours))) or [""]:
                # Half of the parts have the host's brand, so that the title's words alone do not decide the label.
                brand = host_brand if rng.random() < 0.5 else rng.choice(brands)
                variant = {"colour": colour} if colour else {}
                yield {
                    "type": part.name,
                    "title": _part_title(part.name, brand, f"{host_brand} {model}", colour, rng),
                    "purpose": part.purpose,
                    "attributes": {"brand": brand, **variant},
                    "fits": (category.name, host_brand, model),
                    "description": f"To {part.purpose}. Fits the {host_brand} {model} {category.name} only.",
                    "shown": {"type": part.name, "made for": f"{host_brand} {model}", **variant},
                }


def _part_title(name: str, brand: str, host: str, colour: str, rng: random.Random) -> str:
    noun, tail = name.title(), f", {colour.title()}" if colour else ""
    forms = (
        f"{brand} {noun} for {host}{tail}",
        f"{brand} {noun}, compatible with {host}{tail}",
        f"{noun} for {host} by {brand}{tail}",
    )
    return rng.choice(forms)
