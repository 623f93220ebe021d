"""What a rationale may name: what query or product have, and what the world knows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cluster.base.errors import UserError
from mpcot.filters.chain import WellFormed
from tests.helpers.filter_chain import GOLD, chain

TEXT = "Query: macbook case 13 inch\nProduct: Orchard Slim Case for A2337 Laptop, 13.3 in, Pack of two, 1,200 g"


@pytest.mark.parametrize(
    ("rationale", "expected"),
    [
        ("The case is for a 13 inch laptop, 13.3 in, as 13-inch, and weighs 1.2 kg or 1200 g.", None),
        ("Orchard's slim case fits the A2337, in a pack of 2, known since 2020.", None),
        ("It has a price tag of $289.", "not grounded: a number"),
        ("It is 14 inches wide.", "not grounded: a number"),
        ("It fits the A2442.", "not grounded: a model name"),
        ("The case is made by the company Apple.", "not grounded: a brand"),
        ('Made by the company Orchard. Cases like this differ. "Slim" is its name, for USB, in English.', None),
        ("A case for an Orcherd laptop: misspelt, but the same.", None),
    ],
)
def test_what_is_in_neither_query_nor_product_is_not_grounded(rationale: str, expected: str | None) -> None:
    answer = WellFormed("p", "rules", rationale, "E", GOLD, text=TEXT)
    assert chain("grounded").reason(answer) == expected


def test_words_of_ones_own_and_languages_with_capital_nouns(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("Apple\nA2442\n")
    own = chain({"kind": "grounded", "words_file": str(words)})
    for text in ("Made by the company Apple for the A2442.", "The case is of Apple."):
        assert own.reason(WellFormed("p", "rules", text, "E", GOLD, text=TEXT)) is None
    german = WellFormed("p", "rules", "Das ist eine Tasche aus dem besten Leder.", "E", GOLD, text=TEXT)
    assert chain("grounded").reason(german) == "not grounded: a brand"
    assert chain({"kind": "grounded", "brands": False}).reason(german) is None
    with pytest.raises(UserError, match=r"grounded\.words_file .*none\.txt cannot be read"):
        chain({"kind": "grounded", "words_file": str(tmp_path / "none.txt")})


def test_few_rationales_of_a_strong_teacher_are_not_grounded() -> None:
    """Of these, most name what the world knows of a film or a brand, and no product's text has."""
    folder = Path(__file__).parents[5] / "shared" / "data" / "esci"
    if not folder.is_dir():
        pytest.skip("the shared data is not beside the repository")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").open(encoding="utf-8")]
    known = {(row["query"], row["product_id"]): " ".join(str(value) for value in row.values() if value) for row in rows}
    steps, look = chain("form", "length"), chain("grounded")
    failed = Counter[str]()
    rationales = [json.loads(line) for line in (folder / "rationales.jsonl").open(encoding="utf-8")]
    for row in rationales:
        text = known[row["query"], row["product_id"]]
        answer = WellFormed("p", row["perspective"], row["rationale"], row["verdict"], GOLD, text=text)
        failed["form or length"] += steps.reason(answer) is not None
        failed["grounded"] += look.reason(answer) is not None
    assert failed["form or length"] < 0.01 * len(rationales) and failed["grounded"] < 0.04 * len(rationales)
