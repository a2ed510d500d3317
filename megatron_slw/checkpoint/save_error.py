"""A save that failed on one rank has failed on all: one error, of one text, everywhere at one point of the program."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from megatron_slw.parallel.groups import Groups

TEXT_BYTES = 512


class SaveError(RuntimeError):
    """A checkpoint could not be written; the ones before it are untouched."""


def agree(groups: Groups, final: Path, error: BaseException | None) -> None:
    """Go on if no rank has an error; collective.

    Args:
        groups: all ranks take part.
        final: the checkpoint that is saved.
        error: what happened to this rank.

    Raises:
        SaveError: on every rank with the words of the first that failed.
    """
    failing = groups.world_size if error is None else groups.rank
    if groups.world_size > 1:
        first = torch.tensor([failing], device=groups.device)
        dist.all_reduce(first, op=dist.ReduceOp.MIN)
        failing = int(first)
    if failing == groups.world_size:
        return
    words = _words(error)
    if groups.world_size > 1:
        words = f"{_from(groups, failing, words)} (rank {failing})"
    raise SaveError(f"checkpoint {final} could not be written: {words}. Earlier ones are untouched.") from error


def _words(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _from(groups: Groups, rank: int, words: str) -> str:
    """The words of one rank; collective."""
    text = torch.zeros(TEXT_BYTES, dtype=torch.uint8)
    content = words.encode()[:TEXT_BYTES]
    text[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    text = text.to(groups.device)
    dist.broadcast(text, rank)
    return bytes(text.tolist()).rstrip(b"\0").decode(errors="replace")
