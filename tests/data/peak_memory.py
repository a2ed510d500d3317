"""Preprocess one file in this process and print by how much that raised its peak memory, in bytes.

    python -m tests.data.peak_memory FOLDER NAME MEGABYTES TOKENIZER

NAME is written first: `short.jsonl` has documents of a kilobyte, any other file one document, `wide.jsonl` with a
character that makes Python keep four bytes for each. TOKENIZER is a file in FOLDER.
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
    number = int(megabytes * 1e6 / len(WORDS))
    with path.open("w") as file:
        if path.name == "short.jsonl":
            file.writelines(json.dumps({"text": f"{i} {WORDS}"}) + "\n" for i in range(number))
        elif path.suffix == ".txt":
            file.writelines(WORDS + "\n" for _ in range(number))
        else:
            file.write('{"text": "' + ("🦊" if path.stem == "wide" else ""))
            file.writelines(WORDS + "\\n" for _ in range(number))
            file.write('"}\n')


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Warm up on a small file, so that libraries and tokenizer are counted before."""
    folder, name, megabytes, file = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]
    kind = "SentencePieceTokenizer" if file.endswith(".model") else "HuggingFaceTokenizer"
    spec = TokenizerSpec(kind, tokenizer_model=str(folder / file))
    (folder / "warm").mkdir()
    write(folder / "warm" / "short.jsonl", 3)
    write(folder / name, megabytes)
    preprocess(PreprocessSettings((str(folder / "warm"),), str(folder / "warm" / "out"), spec))
    before = peak()
    preprocess(PreprocessSettings((str(folder / name),), str(folder / "out"), spec))
    print(peak() - before)


if __name__ == "__main__":
    main()
