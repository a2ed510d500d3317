"""Tokenizers of the user's own text: byte-level BPE as a Hugging Face tokenizer.json, or a SentencePiece .model.

Equal text and settings give equal files.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import BadTextError, check_inputs, documents, read_pieces
from megatron_slw.data.inputs import expand_inputs
from megatron_slw.data.sidecar import TokenizerInfo
from megatron_slw.data.tokenizer import EOD_NAMES, TokenizerSpec, load_tokenizer

TRAINED_TYPES = ("bpe", "sentencepiece-bpe", "sentencepiece-unigram")
"""--type: what can be trained."""
_LEAST_VOCAB = 257  # every byte, and the end-of-document token
_LEAST_PIECES = 260  # every byte, and <unk>, <s>, </s> and a letter
_SENTENCE = 2_048  # characters; SentencePiece leaves out what is longer than its limit in bytes
_PART = re.compile(rf"[^\n]{{1,{_SENTENCE - 1}}}(?: |$|(?=\n))|[^\n]{{1,{_SENTENCE}}}")


def train_byte_level_bpe(
    inputs: Sequence[str],
    output: str,
    vocab_size: int,
    json_keys: Sequence[str] = ("text",),
    allow_fewer: bool = False,
) -> TokenizerInfo:
    """Train a tokenizer on all text under `json_keys` of the files `inputs` and write it to `output`.

    Every byte is a token, so there is no text it cannot encode; id 0 is the end-of-document token. Equal
    text gives an equal file. Memory: the distinct words of the text with their counts. With `allow_fewer` a text
    that has not as many pieces gives a smaller vocabulary.

    Raises:
        ConfigError: a file or document that cannot be used, too small a vocabulary or too little text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < _LEAST_VOCAB:
        raise ConfigError(f"--vocab-size is {vocab_size}, but 256 bytes and the end token need {_LEAST_VOCAB}.")
    path, inputs = _checked(inputs, output, ".json")
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
    if found < vocab_size and not allow_fewer:
        raise ConfigError(
            f"the text has only {found:,} different pieces, but --vocab-size is {vocab_size:,}. Use at "
            f"most {found}, more text, or --allow-fewer."
        )
    _write(path, tokenizer.to_str().encode())
    return load_tokenizer(TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=output)).info


def train_sentencepiece(
    inputs: Sequence[str], output: str, vocab_size: int, json_keys: Sequence[str] = ("text",), unigram: bool = False
) -> TokenizerInfo:
    """Train a SentencePiece model, of type BPE or unigram, on the same text and write it to `output`.

    Text is taken as it is: no normalisation, no blank put in front, and bytes stand in for characters that have no
    piece, so that decoding gives the text back (but for U+2581, which SentencePiece has for a blank). Id 2, `</s>`,
    is the end-of-document token. Memory: all of the text.

    Raises:
        ConfigError: a file or document that cannot be used, a vocabulary that is too small, or too little text.
    """
    import sentencepiece

    if vocab_size < _LEAST_PIECES:
        raise ConfigError(f"--vocab-size is {vocab_size}, but 256 bytes and the special pieces need {_LEAST_PIECES}.")
    path, inputs = _checked(inputs, output, ".model")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(inputs, json_keys),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram" if unigram else "bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * _SENTENCE,
            num_threads=1,  # sums in another order would give another unigram model
            minloglevel=2,
        )
    except ConfigError:
        raise
    except RuntimeError as error:
        reason = str(error).split("] ")[-1].strip().rstrip(".") or "no text"
        raise ConfigError(f"SentencePiece cannot train on --input: {reason}. Change --vocab-size or --input.") from None
    _write(path, model.getvalue())
    return load_tokenizer(TokenizerSpec("SentencePieceTokenizer", tokenizer_model=output)).info


def _checked(inputs: Sequence[str], output: str, ending: str) -> tuple[Path, Sequence[str]]:
    """The path to write and the files to read."""
    path = Path(output)
    if path.suffix != ending:
        raise ConfigError(f"--output is {output}, but this type of tokenizer's file ends in {ending}.")
    files = expand_inputs(inputs)
    check_inputs(files)
    return path, files


def _write(path: Path, data: bytes) -> None:
    """Put the file in place at once."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Use another --output.") from None


def _sentences(inputs: Sequence[str], keys: Sequence[str]) -> Iterator[str]:
    """The lines of the text, long ones in parts that end with a blank where they can."""
    for texts in _texts(inputs, keys):
        for text in texts:
            yield from _PART.findall(text)


def _texts(inputs: Sequence[str], keys: Sequence[str]) -> Iterator[list[str]]:
    """The text of each piece of the files."""
    for piece in read_pieces(inputs, keys=keys):
        texts: list[str] = []
        for path, number, line in piece.documents:
            try:
                texts += documents(path, line, keys) or ()
            except BadTextError as error:
                raise ConfigError(error.sentence(path, number)) from None
        yield texts
