"""`ops.backend` and `model.attention` change who computes, not what."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.model.documents import document_attention_bias
from megatron_slw.model.gpt import GPT
from megatron_slw.model.head import WeightedLoss, operators_of
from megatron_slw.model.init import initialize_weights
from megatron_slw.ops import backend
from megatron_slw.ops.backend import attend, select_operators
from megatron_slw.ops.choice import picks_fused_softmax
from megatron_slw.ops.library import has_kernel
from megatron_slw.ops.table import served_by
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.testing import tiny_config

needs_kernels = pytest.mark.skipif(
    not has_kernel("layer_norm", "cpu"), reason="the kernels are not built here: python csrc/build.py"
)


def config_for(folder: Path, name: str, attention: str = "sdpa", dropout: float = 0.0) -> RunConfig:
    config = tiny_config(folder, model__attention=attention, model__hidden_dropout=dropout)
    return config.model_copy(update={"ops": config.ops.model_copy(update={"backend": name})})


def loss_and_gradients(config: RunConfig, tokens: Tensor, documents: Tensor | None = None) -> tuple[Tensor, list]:
    torch.manual_seed(3)
    groups = one_process_groups()
    model = GPT(config, groups)
    initialize_weights(model, config.model, 1)
    logits = model(tokens[:, :-1]) if documents is None else model(tokens[:, :-1], documents)
    weights = torch.full(tokens[:, 1:].shape, 1.0 / tokens[:, 1:].numel())
    loss = WeightedLoss(config, groups)(logits, (tokens[:, 1:], weights))
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def tokens_for(config: RunConfig) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    vocab = config.model.vocab_size
    assert vocab is not None
    return torch.randint(vocab, (3, config.model.seq_length + 1), generator=generator)


@needs_kernels
@pytest.mark.parametrize("attention", ["sdpa", "fused_softmax"])
@pytest.mark.parametrize("documents", [False, True])
def test_csrc_trains_like_torch(tmp_path: Path, attention: str, documents: bool) -> None:
    """One loss and every gradient, to fp32 rounding."""
    config = config_for(tmp_path, "csrc", attention)
    plain = config_for(tmp_path, "torch")
    if documents:
        data = config.data.model_copy(update={"reset_attention_mask": True})
        config, plain = config.model_copy(update={"data": data}), plain.model_copy(update={"data": data})
    tokens = tokens_for(config)
    ids = (torch.arange(tokens.size(1) - 1) // 5).expand(3, -1) if documents else None
    loss, grads = loss_and_gradients(config, tokens, ids)
    true_loss, true_grads = loss_and_gradients(plain, tokens, ids)
    torch.testing.assert_close(loss, true_loss, rtol=1e-6, atol=1e-6)
    for found, true in zip(grads, true_grads, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-6)


@needs_kernels
def test_csrc_drops_out_the_residual_branches(tmp_path: Path) -> None:
    """With dropout the loss differs from that without, repeats with the seed, and has gradients."""
    config = config_for(tmp_path, "csrc", dropout=0.3)
    tokens = tokens_for(config)
    (loss, grads), (again, _) = loss_and_gradients(config, tokens), loss_and_gradients(config, tokens)
    without, _ = loss_and_gradients(config_for(tmp_path, "csrc"), tokens)
    assert torch.equal(loss, again) and not torch.equal(loss, without)
    assert all(bool(torch.isfinite(g).all()) for g in grads)


def test_torch_is_what_pytorch_computes() -> None:
    """Bit for bit, so that a run on this backend repeats one from before there were others."""
    ops = select_operators("torch", "cpu")
    x, residual, w, b = torch.randn(4, 24), torch.randn(4, 24), torch.randn(24), torch.randn(24)
    assert torch.equal(ops.layer_norm(x, w, b, 1e-5), F.layer_norm(x, (24,), w, b, 1e-5))
    y, total = ops.add_layer_norm(x, residual, w, b, 1e-5)
    assert torch.equal(total, residual + x) and torch.equal(y, F.layer_norm(residual + x, (24,), w, b, 1e-5))
    m = torch.randn(8, 24)
    assert torch.equal(ops.linear_gelu(x, m, b[:8], True), F.gelu(F.linear(x, m, b[:8]), approximate="tanh"))
    assert torch.equal(ops.linear_gelu(x, m, b[:8], False), F.gelu(F.linear(x, m, b[:8])))
    labels = torch.tensor([1, 2, 3, 23])
    assert torch.equal(ops.cross_entropy(x, labels, 24), F.cross_entropy(x, labels, reduction="none"))


def test_fused_attention_is_attention() -> None:
    q, k, v = (torch.randn(2, 3, 17, 8) for _ in range(3))
    causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attend(q, k, v, None, 0.0), causal)
    bias = document_attention_bias((torch.arange(17) // 4).expand(2, -1), q.dtype)
    torch.testing.assert_close(attend(q, k, v, bias, 0.0), F.scaled_dot_product_attention(q, k, v, bias))


def test_auto_attention_follows_the_measured_table() -> None:
    def auto(length: int, head_dim: int, kernels: bool = True, device: str = "cpu") -> bool:
        return picks_fused_softmax("auto", kernels, device, length, head_dim)

    assert auto(128, 128) and not auto(129, 64) and not auto(8, 256)
    assert not auto(8, 64, kernels=False) and not auto(8, 64, device="cuda")
    assert picks_fused_softmax("fused_softmax", False, "cpu", 999, 256)
    assert not picks_fused_softmax("sdpa", True, "cpu", 8, 64)


def test_missing_kernels_and_missing_apex_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_kernel", lambda name, device: False)
    with pytest.raises(ConfigError, match="no kernels are built for cpu"):
        select_operators("csrc", "cpu")
    assert select_operators("auto", "cpu").backend == "torch"
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="NVIDIA's apex is not installed"):
        select_operators("apex", "cpu")


def stand_in_for_apex(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """apex itself needs a GPU. Returns the shapes that its LayerNorm is called with, as they come."""
    calls: list[tuple] = []

    def fused_layer_norm_affine(x: Tensor, weight: Tensor, bias: Tensor, shape: tuple, eps: float) -> Tensor:
        calls.append(shape)
        return F.layer_norm(x, shape, weight, bias, eps)

    fused = types.ModuleType("apex.normalization.fused_layer_norm")
    fused.fused_layer_norm_affine = fused_layer_norm_affine  # type: ignore[attr-defined]
    for module in (types.ModuleType("apex"), types.ModuleType("apex.normalization"), fused):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backend, "find_spec", lambda name: object())
    return calls


def test_apex_serves_layer_norm_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in_for_apex(monkeypatch)
    ops = select_operators("apex", "cpu")
    x, w = torch.randn(4, 24), torch.ones(24)
    y, total = ops.add_layer_norm(x, x, w, w, 1e-5)
    assert torch.equal(total, x + x) and torch.equal(y, ops.layer_norm(total, w, w, 1e-5)) and len(calls) == 2
    assert served_by("apex", ops).endswith("LayerNorm by apex (ops.backend is apex)")


def test_a_model_runs_on_apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stand-in every LayerNorm of the model goes through it, and the loss is that of torch."""
    calls = stand_in_for_apex(monkeypatch)
    config = config_for(tmp_path, "apex")
    loss, grads = loss_and_gradients(config, tokens_for(config))
    assert len(calls) == 2 * config.model.num_layers + 1
    true, true_grads = loss_and_gradients(config_for(tmp_path, "torch"), tokens_for(config))
    assert torch.equal(loss, true) and all(torch.equal(a, b) for a, b in zip(grads, true_grads, strict=True))


@needs_kernels
def test_auto_takes_the_kernels(tmp_path: Path) -> None:
    assert operators_of(config_for(tmp_path, "auto"), one_process_groups()).backend == "csrc"


@pytest.mark.parametrize(("setting", "found", "text"), [
    ("torch", "/usr/bin/g++", "plain PyTorch (ops.backend is torch)"),
    ("auto", "/usr/bin/g++", "plain PyTorch (no kernels are built for cpu, see docs/kernels.md)"),
    ("auto", None, "plain PyTorch (no g++ was found, see docs/kernels.md)"),
])  # fmt: skip
def test_a_run_says_why_the_kernels_do_not_serve(
    monkeypatch: pytest.MonkeyPatch, setting: str, found: str | None, text: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert served_by(setting, select_operators("torch", "cpu")) == f"operators: {text}"


@needs_kernels
def test_a_run_says_that_the_kernels_serve() -> None:
    assert served_by("auto", select_operators("auto", "cpu")) == "operators: csrc, fused kernels for cpu"
