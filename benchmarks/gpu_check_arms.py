"""What `gpu_check.py` measures: random models of real sizes, the scorer, and one training step of each kind.

Weights are random and texts are random words, so no model folder is needed: speed and memory do not depend on them.
"""

from __future__ import annotations

import random
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from distill.config import PolyExtractor, StudentConfig
from distill.lrkd.losses import alignment_loss
from distill.student.model import Student, StudentOutput
from mpcot.schemes.scheme import load_scheme
from teacher.answer_tokens import IGNORED, Example, pad, share
from teacher.losses import answer_logprobs, preference_loss, sequence_logprobs

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = tuple(f"w{number}" for number in range(2000))
PERSPECTIVES = ("intent", "attributes", "rules")
TARGET_WIDTH = 1024  # of BGE-M3


@dataclass(frozen=True)
class Sizes:
    """Where it runs, and how large the models and batches are; prompts and answers are in tokens."""

    device: str
    student: dict[str, int]
    teacher: dict[str, int]
    pairs: tuple[int, ...]
    student_batch: int
    sequences: int
    prompt: int
    answer: int
    repeats: int
    product: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32


# BERT-base multilingual and the shape of Qwen3-1.7B, whose training fits one card with all its weights.
CARD = Sizes(
    device="cuda",
    student={"vocab_size": 119_547},
    teacher={
        "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    },
    pairs=(1, 4, 16, 64, 256, 1024, 4096), student_batch=256, sequences=4, prompt=600, answer=160, repeats=20,
    product=8192,
)  # fmt: skip
SMALL = Sizes(
    device="cpu",
    student={"vocab_size": 3000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 128},
    teacher={
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    },
    pairs=(1, 4, 16), student_batch=8, sequences=2, prompt=48, answer=16, repeats=3, product=256,
)  # fmt: skip


def seconds(work: Callable[[], object], sizes: Sizes) -> list[float]:
    """Return how long each of `sizes.repeats` calls takes, until the GPU is done with it; two come before them."""

    def whole() -> None:
        work()
        if sizes.device == "cuda":
            torch.cuda.synchronize()

    timeit.repeat(whole, number=1, repeat=2)
    return timeit.repeat(whole, number=1, repeat=sizes.repeats)


def matrix_rate(sizes: Sizes) -> float:
    """Return the operations per second of a large square matrix product."""
    a, b = (torch.randn(sizes.product, sizes.product, device=sizes.device, dtype=sizes.dtype) for _ in range(2))
    return 2 * sizes.product**3 / median(seconds(lambda: a @ b, sizes))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows each of `WORDS` and joins a pair as BERT's does."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, model_input_names=inputs, **names)


def make_pairs(count: int) -> list[dict[str, str]]:
    """Return pairs of a few words and a title of 15 to 60, about as long as those of the Shopping Queries Dataset."""
    draw = random.Random(count)

    def words(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(most // 4, most)))

    return [{"query": words(8), "title": words(60)} for _ in range(count)]


def encoder_config(sizes: Sizes) -> BertConfig:
    return BertConfig(**sizes.student)


def make_student(sizes: Sizes) -> Student:
    """Return a student with random weights."""
    config = StudentConfig(
        scheme=load_scheme("esci"), perspectives=PERSPECTIVES, extractor=PolyExtractor(), per_perspective=True,
        target_width=TARGET_WIDTH, max_tokens=128, fields="title",
    )  # fmt: skip
    return Student(BertModel(encoder_config(sizes), add_pooling_layer=False), config)


class HalfStudent(nn.Module):
    """A student whose encoder has bf16 weights; what reads its states stays in fp32, as in the served one on a CPU."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student.eval()
        self.student.encoder.to(torch.bfloat16)

    def forward(self, **inputs: Tensor) -> StudentOutput:
        return self.student.read(self.student.encode(**inputs).float(), inputs["attention_mask"])


class Graphed(nn.Module):
    """Replays the forward pass as one CUDA graph per shape, so that a small batch does not wait for launches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.graphs: dict[Any, tuple[Any, dict[str, Tensor], StudentOutput]] = {}

    def forward(self, **inputs: Tensor) -> StudentOutput:
        shape = inputs["input_ids"].shape
        if shape not in self.graphs:
            self.graphs[shape] = self._captured(inputs)
        graph, held, output = self.graphs[shape]
        for name, values in inputs.items():
            held[name].copy_(values)
        graph.replay()
        return StudentOutput(*(None if part is None else part.clone() for part in output))

    def _captured(self, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor], StudentOutput]:
        held, side, graph = {name: v.clone() for name, v in inputs.items()}, torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # kernels are chosen in the first passes, which a graph cannot hold
                self.model(**held)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            output = self.model(**held)
        return graph, held, output


def forward_operations(config: Any, tokens: int, length: float) -> float:
    """Return the operations of a BERT's forward pass: 2 per weight of its layers, and attention's two products."""
    width, inner = config.hidden_size, config.intermediate_size
    weights = 4 * width * width + 2 * width * inner
    return config.num_hidden_layers * tokens * (2 * weights + 4 * width * length)


class Adam:
    """AdamW with fp32 copies of bf16 weights, as DeepSpeed steps them without ZeRO."""

    def __init__(self, model: nn.Module) -> None:
        self.own = [p for p in model.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone() if p.dtype != torch.float32 else p for p in self.own]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-5, fused=True)

    def step(self) -> None:
        for weight, master in zip(self.own, self.masters, strict=True):
            if master is not weight:
                master.grad, weight.grad = weight.grad.float() if weight.grad is not None else None, None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for weight, master in zip(self.own, self.masters, strict=True):
                if master is not weight:
                    weight.copy_(master)


def student_step(sizes: Sizes) -> tuple[Callable[[], float], nn.Module]:
    """Return one step of LRKD on labels and rationale vectors, in autocast over fp32 weights, and the student."""
    device = sizes.device
    student, tokenizer = make_student(sizes).to(device).train(), make_tokenizer()
    pairs, count = make_pairs(sizes.student_batch), sizes.student_batch
    batch = tokenizer([p["query"] for p in pairs], [p["title"] for p in pairs], padding=True, return_tensors="pt")
    inputs = {name: batch[name].to(device) for name in tokenizer.model_input_names}
    labels = torch.arange(count, device=device) % len(student.config.scheme.labels)
    targets = torch.randn(count, len(PERSPECTIVES), TARGET_WIDTH, device=device)
    mask, adam = torch.ones(count, len(PERSPECTIVES), dtype=torch.bool, device=device), Adam(student)

    def step() -> float:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=sizes.dtype == torch.bfloat16):
            output = student(**inputs)
        loss = nn.functional.cross_entropy(output.logits.float(), labels)
        loss = loss + alignment_loss(output.latents.float(), targets, mask).mean()
        loss.backward()
        adam.step()
        return float(loss.detach())

    return step, student


def make_teacher(sizes: Sizes) -> Any:
    """Return a causal model with random weights, the same ones every time, that recomputes its activations."""
    torch.manual_seed(7)
    model: Any = Qwen3ForCausalLM(Qwen3Config(**sizes.teacher, tie_word_embeddings=True)).to(sizes.device, sizes.dtype)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def answers(sizes: Sizes, each: int) -> Iterator[list[Example]]:
    """Yield for each sequence `each` answers whose prompts begin alike and differ in their last eighth."""
    draw, vocabulary = random.Random(5), sizes.teacher["vocab_size"]

    def ids(count: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(count)]

    for _ in range(sizes.sequences):
        common = ids(sizes.prompt - sizes.prompt // 8)
        prompts = [common + ids(sizes.prompt // 8) for _ in range(each)]
        told = [(prompt, ids(sizes.answer)) for prompt in prompts]
        yield [(prompt + said, [IGNORED] * len(prompt) + said) for prompt, said in told]


def teacher_batch(sizes: Sizes, each: int, shared: bool) -> dict[str, Tensor]:
    """Return all answers as one batch: behind the beginnings that they share, or as sequences of their own.

    Answer i of sequence s has the number i * sequences + s, so that the chosen ones of DPO come first.
    """
    groups = [
        [(example, answer * sizes.sequences + place) for answer, example in enumerate(own)]
        for place, own in enumerate(answers(sizes, each))
    ]
    parts = groups if shared else [[one] for group in groups for one in group]
    batch = pad([share([example for example, _ in part], [owner for _, owner in part]) for part in parts], 0)
    return {name: values.to(sizes.device) for name, values in batch.items()}


def sft_step(model: Any, batch: dict[str, Tensor], _: int) -> Callable[[], float]:
    """Return a step of SFT: the mean loss over answer tokens."""
    adam = Adam(model)

    def step() -> float:
        logprobs, _ = answer_logprobs(model, batch)
        loss = -logprobs.mean()
        loss.backward()
        adam.step()
        return float(loss.detach())

    return step


def dpo_step(model: Any, batch: dict[str, Tensor], half: int) -> Callable[[], float]:
    """Return a step of DPO against the log-probabilities of the model as it starts; the first `half` are chosen."""
    adam = Adam(model)
    with torch.no_grad():
        reference = sequence_logprobs(model, batch)[0]

    def step() -> float:
        sums, _ = sequence_logprobs(model, batch)
        loss, _ = preference_loss(sums[:half], sums[half:], reference[:half], reference[half:], beta=0.1)
        loss.mean().backward()
        adam.step()
        return float(loss.mean().detach())

    return step
