"""Samples/s of the training loader beside two floors: a bare loop of np.memmap slices, and a memory copy.

The loader reads one corpus, and a blend of two with weights 3 and 7.

The contenders take turns in one process, on one thread, over the same cached file; medians over the rounds.

    python benchmarks/data_loader.py --json results.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from megatron_slw.data.blend import Blend, BlendedWindows
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.layout import dtype_for
from megatron_slw.data.loader import TrainLoader
from megatron_slw.data.windows import Windows
from megatron_slw.data.writer import IndexedDatasetWriter
from megatron_slw.slw.plan import BatchStep


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=100_000_000, help="size of the temporary dataset")
    parser.add_argument("--vocab-size", type=int, default=50_257, help="beyond 65,536 the tokens are int32")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "random_document"
        second = Path(folder) / "second_document"
        write_random(prefix, args.tokens, args.vocab_size)
        write_random(second, args.tokens // 2, args.vocab_size)
        seconds = measure(prefix, second, args.length, args.rows, args.rounds)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"numpy {np.__version__}",
        "tokens": args.tokens,
        "dtype": dtype_for(args.vocab_size).name,
        "length": args.length,
        "rows": args.rows,
        "rounds": args.rounds,
        "samples_per_s": {
            name: round(args.rows / value) for name, value in seconds.items() if name != "open"
        },
        "open_ms": round(1e3 * seconds["open"], 3),
    }
    for name, rate in result["samples_per_s"].items():
        print(f"{name:<12} {rate:>12,} samples/s")
    print(f"open         {result['open_ms']:>12} ms")
    text = json.dumps(result)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")
    return 0


def write_random(prefix: Path, tokens: int, vocab_size: int) -> None:
    """Write a dataset of documents of about a thousand tokens."""
    rng = np.random.default_rng(0)
    with IndexedDatasetWriter(prefix, dtype_for(vocab_size)) as writer:
        while writer.tokens < tokens:
            size = min(1 << 20, tokens - writer.tokens)
            part = rng.integers(0, vocab_size, size).astype(writer.dtype)
            lengths = np.full(-(-size // 1024), 1024)
            lengths[-1] = size - 1024 * (len(lengths) - 1)
            writer.add_documents(part, lengths)
        writer.finish()


def measure(prefix: Path, second: Path, length: int, rows: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a batch for each contender, and of opening the dataset."""
    dataset = IndexedDataset(prefix)
    loader = TrainLoader(Windows(dataset, "all", dataset.tokens, length), seed=1)
    other = IndexedDataset(second)
    parts = tuple(Windows(corpus, "all", corpus.tokens, length) for corpus in (dataset, other))
    blended = TrainLoader(BlendedWindows(parts, Blend([Fraction(3), Fraction(7)])), seed=1)
    windows, chance = len(loader.windows), np.random.default_rng(1)
    memmap = np.memmap(dataset.paths.bin, dataset.dtype, "r")
    copied, target = np.zeros((rows, length + 1), dataset.dtype), np.empty((rows, length + 1), dataset.dtype)
    int(dataset.tokens.max()), int(other.tokens.max())  # the files are cached from here on

    def read(turn: int) -> None:
        loader.read(BatchStep(turn, length, rows, turn * rows, turn * rows * length), 0, 1)

    def read_blend(turn: int) -> None:
        blended.read(BatchStep(turn, length, rows, turn * rows, turn * rows * length), 0, 1)

    def memmap_loop(turn: int) -> None:
        for row, start in zip(target, (chance.integers(0, windows, rows) * length).tolist(), strict=True):
            row[:] = memmap[start : start + length + 1]

    def copy(turn: int) -> None:
        np.copyto(target, copied)

    def open_dataset(turn: int) -> None:
        opened = IndexedDataset(prefix)
        TrainLoader(Windows(opened, "all", opened.tokens, length), seed=1)

    contenders: dict[str, Callable[[int], None]] = {
        "loader": read, "blend of two": read_blend, "memmap loop": memmap_loop, "memory copy": copy,
        "open": open_dataset,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender(turn)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    raise SystemExit(main())
