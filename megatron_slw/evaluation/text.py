"""Between text and a model's tokens: the tokenizer of a dataset, and documents as one stream to score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import LINE_ENDINGS, BadTextError, check_inputs, documents, read_pieces
from megatron_slw.data.layout import dataset_paths
from megatron_slw.data.sidecar import TokenizerInfo, read_sidecar
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer


def dataset_tokenizer(prefix: str | Path, folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer that the dataset at `prefix` was made with, as its sidecar names it.

    Args:
        prefix: the dataset's path without ending, `data.path` of a run.
        folder: where the tokenizer's file lies; None is beside the dataset.

    Raises:
        ConfigError: the sidecar or the tokenizer's file is missing, or the file is another tokenizer.
    """
    sidecar_path = dataset_paths(prefix).sidecar
    sidecar = read_sidecar(sidecar_path)
    if sidecar is None or sidecar.tokenizer is None:
        raise ConfigError(
            f"{sidecar_path}, which names the tokenizer, is missing or names none. Give the dataset that the "
            "model was trained on by --dataset."
        )
    expected = sidecar.tokenizer
    spec = tokenizer_spec(expected, Path(folder) if folder is not None else Path(prefix).parent)
    try:
        tokenizer = load_tokenizer(spec)
    except ConfigError as error:
        raise ConfigError(f"{error} --tokenizer-dir says where {expected.name} lies.") from None
    if tokenizer.info.sha256 != expected.sha256:
        raise ConfigError(
            f"{expected.name} has SHA-256 {tokenizer.info.sha256[:12]}, but {sidecar_path} was made with "
            f"{expected.sha256[:12]}: it is another tokenizer. --tokenizer-dir says where the right one lies."
        )
    return tokenizer


def tokenizer_spec(info: TokenizerInfo, folder: Path) -> TokenizerSpec:
    """How to load what `info` names, with the files in `folder`."""
    if info.type == "GPT2BPETokenizer":
        vocab, _, merges = info.name.partition(" ")
        return TokenizerSpec(info.type, vocab_file=str(folder / vocab), merge_file=str(folder / merges))
    if info.type == "TikTokenizer":  # an encoding, no file
        return TokenizerSpec(info.type, tokenizer_model=info.name)
    return TokenizerSpec(info.type, tokenizer_model=str(folder / info.name))


def read_documents(path: str | Path, key: str = "text") -> Iterator[str]:
    """The texts of a .jsonl file (one object a line, the text under `key`) or a .txt file (one document).

    Raises:
        ConfigError: another kind of file, or a line that is no document; it names the line.
    """
    name = str(path)
    check_inputs([name])
    for piece in read_pieces([name]):
        for number, line in enumerate(piece.lines, piece.first_line):
            try:
                yield from documents(name, line, [key]) or ()
            except BadTextError as error:
                where = f"{name}, line {number}" if name.endswith(LINE_ENDINGS) else name
                raise ConfigError(f"{where} {error}.") from None


def document_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[np.ndarray, int, int]:
    """The documents as one stream of tokens to score, as training saw them.

    Each document ends with the end-of-document token. One more stands in front as the context of the first
    token, so that every token of the text is a label. A tokenizer without such a token joins the documents as
    they are, and the very first token of all is not scored.

    Returns:
        (ids of shape (tokens + 1,), UTF-8 bytes of the text, documents).
    """
    eod = [] if tokenizer.info.eod_id is None else [tokenizer.info.eod_id]
    parts: list[Sequence[int]] = [eod]
    text_bytes = count = 0
    for text in texts:
        if ids := tokenizer.encode_batch([text])[0]:
            parts.append(ids + eod)
            count += 1
        text_bytes += len(text.encode("utf-8"))
    return np.concatenate([np.asarray(part, np.int32) for part in parts]), text_bytes, count
