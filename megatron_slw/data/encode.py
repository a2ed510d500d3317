"""Pieces of text to token ids, in this process, in a pool of processes or on other machines; always in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.process import BaseProcess

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import INVALID_UTF8, PIECE_BYTES, BadTextError, Line, Piece, Position, documents
from megatron_slw.data.layout import dtype_for
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer

ON_ERROR = ("fail", "skip", "replace")
PIECES_PER_WORKER = 3
_NOTES = 20


class WorkerDiedError(ConfigError):
    """A process of the pool is gone; what was written so far is good."""


@dataclass(frozen=True)
class EncodeSettings:
    """What every worker must know."""

    tokenizer: TokenizerSpec
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    on_error: str = "fail"
    """One of ON_ERROR."""


@dataclass(frozen=True)
class Encoded:
    """The documents of one key in one piece."""

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    empty: int


@dataclass
class EncodedPiece:
    """What becomes of a piece."""

    read: int
    end: Position
    keys: list[Encoded] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Documents left out, by the kind of what is wrong with them."""
    replaced: int = 0
    """Documents with U+FFFD put in."""
    notes: list[str] = field(default_factory=list)
    """A sentence for each of the first of these, with file and line."""
    fault: str | None = None
    """With --on-error fail, the first bad document; then there are no keys."""


def encode_piece(settings: EncodeSettings, tokenizer: Tokenizer, piece: Piece) -> EncodedPiece:
    """Encode the documents of a piece, for each key."""
    result = EncodedPiece(piece.read, piece.end)
    texts: list[list[str]] = [[] for _ in settings.json_keys]
    for number, line in zip(piece.numbers, piece.lines, strict=True):
        parts = _texts(settings, piece.path, number, line, result)
        if result.fault is not None:
            return result
        for column, text in zip(texts, parts or (), strict=False):
            column.append(text)
    eod = tokenizer.info.eod_id if settings.append_eod else None
    dtype = dtype_for(tokenizer.info.vocab_size)
    result.keys = [_encode(tokenizer, column, eod, dtype) for column in texts]
    return result


def encoded_pieces(
    settings: EncodeSettings, tokenizer: Tokenizer, pieces: Iterator[Piece], workers: int, executor: Executor | None
) -> Generator[EncodedPiece, None, None]:
    """Yield the encoded pieces in the order of `pieces`.

    Args:
        settings: for every worker.
        tokenizer: for this process.
        pieces: from `read_pieces`; read no further ahead than the workers need.
        workers: processes of a pool; 1 is this process alone.
        executor: where the work goes instead, with `workers` workers.

    Raises:
        WorkerDiedError: a process of the pool was killed.
    """
    if executor is not None:
        yield from _in_order(executor, settings, pieces, workers)
    elif workers == 1:
        for piece in pieces:
            yield encode_piece(settings, tokenizer, piece)
    else:
        # Not fork: the tokenizer libraries have threads. And not Pool.imap: it would read the whole corpus ahead.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (settings.tokenizer,))
        try:
            yield from _in_order(pool, settings, pieces, workers)
        except BrokenProcessPool:
            raise WorkerDiedError(
                "a worker process died, perhaps for lack of memory. Use fewer --workers; the same command goes on "
                "where it was."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    executor: Executor, settings: EncodeSettings, pieces: Iterator[Piece], workers: int
) -> Generator[EncodedPiece, None, None]:
    """Results in the order of the input, with a bounded number of pieces and bytes under way."""
    most = workers * PIECES_PER_WORKER
    waiting: deque[tuple[int, Future[EncodedPiece]]] = deque()
    under_way = 0
    for piece in pieces:
        waiting.append((piece.size, executor.submit(_work, settings, piece)))
        under_way += piece.size
        del piece  # it may be a hundred megabytes, and is with the worker now
        while waiting and (len(waiting) >= most or under_way >= most * PIECE_BYTES):
            size, future = waiting.popleft()
            under_way -= size
            yield future.result()
    while waiting:
        yield waiting.popleft()[1].result()


def _texts(settings: EncodeSettings, path: str, number: int, line: Line, result: EncodedPiece) -> list[str] | None:
    """The texts of one line; what is wrong with it goes into `result`."""
    try:
        return documents(path, line, settings.json_keys)
    except BadTextError as error:
        fault = error
    if settings.on_error == "fail":
        result.fault = fault.sentence(path, number)
        return None
    action, texts = "skipped", None
    if settings.on_error == "replace" and fault.kind == INVALID_UTF8:
        try:
            action, texts = "replaced", documents(path, line, settings.json_keys, replace=True)
            result.replaced += 1
        except BadTextError as error:  # more is wrong with it than its bytes
            action, fault = "skipped", error
    if action == "skipped":
        result.skipped[fault.kind] = result.skipped.get(fault.kind, 0) + 1
    if len(result.notes) < _NOTES:
        result.notes.append(f"{action}: {fault.sentence(path, number)}")
    return texts


def _encode(tokenizer: Tokenizer, texts: list[str], eod: int | None, dtype: np.dtype[np.integer]) -> Encoded:
    tokens, lengths = tokenizer.encode_flat(texts)
    kept = lengths[lengths > 0]
    if eod is not None:
        tokens = np.insert(tokens, np.cumsum(kept), eod)
        kept = kept + 1
    return Encoded(
        tokens=tokens.astype(dtype, copy=False),
        lengths=kept,
        text_bytes=sum(len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts),
        empty=len(texts) - len(kept),
    )


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


def _work(settings: EncodeSettings, piece: Piece) -> EncodedPiece:
    return encode_piece(settings, _loaded(settings.tokenizer), piece)
