"""The page of the drift in a real browser: bars beside each other, or why there are none."""

from __future__ import annotations

import numpy as np
import pytest

from distill.student.reference import Histogram, Reference
from serve.replica.replica import QueuedStudent
from serve.scoring.scores import Scores
from serve.watching.window import DriftWindow
from tests.helpers.browser_look import NEEDS_CHROMIUM
from tests.helpers.driven_page import Do

pytestmark = NEEDS_CHROMIUM

DRIFT = """
const seen = () => page.querySelectorAll(".quantity").length || $("status").textContent.startsWith("The export");
await until(seen);
const root = page.documentElement, text = (place) => place.textContent.trim().replace(/\\s+/g, " ");
return {
  scroll: root.scrollWidth, client: root.clientWidth, status: $("status").textContent,
  facts: [...page.querySelectorAll(".facts")].map(text), said: [...page.querySelectorAll(".said")].map(text),
  labels: [...(page.querySelectorAll(".quantity")[1]?.querySelectorAll("tbody tr") ?? [])]
    .map((row) => [row.cells[0], row.cells[2], row.cells[3]].map(text).join(" ")),
  widths: [...page.querySelectorAll("td.bars .served")].map((bar) => bar.getBoundingClientRect().width),
};
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_drift_page_shows_dev_beside_what_was_served(do: Do, service: QueuedStudent, width: int) -> None:
    dev = Histogram(edges=(1, 2, 3), counts=(300, 0, 100, 0)), Histogram(edges=(0.5,), counts=(200, 200))
    known = service.scorer.config.scheme
    drift = DriftWindow(service.model, Reference(pairs=400, histograms={"score": dev[1], "label": dev[0]}), known)
    drift.add(Scores(np.eye(4)[[0] * 300 + [2] * 200], None, None, np.ones(500)))
    service.metrics.drifts.windows.append(drift)
    seen = do(DRIFT, "drift", width)
    assert seen["scroll"] == seen["client"] <= width and seen["status"] == ""
    assert seen["facts"] == ["The latest 500 pairs that replica local scored, beside 400 pairs of the dev split."]
    assert [said.partition(";")[0] for said in seen["said"]] == ["stable PSI 0.040", "worth a look PSI 0.103"]
    labels = ["E Exact 75 % 60 %", "S Substitute 0 % 0 %", "C Complement 25 % 40 %", "I Irrelevant 0 % 0 %"]
    assert seen["labels"] == labels
    assert max(seen["widths"]) > 60


def test_the_drift_page_says_where_there_is_nothing_to_compare_with(do: Do) -> None:
    assert "Export it again" in do(DRIFT, "drift")["status"]
