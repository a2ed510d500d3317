"""Text from a model: one token at a time, the whole window computed again for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from megatron_slw.config.schema import ModelConfig
from megatron_slw.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Raises:
        ValueError: a setting is out of range.
    """

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int | None = None
    """Draw from this many most probable tokens only."""
    top_p: float | None = None
    """Draw from the fewest most probable tokens that together have at least this probability."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1")


def next_token_probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that the next token is drawn from, (V,) fp32; temperature, then top-k, then top-p."""
    logits = logits_V.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    # The largest logit goes first, else a small temperature overflows.
    probabilities = torch.softmax((logits - logits.max()) / sampling.temperature, dim=0)
    if sampling.top_k is not None and sampling.top_k < len(probabilities):
        kept = probabilities.topk(sampling.top_k).indices
        probabilities = torch.zeros_like(probabilities).index_copy_(0, kept, probabilities[kept])
        probabilities /= probabilities.sum()
    if sampling.top_p is not None:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).index_copy_(0, order, ordered)
        probabilities /= probabilities.sum()
    return probabilities


@torch.no_grad()
def stream_tokens(
    model: nn.Module,
    prompt: Sequence[int],
    *,
    vocab_size: int,
    length: int,
    sampling: Sampling,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow `prompt`, without end, or up to `stop_id`, which is not given.

    Once the text is longer than the model's full length, the last `length` tokens are its context. Equal
    arguments give equal tokens; no global random state is read or changed.

    Args:
        model: token ids (B, T) to logits (B, T, V), in the mode it is in; call `model.eval()` first.
        prompt: ids in [0, vocab_size), at least one. For a text from nothing, the id that ends documents.
        vocab_size: ids the model knows; the padding columns from there on are never drawn.
        length: the model's full length N.

    Raises:
        ValueError: the prompt is empty or has an unknown id.
    """
    ids = list(prompt)
    if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(f"a prompt needs at least one token id, each in [0, {vocab_size}), not {ids[:8]}")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(sampling.seed)
    while True:
        context_BT = torch.tensor([ids[-length:]], device=device)
        logits_V = model(context_BT)[0, -1, :vocab_size].cpu()
        probabilities = next_token_probabilities(logits_V, sampling)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        if token == stop_id:
            return
        ids.append(token)
        yield token


def generate_text(
    model: nn.Module, config: ModelConfig, tokenizer: Tokenizer, prompt: str, tokens: int, sampling: Sampling
) -> str:
    """What the model writes after `prompt`: at most `tokens` tokens, up to the end of the document.

    The prompt stands at the beginning of a document, as after the end-of-document token in training. A
    character that was cut in the middle of its bytes becomes U+FFFD.

    Raises:
        ValueError: there is no prompt and the tokenizer has no end-of-document token to begin after.
    """
    if config.vocab_size is None:
        raise ValueError("generation needs model.vocab_size: fill it from the dataset first")
    eod = tokenizer.info.eod_id
    ids = ([] if eod is None else [eod]) + tokenizer.encode_batch([prompt])[0]
    stream = stream_tokens(
        model, ids, vocab_size=config.vocab_size, length=config.seq_length, sampling=sampling, stop_id=eod
    )
    return tokenizer.decode(list(islice(stream, tokens)))
