"""The student in one process, from pairs to labels with probabilities and verdicts. Knows nothing of Ray.

Shapes: N pairs, T tokens, P perspectives, D width of a latent vector, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cluster.base.errors import UserError
from cluster.base.processor import inference_precision
from cluster.base.stage_folder import read_manifest
from distill.student.model import Student, StudentOutput, load_tokenizer, read_student_config
from distill.student.predict import predict
from distill.student.reference import Reference, read_reference
from mpcot.sources.clean_texts import served_pair
from serve.config import ServeSettings
from serve.http.schemas import Explanation, LabelInfo, ModelInfo, Result, ScoreInput, Verdict
from serve.scoring.explain import Explainer, load_explainer
from serve.scoring.packed_student import PackedStudent
from serve.scoring.scores import Scores
from serve.scoring.token_cache import Pair, TokenCache
from serve.watching.window import DriftWindow

PROOF = {"query": "red phone case", "title": "Phone case, red"}
# Of several lengths and scripts, so that a batch of them is padded.
PROOFS = (
    PROOF,
    {"query": "Kaffeemühle", "title": "咖啡研磨机", "brand": "Größe"},
    {"query": "maple orbit 5", "title": "Maple Orbit 5", "description": "A phone with a large screen. " * 20},
)
MOST_DIFFERENCE = {"fp32": 0.002, "bf16": 0.1}  # of a probability; of a form that is wrong it is larger
Answered = list[Result] | ArithmeticError
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
LENGTHS = 8  # batches are padded to a multiple of so many tokens


class GpuStudent(nn.Module):
    """A student on a GPU, where torch.autocast chooses the number format of each step."""

    def __init__(self, student: Student, dtype: torch.dtype) -> None:
        super().__init__()
        self.student, self.dtype = student.eval(), dtype

    def forward(self, **inputs: Tensor) -> StudentOutput:
        with torch.autocast("cuda", dtype=self.dtype, enabled=self.dtype != torch.float32):
            return self.student(**inputs)


class Scorer:
    """One loaded student. Several threads must not use it at once."""

    def __init__(
        self,
        student: Student,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
        max_batch_tokens: int | None = None,
        device: str = "cpu",
        kept_products: int = 0,
        explainer: Explainer | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.name, self.explainer, self.config = name, explainer, student.config
        self.drift = DriftWindow(name, reference, student.config.scheme) if reference else None
        self.max_batch_tokens, self.device = max_batch_tokens or BATCH_TOKENS[device], torch.device(device)
        self.tokens = TokenCache(tokenizer, self.config.max_tokens, self.config.fields, kept_products)
        self.has_verdicts = student.verdicts is not None
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = PackedStudent(student, dtype) if device == "cpu" else GpuStudent(student.to(device), dtype)
        self.gains = np.array(self.config.scheme.unit_gains)

    @classmethod
    def load(cls, export_dir: Path, settings: ServeSettings) -> Scorer:
        """Load an export folder, onto a GPU where the settings give a replica one.

        Raises:
            UserError: the folder is not an export, the settings ask for a GPU and there is none, or the fast form of
                the student answers otherwise than the student.
        """
        check_export(export_dir)
        if settings.gpus_per_replica and not torch.cuda.is_available():
            raise UserError("serve.gpus_per_replica: this machine has no GPU that PyTorch can use; set it to 0")
        if not settings.gpus_per_replica:
            torch.set_num_threads(settings.model_threads)
        student, tokenizer = Student.load(export_dir), load_tokenizer(export_dir)
        precision = inference_precision(settings.precision, gpu=settings.gpus_per_replica > 0)
        scorer = cls(
            student,
            tokenizer,
            export_name(export_dir),
            precision=precision,
            max_batch_tokens=settings.batch.max_batch_tokens,
            device="cuda" if settings.gpus_per_replica else "cpu",
            kept_products=settings.kept_products,
            explainer=load_explainer(export_dir, read_student_config(export_dir).perspectives),
            reference=read_reference(export_dir),
        )
        pairs = [served_pair(pair) for pair in PROOFS]
        plain = predict(student, tokenizer, pairs).served(student.config)
        difference = float(np.abs(scorer.score(PROOFS).probabilities - plain).max())
        if difference > MOST_DIFFERENCE[precision]:
            raise UserError(
                f"{export_dir}: probabilities of its fast form in {precision} differ by {difference:.3f} from those of"
                " the student itself. Set serve.precision = 'fp32', or report this if it is set."
            )
        return scorer

    @property
    def about(self) -> ModelInfo:
        """What `/v1/models` says about this student."""
        return ModelInfo(
            id=self.name,
            labels=[LabelInfo(**label.model_dump()) for label in self.config.scheme.labels],
            perspectives=list(self.config.perspectives),
            verdicts=self.has_verdicts,
            explanations=self.explainer is not None,
            fields=self.config.fields,
            max_tokens=self.config.max_tokens,
        )

    def score(self, pairs: Sequence[Mapping[str, Any]]) -> Scores:
        """Score pairs with `query`, `title` and whatever else the student reads, in the given order.

        Texts are cleaned as those of its training were.
        """
        return self.score_cleaned([served_pair(pair) for pair in pairs])

    def score_cleaned(self, pairs: Sequence[Mapping[str, Any]]) -> Scores:
        """Score pairs whose texts have been cleaned, as the rows of a source are."""
        assert pairs, "score needs at least one pair"
        ids = self.tokens(pairs)
        lengths = np.array([self.tokens.length(pair) for pair in ids])
        order = np.argsort(-lengths, kind="stable")
        parts = [self._forward([ids[i] for i in chosen]) for chosen in self._batches(order, lengths)]
        back = torch.from_numpy(np.argsort(order))
        logits, latents, verdicts = (
            None if column[0] is None else torch.cat(column)[back] for column in zip(*parts, strict=True)
        )
        assert logits is not None, "a student always gives logits"
        bias = torch.tensor(self.config.label_bias) if self.config.label_bias else 0
        return Scores(
            (logits / self.config.temperature + bias).softmax(-1).numpy(),
            None if verdicts is None else verdicts.softmax(-1).numpy(),
            None if latents is None else latents.numpy(),
            lengths,
            self.tokens.unknown(ids),
        )

    def relevance(self, probabilities: np.ndarray) -> np.ndarray:
        """Return what results are sorted by, 0 to 1, of probabilities NxC -> N: the expected gain."""
        return np.clip(probabilities @ self.gains, 0, 1)

    def _batches(self, order: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Cut pairs, longest first, into batches that stay within the token budget when padded to their first pair."""
        start = 0
        while start < len(order):
            count = max(1, self.max_batch_tokens // int(lengths[order[start]]))
            yield order[start : start + count]
            start += count

    def _forward(self, pairs: Sequence[Pair]) -> list[Tensor | None]:
        """Return what the student says about one batch, whose longest pair comes first."""
        longest = self.tokens.length(pairs[0])
        # The fewer shapes there are, the fewer products have to be compiled (see `packed_student.ROWS`).
        length = longest if len(pairs) == 1 else min(self.config.max_tokens, -(-longest // LENGTHS) * LENGTHS)
        batch = self.tokens.batch(pairs, length)
        inputs = {name: values.to(self.device) for name, values in batch.items()}
        with torch.inference_mode():
            output: StudentOutput = self.model(**inputs)
        return [None if part is None else part.float().cpu() for part in output]

    def reads(self, pair: Mapping[str, Any]) -> tuple[str, str]:
        """Return all that the student reads of a pair: the cleaned query, and the text of the product."""
        return self.tokens.texts(served_pair(pair))

    def answer(self, requests: Sequence[ScoreInput]) -> list[Answered]:
        """Score the products of several requests at once, count them, and return the list of results of each request.

        A request with a pair whose scores are not numbers gets an ArithmeticError in its place.
        """
        pairs = [{"query": r.query, **product.model_dump()} for r in requests for product in r.products]
        scores = self.score(pairs)
        explained = self.explanations(scores, [r.explain for r in requests for _ in r.products])
        right, rows = scores.right, iter(range(len(pairs)))
        if self.drift:
            self.drift.add(scores if right.all() else scores.taken(right))
        return [self._answer(r, [next(rows) for _ in r.products], scores, right, explained) for r in requests]

    def _answer(
        self,
        request: ScoreInput,
        rows: Sequence[int],
        scores: Scores,
        right: np.ndarray,
        explained: Mapping[int, list[Explanation]],
    ) -> Answered:
        if not right[rows].all():
            return ArithmeticError(f"{self.name}: the scores of a pair are not numbers")
        return [self._result(p.id, scores, n, explained.get(n)) for p, n in zip(request.products, rows, strict=True)]

    def _result(self, product_id: str, scores: Scores, row: int, explanations: list[Explanation] | None) -> Result:
        probabilities = scores.probabilities[row]
        verdicts = (
            {} if scores.verdicts is None else dict(zip(self.config.perspectives, scores.verdicts[row], strict=True))
        )
        return Result(
            id=product_id,
            label=self._best(probabilities),
            score=float(self.relevance(probabilities)),
            probabilities=self._named(probabilities),
            perspectives={n: Verdict(verdict=self._best(p), probabilities=self._named(p)) for n, p in verdicts.items()},
            explanations=explanations,
            tokens=int(scores.tokens[row]),
        )

    def _best(self, probabilities: np.ndarray) -> str:
        return self.config.scheme.codes[int(probabilities.argmax())]

    def _named(self, probabilities: np.ndarray) -> dict[str, float]:
        return dict(zip(self.config.scheme.codes, probabilities.tolist(), strict=True))

    def explanations(self, scores: Scores, wanted: Sequence[bool]) -> dict[int, list[Explanation]]:
        """Return the explanations of the rows that want one. They are looked up together, because the model waits."""
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return {}
        assert self.explainer is not None and scores.latents is not None, "such requests are refused before scoring"
        # A student without heads of the perspectives has one verdict, its label.
        every = len(self.config.perspectives)
        shares = np.repeat(scores.probabilities[:, None], every, 1) if scores.verdicts is None else scores.verdicts
        verdicts = [[self._best(p) for p in shares[row]] for row in rows]
        return dict(zip(rows.tolist(), self.explainer.nearest(scores.latents[rows], verdicts), strict=True))


def check_export(export_dir: Path) -> None:
    """Refuse a folder that is not an export, before anything is loaded or started.

    Raises:
        UserError: the folder does not exist or holds no student.
    """
    if not export_dir.is_dir():
        raise UserError(f"{export_dir} is not a folder. Give the 10-export folder of a run.")
    read_student_config(export_dir)


def export_name(export_dir: Path) -> str:
    """Return a name such as `demo@1f0c2d3e`, of the folder and of what made it, so that two exports differ in name."""
    manifest = read_manifest(export_dir)
    folder = export_dir.resolve()
    name = folder.parent.name if folder.name == "10-export" else folder.name
    made_by = manifest["fingerprint"] if manifest else read_student_config(export_dir).fingerprint
    return f"{name}@{made_by[:8]}" if made_by else name


def load_proven(export_dir: Path, settings: ServeSettings) -> Scorer:
    """Load an export and score one pair with it, so that damaged weights are found before a shopper finds them.

    Raises:
        UserError: the folder is not an export, or one of its scores is not a number.
    """
    scorer = Scorer.load(export_dir, settings)
    try:
        prove(scorer)
    except ArithmeticError as error:
        raise UserError(f"{export_dir}: {error}. Its weights are damaged; export it again.") from error
    return scorer


def prove(scorer: Scorer) -> None:
    """Score one pair of our own.

    Raises:
        ArithmeticError: one of its scores is not a number.
    """
    if not scorer.score([PROOF]).right.all():
        raise ArithmeticError("its scores are not numbers")
