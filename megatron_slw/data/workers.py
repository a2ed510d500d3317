"""Pieces encoded by several processes, on this machine or others; always in order.

With `--workers N` this process is one of the N: it reads and writes, and encodes whenever it would wait for the other
ones. So it has work while they start, which takes them longer than a megabyte of text, and N cores are never shared by
N + 1 processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from multiprocessing.process import BaseProcess

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import PIECE_BYTES, Piece
from megatron_slw.data.encode import EncodedPiece, EncodeSettings, encode_piece
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer

PIECES_PER_WORKER = 3
ALONE = 4
"""So many pieces are encoded before other processes are started: for less they do not pay."""


class WorkerDiedError(ConfigError):
    """A process of the pool is gone; what was written so far is good."""


@dataclass
class _Job:
    """A piece under way."""

    piece: Piece
    future: Future[EncodedPiece]


def encoded_pieces(
    settings: EncodeSettings, tokenizer: Tokenizer, pieces: Iterator[Piece], workers: int, executor: Executor | None
) -> Generator[EncodedPiece, None, None]:
    """Yield the encoded pieces in the order of `pieces`.

    Args:
        settings: for every worker.
        tokenizer: for this process.
        pieces: from `read_pieces`; read no further ahead than the workers need.
        workers: processes that encode, this one among them.
        executor: where the work goes instead, with `workers` workers; this process then encodes nothing.

    Raises:
        WorkerDiedError: a process of the pool was killed.
    """
    if executor is not None:
        yield from _in_order(executor, settings, pieces, workers, None)
        return
    here = partial(encode_piece, settings, tokenizer)
    yield from map(here, pieces if workers == 1 else islice(pieces, ALONE))
    if (piece := next(pieces, None)) is not None:
        rest = chain([piece], pieces)
        del piece  # it may be a hundred megabytes
        yield from _with_others(here, settings, rest, workers)


def _with_others(
    here: Callable[[Piece], EncodedPiece], settings: EncodeSettings, pieces: Iterator[Piece], workers: int
) -> Generator[EncodedPiece, None, None]:
    # Not fork: the tokenizer libraries have threads. And not Pool.imap: it would read the whole corpus ahead.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers - 1, context, _start_worker, (settings.tokenizer,))
    try:
        started = [pool.submit(os.getpid) for _ in range(workers - 1)]
        while not any(future.done() for future in started) and (piece := next(pieces, None)) is not None:
            yield here(piece)
            del piece
        yield from _in_order(pool, settings, pieces, workers, here)
    except BrokenProcessPool:
        raise WorkerDiedError(
            "a worker process died, perhaps for lack of memory. Use fewer --workers; the same command goes on "
            "where it was."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    executor: Executor,
    settings: EncodeSettings,
    pieces: Iterator[Piece],
    workers: int,
    here: Callable[[Piece], EncodedPiece] | None,
) -> Generator[EncodedPiece, None, None]:
    """Results in the order of the input, with a bounded number of pieces and bytes under way."""
    most = workers * PIECES_PER_WORKER
    waiting: deque[_Job] = deque()
    under_way = 0
    for piece in pieces:
        waiting.append(_Job(piece, executor.submit(_work, settings, piece)))
        under_way += piece.size
        del piece
        while waiting and (len(waiting) >= most or under_way >= most * PIECE_BYTES):
            under_way -= waiting[0].piece.size
            yield _first(waiting, here)
    while waiting:
        yield _first(waiting, here)


def _first(waiting: deque[_Job], here: Callable[[Piece], EncodedPiece] | None) -> EncodedPiece:
    """Take the first piece's result; while it is not there, encode `here` what no worker has begun."""
    while here is not None and not waiting[0].future.done():
        job = next((job for job in waiting if job.future.cancel()), None)
        if job is None:
            break
        job.future = Future()
        job.future.set_result(here(job.piece))
    return waiting.popleft().future.result()


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
