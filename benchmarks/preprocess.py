"""Preprocessing beside its peers: tokens per second of whole commands, their CPU time and peak memory.

    python benchmarks/preprocess.py [--json FILE]

The corpus is that of tests/data/real_corpus.py, whose tests fetch it, several times over, as JSON lines of one address
each, with GPT-2's vocabulary. Every contender is a command in a process of its own, timed from start to end; they take
turns, forwards and backwards. Medians over the rounds, and beside them the fastest, which says more on a busy machine.
Memory is the largest sum of the resident sets of its processes. datasets.map, which is slow, gets a quarter of the
copies, once. Where a contender wrote other tokens than ours, the benchmark fails. Those whose packages are missing are
left out: `pip install datasets gigatoken`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "megatron_slw" / "tests"
SLOW_SHARE = 4
RATIOS = {
    "one worker / bare loop": ("ours, 1 worker", "bare loop", 0.90),
    "two workers / one": ("ours, 2 workers", "ours, 1 worker", 1.8),
    "one worker / datasets.map": ("ours, 1 worker", "datasets.map, 1 process", 1.5),
    "two workers / datasets.map of two": ("ours, 2 workers", "datasets.map, 2 processes", 1.5),
    "one worker / pool of one": ("ours, 1 worker", "pool of 1, parent writes", 1.0),
    "two workers / pool of two": ("ours, 2 workers", "pool of 2, parent writes", 1.0),
    "gigatoken / tiktoken": ("ours, 1 worker, gigatoken", "ours, 1 worker", 5.0),
}
"""Faster, slower, and how much is wanted."""


@dataclass
class Contender:
    """A command and what was measured of it."""

    command: list[str]
    rounds: int
    out: Path | None
    """The tokens it writes."""
    share: int = 1
    """It gets the corpus divided by this."""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def contenders(folder: Path, rounds: int) -> dict[str, Contender]:
    """Every contender whose packages are here."""
    vocab, merges = CACHE / "gpt2" / "encoder.json", CACHE / "gpt2" / "vocab.bpe"
    found: dict[str, Contender] = {}

    def peer(name: str, kind: str, workers: int) -> None:
        slow = kind == "datasets"
        corpus = folder / f"corpus{SLOW_SHARE if slow else 1}.jsonl"
        out = folder / f"{kind}{workers}.bin"
        script = [sys.executable, str(ROOT / "benchmarks" / "preprocess_peers.py"), kind]
        command = [*script, str(corpus), str(out), str(vocab), str(merges), str(workers)]
        if slow:
            quiet = ("HF_DATASETS_OFFLINE=1", "HF_DATASETS_DISABLE_PROGRESS_BARS=1", "TOKENIZERS_PARALLELISM=false")
            command = ["env", f"HF_HOME={out.with_suffix('')}", *quiet, *command]
        written = None if kind == "bare" else out
        found[name] = Contender(command, 1 if slow else rounds, written, SLOW_SHARE if slow else 1)

    def ours(name: str, workers: int, *flags: str) -> None:
        prefix = folder / "_".join(("ours", str(workers), *flags[1:]))
        command = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(folder / "corpus1.jsonl")]
        command += ["--output-prefix", str(prefix), "--tokenizer-type", "GPT2BPETokenizer", "--append-eod"]
        command += ["--vocab-file", str(vocab), "--merge-file", str(merges), "--workers", str(workers), *flags]
        found[name] = Contender(command, rounds, Path(f"{prefix}_text_document.bin"))

    ours("ours, 1 worker", 1)
    peer("bare loop", "bare", 1)
    ours("ours, 2 workers", 2)
    peer("pool of 1, parent writes", "pool", 1)
    peer("pool of 2, parent writes", "pool", 2)
    if find_spec("gigatoken"):
        ours("ours, 1 worker, gigatoken", 1, "--backend", "gigatoken")
    if find_spec("datasets"):
        peer("datasets.map, 1 process", "datasets", 1)
        peer("datasets.map, 2 processes", "datasets", 2)
    return found


def run(contender: Contender) -> None:
    """Run it once."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(contender.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=told)
        peak, ended = [0], threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, peak, ended))
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        contender.seconds.append(time.perf_counter() - start)
        ended.set()
        sampler.join()
        if status:
            told.seek(0)
            raise RuntimeError(f"{' '.join(contender.command)}: {told.read().decode(errors='replace')[-2_000:]}")
    contender.cpu_seconds.append(usage.ru_utime + usage.ru_stime)
    contender.peak_bytes.append(peak[0])


def _sample(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Keep the largest sum of the resident sets of a process and those below it."""
    while not ended.wait(0.03):
        total = 0
        try:
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.Error:
            continue  # one of them has just ended
        peak[0] = max(peak[0], total)


def write_corpus(folder: Path, copies: int) -> None:
    """The addresses as JSON lines, `copies` times over."""
    texts = sorted((CACHE / "sotu").glob("*.txt"))
    if not texts:
        raise SystemExit("the corpus is not there: python -m pytest tests/data/test_real_corpus.py fetches it.")
    lines = "".join(json.dumps({"text": text.read_bytes().decode("utf-8")}) + "\n" for text in texts)
    for share in (1, SLOW_SHARE):
        with (folder / f"corpus{share}.jsonl").open("w") as file:
            for _ in range(copies // share):
                file.write(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=16, help="of 10.8 MB, a multiple of 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args(argv)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), args.copies)
        found = contenders(Path(folder), args.rounds)
        for turn in range(args.rounds):
            for name in list(found) if turn % 2 == 0 else reversed(found):
                if turn < found[name].rounds:
                    run(found[name])
                    print(f"{turn + 1}  {name:<28} {found[name].seconds[-1]:6.1f} s", file=sys.stderr, flush=True)
        ours = found["ours, 1 worker"].out.read_bytes()
        written = {name: one for name, one in found.items() if one.out}
        other = [name for name, one in written.items() if one.out.read_bytes() != ours[: len(ours) // one.share]]
        size = (Path(folder) / "corpus1.jsonl").stat().st_size
    if other:
        raise SystemExit(f"other tokens than ours: {', '.join(other)}")
    report(found, len(ours) // 2, size, args.json, before)
    return 0


def report(found: dict[str, Contender], tokens: int, size: int, path: Path | None, before: tuple[float, ...]) -> None:
    """Print, and write to `path`."""
    rows = {
        name: {
            "tokens_per_s": round(tokens / one.share / statistics.median(one.seconds)),
            "fastest_tokens_per_s": round(tokens / one.share / min(one.seconds)),
            "tokens_per_cpu_s": round(tokens / one.share / statistics.median(one.cpu_seconds)),
            "peak_mb": round(max(one.peak_bytes) / 1e6),
            "seconds": [round(value, 2) for value in one.seconds],
            "cpu_seconds": [round(value, 2) for value in one.cpu_seconds],
        }
        for name, one in found.items()
    }
    ratios = {
        name: {
            "is": round(rows[fast]["tokens_per_s"] / rows[slow]["tokens_per_s"], 3),
            "of_fastest": round(rows[fast]["fastest_tokens_per_s"] / rows[slow]["fastest_tokens_per_s"], 3),
            "wanted": wanted,
        }
        for name, (fast, slow, wanted) in RATIOS.items()
        if fast in rows and slow in rows
    }
    for name, row in rows.items():
        rate, per_cpu = row["tokens_per_s"] / 1e6, row["tokens_per_cpu_s"] / 1e6
        print(f"{name:<28} {rate:7.2f} Mtok/s  {per_cpu:7.2f} Mtok/CPU-s  {row['peak_mb']:5} MB")
    for name, ratio in ratios.items():
        print(f"{name:<36} {ratio['is']:6.2f}  of the fastest {ratio['of_fastest']:6.2f}  wanted {ratio['wanted']}")
    result = {
        "benchmark": "preprocess",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "load_average": {"before": before, "after": os.getloadavg()},
        "tokens": tokens,
        "bytes": size,
        "contenders": rows,
        "ratios": ratios,
    }
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
