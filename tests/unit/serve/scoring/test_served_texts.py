"""The service cleans texts as stage 1 cleans those of the training, and refuses what shows nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from mpcot.sources.clean_rows import Cleaning, make_row
from mpcot.sources.clean_texts import served_pair
from serve.config import ServeSettings
from serve.http.routes import make_api
from serve.scoring.scorer import Scorer
from tests.helpers.echo_service import Echo
from tests.helpers.report_run import write_export

RAW = {
    "query": "cafe\u0301  lamp\u200b",
    "title": "<b>Re\u00add</b> lamp\u200e &amp; shade",
    "brand": " Acme\ufeff ",
    "description": "<p>Soft</p><p>light</p>",
    "bullets": "one<br>two",
    "attributes": {"colour": "re\u00add", "none": ""},
}


def test_a_served_pair_has_the_texts_of_a_pair_of_the_run():
    row = make_row(0, RAW | {"product_id": "1"}, Cleaning(("E", "I"), {}, "us"))
    served = served_pair(RAW)
    assert served == {name: row[name] for name in served}
    assert (served["query"], served["title"], served["bullets"]) == ("café lamp", "Red lamp & shade", "one • two")


def test_scores_do_not_depend_on_how_a_text_is_written(tmp_path: Path):
    scorer = Scorer.load(write_export(tmp_path / "export", tmp_path / "bert"), ServeSettings(precision="fp32"))
    plain = {"query": "red lamp", "title": "blue phone case"}
    odd = {"query": "re\u00add\u200b lamp", "title": "<b>blue</b> \u200fphone ca\u00adse"}
    one, other = (scorer.score([pair]).probabilities for pair in (plain, odd))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text", ["\u200b", "\u00ad \u200e", "\u2800"])
def test_texts_that_show_nothing_are_refused(text: str):
    client = TestClient(make_api(Echo(), ServeSettings()))
    product, document = {"id": "1", "title": "lamp"}, {"title": text, "text": text}
    for path, asked in (
        ("/v1/score", {"query": text, "products": [product]}),
        ("/v1/score", {"query": "lamp", "products": [product | {"title": text}]}),
        ("/v1/rerank", {"query": text, "documents": ["lamp"]}),
        ("/v1/rerank", {"query": "lamp", "documents": [text]}),
        ("/v1/rerank", {"query": "lamp", "documents": [document]}),
    ):
        assert client.post(path, json=asked).status_code == 422, (path, asked)
    half = {"query": "lamp", "documents": [document | {"text": "red lamp"}]}
    assert client.post("/v1/rerank", json=half).status_code == 200
