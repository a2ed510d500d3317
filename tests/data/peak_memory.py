"""Preprocess one file in this process and print by how much that raised its peak memory, in bytes.

    python -m tests.data.peak_memory FOLDER NAME [MEGABYTES]

FOLDER has tokenizer.json. With MEGABYTES, NAME is written first: documents of a kilobyte, or one document for .txt.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec

WORDS = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 15


def write(path: Path, megabytes: float) -> None:
    """Write about so much text."""
    with path.open("w") as file:
        for number in range(int(megabytes * 1e6 / len(WORDS))):
            file.write(WORDS if path.suffix == ".txt" else json.dumps({"text": f"{number} {WORDS}"}) + "\n")


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Warm up on a small file, so that libraries and tokenizer are counted before."""
    folder, name, megabytes = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    spec = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(folder / "tokenizer.json"))
    write(folder / "warm.jsonl", 3)
    write(folder / name, megabytes)
    preprocess(PreprocessSettings((str(folder / "warm.jsonl"),), str(folder / "warm"), spec))
    before = peak()
    preprocess(PreprocessSettings((str(folder / name),), str(folder / "out"), spec))
    print(peak() - before)


if __name__ == "__main__":
    main()
