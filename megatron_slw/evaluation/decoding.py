"""Texts from a model, token by token, several at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from megatron_slw.evaluation.kv_cache import CachedDecoder
from megatron_slw.evaluation.sampling import Sampling, draw
from megatron_slw.model.gpt import GPT


class Decoder(Protocol):
    """What gives the logits (B, V) of the next token of several texts."""

    def prefill(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Begin anew with these texts."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to each."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""


class PlainDecoder:
    """Computes the whole text again for each token: what a cache is compared with.

    Args:
        model: token ids (B, T) to logits (B, T, V), causal.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._texts: list[list[int]] = []

    @torch.inference_mode()
    def prefill(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Begin anew with these texts."""
        self._texts = [list(text) for text in texts]
        longest = max(map(len, texts))
        rows = [text + [0] * (longest - len(text)) for text in self._texts]
        logits_BTV = self._model(torch.tensor(rows, device=next(self._model.parameters()).device))
        return logits_BTV[torch.arange(len(rows)), torch.tensor([len(text) - 1 for text in texts])]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to each."""
        return self.prefill([[*text, token] for text, token in zip(self._texts, tokens, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._texts = [self._texts[row] for row in rows]


def decoder_of(model: nn.Module, cached: bool = True) -> Decoder:
    """A decoder with a KV cache, or without one."""
    return CachedDecoder(model) if cached and isinstance(model, GPT) else PlainDecoder(model)


def context_start(tokens: int, length: int) -> int:
    """The first token of a text that its next token is drawn by.

    A text up to the full length is its own context. When it grows longer, the older half is let go and the rest takes
    the positions from 0 on, and so each time the positions are used up: the context is the last length / 2 to length
    tokens. A window that moved with each token would give every token in it a new position, and a cache nothing.

    Args:
        tokens: of the text so far.
        length: the model's full length.
    """
    if tokens <= length:
        return 0
    half = length - length // 2
    return -(-(tokens - length) // half) * half


def stream_batch(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    length: int,
    tokens: int,
    sampling: Sampling,
    stop_id: int | None = None,
) -> Iterator[dict[int, int]]:
    """Yield, token by token, the texts that follow the prompts: {prompt: its next token}.

    A text ends after `tokens` tokens, or with `stop_id`, which is not given. Equal arguments give equal tokens.

    Args:
        decoder: see `decoder_of`.
        prompts: ids in [0, vocab_size), each at least one. For a text from nothing, the id that ends documents.
        vocab_size: ids that may be drawn.
        length: the model's full length; see `context_start`.
        tokens: of each text, at most.
        sampling: how tokens are drawn; each text has random numbers of its own.
        stop_id: the token that ends a text.

    Raises:
        ValueError: a prompt is empty or has an unknown id.
    """
    texts = [list(prompt) for prompt in prompts]
    for ids in texts:
        if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ValueError(f"a prompt needs at least one token id, each in [0, {vocab_size}), not {ids[:8]}")
    generators = [sampling.generator(row) for row in range(len(texts))]
    going = list(range(len(texts)))
    starts: list[int] | None = None
    for _ in range(tokens):
        if not going:
            return
        wanted = [context_start(len(texts[row]), length) for row in going]
        if wanted != starts:
            logits_BV = decoder.prefill([texts[row][start:] for row, start in zip(going, wanted, strict=True)])
        else:
            logits_BV = decoder.step([texts[row][-1] for row in going])
        drawn = draw(logits_BV[:, :vocab_size], sampling, [generators[row] for row in going])
        left = [i for i, token in enumerate(drawn) if token != stop_id]
        step = {going[i]: drawn[i] for i in left}
        for row, token in step.items():
            texts[row].append(token)
        if left and len(left) < len(going):
            decoder.keep(left)
        going, starts = list(step), [wanted[i] for i in left]
        if step:
            yield step
