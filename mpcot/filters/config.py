"""Settings of the filters, which decide what well-formed answers are kept. Imports nothing heavy.

Filters run in the order of the config, and the first one that objects gives the reason. A filter without settings may
be written as its name alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from cluster.config import Settings


class VerdictFilter(Settings):
    """The verdict must be the gold label or, for an unlabelled pair, the verdict of most of its answers."""

    kind: Literal["verdict"] = "verdict"


class FormFilter(Settings):
    """A rationale must be prose: whole sentences without markup or a second verdict."""

    kind: Literal["form"] = "form"
    whole_sentences: bool = Field(
        True, description="the last sentence must end; turn it off for languages without stops"
    )


class LengthFilter(Settings):
    """Bounds the words of a rationale. The engine bounds its characters (min_chars, max_chars)."""

    kind: Literal["length"] = "length"
    min_words: PositiveInt = Field(5, description="the fewest words of a kept rationale")
    max_words: PositiveInt | None = Field(None, description="the most words of a kept rationale; empty sets no limit")

    @model_validator(mode="after")
    def _check(self) -> LengthFilter:
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(
                f"filters: raise length.max_words {self.max_words}, it is below min_words {self.min_words}"
            )
        return self


class RepetitionFilter(Settings):
    """A phrase three times in a row or a word four times; with `max_repeated_share`, also much repetition elsewhere."""

    kind: Literal["repetition"] = "repetition"
    max_repeated_share: float | None = Field(
        None, gt=0, le=1, description="the largest share of words in runs of three words that come more than once"
    )


class GroundedFilter(Settings):
    """A number, model name or brand that is neither in the query nor in the product's text nor in your word list."""

    no_effect = frozenset({"words_file"})  # its content counts
    kind: Literal["grounded"] = "grounded"
    brands: bool = Field(
        True, description="look at words with a capital letter; turn it off for languages that begin nouns with one"
    )
    words_file: str | None = Field(None, description="text file with words and numbers that may always be named")


class LabelOnlyFilter(Settings):
    """A rationale that names the label but says nothing about the pair. The word list is English."""

    kind: Literal["label_only"] = "label_only"
    min_words: PositiveInt = Field(1, description="the fewest different words beside those of labels, task and filler")


class LanguageFilter(Settings):
    """A rationale in another language. Titles that it quotes are looked at as well, hence `min_confidence`."""

    kind: Literal["language"] = "language"
    language: str = Field("en", pattern="^[a-z]{2,3}$", description="ISO 639 code")
    min_confidence: float = Field(0.9, gt=0, le=1, description="how sure the detector must be of another language")


class NearDuplicateFilter(Settings):
    """An answer that is nearly the same as a kept one of the same perspective and verdict.

    With `pair`, answers to the same pair are compared: samples may say the same thing. With `stage`, answers to all
    pairs are compared, for a teacher that follows a template.
    """

    kind: Literal["near_duplicate"] = "near_duplicate"
    within: Literal["pair", "stage"] = Field(
        "pair", description="whether kept answers of the same pair or of the whole stage are compared"
    )
    similarity: float = Field(0.8, gt=0, le=1, description="the least Jaccard similarity of the runs of three words")
    remembered: PositiveInt | None = Field(
        None,
        description="with within = 'stage', how many of the newest kept answers are compared; 20,000 if left out, "
        "about 8 kB each",
    )

    @model_validator(mode="after")
    def _check(self) -> NearDuplicateFilter:
        if self.within == "pair" and self.remembered is not None:
            raise ValueError("filters: remembered has no effect with within = 'pair'. Leave it out")
        return self


Filter = (
    VerdictFilter
    | FormFilter
    | LengthFilter
    | RepetitionFilter
    | GroundedFilter
    | LabelOnlyFilter
    | LanguageFilter
    | NearDuplicateFilter
)


def _named(value: Any) -> Any:
    """Replace a name alone with the filter of that name and its defaults."""
    if not isinstance(value, list | tuple):
        return value
    return [{"kind": step} if isinstance(step, str) else step for step in value]


def _once(filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
    kinds = [step.kind for step in filters]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ValueError(f"filters: {', '.join(twice)} is given twice. Keep one of them")
    return filters


Step = Annotated[Filter, Field(discriminator="kind")]
Name = Literal["verdict", "form", "length", "repetition", "grounded", "label_only", "language", "near_duplicate"]
Filters = Annotated[
    tuple[Step, ...], BeforeValidator(_named, json_schema_input_type=tuple[Name | Step, ...]), AfterValidator(_once)
]
# A wrong verdict comes before the others, so that such an answer can still be a bad example for DPO.
DEFAULT: tuple[Filter, ...] = (RepetitionFilter(), VerdictFilter(), FormFilter(), LengthFilter(), GroundedFilter())
