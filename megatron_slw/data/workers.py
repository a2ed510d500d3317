"""Pieces encoded by several processes, on this machine or others; always in order.

With `--workers N` this process is one of the N: it reads and writes, and encodes whenever it would wait for the other
ones. So it has work while they start, which takes them as long as some megabytes of text, and N cores are never shared
by N + 1 processes.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing.process import BaseProcess

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import PIECE_BYTES, Piece
from megatron_slw.data.encode import EncodedPiece, EncodeSettings, encode_piece
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer

PIECES_PER_WORKER = 3
ALONE_BYTES = 4 * PIECE_BYTES
"""For input of this size other processes do not pay."""


class WorkerDiedError(ConfigError):
    """A process of the pool is gone; what was written so far is good."""


@dataclass(frozen=True)
class Crew:
    """Who encodes."""

    workers: int = 1
    """Processes that do."""
    executor: Executor | None = None
    """Where the other ones are."""
    helps: bool = True
    """Whether this process is one of them."""
    started: tuple[Future[int], ...] = ()
    """One of these is done when one of the others is there."""


@contextmanager
def crew(spec: TokenizerSpec, workers: int, size: int, executor: Executor | None) -> Iterator[Crew]:
    """Start the other processes; they load the tokenizer while this one does.

    Args:
        spec: of the tokenizer.
        workers: processes that encode, this one among them.
        size: bytes of the input; 0 where that is not known.
        executor: where the work goes instead, with `workers` workers; this process then encodes nothing.
    """
    if executor is not None:
        yield Crew(workers, executor, helps=False)
    elif workers == 1 or 0 < size <= ALONE_BYTES:
        yield Crew()
    else:
        # Not fork: the tokenizer libraries have threads. And not Pool.imap: it would read the whole corpus ahead.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers - 1, context, _start_worker, (spec,))
        try:
            yield Crew(workers, pool, True, tuple(pool.submit(os.getpid) for _ in range(workers - 1)))
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass
class _Job:
    """A piece under way."""

    piece: Piece
    future: Future[EncodedPiece]


def encoded_pieces(
    settings: EncodeSettings, tokenizer: Tokenizer, pieces: Iterator[Piece], crew: Crew
) -> Generator[EncodedPiece, None, None]:
    """Yield the encoded pieces in the order of `pieces`.

    Args:
        settings: for every worker.
        tokenizer: for this process.
        pieces: from `read_pieces`; read no further ahead than the workers need.
        crew: who encodes.

    Raises:
        WorkerDiedError: a process of the pool was killed.
    """
    here = partial(encode_piece, settings, tokenizer)
    if crew.executor is None:
        yield from map(here, pieces)
        return
    try:
        while crew.started and not any(map(Future.done, crew.started)):
            if (result := next(map(here, pieces), None)) is None:
                return
            yield result
            del result
        yield from _in_order(crew.executor, settings, pieces, crew.workers, here if crew.helps else None)
    except BrokenProcessPool:
        raise WorkerDiedError(
            "a worker process died, perhaps for lack of memory. Use fewer --workers; the same command goes on "
            "where it was."
        ) from None


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
    with suppress(ConfigError):  # the parent tells it
        _loaded(spec)


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(settings: EncodeSettings, piece: Piece) -> EncodedPiece:
    return encode_piece(settings, _loaded(settings.tokenizer), piece)
