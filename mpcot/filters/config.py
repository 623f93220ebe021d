"""Settings of the filters: which well-formed answers are not kept. Imports nothing heavy.

A user puts steps in order; the first one that objects names the reason. A step without settings may be
written as its name alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from cluster.config import Settings


class VerdictFilter(Settings):
    """The verdict must be the gold label; of an unlabelled pair, that of most of its answers."""

    kind: Literal["verdict"] = "verdict"


class FormFilter(Settings):
    """A rationale is prose: no markup, no second verdict, whole sentences."""

    kind: Literal["form"] = "form"
    whole_sentences: bool = Field(True, description="the last one must end; turn off for languages without full stops")


class LengthFilter(Settings):
    """How many words a rationale has; characters are bounded by the engine already (min_chars, max_chars)."""

    kind: Literal["length"] = "length"
    min_words: PositiveInt = Field(5, description="fewer are dropped")
    max_words: PositiveInt | None = Field(None, description="more are dropped; empty bounds nothing")

    @model_validator(mode="after")
    def _check(self) -> LengthFilter:
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"filters: length keeps nothing with min_words {self.min_words} > {self.max_words}")
        return self


class RepetitionFilter(Settings):
    """Loops: a phrase three times or a word four times in a row; and, if asked for, much said twice."""

    kind: Literal["repetition"] = "repetition"
    max_repeated_share: float | None = Field(
        None, gt=0, le=1, description="largest share of the words that lie in three words which come again"
    )


class LabelOnlyFilter(Settings):
    """A rationale that names the label and says nothing of the pair teaches nothing. The word list is English."""

    kind: Literal["label_only"] = "label_only"
    min_words: PositiveInt = Field(1, description="different words beside the label's, the task's and filler")


class LanguageFilter(Settings):
    """The rationale is in another language than asked for. Titles quoted in it count too, hence `min_confidence`."""

    kind: Literal["language"] = "language"
    language: str = Field("en", pattern="^[a-z]{2,3}$", description="ISO 639 code")
    min_confidence: float = Field(0.9, gt=0, le=1, description="an answer is dropped only where another is so sure")


class NearDuplicateFilter(Settings):
    """An answer nearly like one that was kept adds nothing.

    `pair`: like one of the same pair, perspective and verdict: samples that say the same thing. `stage`: like one
    of any pair from the same perspective, for a teacher that writes by template.
    """

    kind: Literal["near_duplicate"] = "near_duplicate"
    within: Literal["pair", "stage"] = Field(
        "pair", description="what an answer is compared with: kept ones of its pair, or of the stage"
    )
    similarity: float = Field(0.8, gt=0, le=1, description="least Jaccard similarity of the sets of three words")
    remembered: PositiveInt | None = Field(
        None,
        description="with within = 'stage': the newest kept answers that later ones are compared with, 20,000 if "
        "left out, about 8 kB each",
    )

    @model_validator(mode="after")
    def _check(self) -> NearDuplicateFilter:
        if self.within == "pair" and self.remembered is not None:
            raise ValueError("filters: remembered has no effect with within = 'pair': leave it out")
        return self


Filter = (
    VerdictFilter
    | FormFilter
    | LengthFilter
    | RepetitionFilter
    | LabelOnlyFilter
    | LanguageFilter
    | NearDuplicateFilter
)


def _named(value: Any) -> Any:
    """Take a name alone for the step with that name and its defaults."""
    if not isinstance(value, list | tuple):
        return value
    return [{"kind": step} if isinstance(step, str) else step for step in value]


def _once(filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
    kinds = [step.kind for step in filters]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ValueError(f"filters: {', '.join(twice)} is there twice")
    return filters


Step = Annotated[Filter, Field(discriminator="kind")]
Name = Literal["verdict", "form", "length", "repetition", "label_only", "language", "near_duplicate"]
Filters = Annotated[
    tuple[Step, ...], BeforeValidator(_named, json_schema_input_type=tuple[Name | Step, ...]), AfterValidator(_once)
]
DEFAULT: tuple[Filter, ...] = (RepetitionFilter(), VerdictFilter())
