"""Answers taken apart: every reason for not using one, and the labels' log-probabilities."""

from __future__ import annotations

import pytest

from cluster.base.errors import UserError
from mpcot.asking.engines.engine import Reply
from mpcot.asking.parsing import LabelTokens, Parsed, parse_answer
from mpcot.asking.prompts import answer
from mpcot.asking.worker import answer_row
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.votes import distribution
from tests.helpers.tiny_llama import tiny_llama_tokenizer

ESCI = load_scheme("esci")


def scheme_of(*codes: str) -> Scheme:
    first = ESCI.labels[0]
    labels = [first.model_copy(update={"code": c, "relevant": i == 0}) for i, c in enumerate(codes)]
    return Scheme(name="own", labels=tuple(labels))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("\nVerdict: E", "empty"),
        ("  \nVerdict: S", "empty"),
        ("The shopper wants a drill.", "unparsable: no verdict line"),
        ("It is a drill. Verdict: E", "unparsable: no verdict line"),
        ("Verdict: E", "unparsable: no verdict line"),
        ("It is a drill.\nVerdict: X", "verdict outside the scheme: 'X'"),
        ("It is a drill.\nVerdict:", "verdict outside the scheme: ''"),
        ("It is a drill.\nVerdict: E because", "verdict outside the scheme: 'E because'"),
        ("It is a drill.\nVerdict: e", "verdict outside the scheme: 'e'"),
        ("It is a drill.\nVerdict: " + "z" * 99, f"verdict outside the scheme: {'z' * 20!r}"),
    ],
)
def test_what_cannot_be_used_says_why(text: str, reason: str) -> None:
    assert parse_answer(text, ESCI).reason == reason


def test_white_space_is_no_content() -> None:
    assert parse_answer("  It is\t a \n\n drill. \nVerdict:  E \n", ESCI) == Parsed("It is a\ndrill.", "E", None)
    assert parse_answer("One.\n \n Two. \n", ESCI).rationale == "One.\nTwo."


def test_the_last_verdict_counts() -> None:
    assert parse_answer("One\nVerdict: E\nNo.\nVerdict: I", ESCI).verdict == "I"


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ("Confidence: 85", 0.85),
        ("Confidence: 85 %", 0.85),
        ("confidence = 85%", 0.85),
        ("**Confidence:** 85/100", 0.85),
        ("- Confidence level: about 62.5 percent", 0.625),
        ("Confidence: 0.85", 0.85),
        ("Confidence: 0.5 %", 0.005),
        ("Confidence: 0", 0.0),
        ("Confidence: 1", 0.01),
        ("Confidence: 100", 1.0),
        ("Confidence: 1.0", 1.0),
    ],
)
def test_a_confidence_is_read_before_and_after_the_verdict(said: str, share: float) -> None:
    for text in (f"It is a drill.\n{said}\nVerdict: E", f"It is a drill.\nVerdict: E\n{said}\n"):
        found = parse_answer(text, ESCI, confidence=True)
        assert found == Parsed("It is a drill.", "E", None, pytest.approx(share))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("120", "confidence outside 0 to 100: '120'"),
        ("100.5 %", "confidence outside 0 to 100: '100.5 %'"),
        ("-5", "confidence outside 0 to 100: '-5'"),
        ("high", "confidence is no number: 'high'"),
        ("", "confidence is no number: ''"),
    ],
)
def test_a_confidence_that_is_no_percentage_is_an_objection(said: str, reason: str) -> None:
    assert parse_answer(f"It is a drill.\nConfidence: {said}\nVerdict: E", ESCI, confidence=True).reason == reason


def test_an_answer_without_its_confidence_can_be_used_and_one_that_nobody_wanted_is_left_out() -> None:
    assert parse_answer("It is a drill.\nVerdict: E", ESCI, confidence=True) == Parsed("It is a drill.", "E", None)
    stated = "It is a cordless drill.\nConfidence: 85\nVerdict: E"
    assert parse_answer(stated, ESCI) == Parsed("It is a cordless drill.", "E", None)


def test_the_soft_label_of_a_stated_confidence_stands_for_missing_logprobs_alone() -> None:
    """70 percent of E leave 30 to the other three labels, 10 each."""
    said = answer("It is a drill.", "E", 70)
    row = answer_row(Reply(said, None, 7, 9), ESCI, confidence=True)
    assert (row["rationale"], row["verdict"], row["reason"]) == ("It is a drill.", "E", None)
    assert distribution(row["logprobs"], "E", ESCI) == pytest.approx([0.7, 0.1, 0.1, 0.1])
    sure = answer_row(Reply(answer("It is a drill.", "S", 100), None, 7, 9), ESCI, confidence=True)
    assert distribution(sure["logprobs"], "S", ESCI) == pytest.approx([0, 1, 0, 0])
    given = [-0.1, -3.0, -4.0, -5.0]
    assert answer_row(Reply(said, given, 7, 9), ESCI, confidence=True)["logprobs"] == given
    silent = answer_row(Reply(answer("It is a drill.", "E"), None, 7, 9), ESCI, confidence=True)
    assert silent["logprobs"] is None and silent["reason"] is None


def test_an_engines_own_error_comes_before_the_parsers() -> None:
    row = answer_row(Reply("half a sen", [-1.0], 7, 9, "too long: the answer met max_tokens"), ESCI)
    assert row["reason"].startswith("too long") and row["verdict"] is None and row["output_tokens"] == 9
    row = answer_row(Reply(answer("It is a drill.", "E"), None, 7, 9), ESCI)
    assert row["reason"] is None and row["rationale"] == "It is a drill."


@pytest.mark.parametrize("name", ["esci", "graded", "binary"])
def test_label_tokens_are_those_that_the_answer_holds(name: str) -> None:
    tokenizer, scheme = tiny_llama_tokenizer(), load_scheme(name)
    labels = LabelTokens.of(tokenizer, scheme)
    assert len(set(labels.ids)) == len(scheme.codes)
    for code, token in zip(scheme.codes, labels.ids, strict=True):
        written = tokenizer.encode(answer("It is a drill", code))
        assert written[-1] == token
        assert code in tokenizer.decode([token])


def test_labels_that_begin_alike_are_refused() -> None:
    tokenizer = tiny_llama_tokenizer()
    with pytest.raises(UserError, match="cannot tell the codes exact, extra apart"):
        LabelTokens.of(tokenizer, scheme_of("exact", "extra"))
    with pytest.raises(UserError, match=r"E, EE.*begin differently"):
        LabelTokens.of(tokenizer, scheme_of("E", "EE"))
    with pytest.raises(UserError, match="apart by their first token"):
        LabelTokens.of(tokenizer, scheme_of("good", "goods", "bad"))


def test_longer_codes_that_begin_differently_are_told_apart() -> None:
    tokenizer = tiny_llama_tokenizer()
    labels = LabelTokens.of(tokenizer, scheme_of("yes", "no"))
    assert len(set(labels.ids)) == 2


def test_log_probabilities_are_read_at_the_verdict() -> None:
    labels = LabelTokens((10, 11, 12))
    steps = [(11, {11: -9.0}), (3, {3: -0.1}), (12, {10: -2.0, 11: -3.0, 12: -0.5}), (1, {1: 0.0})]
    assert labels.logprobs(reversed(steps)) == [-2.0, -3.0, -0.5]


def test_a_label_that_the_engine_did_not_report_or_ruled_out_is_all_but_impossible() -> None:
    labels = LabelTokens((10, 11))
    assert labels.logprobs([(10, {10: -0.1})]) == [-0.1, -1e4]
    assert labels.logprobs([(10, {10: 0.0, 11: float("-inf")})]) == [0.0, -1e4]


def test_a_verdict_spelt_with_other_tokens_has_none() -> None:
    assert LabelTokens((10, 11)).logprobs([(3, {3: -0.1})]) is None
    assert LabelTokens((10, 11)).logprobs([]) is None


def test_a_code_that_holds_another_codes_first_token_is_refused() -> None:
    """Read from its end, the verdict `ba` would look like `a`."""
    tokenizer = SpelledOut({"_ba": [1, 2, 3, 4], "_a": [1, 2, 4]})
    with pytest.raises(UserError, match="cannot tell"):
        LabelTokens.of(tokenizer, scheme_of("ba", "a"))


class SpelledOut:
    """A tokenizer that writes a space and each letter of a code as one token."""

    def __init__(self, pieces: dict[str, list[int]]) -> None:
        self.pieces = pieces

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.pieces["_" + text.rpartition(" ")[2]]

    def decode(self, ids: list[int]) -> str:
        return "\nVerdict: "[: 9 + len(ids)]


def test_a_verdict_spelt_with_its_space_apart_still_has_log_probabilities() -> None:
    tokens = LabelTokens(ids=(10, 11), spelt=(20, 21))
    known = {20: -0.1, 21: -2.0, 10: -9.0, 11: -9.0}
    assert tokens.logprobs([(2, {}), (21, known), (5, {})]) == [-0.1, -2.0]
    assert tokens.logprobs([(2, {}), (11, {10: -1.5, 11: -0.3})]) == [-1.5, -0.3]
    assert tokens.logprobs([(2, {}), (5, {})]) is None


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("It is a 2.5 inch drill. The shopper wants", "It is a 2.5 inch drill."),
        ("A 2.5 inch", "A 2.5 inch"),
        ("One.\nIt (a case) fits.) It does not", "One.\nIt (a case) fits.)"),
        ("One more.\nTwo and", "One more."),
        ("Type: drill\nBrand: Mug", "Type: drill\nBrand: Mug"),
        ("色が違う。サイズ", "色が違う。"),
        ("He asked: why?", "He asked: why?"),
        ("No. It is a case that holds", "No. It is a case that holds"),
    ],
)
def test_a_sentence_that_was_cut_off_is_left_out(said: str, left: str) -> None:
    assert parse_answer(f"{said}\nVerdict: E", ESCI).rationale == left
