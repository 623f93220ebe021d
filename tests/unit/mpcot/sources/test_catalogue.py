"""The catalogue: labels follow from the structure, the mix is like real data, rationales fit their pair."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from cluster.base.errors import UserError
from mpcot.sources.catalogue import make_pairs as generate
from mpcot.sources.catalogue.derive_labels import Query, Want, judge
from mpcot.sources.catalogue.make_pairs import make_pairs
from mpcot.sources.catalogue.queries import make_queries
from mpcot.sources.catalogue.source import read_catalogue
from mpcot.sources.catalogue.world import Product, load_world, make_products
from mpcot.sources.catalogue.write_rationales import PERSPECTIVES, rationale
from mpcot.sources.clean_rows import Cleaning
from mpcot.sources.config import CatalogueSource

SOURCE = CatalogueSource()


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(SOURCE.pairs, SOURCE.products_per_query, SOURCE.hard_share, SOURCE.world_seed)


def phone(brand: str = "Maple", model: str = "Orbit 5", **more: str) -> Product:
    return Product("p1", "smartphone", "", "", {"brand": brand, "model": model, **more})


def case_for(brand: str = "Maple", model: str = "Orbit 5", maker: str = "Echo") -> Product:
    fits = ("smartphone", brand, model)
    return Product("p2", "phone case", "", "", {"brand": maker, "colour": "black"}, fits)


def asks(type_: str | None, host: str | None = None, fits: tuple[str, str] | None = None, **wants: str) -> Query:
    negated = wants.pop("no_brand", None)
    points = tuple(Want(slot, value) for slot, value in wants.items())
    return Query("", type_, points + ((Want("brand", negated, True),) if negated else ()), host, fits)


PHONE = {"type_": "smartphone", "brand": "Maple", "model": "Orbit 5"}
CASE = {"type_": "phone case", "host": "smartphone", "fits": ("Maple", "Orbit 5")}


@pytest.mark.parametrize(
    ("query", "product", "label"),
    [
        (asks("smartphone"), phone(), "E"),
        (asks(**PHONE), phone(), "E"),
        (asks(**PHONE), phone(model="Orbit 4"), "S"),
        (asks(**PHONE), phone("Falcon", "Pulse 7"), "S"),  # another brand is one miss, its model no second
        (asks(**PHONE, colour="blue"), phone(colour="black"), "S"),
        (asks(**PHONE, colour="blue"), phone(model="Orbit 4", colour="black"), "I"),
        (asks(**PHONE), case_for(), "C"),
        (asks(**PHONE), case_for(model="Orbit 4"), "I"),
        (asks(**PHONE), case_for(model="Orbit 4", maker="Maple"), "I"),
        (asks("smartphone"), case_for("Falcon", "Pulse 7"), "C"),
        (asks(**CASE), case_for(), "E"),
        (asks(**CASE), case_for(model="Orbit 4"), "I"),
        (asks(**CASE), phone(), "C"),
        (asks(**CASE), phone(model="Orbit 4"), "I"),
        (asks("phone case", host="smartphone", colour="red"), case_for(), "S"),
        (asks("smartphone", no_brand="Maple"), phone(), "S"),
        (asks("smartphone", no_brand="Maple"), phone("Falcon"), "E"),
        (asks(None, brand="Maple"), phone(), "E"),
        (asks(None, brand="Maple"), case_for(maker="Echo"), "C"),
        (asks(None, brand="Maple"), phone("Falcon"), "I"),
        (asks("laptop"), phone(), "I"),
        (asks("laptop"), case_for(), "I"),
    ],
)
def test_label_follows_from_structure(query: Query, product: Product, label: str):
    assert judge(query, product).label == label


def test_same_arguments_same_pairs_and_another_seed_others(pairs):
    again = make_pairs(SOURCE.pairs, SOURCE.products_per_query, SOURCE.hard_share, SOURCE.world_seed)
    other = make_pairs(SOURCE.pairs, SOURCE.products_per_query, SOURCE.hard_share, SOURCE.world_seed + 1)
    assert pairs == again
    assert pairs != other


def test_mix_and_size_are_like_real_data(pairs):
    shares = {label: count / len(pairs) for label, count in Counter(p.judgement.label for p in pairs).items()}
    assert len(pairs) == 720
    assert 0.54 <= shares["E"] <= 0.64
    assert 0.17 <= shares["S"] <= 0.26
    assert 0.06 <= shares["C"] <= 0.12
    assert 0.08 <= shares["I"] <= 0.15


def test_queries_have_several_products_none_twice(pairs):
    seen = Counter((p.query.text, p.product.product_id) for p in pairs)
    per_query = Counter(p.query.text for p in pairs)
    assert max(seen.values()) == 1
    assert sum(count >= 3 for count in per_query.values()) > 0.9 * len(per_query)
    assert len(per_query) >= 80


def test_hard_cases_are_there(pairs):
    cases = Counter(p.judgement.case for p in pairs)
    forms = Counter(p.query.form for p in pairs)
    for case in ("does_not_fit", "foreign_accessory", "foreign_host", "many_misses"):
        assert cases[case] >= 5, cases
    assert forms["without"] > 0
    assert forms["like"] > 0
    generation = [p for p in pairs if [c.slot for c in p.judgement.misses] == ["model"]]
    size = [p for p in pairs if [c.slot for c in p.judgement.misses] == ["size"]]
    assert len(generation) >= 5
    assert len(size) >= 5
    # An accessory with the brand and model of the query in its title is not the thing asked for.
    assert any(
        p.judgement.label == "C" and p.product.fits and " ".join(p.product.fits[1:]).lower() in p.query.text
        for p in pairs
    )


def test_whatever_decides_stands_in_the_title(pairs):
    for pair in pairs:
        title = pair.product.title.lower()
        parts = [*pair.product.attributes.values(), *(pair.product.fits or ())[1:], pair.product.type]
        assert all(part.lower() in title for part in parts), pair


def test_typos_are_rare_but_there(pairs):
    nouns = {w for c in load_world().categories for t in (c, *c.accessories) for w in (t.name, t.plural)}
    words = {word for noun in nouns for word in noun.split()}
    typed = {p.query.text for p in pairs if p.query.form in ("category", "brand", "accessory")}
    brands = {brand.lower() for c in load_world().categories for brand in c.brands}
    wrong = {text for text in typed if set(text.split()) - words - brands}
    assert 0 < len(wrong) < 0.2 * len(typed)


def test_catalogue_has_several_hundred_products_with_ids_of_their_own():
    products = make_products(load_world(), 3)
    assert 400 <= len(products) <= 900
    assert len({p.product_id for p in products}) == len(products)


@pytest.mark.parametrize("perspective", PERSPECTIVES)
def test_rationales_are_short_varied_and_about_their_pair(pairs, perspective: str):
    texts = [rationale(pair, perspective) for pair in pairs]
    words = [len(text.split()) for text in texts]
    assert 15 <= sum(words) / len(words) <= 28
    assert max(words) <= 36
    assert not any("{" in text or "none" in text or "  " in text for text in texts)
    assert len(set(texts)) > 0.35 * len(texts)
    assert texts == [rationale(pair, perspective) for pair in pairs]
    assert sum(p.product.type in t or (p.query.type or "") in t for p, t in zip(pairs, texts, strict=True)) > 600


def test_attribute_rationale_names_every_point_that_misses(pairs):
    for pair in (p for p in pairs if p.judgement.case in ("one_miss", "many_misses")):
        text = rationale(pair, "attributes")
        assert all(c.offered.split()[-1] in text and "differs" in text for c in pair.judgement.misses), text


def test_more_pairs_than_the_world_has_is_a_user_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generate, "make_queries", lambda *args: islice(make_queries(*args), 5))
    with pytest.raises(UserError, match=r"source\.pairs"):
        make_pairs(200, 6, 0.5, 3)


def test_a_scheme_without_esci_needs_a_label_map():
    with pytest.raises(UserError, match=r"source\.label_map"):
        read_catalogue(SOURCE, Cleaning(("1", "0"), {}, "us"))
    mapped = Cleaning(("1", "0"), {"E": "1", "S": "1", "C": "0", "I": "0"}, "us")
    source = read_catalogue(CatalogueSource(pairs=30), mapped)
    assert set(source.rows["label"].to_pylist()) == {"0", "1"}
    assert source.seeds is not None and set(source.seeds["verdict"].to_pylist()) == {"0", "1"}
