"""BM25 against values worked out by hand, and rankings put together in turn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill.candidates.bm25 import Bm25
from distill.candidates.mine import interleaved, nearest, product_text

TEXTS = ["red lamp", "red red mug", "blue lamp shade for the desk", "plain"]


def test_scores_are_those_of_the_formula() -> None:
    # 4 texts of 2, 3, 6 and 1 words, 3 on average. "red" is in 2 of them, "mug" in 1.
    red, mug = math.log(1 + 2.5 / 2.5), math.log(1 + 3.5 / 1.5)
    found = Bm25(TEXTS, k1=1.2, b=0.75).scores(["Red mug", "nothing"]).toarray()
    first = red * 1 / (1.2 * (0.25 + 0.75 * 2 / 3) + 1)
    second = red * 2 / (1.2 + 2) + mug * 1 / (1.2 + 1)
    assert found[0] == pytest.approx([first, second, 0, 0])
    assert found[1].tolist() == [0, 0, 0, 0]
    assert Bm25(TEXTS).scores(["red red"]).toarray()[0, 0] == pytest.approx(2 * first)


def test_the_best_come_first_and_texts_without_a_shared_word_never() -> None:
    index = Bm25(TEXTS)
    assert [places.tolist() for places in index.best(["red mug", "lamp", "gold"], 3)] == [[1, 0], [0, 2], []]
    assert index.best(["red mug"], 1)[0].tolist() == [1]


def test_texts_without_words_have_no_scores() -> None:
    assert [places.tolist() for places in Bm25(["★", "-"]).best(["lamp", "★"], 2)] == [[], []]


def test_the_nearest_have_the_highest_cosine_whatever_their_length() -> None:
    products = np.array([[10.0, 0], [1, 1], [0, 3], [1, 1]])
    found = nearest(np.array([[2.0, 0], [0, 1]]), products, 3)
    assert [places.tolist() for places in found] == [[0, 1, 3], [2, 1, 3]]
    assert [places.tolist() for places in nearest(products[:1], products, 9)] == [[0, 1, 3, 2]]


def test_a_brand_is_read_once() -> None:
    assert product_text({"title": "Harbor lamp", "brand": "HARBOR"}) == "Harbor lamp"
    assert product_text({"title": "Red lamp", "brand": "Harbor"}) == "Red lamp Harbor"
    assert product_text({"title": "Red lamp", "brand": None}) == "Red lamp"


def test_rankings_take_turns_and_a_product_is_taken_once() -> None:
    rankings = {"encoder": [4, 1, 2], "bm25": [4, 7, 5, 6]}
    first = {4: "encoder", 2: "encoder", 7: "bm25", 5: "bm25"}
    assert list(interleaved(rankings, {1}, 4).items()) == list(first.items())
    assert interleaved(rankings, {1}, 99) == first | {6: "bm25"}
    assert interleaved(rankings, {1}, 0) == {}
