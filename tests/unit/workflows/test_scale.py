"""The figures of the benchmark of sizes, and how its series goes on, without any run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scale as module  # type: ignore[import-not-found]

    monkeypatch.setattr(module, "ROWS", tmp_path / "scale.jsonl")
    return module


def row(size: int, **changes: Any) -> dict[str, Any]:
    """What a size takes where everything grows in proportion, and the driver needs 1 GiB and 0.1 more per million."""
    million = size / 1_000_000
    found: dict[str, Any] = {"size": size, "requests": size, "files": 20 + round(100 * million)}
    found |= {"1-pairs": 10 * million, "1-pairs_gib": 0.5, "2-rationales": 40 * million, "verify": 1.0}
    found |= {"driver_cpu_s": 5 + 20 * million, "driver_gib": 1 + 0.1 * million, "resume_gib": 0.9}
    return found | {"resume": 4 * million} | changes


def values(scale: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    return {figure.name: figure.value for figure in scale.figures(rows)}


def test_what_grows_in_proportion_is_as_expected_at_ten_million(scale: Any) -> None:
    found = values(scale, [row(100_000), row(300_000), row(1_000_000)])
    assert found["time_exponent_excess"] == pytest.approx(1) and found["time_exponent"] == pytest.approx(1)
    assert found["driver_peak_gib_10m"] == pytest.approx(2.0)
    assert found["memory_10m_over_1m"] == pytest.approx(2 / 1.1)
    assert found["resume_10m_s"] == pytest.approx(40) and found["files_10m"] == pytest.approx(1000)
    # 50 s per million on 2 cores, 20 s of which are the driver's alone; what is left, 80 s, is for 16 cores.
    assert found["hours_300m"] == pytest.approx(300 * (20 + 80 / 16) / 3600)


def test_a_size_that_was_measured_counts_as_it_is(scale: Any) -> None:
    small, large = row(999_999, driver_gib=1.5), row(9_999_999, driver_gib=1.2, resume_gib=1.8)
    found = values(scale, [small, row(3_000_000), large])
    assert found["driver_peak_gib_10m"] == 1.8 and found["memory_10m_over_1m"] == pytest.approx(1.2)


def test_a_series_goes_on_with_the_sizes_that_are_missing(scale: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    written: list[Any] = []

    def measure(work: Path, size: int) -> dict[str, Any]:
        if size == 3000 and -size not in measured:
            measured.append(-size)
            raise KeyboardInterrupt
        measured.append(size)
        return row(size)

    monkeypatch.setattr(scale, "measure", measure)
    monkeypatch.setattr(scale, "write_results", lambda name, figures, rows: written.append([r["size"] for r in rows]))
    monkeypatch.setattr("sys.argv", ["scale.py", "--sizes", "3000", "1000"])
    with pytest.raises(KeyboardInterrupt):
        scale.main()
    scale.main()
    monkeypatch.setattr("sys.argv", ["scale.py", "--sizes", "500"])
    scale.main()
    assert measured == [1000, -3000, 3000, 500]
    assert written == [[1000, 3000], [500, 1000, 3000]]
