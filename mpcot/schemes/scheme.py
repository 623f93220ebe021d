"""Loads label schemes: which labels there are, what they mean and what they gain. Each is a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError, model_validator

from cluster.base.errors import UserError
from cluster.config import Settings

SCHEMES = Path(__file__).parent


class Label(Settings):
    """A label: its code in data and verdicts, its meaning for the prompt, and its gain in NDCG.

    `guide` says at more length when the label applies and when another one does.
    """

    code: str
    name: str
    meaning: str
    guide: str = ""
    gain: float
    relevant: bool


class Scheme(Settings):
    """The labels, the most relevant first. The id of a label is its position in `labels`.

    `order` says in which order to decide, and `silent` what to do where the product's text does not say.
    """

    name: str
    order: str = ""
    silent: str = ""
    labels: tuple[Label, ...]

    @model_validator(mode="after")
    def _check(self) -> Scheme:
        codes = self.codes
        if len(codes) < 2 or len(set(codes)) != len(codes):
            raise ValueError(f"labels.{self.name}: give two or more labels with different codes, not {codes}")
        if odd := [code for code in codes if not code or code == "-" or any(c.isspace() for c in code)]:
            raise ValueError(f"labels.{self.name}: code {odd[0]!r} must be one word, and not a dash")
        if min(self.gains) < 0 or max(self.gains) == 0:
            raise ValueError(f"labels.{self.name}: gains must be 0 or more, one of them above 0, not {self.gains}")
        if len({label.relevant for label in self.labels}) != 2:
            raise ValueError(f"labels.{self.name}: mark at least one label relevant and one not relevant")
        return self

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(label.code for label in self.labels)

    @property
    def gains(self) -> tuple[float, ...]:
        return tuple(label.gain for label in self.labels)

    @property
    def unit_gains(self) -> tuple[float, ...]:
        """The gains, shifted and scaled so that an expected gain lies between 0 and 1 in any scheme."""
        least, most = min(self.gains), max(self.gains)
        return tuple((gain - least) / (most - least or 1.0) for gain in self.gains)

    def index(self, code: str) -> int:
        """Return the id of the label with this code.

        Raises:
            UserError: the scheme has no such code.
        """
        if code not in self.codes:
            raise UserError(
                f"label {code!r} is not in scheme {self.name!r}, which has {', '.join(self.codes)}. Correct the label"
            )
        return self.codes.index(code)


def filled_up(shares: Mapping[str, float], codes: Sequence[str]) -> list[float]:
    """Return one probability per code, in their order. Codes that `shares` lacks share equally what is left of 1."""
    unnamed, total = [code for code in codes if code not in shares], sum(shares.values())
    whole = {**shares, **dict.fromkeys(unnamed, max(0.0, 1 - total) / max(1, len(unnamed)))}
    return [whole[code] / sum(whole.values()) for code in codes]


def load_scheme(name_or_path: str) -> Scheme:
    """Load a shipped scheme by its name (`esci`, `graded`, `binary`), or a scheme of your own from a TOML file.

    Raises:
        UserError: there is no such scheme, or the file does not describe one.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else SCHEMES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in SCHEMES.glob("*.toml")))
        raise UserError(f"labels.scheme: {name_or_path!r} is neither one of {known} nor a .toml file that exists")
    try:
        return Scheme(**tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"labels.scheme: {path} does not describe a label scheme: {error}") from error
