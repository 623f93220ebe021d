"""A study's runs as Ray tasks, on a tiny encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.base.errors import UserError
from distill.study import study
from distill.study.compare import compare
from tests.helpers.study_run import shop_run, study_config
from tests.helpers.tiny_bert import tiny_bert


def test_runs_are_made_by_tasks_and_a_failing_one_is_named(local_ray: None, tmp_path: Path) -> None:
    encoder = tiny_bert(tmp_path / "encoder")
    settings = study_config(encoder, tmp_path / "records", shop_run(tmp_path / "shop"), seeds=(1,))
    targets = tmp_path / "shop/8-targets/targets.parquet"
    whole = targets.read_bytes()
    data = study.open_data(settings.data[0], settings)
    rows = study.load_rows(settings, data.pairs.perspectives)
    made = study.Study(settings, {"shop": data}, {"shop": rows}, make=True)
    targets.write_bytes(whole[:50])
    with pytest.raises(
        UserError, match=r"2 of 2 trials failed; the others are kept\. First: shop, labels, seed 1, fold 0: "
    ):
        made.finish()
    targets.write_bytes(whole)
    report = compare(settings, *study.run_study(settings))
    assert [len(row["accuracy"]["seeds"]) for row in report["data"][0]["rows"]] == [1, 1, 1, 1]
    assert report["data"][0]["runs"] == 4 + 4 * 2
