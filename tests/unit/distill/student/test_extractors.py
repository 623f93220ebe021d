from __future__ import annotations

import pytest
import torch

from cluster.base.errors import UserError
from distill.config import Extractor, GatExtractor, MlpExtractor, NoExtractor, PolyExtractor
from distill.student.extractors import Gat, GraphAttention, Mlp, Poly, build_extractor, masked_mean

KINDS: list[Extractor] = [MlpExtractor(hidden=12), PolyExtractor(codes=4), GatExtractor(heads=2, layers=2)]
WIDTH, LATENTS, TARGET = 8, 3, 5


def built(settings: Extractor, latents: int = LATENTS) -> torch.nn.Module:
    torch.manual_seed(0)
    module = build_extractor(settings, WIDTH, latents, TARGET)
    assert module is not None
    return module.eval()


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s.kind)
@pytest.mark.parametrize("latents", [1, 3])
def test_gives_one_vector_per_latent(settings: Extractor, latents: int) -> None:
    vectors = built(settings, latents)(torch.randn(2, 6, WIDTH), torch.ones(2, 6))
    assert vectors.shape == (2, latents, TARGET)


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s.kind)
def test_padding_changes_nothing(settings: Extractor) -> None:
    module, states = built(settings), torch.randn(2, 4, WIDTH)
    padded = torch.cat([states, 100 * torch.randn(2, 3, WIDTH)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]]).expand(2, 7)
    torch.testing.assert_close(module(padded, mask), module(states, torch.ones(2, 4)))


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s.kind)
def test_every_parameter_and_every_latent_learns(settings: Extractor) -> None:
    module, states = built(settings), torch.randn(3, 5, WIDTH, requires_grad=True)
    vectors = module(states, torch.ones(3, 5))
    assert not torch.allclose(vectors[:, 0], vectors[:, 1])
    vectors.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert states.grad is not None and (states.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s.kind)
def test_exports_with_dynamic_batch_and_length(settings: Extractor) -> None:
    module, dynamic = built(settings), torch.export.Dim.DYNAMIC
    shapes = {"states": {0: dynamic, 1: dynamic}, "mask": {0: dynamic, 1: dynamic}}
    program = torch.export.export(module, (torch.randn(3, 6, WIDTH), torch.ones(3, 6)), dynamic_shapes=shapes)
    states, mask = torch.randn(5, 9, WIDTH), torch.ones(5, 9)
    torch.testing.assert_close(program.module()(states, mask), module(states, mask))


def test_mlp_is_the_mean_of_two_layers_over_tokens() -> None:
    module = built(MlpExtractor(hidden=12))
    assert isinstance(module, Mlp)
    states = torch.randn(2, 6, WIDTH)
    per_token = module.outer(torch.nn.functional.gelu(module.inner(states)))
    expected = per_token.mean(1).unflatten(-1, (LATENTS, TARGET))
    torch.testing.assert_close(module(states, torch.ones(2, 6)), expected)


def test_poly_follows_the_token_that_its_codes_look_for() -> None:
    module = built(PolyExtractor(codes=1), latents=1)
    assert isinstance(module, Poly)
    with torch.no_grad():
        module.codes.zero_()[0, 0] = 100.0
    states = torch.zeros(1, 3, WIDTH)
    states[0, 1, 0] = 1.0  # the only token along the code's direction
    expected = states[:, 1:2] @ module.project.weight[0] + module.project.bias[0]
    torch.testing.assert_close(module(states, torch.ones(1, 3)), expected)


def test_poly_begins_near_the_mean_of_the_tokens_where_widths_agree() -> None:
    torch.manual_seed(0)
    module, states = Poly(64, codes=8, latents=2, target_width=64), torch.randn(3, 7, 64)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
    vectors, mean = module(states, mask), masked_mean(states, mask)
    cosines = torch.nn.functional.cosine_similarity(vectors, mean[:, None], dim=-1)
    assert cosines.min() > 0.95 and not torch.allclose(vectors[:, 0], vectors[:, 1], atol=1e-2)
    for drawn in (module.codes, module.queries):
        assert drawn.std().item() == pytest.approx(0.02, rel=0.25) and abs(drawn.mean().item()) < 0.005
    other = Poly(64, codes=8, latents=2, target_width=48)
    assert other.project.weight.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_graph_attention_by_the_equations() -> None:
    torch.manual_seed(0)
    layer, h = GraphAttention(WIDTH, heads=1, head_width=2), torch.randn(3, WIDTH)
    wh = h @ layer.project.weight.T
    a = torch.cat([layer.receiver[0], layer.sender[0]])
    expected = []
    for i in range(2):
        e = torch.stack([a @ torch.cat([wh[i], wh[j]]) for j in range(2)])
        alpha = torch.where(e > 0, e, 0.2 * e).softmax(0)
        expected.append(alpha[0] * wh[0] + alpha[1] * wh[1])
    found = layer(h[None], torch.tensor([[1, 1, 0]]))[0, 0, :2]
    torch.testing.assert_close(found, torch.stack(expected))


def test_gat_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"student.extractor.heads: 3 .* width of 8"):
        Gat(WIDTH, heads=3, layers=1, latents=1, target_width=TARGET)


def test_none_builds_nothing() -> None:
    assert build_extractor(NoExtractor(), WIDTH, 1, TARGET) is None


def test_masked_mean_of_nothing_is_zero_not_nan() -> None:
    assert masked_mean(torch.ones(1, 2, 3), torch.zeros(1, 2)).tolist() == [[0.0, 0.0, 0.0]]
