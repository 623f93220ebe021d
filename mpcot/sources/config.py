"""Settings of stage 1: where pairs come from, their labels and splits. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from cluster.config import Settings

# Our names for the columns of a pair; the keys of `TableSource.columns`.
REQUIRED = ("query", "product_id", "title")
COLUMNS = (
    *REQUIRED, "label", "locale", "brand", "description", "bullets", "attributes", "colour", "split", "ratings",
)  # fmt: skip

# What keeps queries in one split.
Kept = Literal["text", "near_duplicates", "products"]
Share = Annotated[float, Field(ge=0, le=1)]


class LabelSettings(Settings):
    """Which label scheme the run uses."""

    no_effect = frozenset({"scheme"})  # its content counts

    scheme: str = Field("esci", description="esci, graded, binary, or the path of a .toml file of your own")


class AnySource(Settings):
    """What every source has."""

    # The content of files counts, not where they lie.
    no_effect = frozenset({"max_failed_share", "path", "seeds", "judgements", "overrides", "candidates"})

    label_map: dict[str, str] = Field({}, description="which label of the source is which code of the scheme")
    max_failed_share: Share = Field(0.2, description="the stage stops if a larger share of the rows fails")
    judgements: str | None = Field(
        None, description="file of verdicts and rationales per perspective, which the teacher is not asked for"
    )
    overrides: str | None = Field(None, description="file of corrected labels, as `broadfast audit --import` writes it")
    candidates: str | None = Field(
        None, description="file of further pairs without labels, as `broadfast candidates` writes it"
    )


class CatalogueSource(AnySource):
    """An invented shop, which needs no data."""

    kind: Literal["catalogue"] = "catalogue"
    world_seed: int = Field(5, description="another seed makes another shop; the seed of the run does not")
    pairs: PositiveInt = Field(720, description="judged pairs to generate")
    categories: PositiveInt | None = Field(None, description="the most kinds of product, accessories not counted")
    products_per_query: PositiveInt = Field(6, description="mean number of judged products of one query")
    hard_share: Share = Field(0.5, description="share of the S, C and I products that look like the query")
    seed_rationale_share: Share = Field(0.5, description="share of the training pairs with seed rationales")


class FileSource(AnySource):
    """What all sources that are files have. Paths are local, or URIs of a pyarrow filesystem (s3://, gs://)."""

    path: str = Field(min_length=1, description="local path or URI such as s3://bucket/folder")
    limit: PositiveInt | None = Field(None, description="the most rows to read, of the wanted locales")
    locales: tuple[str, ...] | None = Field(None, description="locales to keep; empty keeps all")
    default_locale: str = Field("us", description="locale of rows that name none")
    seeds: str | None = Field(None, description="file of seed rationales")


class EsciSource(FileSource):
    """Shopping Queries Dataset: a folder with the two official parquet files, or one flat table of any format."""

    kind: Literal["esci"] = "esci"
    version: Literal["small", "large"] | None = Field(None, description="version of the data set; empty keeps both")


class ChorusSource(FileSource):
    """A folder with judgments.jsonl and products.jsonl. Ratings are 0 to 3 (scheme `graded`)."""

    kind: Literal["chorus"] = "chorus"


class WandsSource(FileSource):
    """A folder with WANDS's query.csv, product.csv and label.csv (tab-separated).

    Exact, Partial, Irrelevant become 3, 1, 0 (scheme `graded`) unless `label_map` says otherwise.
    """

    kind: Literal["wands"] = "wands"
    label_map: dict[str, str] = Field(
        {"Exact": "3", "Partial": "1", "Irrelevant": "0"}, description="label in the source -> code of the scheme"
    )


class TableSource(FileSource):
    """A file of your own or a folder of them: parquet, csv, tsv or jsonl, with one judged pair per row."""

    kind: Literal["table"] = "table"
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = Field(
        "auto", description="auto goes by the files' endings"
    )
    columns: dict[str, str] = Field({}, description=f"your name of our column; ours are {', '.join(COLUMNS)}")

    @model_validator(mode="after")
    def _known_columns(self) -> TableSource:
        unknown = sorted(set(self.columns) - set(COLUMNS))
        if unknown:
            raise ValueError(f"source.columns: {unknown} are not columns of ours, which are {', '.join(COLUMNS)}")
        return self


SourceSettings = Annotated[
    CatalogueSource | EsciSource | ChorusSource | WandsSource | TableSource, Field(discriminator="kind")
]


class SplitSettings(Settings):
    """How queries (never rows) are split. A `split` column of the source comes first."""

    train: Share = Field(0.7, description="share of the queries")
    dev: Share = Field(0.15, description="share of the queries")
    test: Share = Field(0.15, description="share of the queries")
    unlabelled: Share = Field(0.0, description="share of the training queries whose labels are not used")
    query_in_two_splits: Literal["stop", "fail"] = Field("stop", description="stop, or fail the rows of the query")
    kept_together: tuple[Kept, ...] = Field(
        ("text",),
        description="queries that lie in one split: of the same text up to locale, plural and word order, of nearly "
        "the same text, with a product in common; [] deals each query on its own",
    )

    @model_validator(mode="after")
    def _sum(self) -> SplitSettings:
        total = self.train + self.dev + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"split: train + dev + test must be 1, not {total:g}")
        if self.kept_together and "text" not in self.kept_together:
            raise ValueError("split.kept_together: near_duplicates and products need text as well; add it")
        if self.train == 0 or self.unlabelled == 1:
            raise ValueError("split: no labelled training pairs are left; raise train or lower unlabelled")
        return self


class PairsStage(Settings):
    """What `1-pairs` depends on."""

    seed: int = 13
    source: SourceSettings = CatalogueSource()
    split: SplitSettings = SplitSettings()
    labels: LabelSettings = LabelSettings()
