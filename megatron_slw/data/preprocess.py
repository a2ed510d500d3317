"""Text files to token datasets, on any number of processes and always to the same bytes.

The parent reads the files in pieces, the workers parse and encode them, and the parent writes what comes
back in the order in which it was read. No more than a few pieces for each worker are under way at a time, so
memory does not grow with the corpus.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.process import BaseProcess

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import TEXT_ENDINGS, BadTextError, Piece, check_inputs, documents, read_pieces
from megatron_slw.data.layout import dtype_for
from megatron_slw.data.sidecar import Sidecar
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer
from megatron_slw.data.writer import IndexedDatasetWriter

_PIECES_PER_WORKER = 3


@dataclass(frozen=True)
class PreprocessSettings:
    """What to read, how to encode it and where to write it."""

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer: TokenizerSpec
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    workers: int = 1


@dataclass
class Counts:
    """What was done so far; `report` callbacks get it after every piece."""

    total_bytes: int
    """Size of the input files."""
    read_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    start: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Encoded:
    """The documents of one key in one piece."""

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    empty: int


def preprocess(
    settings: PreprocessSettings, report: Callable[[Counts], None] = lambda counts: None
) -> dict[str, Sidecar]:
    """Write one dataset for each JSON key, at OUTPUT_PREFIX_KEY_document; return what their sidecars say.

    Empty documents are left out and counted. On any failure nothing is left of the datasets, and older ones
    of the same name stay as they were.

    Raises:
        ConfigError: a setting, tokenizer or document that cannot be used; documents by file and line.
    """
    counts = Counts(_check(settings))
    tokenizer = load_tokenizer(settings.tokenizer)
    if settings.append_eod and tokenizer.info.eod_id is None:
        raise ConfigError(f"--append-eod is set, but {tokenizer.info.name} has no end-of-document token.")
    dtype = dtype_for(tokenizer.info.vocab_size)
    with ExitStack() as stack:
        writers = {
            key: stack.enter_context(IndexedDatasetWriter(f"{settings.output_prefix}_{key}_document", dtype))
            for key in settings.json_keys
        }
        text_bytes, empty = dict.fromkeys(writers, 0), dict.fromkeys(writers, 0)
        encoded_pieces = stack.enter_context(closing(_encoded_pieces(settings, tokenizer)))
        for piece_read, encoded in encoded_pieces:
            for key, part in zip(settings.json_keys, encoded, strict=True):
                writers[key].add_documents(part.tokens, part.lengths)
                text_bytes[key] += part.text_bytes
                empty[key] += part.empty
                counts.documents += len(part.lengths)
                counts.tokens += len(part.tokens)
            counts.read_bytes = piece_read
            report(counts)
        if counts.documents == 0:
            raise ConfigError(f"{', '.join(settings.inputs)}: there is no text in --input.")
        return {
            key: writer.finish(tokenizer.info, text_bytes[key], empty[key]) for key, writer in writers.items()
        }


def encode_piece(settings: PreprocessSettings, tokenizer: Tokenizer, piece: Piece) -> list[Encoded] | str:
    """Encode the documents of a piece, for each key; or say what is wrong with the first bad one."""
    texts: list[list[str]] = [[] for _ in settings.json_keys]
    for number, line in enumerate(piece.lines, piece.first_line):
        try:
            parts = documents(piece.path, line, settings.json_keys)
        except BadTextError as error:
            return error.sentence(piece.path, number)
        for column, text in zip(texts, parts or (), strict=False):
            column.append(text)
    eod = [tokenizer.info.eod_id] if settings.append_eod and tokenizer.info.eod_id is not None else []
    dtype = dtype_for(tokenizer.info.vocab_size)
    return [_encode(tokenizer, column, eod, dtype) for column in texts]


def _encode(tokenizer: Tokenizer, texts: list[str], eod: list[int], dtype: np.dtype[np.integer]) -> Encoded:
    ids = [np.array(document + eod, dtype) for document in tokenizer.encode_batch(texts) if document]
    return Encoded(
        tokens=np.concatenate(ids) if ids else np.empty(0, dtype),
        lengths=np.array([len(document) for document in ids], np.int64),
        text_bytes=sum(len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts),
        empty=len(texts) - len(ids),
    )


def _check(settings: PreprocessSettings) -> int:
    """Refuse settings that cannot work; return the bytes to read."""
    if settings.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {settings.workers}.")
    if len(set(settings.json_keys)) != len(settings.json_keys):
        raise ConfigError(f"--json-keys has one key twice: {' '.join(settings.json_keys)}.")
    size = check_inputs(settings.inputs)
    for path in settings.inputs:
        if path.endswith(TEXT_ENDINGS) and len(settings.json_keys) > 1:
            raise ConfigError(f"{path} is one text, but --json-keys has {len(settings.json_keys)} keys.")
    return size


def _encoded_pieces(
    settings: PreprocessSettings, tokenizer: Tokenizer
) -> Generator[tuple[int, list[Encoded]], None, None]:
    """Yield (bytes read, encoded documents for each key) in the order of the input."""
    pieces = read_pieces(settings.inputs)
    if settings.workers == 1:
        for piece in pieces:
            yield piece.read, _usable(encode_piece(settings, tokenizer, piece))
        return
    # Not fork: the tokenizer libraries have threads. And not Pool.imap: it would read the whole corpus ahead.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(settings.workers, context, _start_worker, (settings.tokenizer,))
    waiting: deque[tuple[int, Future[list[Encoded] | str]]] = deque()
    try:
        for piece in pieces:
            waiting.append((piece.read, pool.submit(_work, settings, piece)))
            if len(waiting) >= settings.workers * _PIECES_PER_WORKER:
                read, future = waiting.popleft()
                yield read, _usable(future.result())
        while waiting:
            read, future = waiting.popleft()
            yield read, _usable(future.result())
    except BrokenProcessPool:
        raise ConfigError("a worker process died, perhaps for lack of memory. Use fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _usable(encoded: list[Encoded] | str) -> list[Encoded]:
    if isinstance(encoded, str):
        raise ConfigError(encoded)
    return encoded


@lru_cache(maxsize=1)
def _loaded(spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer, once in each process: it is too large to send with every piece."""
    return load_tokenizer(spec)


def _start_worker(spec: TokenizerSpec) -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and stops the pool
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent must not leave workers behind
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    _loaded(spec)


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(settings: PreprocessSettings, piece: Piece) -> list[Encoded] | str:
    return encode_piece(settings, _loaded(settings.tokenizer), piece)
