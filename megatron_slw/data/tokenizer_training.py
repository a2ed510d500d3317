"""A byte-level BPE of the user's own text, as a Hugging Face tokenizer.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import BadTextError, check_inputs, documents, read_pieces
from megatron_slw.data.inputs import expand_inputs
from megatron_slw.data.sidecar import TokenizerInfo
from megatron_slw.data.tokenizer import EOD_NAMES, TokenizerSpec, load_tokenizer

_LEAST_VOCAB = 257  # every byte, and the end-of-document token


def train_byte_level_bpe(
    inputs: Sequence[str], output: str, vocab_size: int, json_keys: Sequence[str] = ("text",)
) -> TokenizerInfo:
    """Train a tokenizer on all text under `json_keys` of the files `inputs` and write it to `output`.

    Every byte is a token, so there is no text it cannot encode; id 0 is the end-of-document token. Equal
    text gives an equal file. Memory: the distinct words of the text with their counts.

    Raises:
        ConfigError: a file or document that cannot be used, too small a vocabulary or too little text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < _LEAST_VOCAB:
        raise ConfigError(
            f"--vocab-size is {vocab_size}, but 256 bytes and the end token need {_LEAST_VOCAB}."
        )
    path = Path(output)
    if path.suffix != ".json":
        raise ConfigError(f"--output is {output}, but a tokenizer's file ends in .json.")
    inputs = expand_inputs(inputs)
    check_inputs(inputs)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD_NAMES[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(inputs, json_keys), trainer)
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        raise ConfigError(
            f"the text has only {found:,} different pieces, but --vocab-size is {vocab_size:,}. Use at "
            f"most {found}, or more text."
        )
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(tokenizer.to_str(), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Use another --output.") from None
    return load_tokenizer(TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=output)).info


def _texts(inputs: Sequence[str], keys: Sequence[str]) -> Iterator[list[str]]:
    """The text of each piece of the files."""
    for piece in read_pieces(inputs, keys=keys):
        texts: list[str] = []
        for number, line in enumerate(piece.lines, piece.first_line):
            try:
                texts += documents(piece.path, line, keys) or ()
            except BadTextError as error:
                raise ConfigError(error.sentence(piece.path, number)) from None
        yield texts
