"""The model computes what Hugging Face's GPT-2 computes from the same weights."""

from __future__ import annotations

import pytest
import torch

from megatron_slw.model.gpt import GPT
from megatron_slw.model.head import WeightedLoss
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.testing import tiny_config

transformers = pytest.importorskip("transformers")
HEADS, SIZE, LAYERS, VOCAB, LENGTH = 4, 64, 3, 301, 48


def per_head(weight_3CI: torch.Tensor) -> torch.Tensor:
    """GPT-2's rows (q|k|v, head, D) in our order (head, q|k|v, D)."""
    rest = weight_3CI.shape[1:]
    return weight_3CI.view(3, HEADS, SIZE // HEADS, *rest).transpose(0, 1).reshape(3 * SIZE, *rest)


def ours_from_hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our logical tensors; GPT-2's Conv1D keeps its matrices transposed."""
    out = {
        "embedding.position_embeddings.weight": state["wpe.weight"],
        "final_layernorm.weight": state["ln_f.weight"],
        "final_layernorm.bias": state["ln_f.bias"],
    }
    table = torch.zeros(384, SIZE)
    table[:VOCAB] = state["wte.weight"]
    out["embedding.word_embeddings.weight"] = table
    names = {
        "input_layernorm": "ln_1", "self_attention.query_key_value": "attn.c_attn",
        "self_attention.dense": "attn.c_proj",
        "post_attention_layernorm": "ln_2", "mlp.dense_h_to_4h": "mlp.c_fc", "mlp.dense_4h_to_h": "mlp.c_proj",
    }  # fmt: skip
    for i in range(LAYERS):
        for ours, theirs in names.items():
            for part in ("weight", "bias"):
                value = state[f"h.{i}.{theirs}.{part}"]
                value = value.T if value.ndim == 2 else value
                out[f"layers.{i}.{ours}.{part}"] = per_head(value) if "query" in ours else value
    return out


@pytest.fixture(scope="module")
def pair() -> tuple[GPT, torch.nn.Module]:
    torch.manual_seed(0)
    settings = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=LENGTH, n_embd=SIZE, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(settings).eval()
    for name, param in theirs.named_parameters():  # biases and LayerNorms away from their zeros and ones
        if param.ndim == 1:
            torch.nn.init.normal_(param, 1.0 if "ln" in name and "weight" in name else 0.0, 0.2)
    config = tiny_config(
        "unused", model__vocab_size=VOCAB, model__hidden_size=SIZE, model__num_layers=LAYERS,
        model__num_attention_heads=HEADS, model__seq_length=LENGTH, curriculum=None,
    )  # fmt: skip
    ours = GPT(config, one_process_groups()).eval()
    values = ours_from_hugging_face(theirs.transformer.state_dict())
    with torch.no_grad():
        for shard, param in sharded_parameters(ours):
            param.copy_(values[shard.name])
    return ours, theirs


@pytest.mark.parametrize("length", [1, 8, 13, LENGTH])
def test_logits_equal_hugging_face(pair: tuple[GPT, torch.nn.Module], length: int) -> None:
    ours, theirs = pair
    tokens_BT = torch.randint(VOCAB, (3, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
        found = ours(tokens_BT)
    assert found.shape == (3, length, 384), "the vocabulary is not padded to 128"
    scale = expected.abs().max()
    assert (found[..., :VOCAB] - expected).abs().max() / scale < 1e-5


def test_loss_and_gradients_equal_hugging_face(pair: tuple[GPT, torch.nn.Module]) -> None:
    """The padding columns must not take part in the softmax."""
    ours, theirs = pair
    ids = torch.randint(VOCAB, (2, 33), generator=torch.Generator().manual_seed(5))
    theirs.zero_grad()
    expected = theirs(ids, labels=ids).loss
    expected.backward()
    config = tiny_config("unused", model__vocab_size=VOCAB)
    loss_fn = WeightedLoss(config, one_process_groups())
    weights = torch.full((2, 32), 1.0 / 64)
    ours.zero_grad()
    found = loss_fn(ours(ids[:, :-1]), (ids[:, 1:].contiguous(), weights))
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    ours_grad = ours.word_embeddings.weight.grad
    theirs_grad = theirs.transformer.wte.weight.grad
    assert ours_grad is not None and theirs_grad is not None, "no gradient of the token table"
    assert (ours_grad[:VOCAB] - theirs_grad).abs().max() / theirs_grad.abs().max() < 1e-5
    assert not ours_grad[VOCAB:].any(), "a padding row has a gradient"


def test_a_token_never_sees_those_after_it(pair: tuple[GPT, torch.nn.Module]) -> None:
    ours, _ = pair
    tokens_BT = torch.randint(VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = tokens_BT.clone()
    changed[0, 12] = (changed[0, 12] + 1) % VOCAB
    with torch.no_grad():
        before, after = ours(tokens_BT), ours(changed)
    assert torch.equal(before[:, :12], after[:, :12]), "an earlier position depends on a later token"
    assert not torch.equal(before[:, 12:], after[:, 12:]), "the change had no effect at all"
