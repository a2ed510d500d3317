"""Scoring of text: the negative log-likelihood of a token stream, each token counted exactly once.

A stream longer than the model's full length is read in windows. With an overlap, a window begins that many
tokens before the labels it scores, which then have at least that much context; the work grows by
length / (length - overlap).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Window(NamedTuple):
    """Inputs [first, stop) of a stream; labels [scored, stop) count here, others elsewhere."""

    first: int
    scored: int
    stop: int


@dataclass(frozen=True)
class Score:
    """What a stream costs under a model."""

    nats: float
    """Sum of -log p over the labels."""
    labels: int

    @property
    def loss(self) -> float:
        """Nats per label."""
        return self.nats / self.labels

    @property
    def perplexity(self) -> float:
        """exp(loss); infinity where that is beyond a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.labels + other.labels)


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """nats / ln 2 / bytes: comparable between tokenizers, and with a compressor's 8 x compressed / bytes.

    Args:
        nats: negative log-likelihood of all tokens of the text.
        text_bytes: UTF-8 bytes of the same text.

    Raises:
        ValueError: there is no text.
    """
    if text_bytes < 1:
        raise ValueError(f"bits per byte need at least 1 byte of text, not {text_bytes}")
    return nats / math.log(2) / text_bytes


def cover(labels: int, length: int, overlap: int = 0) -> list[Window]:
    """Windows of `length` labels over a stream of `labels`; each label is scored in exactly one.

    The last window is moved back to the stream's end instead of being cut, so that all windows have one shape
    and its labels have more context, not less.

    Raises:
        ValueError: the length is below 1, or the overlap leaves no label to score.
    """
    if length < 1 or not 0 <= overlap < length:
        raise ValueError(f"overlap {overlap} must be in [0, length), and length {length} at least 1")
    windows: list[Window] = []
    done = 0
    while done < labels:
        stop = min(labels, max(done - overlap, 0) + length)
        windows.append(Window(max(0, stop - length), done, stop))
        done = stop
    return windows


@torch.no_grad()
def score_stream(
    model: nn.Module,
    tokens: np.ndarray | Sequence[int],
    *,
    vocab_size: int,
    length: int,
    overlap: int = 0,
    batch: int = 8,
    starts: np.ndarray | None = None,
) -> Score:
    """The cost of tokens[1:], each given at most `length` tokens before it.

    tokens[0] is context alone. To count every token of a text, begin the stream with the id that ends
    documents: it is what the model saw before each document in training.

    Args:
        model: token ids (B, T), and document ids (B, T) with `starts`, to logits (B, T, V); V may exceed
            `vocab_size` by padding. It is scored in the mode it is in: call `model.eval()` first.
        tokens: ids, shape (labels + 1,), any integer type; an empty or one-token stream costs nothing.
        vocab_size: ids the model knows; the columns from there on get no probability.
        length: the model's full length N.
        overlap: labels of a window that only give context.
        batch: windows at once.
        starts: which tokens are the first of a document, bool of the shape of `tokens`, for a model that was
            trained with positions or attention beginning anew there.

    Raises:
        ValueError: an id is not in [0, vocab_size), or the window arithmetic does not work out.
    """
    ids = np.asarray(tokens)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"token ids {ids.min()} to {ids.max()} are not all in the model's [0, {vocab_size})")
    device = next(model.parameters()).device
    windows = cover(max(len(ids) - 1, 0), length, overlap)
    nats, labels = 0.0, 0
    for first in range(0, len(windows), batch):
        part = windows[first : first + batch]
        rows = np.stack([ids[w.first : w.stop + 1] for w in part]).astype(np.int64)
        ids_BT = torch.from_numpy(rows).to(device)
        inputs = [ids_BT[:, :-1]]
        if starts is not None:
            documents = np.stack([starts[w.first : w.stop].cumsum() for w in part])
            inputs.append(torch.from_numpy(documents).to(device))
        loss_BT = token_nats(model(*inputs), ids_BT[:, 1:], vocab_size)
        for row, window in enumerate(part):
            nats += float(loss_BT[row, window.scored - window.first :].double().sum())
            labels += window.stop - window.scored
    return Score(nats, labels)


def token_nats(logits_BTV: Tensor, labels_BT: Tensor, vocab_size: int) -> Tensor:
    """-log p of each label, (B, T) fp32, with the padding columns left out of the normalization."""
    logits = logits_BTV[..., :vocab_size].float()
    return F.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), reduction="none").view(labels_BT.shape)
