"""Text from a model: prompts in, text out as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron_slw.checkpoint import inference
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import DataConfig, ModelConfig
from megatron_slw.data.dataset_tokenizer import dataset_tokenizer
from megatron_slw.data.tokenizer import Tokenizer
from megatron_slw.evaluation.decoding import Decoder, context_start, decoder_of, stream_batch
from megatron_slw.evaluation.sampling import Sampling

REPLACEMENT = "\ufffd"
UNCERTAIN = 3
"""Bytes of an unfinished UTF-8 character, at most; each may show as a replacement character."""


class TextStream:
    """Turns tokens into text as they come; what may still change with the next token is held back.

    The pieces together are what the tokenizer makes of all tokens at once. Tokens are decoded with those of the piece
    before: SentencePiece drops the space in front of what it takes for the beginning.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """Begin after the tokens `before`, whose text is complete."""
        self._tokenizer = tokenizer
        self._before, self._ids = list(before), list[int]()
        self._given = 0

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token)
        text = self._text()
        whole = text.rstrip(REPLACEMENT)
        certain = max(len(whole), len(text) - UNCERTAIN)
        piece = text[self._given : certain]
        self._given = max(certain, self._given)
        if len(whole) == len(text):
            self._before, self._ids, self._given = self._ids, [], 0
        return piece

    def end(self) -> str:
        """The rest; bytes that are no character are U+FFFD."""
        piece = self._text()[self._given :]
        self._before, self._ids, self._given = [], [], 0
        return piece

    def _text(self) -> str:
        skip = len(self._tokenizer.decode(self._before)) if self._before else 0
        return self._tokenizer.decode(self._before + self._ids)[skip:]


@dataclass(frozen=True)
class Writer:
    """A model with its tokenizer, ready to write.

    Raises:
        ConfigError: the tokenizer is not the model's.
    """

    decoder: Decoder
    model: ModelConfig
    data: DataConfig
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        known, size = self.model.vocab_size or 0, self.tokenizer.info.vocab_size
        if size > known:
            raise ConfigError(
                f"the tokenizer has {size} ids, but the model knows {known}: it is another one's. Give --dataset with "
                "a dataset that the model was trained on."
            )

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens that the model sees: as in training, a text stands after the end of the document before.

        A model that saw each document for itself saw no token before its first.

        Raises:
            ConfigError: there is no prompt, and the tokenizer has no token to begin after.
        """
        eod = self.tokenizer.info.eod_id
        ids = self.tokenizer.encode_batch([prompt])[0]
        before = [] if eod is None or (ids and self.data.track_documents) else [eod]
        if not before + ids:
            raise ConfigError("a text from nothing needs a tokenizer with an end-of-document token. Give a prompt.")
        return before + ids

    def unseen(self, prompt: str) -> int:
        """Tokens at the beginning of a prompt that is longer than the model's full length, which it does not see."""
        return context_start(len(self.prompt_ids(prompt)), self.model.seq_length)

    def stream(self, prompts: Sequence[str], tokens: int, sampling: Sampling) -> Iterator[tuple[int, str]]:
        """Yield (prompt's number, piece of text) as they are written; at most `tokens` tokens each, to the end of the
        document.
        """
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        eod = self.tokenizer.info.eod_id
        texts = [TextStream(self.tokenizer, [token for token in row[-1:] if token != eod]) for row in ids]
        steps = stream_batch(
            self.decoder, ids, vocab_size=self.tokenizer.info.vocab_size, length=self.model.seq_length, tokens=tokens,
            sampling=sampling, stop_id=eod,
        )  # fmt: skip
        for step in steps:
            for row, token in step.items():
                if piece := texts[row].push(token):
                    yield row, piece
        for row, text in enumerate(texts):
            if piece := text.end():
                yield row, piece

    def write(self, prompts: Sequence[str], tokens: int, sampling: Sampling) -> list[str]:
        """The same, whole."""
        found = [""] * len(prompts)
        for row, piece in self.stream(prompts, tokens, sampling):
            found[row] += piece
        return found


def writer_of(loaded: inference.LoadedModel, tokenizer: Tokenizer, cached: bool = True) -> Writer:
    """A loaded model that writes, with a KV cache or without."""
    return Writer(decoder_of(loaded.model, cached), loaded.config.model, loaded.config.data, tokenizer)


def load_writer(load: str, dataset: str | None, tokenizer_dir: str | None, device: str, cached: bool) -> Writer:
    """A checkpoint of any layout that writes, in fp32.

    Args:
        load: the checkpoint.
        dataset: whose sidecar names the tokenizer; None is the checkpoint's data.path.
        tokenizer_dir: folder of the tokenizer's file; None is beside the dataset.
        device: cpu or cuda.
        cached: with a KV cache.

    Raises:
        ConfigError: checkpoint, tokenizer or device are not there.
    """
    if device.partition(":")[0] not in ("cpu", "cuda") or (device != "cpu" and not torch.cuda.is_available()):
        raise ConfigError(f"--device {device} is not there. Use cpu, or cuda on a machine with a GPU.")
    loaded = inference.load_model(load, device)
    return writer_of(loaded, dataset_tokenizer(dataset or loaded.config.data.corpora[0].prefix, tokenizer_dir), cached)


def samplings_of(
    temperature: float, top_k: int | None, top_p: float | None, seed: int, samples: int, tokens: int
) -> list[Sampling]:
    """The settings of each of `samples` texts, with seeds that count up; ConfigError where one is out of range."""
    if samples < 1 or tokens < 1 or seed < 0:
        raise ConfigError(f"--samples {samples} and --tokens {tokens} must be 1 or more, and --seed {seed} 0 or more.")
    try:
        return [Sampling(temperature, top_k, top_p, seed + number) for number in range(samples)]
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
