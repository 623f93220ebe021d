"""What SFT learns from: kept rationales and seeds of training pairs, held out by query."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.tables import write_table
from mpcot.asking.prompts import HINT
from mpcot.config import (
    PerspectiveSettings,
    SampleSettings,
    TeacherSettings,
)
from mpcot.records import PAIR, SEED, SORTED
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import LabelSettings
from teacher.config import SftSettings, SftStage
from teacher.examples import EXAMPLE, VOTE, collect_examples
from teacher.fitting import Fitting
from teacher.model import load_tokenizer
from teacher.sft import cap_labels, check_labels, hold_out, sequence_lengths, to_sequences

SPLITS = ("train", "dev", "test", "train")


def pair(n: int) -> dict[str, Any]:
    row = dict.fromkeys(PAIR.names) | {"pair_id": f"p{n}", "query_id": f"q{n // 2}", "product_id": f"x{n}"}
    return row | {
        "locale": "us",
        "query": f"drill {n // 2}",
        "title": f"drill {n}",
        "label": "E",
        "split": SPLITS[n % 4],
    }


def kept(pair_id: str, perspective: str = "intent", sample: int = 0) -> dict[str, Any]:
    row = dict.fromkeys(SORTED.names) | {"key": f"{pair_id}{perspective}{sample}", "pair_id": pair_id}
    return row | {
        "perspective": perspective,
        "sample": sample,
        "rationale": f"kept {sample}",
        "verdict": "E",
        "hinted": False,
        "weight": 1.0,
    }


def seed(pair_id: str, perspective: str = "rules", verdict: str = "E") -> dict[str, Any]:
    return {"pair_id": pair_id, "perspective": perspective, "rationale": "seeded", "verdict": verdict, "origin": "seed"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    pairs, rationales = tmp_path / "1-pairs", tmp_path / "2-rationales"
    write_table(pairs / "pairs.parquet", pa.Table.from_pylist([pair(n) for n in range(8)], PAIR))
    seeds = [seed("p4"), seed("p1"), seed("p0", "winter")]
    write_table(pairs / "seeds.parquet", pa.Table.from_pylist(seeds, SEED))
    answers = [kept("p4", sample=1), kept("p4"), kept("p0", "rules"), kept("p1"), kept("p2")]
    write_table(rationales / "kept.parquet", pa.Table.from_pylist(answers, SORTED))
    return pairs, rationales


def stage(model: Path, **changes: Any) -> SftStage:
    return SftStage(
        seed=1,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(),
        teacher=TeacherSettings(model=str(model)),
        samples=SampleSettings(guide="short", description_chars=0),
        sft=SftSettings(**changes),
    )


def fitting(model: Path, max_tokens: int = 1024) -> Fitting:
    return Fitting(load_tokenizer(str(model)), max_tokens)


def test_examples_are_of_training_pairs_and_known_perspectives(folders: tuple[Path, Path], llama_folder: Path) -> None:
    examples = collect_examples(stage(llama_folder), *folders, fitting(llama_folder)).to_pylist()
    places = [(e["pair_id"], e["perspective"], e["origin"], e["answer"]) for e in examples]
    assert places == [
        ("p0", "rules", "teacher", "kept 0\nVerdict: E"),
        ("p4", "intent", "teacher", "kept 0\nVerdict: E"),
        ("p4", "intent", "teacher", "kept 1\nVerdict: E"),
        ("p4", "rules", "seed", "seeded\nVerdict: E"),
    ]
    assert [e["query_id"] for e in examples] == ["q0", "q2", "q2", "q2"]


def test_the_prompt_is_that_of_the_samples_not_of_the_few_shot_rationales(
    folders: tuple[Path, Path], llama_folder: Path
) -> None:
    prompt = collect_examples(stage(llama_folder), *folders, fitting(llama_folder))["prompt"][0].as_py()
    assert "Examples" not in prompt and "Query: drill 0\nProduct: drill 0" in prompt
    assert prompt.startswith("<system>") and prompt.endswith("<assistant>")


def test_what_was_answered_with_a_hint_is_marked_and_learnt_without_it(
    folders: tuple[Path, Path], llama_folder: Path
) -> None:
    plain = collect_examples(stage(llama_folder), *folders, fitting(llama_folder)).to_pylist()
    answers = [kept("p4", sample=1) | {"hinted": True}, kept("p4"), kept("p0", "rules") | {"hinted": True}]
    write_table(folders[1] / "kept.parquet", pa.Table.from_pylist(answers, SORTED))
    hinted = collect_examples(stage(llama_folder), *folders, fitting(llama_folder)).to_pylist()
    assert [e["origin"] for e in hinted] == ["hinted", "hinted", "teacher", "seed"]
    assert {e["prompt"] for e in hinted} == {e["prompt"] for e in plain}
    assert not any(HINT in e["prompt"] or HINT in e["answer"] for e in hinted)
    only = collect_examples(stage(llama_folder, origins=("seed",)), *folders, fitting(llama_folder))
    assert only["origin"].to_pylist() == ["seed"]


def test_origins_and_rows_can_be_bounded(folders: tuple[Path, Path], llama_folder: Path) -> None:
    for origins, count in ((("seed",), 1), (("teacher",), 3)):
        examples = collect_examples(stage(llama_folder, origins=origins), *folders, fitting(llama_folder))
        assert examples["origin"].to_pylist() == [origins[0]] * count
    assert len(collect_examples(stage(llama_folder, max_rows=2), *folders, fitting(llama_folder))) == 2


def examples(verdicts: str, queries: int = 1) -> pa.Table:
    fixed = dict.fromkeys(EXAMPLE.names, "x") | {"weight": 1.0}
    rows = [fixed | {"verdict": v, "query_id": f"q{i % queries}", "pair_id": f"p{i}"} for i, v in enumerate(verdicts)]
    return pa.Table.from_pylist(rows, EXAMPLE)


def test_a_label_that_nothing_teaches_stops_or_warns() -> None:
    scheme = load_scheme("esci")
    assert check_labels(examples("ESCI"), scheme, "stop") == []
    with pytest.raises(UserError, match=r"label C, I \(kept: E 2, S 1, C 0, I 0\).*missing_labels"):
        check_labels(examples("EES"), scheme, "stop")
    assert check_labels(examples("EES"), scheme, "warn") == ["C", "I"]


def test_nothing_kept_at_all_stops_whatever_the_config_says() -> None:
    with pytest.raises(UserError, match="no rationale was kept for label E, S, C, I"):
        check_labels(examples(""), load_scheme("esci"), "warn")


def test_held_out_queries_never_train() -> None:
    table = examples("E" * 2000, queries=500)
    train, dev = hold_out(table, 0.2, seed=1, most=10_000)
    assert len(train) + len(dev) == 2000
    queries = [set(t["query_id"].to_pylist()) for t in (train, dev)]
    assert not queries[0] & queries[1]
    assert len(queries[1]) == pytest.approx(100, abs=30)
    assert hold_out(table, 0.2, 1, 10_000)[1].equals(dev)
    assert not hold_out(table, 0.2, 2, 10_000)[1].equals(dev)


def test_what_is_not_judged_is_trained_on() -> None:
    """Of 100 queries of four answers each, dev has room for two queries, and for one at least."""
    table = examples("E" * 400, queries=100)
    for most, queries in ((9, 2), (8, 2), (7, 1), (1, 1)):
        train, dev = hold_out(table, 0.5, 1, most)
        assert len(set(dev["query_id"].to_pylist())) == queries and len(dev) == 4 * queries
        assert len(train) == 400 - len(dev) and not set(train["query_id"].to_pylist()) & set(
            dev["query_id"].to_pylist()
        )


def test_adding_rows_moves_no_query_between_the_parts() -> None:
    before = set(hold_out(examples("E" * 300, queries=100), 0.3, 1, 999)[1]["query_id"].to_pylist())
    after = set(hold_out(examples("E" * 900, queries=300), 0.3, 1, 999)[1]["query_id"].to_pylist())
    assert before <= after


def test_answers_of_a_pair_share_a_sequence() -> None:
    table = examples("ESCIE").set_column(0, "pair_id", pa.array(["p1", "p2", "p2", "p2", "p3"]))
    assert [len(row["answers"]) for row in to_sequences(table, 8).to_pylist()] == [1, 3, 1]
    assert [len(row["prompts"]) for row in to_sequences(table, 2).to_pylist()] == [1, 2, 1, 1]
    assert [row["pair_id"] for row in to_sequences(table, 1).to_pylist()] == ["p1", "p2", "p2", "p2", "p3"]


def test_answers_of_a_pair_are_cut_alike_so_that_they_share_what_they_can(
    folders: tuple[Path, Path], llama_folder: Path
) -> None:
    """A long answer and a short one: each cut for itself, the prompts would part inside the description."""
    long = pair(4) | {"description": "a drill with a battery and a case and bits " * 12}
    rows = [long if row["pair_id"] == "p4" else row for row in map(pair, range(8))]
    write_table(folders[0] / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    answers = [kept("p4"), kept("p4", sample=1) | {"rationale": "the shopper wants to drill holes into a wall " * 3}]
    write_table(folders[1] / "kept.parquet", pa.Table.from_pylist(answers, SORTED))
    stage_ = stage(llama_folder, origins=("teacher",))
    stage_ = stage_.model_copy(update={"samples": SampleSettings(guide="short", description_chars=1000)})
    whole = collect_examples(stage_, *folders, fitting(llama_folder, 4096))["prompt"].to_pylist()
    tokenizer = load_tokenizer(str(llama_folder))
    room = len(tokenizer.encode("kept 0\nVerdict: E")) + 1  # for the short answer, and not for the long one
    tight = fitting(llama_folder, len(tokenizer.encode(whole[0])) + room)
    table = collect_examples(stage_, *folders, tight)
    prompts = table["prompt"].to_pylist()
    assert tight.cut == {"description": 2} and not tight.left_out
    assert prompts[0] == prompts[1] != whole[0] == whole[1]
    (length,) = sequence_lengths(tight, to_sequences(table, 8).to_pylist())
    said = [len(tokenizer.encode(text)) + 1 for text in table["answer"].to_pylist()]
    assert length == len(tokenizer.encode(prompts[0])) - 1 + sum(said) + 2, "each keeps one token of the prompt"


def test_votes_on_unlabelled_pairs_count_by_agreement_where_asked_for(
    folders: tuple[Path, Path], llama_folder: Path
) -> None:
    pairs = [pair(n) for n in range(8)] + [pair(8) | {"split": "unlabelled", "label": None}]
    write_table(folders[0] / "pairs.parquet", pa.Table.from_pylist(pairs, PAIR))
    write_table(folders[0] / "seeds.parquet", pa.Table.from_pylist([seed("p4"), seed("p8")], SEED))
    answers = [kept("p4"), kept("p8") | {"weight": 0.5}, kept("p8", "rules") | {"weight": 0.5}]
    write_table(folders[1] / "kept.parquet", pa.Table.from_pylist(answers, SORTED))
    plain = collect_examples(stage(llama_folder), *folders, fitting(llama_folder))
    assert [(e["pair_id"], e["origin"]) for e in plain.to_pylist()] == [("p4", "teacher"), ("p4", "seed")]
    more = collect_examples(stage(llama_folder, use_unlabelled=True), *folders, fitting(llama_folder))
    found = [(e["pair_id"], e["origin"], e["weight"]) for e in more.to_pylist()]
    assert found == [("p4", "teacher", 1.0), ("p4", "seed", 1.0), ("p8", VOTE, 0.5), ("p8", VOTE, 0.5)]
    assert to_sequences(more, 8)["weights"].to_pylist() == [[1.0, 1.0], [0.5, 0.5]]


def test_votes_train_but_never_judge() -> None:
    """Every fourth query has votes only; one more vote is about a query that is judged by its gold labels."""
    origins = [VOTE if n % 100 % 4 == 0 else "teacher" for n in range(400)]
    table = with_origins(examples("E" * 400, queries=100), origins)
    held = hold_out(table, 0.3, 1, 999)[1].slice(0, 1)
    train, dev = hold_out(pa.concat_tables([table, with_origins(held, [VOTE])]), 0.3, 1, 999)
    assert set(dev["origin"].to_pylist()) == {"teacher"} and len(dev) > 20
    assert train["origin"].to_pylist().count(VOTE) == 100
    assert len(train) + len(dev) == 400
    assert not set(train["query_id"].to_pylist()) & set(dev["query_id"].to_pylist())


def with_origins(table: pa.Table, origins: list[str]) -> pa.Table:
    return table.set_column(table.schema.get_field_index("origin"), EXAMPLE.field("origin"), pa.array(origins))


def labelled(verdicts: str) -> pa.Table:
    """One answer per letter from each of two perspectives, every letter a pair of its own."""
    rows = [
        {"pair_id": f"p{i}", "query_id": "q", "perspective": name, "prompt": "", "answer": "", "verdict": verdict}
        for i, verdict in enumerate(verdicts)
        for name in ("intent", "rules")
    ]
    return pa.Table.from_pylist(rows, EXAMPLE)


def test_frequent_labels_are_capped_by_whole_pairs() -> None:
    examples = labelled("EEEEEEEESSSI")
    capped = cap_labels(examples, 2.0, seed=3)
    assert Counter(capped["verdict"].to_pylist()) == {"E": 4, "S": 4, "I": 2}
    assert set(Counter(capped["pair_id"].to_pylist()).values()) == {2}
    assert capped.equals(cap_labels(examples, 2.0, seed=3))
    order = [i for i in examples["pair_id"].to_pylist() if i in set(capped["pair_id"].to_pylist())]
    assert capped["pair_id"].to_pylist() == order


@pytest.mark.parametrize("ratio", [None, 100.0])
def test_a_ratio_that_no_label_passes_leaves_all(ratio: float | None) -> None:
    examples = labelled("EEESI")
    assert cap_labels(examples, ratio, seed=3).equals(examples)
