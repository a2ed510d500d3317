"""What benchmarks/preprocess.py compares our preprocessing with; each reads the same JSON lines and keeps every id.

    python benchmarks/preprocess_peers.py bare|pool|datasets CORPUS.jsonl OUT.bin VOCAB MERGES WORKERS

`bare` only encodes, with our tokenizer, and writes nothing. `pool` is Megatron's scheme in our own words: a pool takes
lines from one iterator, each worker gives back lists of ids, and the parent writes them document by document, again
with our tokenizer. `datasets` maps a batched `tokenizers` encoder over a Hugging Face dataset and writes its shards.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np

from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer

EOD = 50_256
_CHUNK = 32  # lines a worker gets at a time


def bare(corpus: str, out: str, spec: TokenizerSpec, workers: int) -> None:
    """A loop over the tokenizer."""
    tokenizer = load_tokenizer(spec)
    with open(corpus, encoding="utf-8") as lines:
        for line in lines:
            tokenizer.encode_flat([json.loads(line)["text"]])


class PoolWorker:
    """The tokenizer of a worker process, in its module's place for it."""

    tokenizer: Tokenizer

    @classmethod
    def start(cls, spec: TokenizerSpec) -> None:
        """Load it."""
        cls.tokenizer = load_tokenizer(spec)

    @classmethod
    def encode(cls, line: str) -> list[int]:
        """The ids of a line's text, and the end of the document."""
        return [*cls.tokenizer.encode_batch([json.loads(line)["text"]])[0], EOD]


def pool(corpus: str, out: str, spec: TokenizerSpec, workers: int) -> None:
    """One pool; the parent writes."""
    load_tokenizer(spec)  # for the size of the vocabulary
    with (
        open(corpus, encoding="utf-8") as lines,
        open(out, "wb") as file,
        multiprocessing.get_context("fork").Pool(workers, PoolWorker.start, (spec,)) as processes,
    ):
        for ids in processes.imap(PoolWorker.encode, lines, _CHUNK):
            file.write(np.array(ids, np.uint16).tobytes())


def map_dataset(corpus: str, out: str, spec: TokenizerSpec, workers: int) -> None:
    """`datasets.map` over `tokenizers`, with one thread in each process (TOKENIZERS_PARALLELISM=false)."""
    import datasets
    from tokenizers import ByteLevelBPETokenizer

    library = ByteLevelBPETokenizer(str(spec.vocab_file), str(spec.merge_file))

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return {"ids": [[*found.ids, EOD] for found in library.encode_batch(batch["text"])]}

    data = datasets.load_dataset("json", data_files=corpus, split="train", cache_dir=str(Path(out).with_suffix("")))
    mapped = data.map(
        encode, batched=True, batch_size=_CHUNK, remove_columns=data.column_names,
        num_proc=workers if workers > 1 else None,
    ).with_format("numpy")  # fmt: skip
    with open(out, "wb") as file:
        for row in mapped:
            file.write(row["ids"].astype(np.uint16).tobytes())


PEERS = {"bare": bare, "pool": pool, "datasets": map_dataset}


def main(argv: list[str]) -> int:
    """Run one of them."""
    name, corpus, out, vocab, merges, workers = argv
    PEERS[name](corpus, out, TokenizerSpec("GPT2BPETokenizer", vocab, merges), int(workers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
