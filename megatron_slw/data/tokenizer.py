"""Tokenizers: one small interface over the libraries that know the file formats.

Text is text: a string such as "<|endoftext|>" inside a document is encoded as its characters, never as the
special token, and no special token is added at either end. Only `--append-eod` puts one there.
The libraries are imported when a tokenizer is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_slw.config.errors import ConfigError, listing
from megatron_slw.data.sidecar import TokenizerInfo, file_sha256

EOD_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<eod>", "</s>", "<eos>")
"""What an end-of-document token is called; the first that a vocabulary has is taken."""


class Tokenizer(Protocol):
    """What a tokenizer can do."""

    @property
    def info(self) -> TokenizerInfo:
        """Type, name, SHA-256, vocabulary size and end-of-document id."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text. The texts must be valid Unicode (no lone surrogates)."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer, as Megatron's flags say it."""

    type: str
    """--tokenizer-type, one of TOKENIZER_TYPES."""
    vocab_file: str | None = None
    merge_file: str | None = None
    tokenizer_model: str | None = None


def load_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Load the tokenizer `spec` describes.

    Raises:
        ConfigError: an unknown type, a flag that the type needs, or a file that is missing or damaged.
    """
    if spec.type not in TOKENIZER_TYPES:
        raise ConfigError(f"--tokenizer-type must be {listing(TOKENIZER_TYPES)}, not {spec.type}.")
    return TOKENIZER_TYPES[spec.type](spec)


@dataclass(frozen=True)
class _Loaded:
    """A library's tokenizer behind the interface."""

    info: TokenizerInfo
    encode: Callable[[Sequence[str]], list[list[int]]]
    decode_ids: Callable[[list[int]], str]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_ids([int(token) for token in ids])


def _hugging_face(spec: TokenizerSpec) -> Tokenizer:
    """A tokenizer.json, or the folder that holds one."""
    from tokenizers import Tokenizer as Library

    path = Path(_needed(spec, "tokenizer_model"))
    if path.is_dir():
        path = path / "tokenizer.json"
    _require_file(path, "--tokenizer-model")
    tokenizer = _parsed(path, lambda: Library.from_file(str(path)))
    return _byte_pair(spec.type, path.name, file_sha256(path), tokenizer)


def _gpt2_bpe(spec: TokenizerSpec) -> Tokenizer:
    """GPT-2's byte-level BPE: encoder.json and vocab.bpe, also known as vocab.json and merges.txt."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    vocab, merges = Path(_needed(spec, "vocab_file")), Path(_needed(spec, "merge_file"))
    _require_file(vocab, "--vocab-file")
    _require_file(merges, "--merge-file")
    tokenizer = _parsed(vocab, lambda: Library(models.BPE.from_file(str(vocab), str(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()

    digest = hashlib.sha256((file_sha256(vocab) + file_sha256(merges)).encode()).hexdigest()
    return _byte_pair(spec.type, f"{vocab.name} {merges.name}", digest, tokenizer)


def _byte_pair(kind: str, name: str, sha256: str, tokenizer: Any) -> Tokenizer:
    """Finish a tokenizer of the `tokenizers` library."""
    # A tokenizer.json may carry the settings of a model's input: documents must not be cut, padded or parsed.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    eod = next((vocab[token] for token in EOD_NAMES if token in vocab), None)
    info = TokenizerInfo(kind, name, sha256, max(vocab.values(), default=-1) + 1, eod)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        # One at a time: a list would be shared between as many threads as there are cores, in every worker.
        return [tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in texts]

    return _Loaded(info, encode, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))


def _tiktoken(spec: TokenizerSpec) -> Tokenizer:
    """One of tiktoken's encodings by name; its ranks are downloaded unless tiktoken has them cached."""
    import tiktoken

    name = _needed(spec, "tokenizer_model")
    if name not in tiktoken.list_encoding_names():
        known = listing(tiktoken.list_encoding_names())
        raise ConfigError(f"--tokenizer-model must be {known} for {spec.type}, not {name}.")
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # requests' errors are of this class
        raise ConfigError(f"the ranks of {name} cannot be fetched ({type(error).__name__}).") from None
    digest = hashlib.sha256()
    for token in sorted(encoding.token_byte_values()):
        digest.update(b"%d %d " % (encoding.encode_single_token(token), len(token)) + token)
    names = [name for name in EOD_NAMES if name in encoding.special_tokens_set]
    eod = encoding.encode_single_token(names[0]) if names else None
    info = TokenizerInfo(spec.type, name, digest.hexdigest(), encoding.n_vocab, eod)
    return _Loaded(info, lambda texts: [encoding.encode_ordinary(text) for text in texts], encoding.decode)


def _sentencepiece(spec: TokenizerSpec) -> Tokenizer:
    """A SentencePiece .model file."""
    import sentencepiece

    path = Path(_needed(spec, "tokenizer_model"))
    _require_file(path, "--tokenizer-model")
    model = _parsed(path, lambda: sentencepiece.SentencePieceProcessor(model_file=str(path)))
    eod = model.eos_id() if model.eos_id() >= 0 else None
    info = TokenizerInfo(spec.type, path.name, file_sha256(path), model.vocab_size(), eod)
    return _Loaded(info, lambda texts: [model.encode(text) for text in texts], model.decode)


TOKENIZER_TYPES: dict[str, Callable[[TokenizerSpec], Tokenizer]] = {
    "GPT2BPETokenizer": _gpt2_bpe,
    "HuggingFaceTokenizer": _hugging_face,
    "SentencePieceTokenizer": _sentencepiece,
    "TikTokenizer": _tiktoken,
}


def _needed(spec: TokenizerSpec, field: str) -> str:
    value: str | None = getattr(spec, field)
    if value is None:
        raise ConfigError(f"--tokenizer-type {spec.type} needs --{field.replace('_', '-')}.")
    return value


def _require_file(path: Path, flag: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist or is not a file. {flag} must name the tokenizer's file.")


def _parsed(path: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives; the libraries raise bare Exception and others for a file they cannot read."""
    try:
        return load()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} is not a file of this tokenizer type ({reason}).") from None
