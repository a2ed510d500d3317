"""Opening a dataset of a billion tokens in a million documents: milliseconds, and memory.

    python benchmarks/open_dataset.py [--json FILE]

`dataset` is IndexedDataset, which checks the whole index; `loader` opens it and makes the training loader on top. A
floor beside them: numpy reads lengths and offsets, and adds up the lengths. They take turns over cached files; medians.
Memory is by how much the first opening raised the peak of the process, the mapped index included. The .bin has a size
and no blocks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.layout import HEADER, Header, dataset_paths
from megatron_slw.data.loader import TrainLoader
from megatron_slw.data.windows import Windows

WANTED_MS = 50


def write(prefix: Path, tokens: int, documents: int) -> None:
    """Documents of random lengths that add up to `tokens`, uint16."""
    cuts = np.sort(np.random.default_rng(0).integers(0, tokens, documents - 1))
    ends = np.append(cuts, tokens)
    lengths = np.diff(ends, prepend=0)
    paths = dataset_paths(prefix)
    with paths.idx.open("wb") as index:
        index.write(Header(np.dtype("<u2"), documents, documents + 1).pack())
        index.write(lengths.astype("<i4").tobytes())
        index.write((2 * (ends - lengths)).astype("<i8").tobytes())
        index.write(np.arange(documents + 1, dtype="<i8").tobytes())
    with paths.bin.open("wb") as file:
        file.truncate(2 * tokens)


def main(argv: list[str] | None = None) -> int:
    """Print the figures; write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000_000)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args(argv)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "large_document"
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(prefix, args.tokens, args.documents))
        writer.start()  # on its own, so that its memory is not taken for ours
        writer.join()
        times, grown = measure(prefix, args.documents, args.length, args.rounds)
    result = {
        "benchmark": "open_dataset",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, numpy {np.__version__}",
        "load_average": {"before": before, "after": os.getloadavg()},
        "tokens": args.tokens,
        "documents": args.documents,
        "rounds": args.rounds,
        "median_ms": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
        "fastest_ms": {name: round(1e3 * min(values), 2) for name, values in times.items()},
        "wanted_ms": WANTED_MS,
        "peak_memory_mb": round(grown / 1e6, 1),
        "index_mb": round((HEADER.size + 20 * args.documents) / 1e6, 1),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")
    return 0


def measure(prefix: Path, documents: int, length: int, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of each contender's rounds, and bytes by which the first opening raised the peak."""

    def dataset() -> None:
        IndexedDataset(prefix)

    def loader() -> None:
        opened = IndexedDataset(prefix)
        TrainLoader(Windows(opened, "all", opened.tokens, length), seed=1)

    def numpy_floor() -> None:
        data = np.fromfile(dataset_paths(prefix).idx, np.uint8, 12 * documents, offset=HEADER.size)
        np.cumsum(data[: 4 * documents].view("<i4"), dtype=np.int64)

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    start = peak()
    loader()
    grown = peak() - start
    contenders: dict[str, Callable[[], None]] = {"dataset": dataset, "loader": loader, "numpy floor": numpy_floor}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in list(contenders) if turn % 2 == 0 else reversed(contenders):
            began = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - began)
    return times, grown


if __name__ == "__main__":
    raise SystemExit(main())
