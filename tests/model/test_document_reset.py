"""A row of several documents is as good as each of them alone: logits and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from megatron_slw.model.documents import document_attention_bias, positions_in_documents
from megatron_slw.model.gpt import GPT
from megatron_slw.model.init import initialize_weights
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.testing import tiny_config

BOUNDS = [[0, 1, 9, 10, 30], [0, 30], [0, 15, 16, 17, 30], list(range(31))]  # of the documents of each row
IDS = torch.stack(
    [
        torch.cat([torch.full((b - a,), 3 * n) for n, (a, b) in enumerate(itertools.pairwise(row))]) for row in BOUNDS
    ]  # the numbers need not be consecutive
)


def model(recompute: bool = False, **changes: bool) -> GPT:
    config = tiny_config("unused", training__activation_checkpointing=recompute, **changes)
    gpt = GPT(config, one_process_groups())
    initialize_weights(gpt, config.model, seed=1)
    with torch.no_grad():
        for param in gpt.parameters():
            param += 0.1 * torch.randn(param.shape, generator=torch.Generator().manual_seed(param.numel()))
    return gpt.double()


def tokens() -> Tensor:
    return torch.randint(300, (len(BOUNDS), 30), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_packed_row_equals_its_documents_alone(recompute: bool) -> None:
    gpt = model(recompute, data__reset_position_ids=True, data__reset_attention_mask=True)
    tokens_BT = tokens()
    weight_BTV = torch.randn(4, 30, 384, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    packed = gpt(tokens_BT, IDS)
    (packed * weight_BTV).sum().backward()
    gradients = [param.grad.clone() for param in gpt.parameters() if param.grad is not None]
    gpt.zero_grad()
    for row, bounds in enumerate(BOUNDS):
        for first, stop in itertools.pairwise(bounds):
            alone = gpt(tokens_BT[row : row + 1, first:stop])
            assert (alone[0] - packed[row, first:stop]).abs().max() < 1e-12, f"row {row}, document at {first}"
            (alone[0] * weight_BTV[row, first:stop]).sum().backward()
    for param, gradient in zip(gpt.parameters(), gradients, strict=True):
        assert param.grad is not None
        assert (param.grad - gradient).abs().max() < 1e-11 * max(1.0, float(gradient.abs().max()))


def test_each_setting_does_its_own_part() -> None:
    """By an outside criterion each: what a document's positions depend on."""
    tokens_BT = tokens()
    changed = tokens_BT.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 300  # in the second of row 0's documents, [1, 9)
    with torch.no_grad():
        masked = model(data__reset_attention_mask=True)
        difference = (masked(tokens_BT, IDS) - masked(changed, IDS)).abs().amax(-1)[0]
        assert difference[3:9].min() > 0 and not difference[:3].any() and not difference[9:].any()
        moved = masked(tokens_BT[:, 1:9])[0] - masked(tokens_BT, IDS)[0, 1:9]
        assert moved.abs().max() > 1e-3, "positions begin anew although only the mask is set"
        positions = model(data__reset_position_ids=True)
        difference = (positions(tokens_BT, IDS) - positions(changed, IDS)).abs().amax(-1)[0]
        assert difference[3:].min() > 0 and not difference[:3].any(), "attention is cut although only positions are set"
        assert (positions(tokens_BT, IDS)[0, 0] - positions(tokens_BT)[0, 0]).abs().max() == 0


def test_without_documents_nothing_changes_bit_for_bit() -> None:
    tokens_BT = tokens()
    with torch.no_grad():
        plain = model()(tokens_BT)
        both = {"data__reset_position_ids": True, "data__reset_attention_mask": True}
        assert torch.equal(plain, model(**both)(tokens_BT)), "rows are one document each where nothing else is said"
        assert torch.equal(plain, model()(tokens_BT, IDS)), "documents count although neither setting is on"


def test_positions_and_bias_by_hand() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1], [1, 2, 2, 7, 7]])
    assert positions_in_documents(ids).tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 0, 1]]
    seen = document_attention_bias(ids, torch.float32).exp()
    assert seen.shape == (2, 1, 5, 5)
    for row, query, key in itertools.product(range(2), range(5), range(5)):
        assert seen[row, 0, query, key] == (key <= query and ids[row, query] == ids[row, key])
