"""Settings of the stages targets, student and export, and of a saved student. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config import Resources, Settings, TrainSettings, check_best_by
from mpcot.config import PerspectiveSettings
from mpcot.schemes.scheme import Scheme
from mpcot.sources.config import LabelSettings

ProductFields = Literal["title", "title+brand", "title+description"]


class MlpExtractor(Settings):
    """Two layers over the token states, then masked mean pooling."""

    kind: Literal["mlp"] = "mlp"
    hidden: PositiveInt = Field(256, description="width of the first layer")


class PolyExtractor(Settings):
    """Learned codes attend over the token states (poly-encoder)."""

    kind: Literal["poly"] = "poly"
    codes: PositiveInt = Field(16, description="learned vectors that attend to the tokens")


class GatExtractor(Settings):
    """Graph attention over the tokens, each of which is linked to all others."""

    kind: Literal["gat"] = "gat"
    heads: PositiveInt = Field(
        4, description="attention heads of a layer; their number must divide the student's width"
    )
    layers: PositiveInt = Field(2, description="attention layers")


class NoExtractor(Settings):
    """No latent vectors: a plain cross-encoder."""

    kind: Literal["none"] = "none"


Extractor = Annotated[MlpExtractor | PolyExtractor | GatExtractor | NoExtractor, Field(discriminator="kind")]


class EncoderWorkers(Resources):
    """Ray Data actors that hold the sentence encoder."""

    count: PositiveInt = Field(1, description="actors")
    cpus_per_worker: PositiveInt = Field(1, description="CPUs, and threads, of each actor")
    gpus_per_worker: NonNegativeFloat = Field(0, description="0 encodes on CPUs; shares such as 0.5 are possible")


class TargetSettings(Settings):
    """The frozen sentence encoder that turns the teacher's rationales into target vectors."""

    no_effect = frozenset({"batch_size"})

    encoder: str = Field("models/all-minilm-l6-v2", description="folder or hub name of a sentence encoder")
    source: Literal["judgements"] = Field("judgements", description="whose rationales are embedded")
    pooling: Literal["mean", "cls"] = Field(
        "mean", description="as the encoder was trained: mean for MiniLM, cls for BGE"
    )
    normalise: bool = Field(True, description="store unit vectors")
    max_tokens: PositiveInt = Field(256, description="tokens of a rationale; a longer one loses its end")
    batch_size: PositiveInt = Field(64, description="rationales in one forward pass")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the encoder")
    workers: EncoderWorkers = EncoderWorkers()


class StudentSettings(Settings):
    """The student, what it learns from, and the weight of each part of the loss; a weight of 0 drops the part."""

    model: str = Field("models/all-minilm-l6-v2", description="folder or hub name of the starting encoder")
    extractor: Extractor = PolyExtractor()
    per_perspective: bool = Field(True, description="one latent vector and one verdict head per perspective")
    target: str = Field(
        "vote",
        description="the rationale that the latent vector is aligned with, without per_perspective: `vote` (the first "
        "perspective whose verdict is the vote), `mean`, `concat`, or the name of a perspective",
    )
    alignment: Literal["mse", "cosine", "infonce"] = Field("mse", description="loss that aligns the latent vectors")
    alignment_weight: NonNegativeFloat = Field(0.1, description="the paper's lambda")
    alignment_schedule: Literal["constant", "rise", "fade"] = Field(
        "constant", description="how that weight changes over the steps: `rise` starts at 0, `fade` ends at 0"
    )
    reduction: Literal["mean", "sum"] = Field(
        "sum", description="of mse over a vector; `mean` is nearly 0 for unit vectors"
    )
    normalise_targets: bool = Field(True, description="scale latent vectors and targets to unit length first")
    temperature: float = Field(0.05, gt=0, description="of infonce")
    auxiliary: bool = Field(False, description="use latent vectors in training only: the classifier reads [CLS] alone")
    soft_label_weight: NonNegativeFloat = Field(0.0, description="of KL to the teacher's soft labels")
    margin_mse_weight: NonNegativeFloat = Field(0.0, description="of MarginMSE to the teacher's expected gains")
    margin_pairs: Literal["query", "batch"] = Field(
        "query", description="take margins within a query or the whole batch"
    )
    perspective_verdict_weight: NonNegativeFloat = Field(
        0.1, description="of cross-entropy with the verdict of each perspective; needs per_perspective"
    )
    label_weights: Literal["none", "balanced"] = Field("none", description="balanced gives all labels the same total")
    use_unlabelled: bool = Field(
        False, description="unlabelled pairs teach the vote, weighted by its probability as calibrated on dev"
    )
    unlabelled_balance: Literal["none", "gold"] = Field(
        "none",
        description="gold: of each vote keep at most the share of the unlabelled pairs that this label has among the "
        "training pairs",
    )
    shuffled_targets: bool = Field(False, description="control: every pair gets another pair's vectors and verdicts")
    max_tokens: PositiveInt = Field(128, description="of query and product; the end of a longer product is cut")
    fields: ProductFields = Field("title", description="the fields of the product that the student reads")
    dropout: float = Field(0.1, ge=0, lt=1, description="before the classifier")
    baseline: bool = Field(True, description="also train a student on labels only, with the same data and seed")
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _check(self) -> StudentSettings:
        check_best_by("student", self.train, ("loss", "accuracy", "macro_f1"))
        for name in ("auxiliary", "shuffled_targets"):
            if getattr(self, name) and self.extractor.kind == "none":
                raise ValueError(f"student.{name} has no effect without latent vectors. Choose a student.extractor.")
        return self

    def labels_only(self) -> StudentSettings:
        """Return the settings of the baseline: the same training, on human labels alone and without latent vectors."""
        weights = ("alignment_weight", "soft_label_weight", "margin_mse_weight", "perspective_verdict_weight")
        nothing = dict.fromkeys(weights, 0.0) | dict.fromkeys(
            ("per_perspective", "auxiliary", "shuffled_targets", "use_unlabelled"), False
        )
        return self.model_copy(update={**nothing, "extractor": NoExtractor()})


class ExportSettings(Settings):
    """The folder that is served."""

    student: Literal["lrkd", "ce_only"] = Field("lrkd", description="the student that is served")
    check_pairs: PositiveInt = Field(32, description="pairs on which the exported and the trained student must agree")
    index_pairs: NonNegativeInt = Field(20000, description="training pairs that `explain` can show; 0 writes no index")
    calibrate: bool = Field(True, description="serve probabilities at the temperature that fits dev best")


class TargetsStage(Settings):
    """Settings of stage 8."""

    perspectives: PerspectiveSettings
    targets: TargetSettings


class StudentStage(Settings):
    """Settings of stage 9."""

    seed: int
    labels: LabelSettings
    perspectives: PerspectiveSettings
    student: StudentSettings


class ExportStage(Settings):
    """Settings of stage 10."""

    name: str
    labels: LabelSettings
    export: ExportSettings


class StudentConfig(Settings):
    """`student.json`: what is needed besides the encoder's own config to load and use a saved student."""

    format: Literal[1] = 1
    scheme: Scheme
    perspectives: tuple[str, ...]
    extractor: Extractor
    per_perspective: bool
    auxiliary: bool = Field(
        False, description="the classifier does not read the latent vectors, which are for training only"
    )
    target_width: PositiveInt = Field(description="width of one latent vector")
    max_tokens: PositiveInt
    fields: ProductFields
    dropout: float = 0.0
    temperature: PositiveFloat = Field(1.0, description="of the served probabilities; logits are divided by it")
    versions: dict[str, str] = Field(default_factory=dict)
    fingerprint: str = Field("", description="of the stage that trained it")

    @property
    def latents(self) -> int:
        """The number of latent vectors: none, one, or one per perspective."""
        if self.extractor.kind == "none":
            return 0
        return len(self.perspectives) if self.per_perspective else 1

    def for_inference(self) -> StudentConfig:
        """Return the settings of the student after training, which has no auxiliary head any more."""
        dropped = {"extractor": NoExtractor(), "per_perspective": False, "auxiliary": False}
        return self.model_copy(update=dropped) if self.auxiliary else self
