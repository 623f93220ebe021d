"""What the tests of trainings in this process share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.one_worker import process_group


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process group for all of them: DeepSpeed keeps the first that it sees."""
    with process_group(tmp_path_factory.mktemp("group")):
        yield
