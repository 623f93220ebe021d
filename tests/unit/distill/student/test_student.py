from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel

from cluster.base.errors import UserError
from distill.config import Extractor, GatExtractor, MlpExtractor, NoExtractor, PolyExtractor, StudentConfig
from distill.student.inputs import encode_pairs
from distill.student.model import (
    Student,
    build_student,
    encoder_layers,
    freeze_layers,
    is_trained,
    kept_for_inference,
    load_encoder,
    load_tokenizer,
    write_student,
)
from distill.student.predict import Predictions, predict
from mpcot.schemes.scheme import load_scheme

KINDS: list[Extractor] = [
    MlpExtractor(hidden=8),
    PolyExtractor(codes=2),
    GatExtractor(heads=2),
    NoExtractor(),
]
PAIRS = [{"query": "red mug", "title": "the lamp " * n} for n in (9, 1, 4)]


def config(**changes: Any) -> StudentConfig:
    settings: dict[str, Any] = {
        "scheme": load_scheme("esci"),
        "perspectives": ("intent", "attributes", "rules"),
        "extractor": PolyExtractor(codes=2),
        "per_perspective": True,
        "target_width": 6,
        "max_tokens": 32,
        "fields": "title",
    }
    return StudentConfig(**(settings | changes))


@pytest.mark.parametrize("extractor", KINDS, ids=lambda e: e.kind)
@pytest.mark.parametrize("per_perspective", [True, False])
def test_shapes(encoder: Path, extractor: Extractor, per_perspective: bool) -> None:
    student = build_student(str(encoder), config(extractor=extractor, per_perspective=per_perspective))
    output = student(**encode_pairs(load_tokenizer(encoder), PAIRS, 32))
    latents = 0 if extractor.kind == "none" else 3 if per_perspective else 1
    assert output.logits.shape == (3, 4)
    assert (output.latents is None) if not latents else (output.latents.shape == (3, latents, 6))
    has_verdicts = latents == 3
    assert (output.perspective_logits.shape == (3, 3, 4)) if has_verdicts else (output.perspective_logits is None)


def test_the_latents_take_part_in_the_label(encoder: Path) -> None:
    student = build_student(str(encoder), config()).eval()
    batch = encode_pairs(load_tokenizer(encoder), PAIRS, 32)
    before = student(**batch).logits
    with torch.no_grad():
        student.extractor.project.bias[:, 0].add_(1.0)  # type: ignore[union-attr, index]
    assert not torch.allclose(before, student(**batch).logits)


def test_an_auxiliary_head_gives_latents_and_takes_no_part_in_the_label(encoder: Path, tmp_path: Path) -> None:
    student = build_student(str(encoder), config(auxiliary=True)).eval()
    tokenizer = load_tokenizer(encoder)
    batch = encode_pairs(tokenizer, PAIRS, 32)
    before = student(**batch)
    assert before.latents is not None and before.perspective_logits is not None
    with torch.no_grad():
        student.extractor.project.bias.add_(1.0)  # type: ignore[union-attr, operator]
    assert torch.equal(before.logits, student(**batch).logits)
    # What is kept for inference is a plain cross-encoder with the same answers.
    kept = kept_for_inference(student.state_dict(), student.config)
    write_student(tmp_path / "kept", kept, student.config.for_inference(), student.encoder.config, tokenizer)
    plain = Student.load(tmp_path / "kept")
    assert plain.extractor is None and plain.verdicts is None and plain.config.latents == 0
    torch.testing.assert_close(plain(**batch).logits, before.logits)


def test_the_classifier_reads_latents_of_the_scale_of_the_states(encoder: Path) -> None:
    student = build_student(str(encoder), config()).eval()
    seen: list[torch.Tensor] = []
    student.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    output = student(**encode_pairs(load_tokenizer(encoder), PAIRS, 32))
    latents = seen[0][:, 16:].unflatten(1, (3, 6))
    torch.testing.assert_close(latents.mean(-1), torch.zeros(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.square().mean(-1), torch.ones(3, 3), atol=1e-2, rtol=0)
    # The losses and the index see the vectors as they are.
    assert output.latents is not None
    raw = output.latents - output.latents.mean(-1, keepdim=True)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=-1), latents / 6**0.5, atol=1e-2, rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_classifier_reads_cls_or_the_mean_of_the_real_tokens(encoder: Path, pooling: str) -> None:
    student = build_student(str(encoder), config(extractor=NoExtractor(), pooling=pooling)).eval()
    batch = encode_pairs(load_tokenizer(encoder), PAIRS, 32)
    states = student.encode(**batch)
    read = states[:, 0]
    if pooling == "mean":
        read = torch.stack(
            [own[mask.bool()].mean(0) for own, mask in zip(states, batch["attention_mask"], strict=True)]
        )
    torch.testing.assert_close(student(**batch).logits, student.classifier(read))


def test_a_student_that_learnt_no_verdicts_has_no_heads_for_them(encoder: Path) -> None:
    student = build_student(str(encoder), config(verdicts=False))
    output = student(**encode_pairs(load_tokenizer(encoder), PAIRS, 32))
    assert output.latents is not None and output.perspective_logits is None


def test_a_student_of_another_format_is_refused_with_the_way_out(encoder: Path, tmp_path: Path) -> None:
    build_student(str(encoder), config(fingerprint="made")).save(tmp_path, load_tokenizer(encoder))
    assert is_trained(tmp_path, "made") and not is_trained(tmp_path, "other")
    described = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps(described | {"format": 1}))
    with pytest.raises(UserError, match=r"has format 1 and this version reads format 2. Train and export"):
        Student.load(tmp_path)
    assert not is_trained(tmp_path, "made")  # so stage 9 trains it anew


def test_biases_must_be_as_many_as_labels() -> None:
    with pytest.raises(ValidationError, match="label_bias: 2 numbers for 4 labels"):
        config(label_bias=(0.5, -0.5))


def test_frozen_layers_and_embeddings_are_not_trained(encoder: Path) -> None:
    model = load_encoder(str(encoder))
    freeze_layers(model, 1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("encoder.layer.1.")}
    assert encoder_layers(str(encoder)) == 2
    with pytest.raises(UserError, match=r"student.frozen_layers: 3 is more than the 2 layers"):
        freeze_layers(model, 3)


def test_has_no_pooling_layer(encoder: Path) -> None:
    student = build_student(str(encoder), config())
    assert not any("pooler" in name for name, _ in student.named_parameters())


@pytest.mark.parametrize("extractor", KINDS, ids=lambda e: e.kind)
def test_saved_and_loaded_it_gives_the_same(encoder: Path, tmp_path: Path, extractor: Extractor) -> None:
    student = build_student(str(encoder), config(extractor=extractor)).eval()
    tokenizer = load_tokenizer(encoder)
    student.save(tmp_path / "made", tokenizer)
    loaded = Student.load(tmp_path / "made")
    assert loaded.config == student.config and not loaded.training
    first, second = (predict(s, load_tokenizer(tmp_path / "made"), PAIRS) for s in (student, loaded))
    assert (first.logits == second.logits).all()


def test_the_saved_folder_has_no_pickle_and_no_path_of_this_machine(encoder: Path, tmp_path: Path) -> None:
    build_student(str(encoder), config()).save(tmp_path / "made", load_tokenizer(encoder))
    files = list((tmp_path / "made").iterdir())
    assert {"student.json", "model.safetensors", "config.json", "tokenizer.json"} <= {f.name for f in files}
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pkl")]
    assert not [f.name for f in files if f.suffix == ".json" and str(encoder) in f.read_text()]


def test_bf16_parameters_are_saved_as_float32(encoder: Path, tmp_path: Path) -> None:
    build_student(str(encoder), config()).bfloat16().save(tmp_path, load_tokenizer(encoder))
    assert {p.dtype for p in Student.load(tmp_path).parameters()} == {torch.float32}


def test_prediction_order_and_batch_size_do_not_matter(encoder: Path) -> None:
    student, tokenizer = build_student(str(encoder), config()), load_tokenizer(encoder)
    whole = predict(student, tokenizer, PAIRS)
    single = [predict(student, tokenizer, [pair], batch_size=1) for pair in PAIRS]
    for field in ("logits", "latents", "perspective_logits", "probabilities"):
        parts = [torch.from_numpy(getattr(s, field)) for s in single]
        torch.testing.assert_close(torch.from_numpy(getattr(whole, field)), torch.cat(parts), atol=1e-5, rtol=1e-4)
    assert whole.probabilities.sum(1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_served_probabilities_have_the_temperature_and_the_biases() -> None:
    found = Predictions(np.array([[0.0, np.log(4)]], np.float32), None, None)
    plain = config(scheme=load_scheme("binary"))
    assert found.served(plain) == pytest.approx(np.array([[0.2, 0.8]]), abs=1e-6)
    # The root of 4 is 2, and a bias of log 6 makes it 6 to 2.
    fitted = plain.model_copy(update={"temperature": 2.0, "label_bias": (float(np.log(6)), 0.0)})
    assert found.served(fitted) == pytest.approx(np.array([[0.75, 0.25]]), abs=1e-6)


def test_a_folder_that_is_no_student(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a student's folder: it has no student.json"):
        Student.load(encoder)
    with pytest.raises(UserError, match=r"is not a student's folder"):
        Student.load(tmp_path / "nowhere")


@pytest.mark.parametrize("harm", ["weights", "json", "setting", "extractor", "parameter"])
def test_a_damaged_student(encoder: Path, tmp_path: Path, harm: str) -> None:
    student = build_student(str(encoder), config())
    student.save(tmp_path, load_tokenizer(encoder))
    path = tmp_path / "student.json"
    described = json.loads(path.read_text())
    if harm == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"no tensors here")
    elif harm == "json":
        path.write_text("{")
    elif harm == "setting":
        path.write_text(json.dumps(described | {"unknown": 1}))
    elif harm == "extractor":
        path.write_text(json.dumps(described | {"extractor": {"kind": "mlp", "hidden": 8}}))
    else:
        from distill.student.model import write_student

        state = {k: v for k, v in student.state_dict().items() if k != "classifier.bias"}
        write_student(tmp_path, state, student.config, student.encoder.config, load_tokenizer(encoder))
    with pytest.raises(UserError):
        Student.load(tmp_path)


def test_more_tokens_than_the_encoder_reads(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"student.max_tokens: 128 is more than the 64"):
        build_student(str(encoder), config(max_tokens=128))


def test_an_encoder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot load the encoder"):
        load_encoder(str(tmp_path))
    with pytest.raises(UserError, match=r"cannot load a tokenizer"):
        load_tokenizer(tmp_path)


def test_exports_as_one_graph(encoder: Path) -> None:
    student = build_student(str(encoder), config()).eval()
    batch = encode_pairs(load_tokenizer(encoder), PAIRS, 32)
    args = tuple(batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    program = torch.export.export(student, args)
    torch.testing.assert_close(program.module()(*args).logits, student(*args).logits)


def test_threads_make_one_model_at_a_time(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once have left transformers without its tied weights for the rest of a process."""
    made, inside, most = AutoModel.from_pretrained, [0], [0]

    def watched(*given: Any, **settings: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)  # long enough for another thread to come in
        inside[0] -= 1
        return made(*given, **settings)

    monkeypatch.setattr(AutoModel, "from_pretrained", watched)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(load_encoder, [str(encoder)] * 4))) == 4
    assert most == [1]
