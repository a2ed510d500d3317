"""A grown model computes what the small one computed: fp64, the framework's own model on both sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_slw.growth.operators.depth import layer_sources
from megatron_slw.growth.operators.width import WidthOperator
from megatron_slw.growth.stage import Stage
from tests.growth import models

WIDTHS: dict[str, dict[str, Any]] = {
    "x2": {"hidden_size": 24, "num_attention_heads": 6},
    "x3": {"hidden_size": 36, "num_attention_heads": 9},
    "head size x2": {"hidden_size": 24, "num_attention_heads": 3},
    "head size x2 and heads x2": {"hidden_size": 48, "num_attention_heads": 6},
    "4/3 by heads": {"hidden_size": 16, "num_attention_heads": 4},
    "3/2 by head size": {"hidden_size": 18, "num_attention_heads": 3},
    "7/3: two copies and a rest": {"hidden_size": 28, "num_attention_heads": 7},
    "10/3 in both": {"hidden_size": 40, "num_attention_heads": 4},
    "feed-forward x2": {"ffn_hidden_size": 96},
    "feed-forward 3/2": {"ffn_hidden_size": 72},
    "positions": {"seq_length": 25},
    "vocabulary": {"vocab_size": 300},
    "everything": {
        "hidden_size": 24, "num_attention_heads": 6, "ffn_hidden_size": 100, "seq_length": 16, "vocab_size": 210,
        "num_layers": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("noise", [None, 10.0], ids=["equal copies", "noise"])
@pytest.mark.parametrize("operator", ["staged", "clone", "net2net"])
@pytest.mark.parametrize("sizes", WIDTHS)
def test_logits_are_preserved(sizes: str, operator: WidthOperator, noise: float | None) -> None:
    config = models.small_config()
    tensors = models.random_tensors(config)
    stage = Stage(models.grown_model(config.model, **WIDTHS[sizes]), width_operator=operator, snr_db=noise)
    grown = models.build_grown(config, stage, models.grow(tensors, config.model, stage))
    ids, _ = models.tokens(config)
    before = models.build(config, tensors.by_key)(ids)
    after = grown(ids)
    vocab = config.model.vocab_size
    assert before.abs().max() > 5, "the logits are too small to prove anything"
    assert (after[..., :vocab] - before[..., :vocab]).abs().max() < 1e-12


@pytest.mark.parametrize("operator", ["staged", "clone", "net2net"])
@pytest.mark.parametrize("sizes", ["x2", "x3", "4/3 by heads", "7/3: two copies and a rest", "everything"])
def test_logits_are_preserved_to_fp32_rounding(sizes: str, operator: WidthOperator) -> None:
    """Grown and run in fp32, as checkpoints are."""
    config = models.small_config()
    tensors = models.Tensors({key: value.float() for key, value in models.random_tensors(config).by_key.items()})
    stage = Stage(models.grown_model(config.model, **WIDTHS[sizes]), width_operator=operator, snr_db=10.0)
    grown = models.build_grown(config, stage, models.grow(tensors, config.model, stage)).float()
    ids, _ = models.tokens(config)
    before, after = models.build(config, tensors.by_key).float()(ids), grown(ids)
    vocab = config.model.vocab_size
    assert (after[..., :vocab] - before[..., :vocab]).abs().max() < 3e-6 * before.abs().max()


@pytest.mark.parametrize("layers", [3, 4, 7])
@pytest.mark.parametrize("placement", ["alternate", "append", "prepend"])
def test_staged_depth_changes_neither_logits_nor_old_gradients(layers: int, placement: Any) -> None:
    config = models.small_config()
    tensors = models.random_tensors(config)
    stage = Stage(models.grown_model(config.model, num_layers=layers), placement=placement)
    small = models.build(config, tensors.by_key)
    grown = models.build_grown(config, stage, models.grow(tensors, config.model, stage))
    batch = models.tokens(config)
    for model in (small, grown):
        models.loss_of(model, batch, 200).backward()
    assert torch.equal(small(batch[0]), grown(batch[0]))
    sources = layer_sources(2, layers, "staged", placement)
    for index, source in enumerate(sources):
        if not source.is_new:
            pairs = zip(small.layers[source.layer].parameters(), grown.layers[index].parameters(), strict=True)
            assert all(torch.equal(a.grad, b.grad) for a, b in pairs), f"gradients of layer {index} changed"


def test_layers_come_from_where_they_are_said_to() -> None:
    def plain(*args: Any) -> list[int]:
        return [source.layer for source in layer_sources(*args)]

    def new(*args: Any) -> list[int]:
        return [index for index, source in enumerate(layer_sources(*args)) if source.is_new]

    assert plain(3, 6, "stack", "alternate") == [0, 1, 2, 0, 1, 2]
    assert plain(3, 6, "interpolate", "alternate") == [0, 0, 1, 1, 2, 2]
    assert plain(3, 6, "staged", "alternate") == [0, 0, 1, 1, 2, 2]
    assert new(3, 6, "staged", "alternate") == [1, 3, 5]
    assert new(4, 6, "staged", "alternate") == [1, 4], "a target that is no multiple is spread evenly"
    assert plain(3, 5, "staged", "append") == [0, 1, 2, 1, 2]
    assert new(3, 5, "staged", "append") == [3, 4]
    assert plain(3, 5, "staged", "prepend") == [0, 1, 0, 1, 2]
    assert new(3, 5, "staged", "prepend") == [0, 1]
    with pytest.raises(ValueError, match="cannot grow"):
        layer_sources(4, 3, "staged", "append")


@pytest.mark.parametrize("operator", ["stack", "interpolate"])
def test_stacking_is_not_lossless_as_the_help_says(operator: Any) -> None:
    config = models.small_config()
    tensors = models.random_tensors(config)
    stage = Stage(models.grown_model(config.model, num_layers=4), depth_operator=operator)
    grown = models.build_grown(config, stage, models.grow(tensors, config.model, stage))
    ids, _ = models.tokens(config)
    assert (grown(ids) - models.build(config, tensors.by_key)(ids)).abs().max() > 0.1


@pytest.mark.parametrize("operator", ["staged", "clone", "net2net"])
def test_copies_separate_without_dropout(operator: WidthOperator) -> None:
    """Equal copies stay equal for ever; with the noise no two heads, units or coordinates are alike soon."""
    config = models.small_config()
    tensors = models.random_tensors(config)
    spread = {}
    for noise in (None, 10.0):
        new = models.grown_model(config.model, hidden_size=24, num_attention_heads=6)
        stage = Stage(new, width_operator=operator, snr_db=noise)
        model = models.build_grown(config, stage, models.grow(tensors, config.model, stage))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for step in range(5):
            optimizer.zero_grad()
            models.loss_of(model, models.tokens(config, seed=step), 200).backward()
            optimizer.step()
        table = model.word_embeddings.weight.detach()
        first = model.layers[0].mlp.dense_h_to_4h.bias.detach()
        units = first.view(2, -1) if operator != "net2net" else first[[0, 0]][None].repeat(2, 1)
        spread[noise] = float((table[:200, :12] - table[:200, 12:]).abs().mean())
        if operator != "net2net" and noise is not None:
            assert (units[0] - units[1]).abs().min() > 1e-7, "two feed-forward units are still equal"
    assert spread[None] < 1e-12 < 1e-4 < spread[10.0], spread


@pytest.mark.parametrize("sizes", ["x2", "4/3 by heads", "3/2 by head size", "feed-forward 3/2", "everything"])
def test_every_tensor_gets_a_gradient_by_the_second_step(sizes: str) -> None:
    """Zero projections together with zero LayerNorms and biases would be dead for ever.

    Every entry of every tensor is asked for. (New entries of heads within new layers wait for a third step.)
    """
    config = models.small_config()
    new = models.grown_model(config.model, **({"num_layers": 2 if "head size" in sizes else 4} | WIDTHS[sizes]))
    stage = Stage(new, snr_db=10.0)
    model = models.build_grown(config, stage, models.grow(models.random_tensors(config), config.model, stage))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        models.loss_of(model, models.tokens(config, rows=8, seed=step), new.vocab_size or 0).backward()
        optimizer.step()
    for name, param in model.named_parameters():
        grad = param.grad
        assert grad is not None, name
        if name.endswith("query_key_value.bias"):  # a key bias shifts a row of scores: its gradient is always zero
            grad = grad.view(new.num_attention_heads, 3, -1)[:, [0, 2]]
        if name == "word_embeddings.weight":
            grad = grad[: new.vocab_size]
        if name == "position_embeddings.weight":
            grad = grad[: config.model.seq_length]
        assert (grad != 0).float().mean() > 0.999, f"{name}: {(grad == 0).sum()} entries without a gradient"
