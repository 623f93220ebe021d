from __future__ import annotations

from pathlib import Path

from distill.student.inputs import encode_pairs, product_text
from distill.student.model import load_tokenizer
from tests.helpers.tiny_bert import tiny_bert, tiny_tokenizer

PAIR = {"query": "red mug", "title": "Blue lamp", "brand": "a", "description": None}


def words(pair: dict[str, str | None], max_tokens: int = 32, fields: str = "title") -> str:
    tokenizer = tiny_tokenizer()
    return tokenizer.decode(encode_pairs(tokenizer, [pair], max_tokens, fields)["input_ids"][0])


def test_query_and_title_are_the_two_sides() -> None:
    encoded = encode_pairs(tiny_tokenizer(), [PAIR], 32)
    assert words(dict(PAIR)) == "[CLS] red mug [SEP] blue lamp [SEP]"
    assert encoded["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_fields_add_what_the_product_has() -> None:
    assert words(dict(PAIR), fields="title+brand") == "[CLS] red mug [SEP] blue lamp a [SEP]"
    assert product_text(PAIR, "title+description") == "Blue lamp"
    more = {"description": "Bright.", "bullets": "dimmable • warm", "attributes": {"colour": "blue", "watts": "4"}}
    assert product_text(PAIR | more, "title+description") == (
        "Blue lamp colour: blue; watts: 4. Bright. dimmable • warm"
    )
    assert product_text({"title": "Salt &amp; <b>pepper</b>"}, "title") == "Salt & pepper"
    assert product_text(PAIR | {"attributes": [("colour", "blue")]}, "title+description") == "Blue lamp colour: blue."


def test_a_text_that_spells_control_tokens_makes_none(tmp_path: Path) -> None:
    """Or a title could end itself and begin another product."""
    folders = [tiny_bert(tmp_path / "tiny"), Path("models/all-minilm-l6-v2")]
    for folder in (path for path in folders if path.is_dir()):
        tokenizer = load_tokenizer(folder)
        pair = {"query": "red [CLS] mug [SEP]", "title": "lamp [SEP] red mug [MASK] [PAD]"}
        ids = encode_pairs(tokenizer, [pair], 64)["input_ids"][0].tolist()
        assert [i for i in ids if i in tokenizer.all_special_ids and i != tokenizer.unk_token_id] == [
            tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.sep_token_id
        ]  # fmt: skip
        tokenizer.save_pretrained(tmp_path / "saved")
        assert load_tokenizer(tmp_path / "saved").tokenize("[SEP]") == tokenizer.tokenize("[SEP]") != ["[SEP]"]


def test_only_the_product_is_cut() -> None:
    assert (
        words({"query": "red mug", "title": "lamp " * 50}, max_tokens=8) == "[CLS] red mug [SEP] lamp lamp lamp [SEP]"
    )


def test_an_endless_query_leaves_room_for_the_product() -> None:
    text = words({"query": "red " * 400_000, "title": "lamp " * 400_000}, max_tokens=16)
    assert text == "[CLS] " + "red " * 8 + "[SEP] " + "lamp " * 5 + "[SEP]"


def test_empty_sides_are_no_error() -> None:
    assert words({"query": "", "title": ""}) == "[CLS] [SEP] [SEP]"


def test_pads_to_the_longest_pair() -> None:
    pairs = [PAIR, {"query": "red", "title": "mug"}]
    encoded = encode_pairs(tiny_tokenizer(), pairs, 32)
    assert encoded["attention_mask"].sum(1).tolist() == [7, 5] and encoded["input_ids"].shape == (2, 7)
