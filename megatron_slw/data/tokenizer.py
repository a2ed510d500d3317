"""Tokenizers: one small interface over the libraries that know the file formats.

Text is text: a string such as "<|endoftext|>" inside a document is encoded as its characters, never as the
special token, and no special token is added at either end. Only `--append-eod` puts one there.
The libraries are imported when a tokenizer is loaded. The files are data of unknown origin: their size is
bounded, they are parsed strictly, and no part of them is run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_slw.config.errors import ConfigError, listing
from megatron_slw.data.byte_pair import load_gpt2, load_hugging_face
from megatron_slw.data.gigatoken_backend import with_gigatoken
from megatron_slw.data.sidecar import TokenizerInfo, file_sha256
from megatron_slw.data.tiktoken_ranks import load_tiktoken
from megatron_slw.data.tokenizer_interface import (
    BACKENDS,
    EOD_NAMES,
    FlatIds,
    LoadedTokenizer,
    Tokenizer,
    TokenizerSpec,
    joined,
    needed,
    parsed,
    require_file,
)

__all__ = ["BACKENDS", "EOD_NAMES", "TOKENIZER_TYPES", "FlatIds", "Tokenizer", "TokenizerSpec", "load_tokenizer"]


def load_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Load the tokenizer `spec` describes.

    Raises:
        ConfigError: an unknown type or backend, a flag that the type needs, or a file that is missing or
            damaged; it names the file.
    """
    if spec.type not in TOKENIZER_TYPES:
        raise ConfigError(f"--tokenizer-type must be {listing(TOKENIZER_TYPES)}, not {spec.type}.")
    if spec.backend not in BACKENDS:
        raise ConfigError(f"--backend must be {listing(BACKENDS)}, not {spec.backend}.")
    tokenizer = TOKENIZER_TYPES[spec.type](spec)
    return with_gigatoken(spec, tokenizer) if spec.backend == "gigatoken" else tokenizer


def _sentencepiece(spec: TokenizerSpec) -> LoadedTokenizer:
    """A SentencePiece .model file."""
    import sentencepiece

    path = Path(needed(spec, "tokenizer_model"))
    require_file(path, "--tokenizer-model")
    model = parsed(path, lambda: sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes()))
    eod = model.eos_id() if model.eos_id() >= 0 else None
    info = TokenizerInfo(spec.type, path.name, file_sha256(path), model.vocab_size(), eod)
    size = model.vocab_size()
    return LoadedTokenizer(info, lambda texts: joined(([model.encode(text)] for text in texts), size), model.decode)


TOKENIZER_TYPES: dict[str, Callable[[TokenizerSpec], LoadedTokenizer]] = {
    "GPT2BPETokenizer": load_gpt2,
    "HuggingFaceTokenizer": load_hugging_face,
    "SentencePieceTokenizer": _sentencepiece,
    "TikTokenizer": load_tiktoken,
}
