"""Mining on Ray: the texts of a shop are encoded by Ray Data's actors as the encoder alone encodes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill.candidates.mine import Mining, encoded, mine
from distill.candidates.shop import Query, Shop
from distill.config import TargetSettings
from distill.targets.sentence_encoder import SentenceEncoder
from mpcot.pairs.ids import query_id
from tests.helpers.tiny_bert import tiny_bert

THINGS = ("red lamp", "blue lamp", "red mug", "blue case", "phone", "red shoe")


def test_the_nearest_products_by_the_encoder_are_mined(local_ray: None, tmp_path: Path) -> None:
    settings = TargetSettings(encoder=str(tiny_bert(tmp_path / "encoder")), max_tokens=32, batch_size=2)
    vectors = encoded(THINGS, settings, tmp_path)
    alone = SentenceEncoder(settings).encode(THINGS)
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert not (tmp_path / "candidate-texts.parquet").exists()
    query = Query(query_id("us", "red lamp"), "us", "red lamp")
    products = {("us", str(n)): {"title": title, "brand": None} for n, title in enumerate(THINGS)}
    shop = Shop({query.query_id: query}, (), products, {(query.query_id, ("us", "1"))})
    found = list(mine(shop, Mining(2, 0.0, 13, settings, tmp_path)))
    # Its own text is the nearest by both rankings; then the second of the encoder, the judged "blue lamp" left out.
    order = [n for n in np.argsort(-(alone @ alone[0])) if n != 1]
    assert [(key[1], rank) for _, key, rank, _ in found] == [("0", 0), (str(order[1]), 1)]
    assert order[0] == 0
