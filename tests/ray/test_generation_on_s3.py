"""A source and the answers of a generation on an S3 API over loopback: moto's server, through pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cluster.base.errors import UserError
from cluster.base.ray_session import ray_session
from cluster.base.run_folder import RUN_ID, run_id
from cluster.base.shared_folder import SharedFolder
from cluster.base.stage_folder import MANIFEST, StageFolder, read_json
from cluster.base.tables import read_table
from cluster.config import ClusterSettings
from mpcot.pairs import stage as pairs_stage
from mpcot.sources.config import PairsStage, SplitSettings, TableSource
from tests.helpers.generation_run import STAGE, check_exactly_once, parts, run_here

BUCKET = "shop"
PAIRS = 40
REPLICAS = {"pairs_per_task": 2, "flush_rows": 4, "store": f"s3://{BUCKET}/runs/one"}


@pytest.fixture(scope="module", autouse=True)
def s3(no_ray: None) -> Iterator[None]:
    """A bucket with a source in it; where it is and who asks is in the environment, as on a cluster."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "testing")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        lines = [
            {"query": "red drill", "product_id": n, "title": f"drill {n}", "label": "ESCI"[n % 4]} for n in range(PAIRS)
        ]
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="judged/pairs.jsonl", Body="\n".join(map(json.dumps, lines)).encode())
        with ray_session(ClusterSettings(num_cpus=2, object_store_mb=100)):
            yield
    server.stop()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the pairs that stage 1 read from the bucket."""
    root = tmp_path_factory.mktemp("s3")
    source = TableSource(path=f"s3://{BUCKET}/judged/")
    split = SplitSettings(train=1, dev=0, test=0)
    pairs_stage.run(PairsStage(source=source, split=split), StageFolder(root, "1-pairs"))
    return root


def keys(run_dir: Path) -> list[str]:
    prefix = f"runs/one/{run_id(run_dir)}/{STAGE}/"
    found = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    names = [item["Key"].removeprefix(prefix) for item in found.get("Contents", [])]
    return [name for name in names if name and not name.endswith("/")]


def test_a_source_is_read_from_a_bucket(run_dir: Path) -> None:
    pairs = read_table(run_dir / "1-pairs" / "pairs.parquet")
    assert sorted(map(int, pairs["product_id"].to_pylist())) == list(range(PAIRS))


def test_an_engine_that_dies_leaves_its_answers_in_the_bucket(run_dir: Path) -> None:
    with pytest.raises(UserError, match="its processes are gone after 12 answers"):
        run_here(run_dir, {"stops_after": 12, "delay_s": 0.01, "replicas": REPLICAS | {"restarts": 0}})
    there = SharedFolder.at(f"{REPLICAS['store']}/{run_id(run_dir)}/{STAGE}/answers")
    on_s3 = [
        key
        for entry in there.files(".parquet")
        for batch in there.batches(entry.name)
        for key in batch["key"].to_pylist()
    ]
    assert len(on_s3) == len(set(on_s3)) == 12
    assert not parts(run_dir) and not (run_dir / STAGE / MANIFEST).exists()


def test_the_next_run_goes_on_from_the_bucket_and_brings_the_answers_home(run_dir: Path) -> None:
    manifest = run_here(run_dir, {"replicas": REPLICAS})
    assert manifest["figures"]["reused"] == 12 and manifest["figures"]["asked"] == 3 * PAIRS - 12
    check_exactly_once(run_dir)
    assert sorted(f"answers/{part.name}" for part in parts(run_dir)) == sorted(keys(run_dir))


def test_a_run_folder_that_was_lost_asks_for_nothing(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "1-pairs").symlink_to(run_dir / "1-pairs")
    (tmp_path / RUN_ID).write_bytes((run_dir / RUN_ID).read_bytes())
    assert run_here(tmp_path, {"replicas": REPLICAS})["figures"]["asked"] == 0
    check_exactly_once(tmp_path)
    assert read_json(tmp_path / STAGE / MANIFEST)["counts"] == read_json(run_dir / STAGE / MANIFEST)["counts"]


def test_both_rounds_of_a_hinted_retry_go_by_way_of_the_bucket(run_dir: Path, tmp_path: Path) -> None:
    engine = {"accuracy": 0.3, "replicas": REPLICAS | {"store": f"s3://{BUCKET}/runs/hinted"}}
    manifests = []
    for name in ("first", "lost and made anew"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1-pairs").symlink_to(run_dir / "1-pairs")
        (tmp_path / name / RUN_ID).write_text("hinted-aaaa")
        manifests.append(run_here(tmp_path / name, engine, hinted_retry=True))
    first, again = (manifest["figures"] for manifest in manifests)
    requested = manifests[0]["counts"]["requested"]
    assert requested == 3 * PAIRS + first["hinted"]["requested"] > 3 * PAIRS
    assert first["asked"] == again["reused"] == requested and again["asked"] == first["reused"] == 0
    assert manifests[0]["counts"] == manifests[1]["counts"] and first["hinted"] == again["hinted"]
    there = SharedFolder.at(f"s3://{BUCKET}/runs/hinted/hinted-aaaa/{STAGE}/answers").files(".parquet")
    assert [entry.name for entry in there] == [part.name for part in parts(tmp_path / "lost and made anew")]


def test_a_bucket_that_is_not_there_is_named(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "1-pairs").symlink_to(run_dir / "1-pairs")
    with pytest.raises(UserError, match=r"nowhere/runs"):
        run_here(tmp_path, {"replicas": REPLICAS | {"store": "s3://nowhere/runs"}})
