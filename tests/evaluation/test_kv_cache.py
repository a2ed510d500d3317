"""The logits with a KV cache are those of the whole text computed at once, at every position, in fp64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_models import random_model
from torch import Tensor

from megatron_slw.evaluation.kv_cache import CachedDecoder
from megatron_slw.model.gpt import GPT

LENGTH, VOCAB = 32, 300
EXACT = 1e-12


def full(model: GPT, text: list[int]) -> Tensor:
    """Logits (T, V) of the whole text."""
    with torch.no_grad():
        return model(torch.tensor([text]))[0]


def close(found: Tensor, expected: Tensor) -> None:
    worst = float((found - expected).abs().max() / expected.abs().max())
    assert worst < EXACT, worst


def texts_of(rows: int) -> list[list[int]]:
    return torch.randint(VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(4)).tolist()


@pytest.fixture(params=[{}, {"model__activation": "gelu", "model__num_layers": 3, "model__num_attention_heads": 2}])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> GPT:
    return random_model(tmp_path, VOCAB, ops__backend="torch", **request.param).double()


def test_one_text_at_every_position_from_every_prompt(model: GPT) -> None:
    (text,) = texts_of(1)
    expected_TV = full(model, text)
    decoder = CachedDecoder(model)
    for prompt in range(1, LENGTH + 1):
        close(decoder.prefill([text[:prompt]])[0], expected_TV[prompt - 1])
        for at in range(prompt, LENGTH):
            close(decoder.step([text[at]])[0], expected_TV[at])


@pytest.mark.parametrize("sizes", [(1, 7, 16, 3), (5, 5), (LENGTH, 1), (2, 20)])
def test_rows_of_different_lengths_at_every_position(model: GPT, sizes: tuple[int, ...]) -> None:
    texts = texts_of(len(sizes))
    expected = [full(model, text) for text in texts]
    decoder = CachedDecoder(model)
    logits_BV = decoder.prefill([text[:size] for text, size in zip(texts, sizes, strict=True)])
    for step in range(LENGTH - max(sizes) + 1):
        for row, size in enumerate(sizes):
            close(logits_BV[row], expected[row][size - 1 + step])
        if step < LENGTH - max(sizes):
            logits_BV = decoder.step([text[size + step] for text, size in zip(texts, sizes, strict=True)])


def test_rows_that_are_left_go_on_alone(model: GPT) -> None:
    texts, sizes = texts_of(3), (4, 9, 6)
    decoder = CachedDecoder(model)
    decoder.prefill([text[:size] for text, size in zip(texts, sizes, strict=True)])
    decoder.keep([2, 0])
    for step in range(LENGTH - 9):
        logits_BV = decoder.step([texts[2][6 + step], texts[0][4 + step]])
        close(logits_BV[0], full(model, texts[2][: 7 + step])[-1])
        close(logits_BV[1], full(model, texts[0][: 5 + step])[-1])


def test_what_an_earlier_text_left_is_not_seen(model: GPT) -> None:
    first, second = texts_of(2)
    decoder = CachedDecoder(model)
    decoder.prefill([first])
    close(decoder.prefill([second[:3]])[0], full(model, second[:3])[-1])
    decoder.prefill([first, second[:5]])  # with padding
    close(decoder.prefill([second[:3], first[:3]])[0], full(model, second[:3])[-1])  # and without again


def test_fp32_with_the_operators_that_are_built(tmp_path: Path) -> None:
    model = random_model(tmp_path, VOCAB)
    texts = texts_of(2)
    decoder = CachedDecoder(model)
    decoder.prefill([texts[0][:4], texts[1][:2]])
    for step in range(20):
        logits_BV = decoder.step([texts[0][4 + step], texts[1][2 + step]])
        expected_V = full(model, texts[1][: 3 + step])[-1]
        assert float((logits_BV[1] - expected_V).abs().max()) < 1e-5 * float(expected_V.abs().max())
