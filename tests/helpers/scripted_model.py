"""A model that says what a test has told it to, once it is let go, and the queue of a replica around it."""

from __future__ import annotations

import asyncio
import threading

from prometheus_client.parser import text_string_to_metric_families

from serve.config import BatchSettings, LimitSettings, ServeSettings
from serve.http.schemas import ProductInput, Result, ScoreInput
from serve.replica.model_thread import ModelThread
from serve.replica.replica import QueuedStudent


class Held:
    """A scorer that answers when it is let go, and remembers every batch's titles."""

    name, explainer, drift = "held", None, None

    def reads(self, pair):
        return pair["query"], f"{pair['title']} {pair['brand']}"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.started = threading.Semaphore(0)

    def answer(self, requests):
        self.batches.append([product.title for r in requests for product in r.products])
        self.started.release()
        assert self.go.wait(300), "nobody let the model go"
        if any("broken" in title for title in self.batches[-1]):
            raise RuntimeError("a fault in the model")
        return [
            ArithmeticError("not a number")
            if "not a number" in r.products[0].title
            else [Result(id=p.id, label="E", score=len(p.title), probabilities={}, perspectives={}) for p in r.products]
            for r in requests
        ]


def queued(scorer, pair_s=0.001, thread=None, **settings):
    """Return a queue with batches of four pairs over a scripted model, which is assumed to take `pair_s` per pair."""
    batch = BatchSettings(max_batch_pairs=4, batch_wait_ms=0)
    given = {"batch": batch, "limits": LimitSettings(products_per_request=4), "request_timeout_s": 300, **settings}
    student = QueuedStudent(scorer, ServeSettings(**given), thread or ModelThread())
    student.pace.assumed_s = pair_s
    return student


def figures(service):
    """Return the values of a service's figures by name."""
    families = text_string_to_metric_families(service.metrics.text())
    return {sample.name: sample.value for family in families for sample in family.samples}


def ask(*titles, explain=False):
    """Return a request for products with these titles."""
    products = [ProductInput(id=title, title=title) for title in titles]
    return ScoreInput(query="q", products=products, explain=explain)


async def started(scorer):
    """Wait until the model has taken a batch."""
    await asyncio.to_thread(scorer.started.acquire)


async def behind_a_busy_model(service, scorer, *waiting):
    """Start a request that the model holds, then those that wait; return their tasks once all of them do."""
    tasks = [asyncio.create_task(service.score(ask("first")))]
    await started(scorer)
    tasks += [asyncio.create_task(service.score(request)) for request in waiting]
    while len(service.batcher.waiting) < len(waiting):
        await asyncio.sleep(0)
    return tasks
