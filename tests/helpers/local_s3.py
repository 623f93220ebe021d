"""An S3 server of the tests' own, spoken to over loopback."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import pyarrow.fs as pafs
import pytest

BUCKET = "checkpoints"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def s3_folder() -> Iterator[str]:
    """Yield the URI of a folder in an empty bucket. Processes that are started meanwhile inherit the credentials."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server.start()
        host, port = server.get_host_and_port()
        query = urlencode({"region": "us-east-1", "scheme": "http", "endpoint_override": f"{host}:{port}"})
        uri = f"s3://{BUCKET}/{uuid.uuid4().hex}?{query}"  # a process keeps its buckets from server to server
        filesystem, _ = pafs.FileSystem.from_uri(f"{uri}&allow_bucket_creation=true")
        filesystem.create_dir(BUCKET)
        try:
            yield uri
        finally:
            server.stop()


def stored(uri: str) -> list[str]:
    """Return the paths of all objects under the folder."""
    filesystem, path = pafs.FileSystem.from_uri(uri)
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return [info.path for info in found if info.is_file]
