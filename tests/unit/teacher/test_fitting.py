"""What does not fit into `max_tokens` loses of the product, in order, or is left out; both are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.base.tables import write_table
from mpcot.asking.prompts import answer
from mpcot.config import SampleSettings
from mpcot.perspectives.perspective import Perspective
from mpcot.records import PAIR, SEED, SORTED
from mpcot.schemes.scheme import load_scheme
from teacher.answer_tokens import encode
from teacher.examples import collect_examples, prompt_of
from teacher.fitting import ANSWER_TOO_LONG, PROMPT_TOO_LONG, Fitting
from tests.helpers.tiny_llama import tiny_llama_tokenizer
from tests.unit.teacher.test_sft_data import kept, pair, seed, stage

CASES = Path(__file__).parents[4] / "shared" / "cases"
TOKENIZER = tiny_llama_tokenizer()
SAID = answer("It fits.", "E")
PRODUCT: dict[str, Any] = {
    "query": "red drill",
    "title": "cordless drill in red",
    "description": "d" * 40,
    "bullets": "b" * 40,
    "attributes": [("colour", "red"), ("volts", "18")],
}


def written(row: Any) -> str:
    told = "".join(f"{name}={value};" for name, value in row["attributes"])
    return f"SYSTEM {row['query']} | {row['title']} | {told} {row['description']} {row['bullets']} QUESTION"


def tokens(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False))


def fitted(room: int) -> tuple[str | None, Fitting]:
    """Fit the product's prompt into `room` tokens."""
    fitting = Fitting(TOKENIZER, room + tokens(SAID) + 1)
    return fitting.prompts(PRODUCT, [(SAID, written)])[0], fitting


def test_a_prompt_that_fits_stays_whole() -> None:
    prompt, fitting = fitted(tokens(written(PRODUCT)))
    assert prompt == written(PRODUCT) and not fitting.cut and not fitting.left_out


@pytest.mark.parametrize(
    ("gone", "field", "begins"),
    [
        ({}, "bullets", ("cordless drill in red | colour=red;volts=18; " + "d" * 40 + " b")),
        ({"bullets": ""}, "description", "cordless drill in red | colour=red;volts=18; d"),
        ({"bullets": "", "description": ""}, "attributes", "cordless drill in red | colour=red; "),
        ({"bullets": "", "description": "", "attributes": []}, "title", "cordless dril"),
    ],
)
def test_details_go_first_and_the_title_last(gone: dict[str, Any], field: str, begins: str) -> None:
    """One token less than what is left without `gone` has room: the field in turn is cut, and as little as needed."""
    room = tokens(written(PRODUCT | gone)) - 1
    prompt, fitting = fitted(room)
    assert prompt is not None and tokens(prompt) <= room
    assert dict(fitting.cut) == {field: 1} and not fitting.left_out
    assert prompt.startswith("SYSTEM red drill | " + begins) and prompt.endswith("QUESTION")


def test_as_much_as_fits_is_kept() -> None:
    for room in range(tokens(written(PRODUCT)) - 1, tokens(written(PRODUCT | {"bullets": ""})), -1):
        prompt, fitting = fitted(room)
        assert prompt is not None and fitting.cut == {"bullets": 1}
        size = prompt.count("b")
        longer = written(PRODUCT | {"bullets": "b" * (size + 1)})
        assert tokens(prompt) <= room < tokens(longer)


def test_what_cannot_fit_is_left_out_with_its_reason() -> None:
    bare = PRODUCT | {"bullets": "", "description": "", "attributes": [], "title": "c"}
    prompt, fitting = fitted(tokens(written(bare)))
    assert prompt is not None and fitting.cut == {"title": 1}
    prompt, fitting = fitted(tokens(written(bare)) - 1)
    assert prompt is None and fitting.left_out == {PROMPT_TOO_LONG: 1} and not fitting.cut
    prompt, fitting = fitted(0)
    assert prompt is None and fitting.left_out == {ANSWER_TOO_LONG: 1}


def test_prompts_about_a_pair_tell_the_same_of_the_product() -> None:
    """The answer with the least room decides, and one that has none at all costs the others nothing."""
    long = SAID * 2
    fitting = Fitting(TOKENIZER, tokens(written(PRODUCT)) + tokens(SAID) + 1)
    alone = fitting.prompts(PRODUCT, [(long, written)])
    assert alone != [written(PRODUCT)] and fitting.cut == {"bullets": 1}
    assert fitting.prompts(PRODUCT, [(SAID, written), (long, written)]) == alone * 2 and fitting.cut == {"bullets": 3}
    assert fitting.prompts(PRODUCT, [(SAID * 50, written), (SAID, written)]) == [None, written(PRODUCT)]
    assert fitting.left_out == {ANSWER_TOO_LONG: 1} and fitting.cut == {"bullets": 3}


def test_a_long_seed_is_left_out_and_the_rest_is_trained_on(tmp_path: Path) -> None:
    pairs, rationales = tmp_path / "1-pairs", tmp_path / "2-rationales"
    long = seed("p4") | {"rationale": "the shopper asked for a red lamp and this is one. " * 110}
    write_table(pairs / "pairs.parquet", pa.Table.from_pylist([pair(n) for n in range(8)], PAIR))
    write_table(pairs / "seeds.parquet", pa.Table.from_pylist([long, seed("p0")], SEED))
    write_table(rationales / "kept.parquet", pa.Table.from_pylist([kept("p4")], SORTED))
    fitting = Fitting(TOKENIZER, 1024)
    found = collect_examples(stage(tmp_path), pairs, rationales, fitting).to_pylist()
    assert [(row["pair_id"], row["origin"]) for row in found] == [("p0", "seed"), ("p4", "teacher")]
    assert fitting.left_out == {ANSWER_TOO_LONG: 1}
    for row in found:
        encode(TOKENIZER, row["prompt"], row["answer"], 1024)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not beside the repository")
def test_a_long_title_never_costs_the_query() -> None:
    """A Japanese title of 224 characters, of which there is room for 100 bytes, each of which is a token here."""
    found = json.loads((CASES / "t3_long_title.jsonl").read_text(encoding="utf-8").splitlines()[0])
    row = dict.fromkeys(PAIR.names) | found
    intent = Perspective(name="intent", question="What does the shopper want to do?", examples=())
    form, scheme = SampleSettings(guide="short", description_chars=0), load_scheme("binary")

    def render(about: Any) -> str:
        return prompt_of(TOKENIZER, scheme, form, intent, about)

    most = tokens(render(row | {"title": ""})) + 100 + tokens(SAID) + 1
    fitting = Fitting(TOKENIZER, most)
    (prompt,) = fitting.prompts(row, [(SAID, render)])
    assert prompt is not None and fitting.cut == {"title": 1}
    assert f"Query: {found['query']}\n" in prompt and prompt.startswith("<system>") and intent.question in prompt
    assert found["title"] not in prompt and found["title"][:20] in prompt
    encode(TOKENIZER, prompt, SAID, most)
