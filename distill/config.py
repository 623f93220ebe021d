"""Settings of the stages targets, student and export, and of a saved student. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config import Resources, Settings, TrainSettings, check_best_by
from mpcot.config import PerspectiveSettings
from mpcot.schemes.scheme import Scheme
from mpcot.sources.config import LabelSettings

ProductFields = Literal["title", "title+brand", "title+description"]
# The controls that need more vectors than those of the rationales.
EmbeddedControl = Literal["nearest_title", "query_title", "permuted", "template"]
StudentPooling = Literal["cls", "mean"]
ServedCalibration = Literal["none", "temperature", "temperature+bias", "best"]
LEAST_SKILL: Final = 0.1  # alignment skill on dev; below it the latent vectors did not learn the rationales
STUDENT_FORMAT: Final = 2  # of `student.json`: raised when weights or settings of a saved student mean something else


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

    no_effect = frozenset({"batch_size", "encoder"})  # the content of the encoder counts

    encoder: str = Field("models/all-minilm-l6-v2", description="folder or hub name of a sentence encoder")
    source: Literal["judgements"] = Field("judgements", description="whose rationales are embedded")
    text: Literal["rationale", "rationale+verdict", "delexicalised"] = Field(
        "rationale+verdict",
        description="what is embedded: the rationale, the same after its verdict and confidence, or the same with "
        "[asked] for words of the query and [offered] for other words of the title",
    )
    transform: Literal["none", "centred", "residual"] = Field(
        "none",
        description="of the vectors: `centred` takes away their mean over the training pairs, `residual` what a ridge "
        "regression tells from query and title, and whitens the rest",
    )
    dimensions: PositiveInt = Field(64, description="numbers of a vector with transform = 'residual'")
    controls: tuple[EmbeddedControl, ...] = Field(
        (), description="values of `student.control` for which vectors are made beside those of the rationales"
    )
    pooling: Literal["auto", "mean", "cls"] = Field(
        "auto", description="how an encoder's states become one vector; auto reads it from the encoder's modules.json"
    )
    normalise: bool = Field(True, description="store unit vectors")
    max_tokens: PositiveInt = Field(256, description="tokens of a rationale; a longer one loses its end")
    batch_size: PositiveInt = Field(64, description="rationales in one forward pass")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the encoder")
    workers: EncoderWorkers = EncoderWorkers()

    @property
    def embeds_pairs(self) -> bool:
        """Whether query and title become vectors too."""
        return self.transform == "residual" or bool({"nearest_title", "query_title"} & {*self.controls})

    @model_validator(mode="after")
    def _check(self) -> TargetSettings:
        if self.transform != "residual" and self.dimensions != type(self).model_fields["dimensions"].default:
            raise ValueError("targets.dimensions has no effect without targets.transform = 'residual'")
        if self.transform == "residual" and "query_title" in self.controls:
            raise ValueError(
                "targets.controls: 'query_title' would be nothing, since targets.transform = 'residual' takes away "
                "what query and title tell. Leave it out, or choose another transform."
            )
        return self


class StudentSettings(Settings):
    """The student, what it learns from, and the weight of each part of the loss; a weight of 0 drops the part."""

    no_effect = frozenset({"model"})  # its content counts

    model: str = Field("models/all-minilm-l6-v2", description="folder or hub name of the starting encoder")
    extractor: Extractor = PolyExtractor()
    per_perspective: bool = Field(True, description="one latent vector and one verdict head per perspective")
    pooling: StudentPooling = Field(
        "cls", description="what the classifier reads beside the latent vectors: the state of [CLS], or the mean state"
    )
    frozen_layers: NonNegativeInt = Field(
        0, description="lower layers of the encoder, and with them its embeddings, that are not trained; 0 trains all"
    )
    target: str = Field(
        "vote",
        description="the rationale that the latent vector is aligned with, without per_perspective: `vote` (of the "
        "perspectives whose verdict is the vote, the surest one's), `mean`, `concat`, or the name of a perspective",
    )
    target_pairs: Literal["own", "alike"] = Field(
        "alike",
        description="whose rationale a pair learns: its `own`, or the mean of all training pairs that are `alike`, "
        "with the same gold label and verdicts, in which the topic is averaged out",
    )
    alignment: Literal["mse", "cosine", "infonce"] = Field("mse", description="loss that aligns the latent vectors")
    alignment_weight: NonNegativeFloat = Field(1.0, description="the paper's lambda")
    alignment_schedule: Literal["constant", "rise", "fade"] = Field(
        "constant", description="how that weight changes over the steps: `rise` starts at 0, `fade` ends at 0"
    )
    reduction: Literal["mean", "sum"] = Field(
        "sum", description="of mse over a vector; `mean` is nearly 0 for unit vectors"
    )
    normalise_targets: bool = Field(True, description="scale latent vectors and targets to unit length first")
    temperature: float = Field(0.05, gt=0, description="of infonce")
    auxiliary: bool = Field(False, description="use latent vectors in training only: the classifier reads [CLS] alone")
    soft_label_weight: NonNegativeFloat = Field(0.5, description="of KL to the teacher's soft labels")
    teacher_smoothing: float = Field(
        0.0, ge=0, le=1, description="share of the teacher's soft labels in the label that cross-entropy learns"
    )
    margin_mse_weight: NonNegativeFloat = Field(0.0, description="of MarginMSE to the teacher's expected gains")
    margin_pairs: Literal["query", "batch"] = Field(
        "query", description="take margins within a query or the whole batch"
    )
    perspective_verdict_weight: NonNegativeFloat = Field(
        0.1, description="of cross-entropy with the verdict of each perspective; needs per_perspective"
    )
    ranking: Literal["none", "ranknet", "lambdaloss", "listnet"] = Field(
        "none", description="loss that orders the products of a query by the gains of their gold labels"
    )
    ranking_weight: PositiveFloat = Field(1.0, description="of that loss")
    label_weights: Literal["none", "balanced"] = Field("none", description="balanced gives all labels the same total")
    soft_labels: Literal["raw", "calibrated"] = Field(
        "calibrated", description="calibrated fits the teacher's distribution to the gold labels of dev first"
    )
    use_unlabelled: bool = Field(
        True, description="unlabelled pairs teach the vote, weighted by its probability as calibrated on dev"
    )
    unlabelled_weight: PositiveFloat = Field(
        0.5, description="weight of an unlabelled pair in every part of the loss, times how probable its vote is"
    )
    unlabelled_balance: Literal["none", "gold"] = Field(
        "none",
        description="gold: of each vote keep at most the share of the unlabelled pairs that this label has among the "
        "training pairs; without it `export.calibrate` makes up for their other shares",
    )
    control: Literal["none", "shuffled", "same_verdicts", "half", EmbeddedControl] = Field(
        "none",
        description="what takes the place of a pair's own vectors, to see what they are worth: `shuffled` another "
        "pair's vectors and verdicts; `same_verdicts` the vectors of another training pair with the same gold label "
        "and verdicts, `nearest_title` of the one with the most similar title, `half` of one for half of the pairs; "
        "`query_title`, `permuted` and `template` the vectors of query and title, of the rationale with its words in "
        "another order, and of a text that names verdict and confidence alone",
    )
    max_tokens: PositiveInt = Field(128, description="of query and product; the end of a longer product is cut")
    fields: ProductFields = Field("title", description="the fields of the product that the student reads")
    dropout: float = Field(0.1, ge=0, lt=1, description="before the classifier")
    baseline: bool = Field(True, description="also train a student on labels only, with the same data and seed")
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _check(self) -> StudentSettings:
        check_best_by("student", self.train, ("loss", "accuracy", "macro_f1", "ndcg"))
        for name in ("auxiliary", "control"):
            if getattr(self, name) not in (False, "none") and self.extractor.kind == "none":
                raise ValueError(f"student.{name} has no effect without latent vectors. Choose a student.extractor.")
        return self

    @property
    def learns_means(self) -> bool:
        """Whether pairs learn the mean rationale of those that are alike; a control puts other vectors in its place."""
        return self.target_pairs == "alike" and self.control == "none" and self.alignment_weight > 0

    def labels_only(self) -> StudentSettings:
        """Return the settings of the baseline: the same student and training, on human labels alone.

        With `auxiliary`, whose latent vectors take no part in the label, that is the plain student.
        """
        weights = (
            "alignment_weight", "soft_label_weight", "teacher_smoothing", "margin_mse_weight",
            "perspective_verdict_weight",
        )  # fmt: skip
        taught = dict.fromkeys(weights, 0.0) | {"use_unlabelled": False, "control": "none", "target_pairs": "own"}
        return self.plain() if self.auxiliary else self.model_copy(update=taught)

    def plain(self) -> StudentSettings:
        """Return the settings of a student on human labels alone that has no latent vectors either."""
        without = {"extractor": NoExtractor(), "per_perspective": False, "auxiliary": False}
        return self.model_copy(update=without).labels_only()


class ExportSettings(Settings):
    """The folder that is served."""

    student: Literal["lrkd", "ce_only"] = Field("lrkd", description="the student that is served")
    index_pairs: NonNegativeInt = Field(20000, description="training pairs that `explain` can show; 0 writes no index")
    calibrate: ServedCalibration = Field(
        "best",
        description="serve probabilities at the temperature that fits dev best, which changes no label, or with a bias "
        "per label besides, for where labels have other shares than those that were trained on; `best` takes the bias "
        "only if it serves dev queries that it was not fitted on",
    )


class TargetsStage(Settings):
    """Settings of stage 8."""

    labels: LabelSettings
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

    format: Literal[2] = STUDENT_FORMAT
    scheme: Scheme
    perspectives: tuple[str, ...]
    extractor: Extractor
    per_perspective: bool
    pooling: StudentPooling = "cls"
    verdicts: bool = Field(True, description="with one latent vector per perspective, each has a verdict head")
    aligned: bool = Field(True, description="the latent vectors learnt rationales, which they can show therefore")
    auxiliary: bool = Field(
        False, description="the classifier does not read the latent vectors, which are for training only"
    )
    target_width: PositiveInt = Field(description="width of one latent vector")
    max_tokens: PositiveInt
    fields: ProductFields
    dropout: float = 0.0
    temperature: PositiveFloat = Field(1.0, description="of the served probabilities; logits are divided by it")
    label_bias: tuple[float, ...] = Field((), description="added to them then, one per label; none if empty")
    versions: dict[str, str] = Field(default_factory=dict)
    fingerprint: str = Field("", description="of the stage that trained it")

    @model_validator(mode="after")
    def _biases(self) -> StudentConfig:
        if self.label_bias and len(self.label_bias) != len(self.scheme.labels):
            raise ValueError(f"label_bias: {len(self.label_bias)} numbers for {len(self.scheme.labels)} labels")
        return self

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
