"""Where checkpoints lie, and that a training finds its own only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from cluster.base.errors import UserError
from cluster.training.checkpoints import (
    delete_checkpoints,
    staging_place,
    storage_place,
    trainings_with_checkpoints,
)
from tests.helpers.local_s3 import BUCKET, s3_folder, stored

URI = "s3://bucket/folder?region=eu-west-1&scheme=http"


def test_without_storage_they_lie_beside_the_results(tmp_path: Path) -> None:
    assert storage_place(None, tmp_path / "scratch") == str(tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


def test_a_training_has_a_folder_of_its_own_until_its_results_are_gone(tmp_path: Path) -> None:
    first, other = (storage_place(URI, tmp_path / name) for name in ("first", "other"))
    assert first.startswith("s3://bucket/folder/broadfast-") and first.endswith("?region=eu-west-1&scheme=http")
    assert first != other and storage_place(URI, tmp_path / "first") == first
    shutil.rmtree(tmp_path / "first")
    assert storage_place(URI, tmp_path / "first") != first, "starting over never finds what other data left"


def test_each_worker_stages_its_part_where_the_user_says_and_never_in_a_place_of_its_own(tmp_path: Path) -> None:
    own, other = (staging_place("/fast", tmp_path / name, 0) for name in ("own", "other"))
    assert own.is_relative_to("/fast") and own != other, "trainings that share a disk do not meet"
    assert own == staging_place("/fast", tmp_path / "own", 0) != staging_place("/fast", tmp_path / "own", 1)
    assert staging_place(None, tmp_path, 1) == tmp_path / "staged-1"
    (tmp_path / "staged-1" / "state" / "rank").mkdir(parents=True)
    assert trainings_with_checkpoints(str(tmp_path)) == [], "what a killed worker leaves is no checkpoint"


def test_trainings_with_checkpoints_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "b-1w" / "checkpoint_1").mkdir(parents=True)
    (tmp_path / "a-2w" / "checkpoint_1").mkdir(parents=True)
    (tmp_path / "c-1w").mkdir()
    assert trainings_with_checkpoints(str(tmp_path)) == ["a-2w", "b-1w"]
    assert trainings_with_checkpoints(tmp_path.as_uri()) == ["a-2w", "b-1w"]
    delete_checkpoints(str(tmp_path))
    assert trainings_with_checkpoints(str(tmp_path)) == []
    delete_checkpoints(str(tmp_path))


def test_storage_of_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(UserError, match=r"train.checkpoints: cannot write to 'ftp://host/x'"):
        trainings_with_checkpoints("ftp://host/x")


def test_on_s3_they_are_found_and_deleted_and_a_closed_bucket_is_said(tmp_path: Path) -> None:
    with s3_folder() as uri:
        place = storage_place(uri, tmp_path)
        assert trainings_with_checkpoints(place) == []
        assert [path.rpartition("/")[2] for path in stored(uri)] == ["probe"]
        filesystem, path = pafs.FileSystem.from_uri(place)
        with filesystem.open_output_stream(f"{path}/a-2w/checkpoint_1/state.pt") as file:
            file.write(b"weights")
        assert trainings_with_checkpoints(place) == ["a-2w"]
        delete_checkpoints(place)
        assert stored(uri) == []
        with pytest.raises(UserError, match=r"train.checkpoints: cannot write to 's3://nowhere.*Check the address"):
            trainings_with_checkpoints(place.replace(BUCKET, "nowhere"))
