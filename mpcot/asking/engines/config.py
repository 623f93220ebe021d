"""Settings of engines: how many run, and of the one behind an address. Imports nothing heavy."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config import Resources, Settings


class Replicas(Resources):
    """How many engines run, and what each of them takes from a node."""

    min: PositiveInt = Field(1, description="the fewest engines")
    max: PositiveInt = Field(1, description="the most engines; so many run if the cluster has room")
    cpus: PositiveInt = Field(1, description="CPUs of one engine")
    gpus: NonNegativeInt = Field(0, description="GPUs of one engine; tensor_parallel may take more")
    pairs_per_task: PositiveInt = Field(96, description="pairs of one task; an engine works on two tasks at a time")
    flush_rows: PositiveInt = Field(2048, description="the most answers that may wait to be written")
    flush_seconds: PositiveFloat = Field(10.0, description="the longest time that an answer may wait to be written")
    store: str | None = Field(
        None, description="URI of a folder for the answers, if not the run folder; runs may share it"
    )
    stalled_s: PositiveFloat = Field(600.0, description="an engine that finishes no answer for this long has hung")
    restarts: NonNegativeInt = Field(3, description="how often a stopped engine is replaced, if no request is to blame")

    @model_validator(mode="after")
    def _range(self) -> Replicas:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}: raise max or lower min")
        return self


class Price(Settings):
    """What a million tokens cost, in the currency of your bill."""

    input: float = Field(ge=0, description="tokens of prompts")
    cached_input: float | None = Field(None, ge=0, description="tokens of prompts in the host's cache; empty: as input")
    output: float = Field(ge=0, description="tokens of answers, thinking included")
    batch_discount: float = Field(
        0.5, ge=0, le=1, description="share of the price that the host takes off answers of an offline batch"
    )

    def of(self, prompt_tokens: float, cached_tokens: float, output_tokens: float, batch: bool = False) -> float:
        """Return what these tokens cost, at once or in a batch; the cached ones are among those of the prompt."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = prompt_tokens - cached_tokens
        whole = (fresh * self.input + cached_tokens * cached + output_tokens * self.output) / 1e6
        return whole * (1 - self.batch_discount) if batch else whole


# Fields of a request that follow from other settings, and what sets them.
OWN_FIELDS = {
    "model": "engine.model", "messages": "perspectives", "response_format": "engine.form",
    "structured_outputs": "engine.form", "temperature": "temperature", "top_p": "top_p", "max_tokens": "max_tokens",
}  # fmt: skip
NAME_OF_VARIABLE = r"^[A-Za-z_]\w*$"


class OpenAiEngine(Settings):
    """A model behind an address that speaks OpenAI's API: a host's, or `vllm serve` on your own GPUs."""

    no_effect = frozenset(
        {
            "base_url", "api_key_env", "headers_env", "max_in_flight", "requests_per_minute", "tokens_per_minute",
            "timeout_s", "price_per_million", "max_spend",
        }
    )  # fmt: skip
    kind: Literal["openai"] = "openai"
    base_url: str = Field(pattern=r"^https?://[^\s/]+", description="address of the API, such as http://host:8000/v1")
    model: str = Field(min_length=1, description="name of the model at that address")
    snapshot: str | None = Field(None, description="your mark for its version; another one asks everything again")
    api_key_env: str | None = Field(
        None, pattern=NAME_OF_VARIABLE, description="name of the variable that holds the key, on every node that asks"
    )
    headers_env: dict[str, str] = Field({}, description="further headers, and the variables that hold their values")
    max_in_flight: PositiveInt = Field(64, description="requests on their way at a time, of all workers together")
    requests_per_minute: PositiveInt | None = Field(None, description="limit of all workers together; empty: none")
    tokens_per_minute: PositiveInt | None = Field(None, description="the same for tokens of prompts and answers")
    timeout_s: PositiveFloat = Field(120.0, description="the longest wait for an answer; then it is asked again")
    form: Literal["grammar", "json_schema", "text"] = Field(
        "grammar", description="how the form is enforced: by vLLM's regex, by a JSON schema, or by the prompt alone"
    )
    extra_body: dict[str, Any] = Field({}, description="further fields of each request, such as chat_template_kwargs")
    price_per_million: Price | None = Field(None, description="what a million tokens cost")
    max_spend: PositiveFloat | None = Field(None, description="the run stops before it has spent more than this")
    replicas: Replicas = Replicas()

    @model_validator(mode="after")
    def _check(self) -> OpenAiEngine:
        if self.max_spend is not None and self.price_per_million is None:
            raise ValueError(f"max_spend {self.max_spend:g} has no effect without prices: set price_per_million")
        for header, variable in self.headers_env.items():
            if not re.match(NAME_OF_VARIABLE, variable):
                raise ValueError(f"headers_env.{header}: give the name of a variable, not the value of the header")
        for name in self.extra_body.keys() & OWN_FIELDS.keys():
            raise ValueError(f"extra_body.{name} is set by {OWN_FIELDS[name]}: set that, and leave it out here")
        if self.replicas.gpus:
            raise ValueError(f"replicas.gpus {self.replicas.gpus} would stand idle: the model is behind an address")
        if self.max_in_flight < self.replicas.max:
            raise ValueError(
                f"max_in_flight {self.max_in_flight} is below replicas.max {self.replicas.max}: raise it, or lower that"
            )
        return self
