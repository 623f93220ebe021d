"""The end of `make demo`: serve the run's student, score one query over HTTP, stop, say where the report is."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from rich.table import Table

from cluster.base.free_port import free_port
from cluster.base.progress import console
from cluster.base.ray_session import ray_session
from serve.on_ray.running_service import score_once, serve_export
from workflows.config import load_config
from workflows.terminal import LOG, clear_errors, quiet


def main(config_file: Path, run_dir: Path) -> None:
    """Score a test query of the run's own catalogue, with the products that it was judged with."""
    from cluster.base.tables import read_table

    config = load_config(config_file)
    pairs = [p for p in read_table(run_dir / "1-pairs" / "pairs.parquet").to_pylist() if p["split"] == "test"]
    query = max(pairs, key=lambda p: len({q["label"] for q in pairs if q["query"] == p["query"]}))["query"]
    judged = {p["product_id"]: p for p in pairs if p["query"] == query}
    products = [{"id": i, "title": p["title"], "brand": p["brand"]} for i, p in judged.items()]
    # A service of somebody else may have the usual port.
    settings = config.serve.model_copy(update={"port": free_port(config.serve.host)})
    with clear_errors(run_dir / LOG), quiet(run_dir / LOG), ray_session(config.cluster):
        service = serve_export(run_dir / "10-export", settings, ready=lambda url: None, blocking=False)
        try:
            answer = score_once(service.url, query, products)
        finally:
            service.stop()
        table = Table("product", "gold", "student", "probability", "perspectives", title=f"query: {query}")
        for result in sorted(answer["results"], key=lambda r: -r["score"]):
            said = ", ".join(f"{name} {p['verdict']}" for name, p in (result.get("perspectives") or {}).items())
            pair = judged[result["id"]]
            sure = f"{result['probabilities'][result['label']]:.2f}"
            table.add_row(pair["title"], pair["label"], result["label"], sure, said)
        console().print(table)
        console().print(f"scored over HTTP at {service.url}, service stopped", highlight=False)
        console().print(f"report: {run_dir / '11-report' / 'report.html'}", highlight=False)
        console().print(
            f"serve it: {Path(sys.executable).parent / 'broadfast'} serve {run_dir / '10-export'}", highlight=False
        )


if __name__ == "__main__":
    typer.run(main)
