"""Reads one hostile file after the other, in a process that may die of it; run as a script by test_mutated_files.py.

    python hostile_child.py WHAT FOLDER FIRST STOP

FOLDER has the good files, one folder a WHAT. Before each seed a line is printed, and one after it: what became of it.
The process has 2 GB of address space beyond what its imports took, and each seed CPU_SECONDS: natives included.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from megatron_slw.report.dry_run import dry_run, render
from megatron_slw.slw.compile import compile_plan
from tests.faults.mutations import mutated_bytes, mutated_json

CPU_SECONDS, MEMORY = 20, 2 << 30
TEXT = "The quick brown fox\n\tisn't déjà vu, 東京 🦊 </s> <|endoftext|> 3.14  "


def use(spec: TokenizerSpec) -> None:
    """Load a tokenizer, encode and decode: a file that was taken must be safe to use."""
    tokenizer = load_tokenizer(spec)
    for ids in tokenizer.encode_batch([TEXT, "", TEXT * 20]):
        assert all(0 <= number < tokenizer.info.vocab_size for number in ids), "an id beyond the vocabulary"
        tokenizer.decode(ids)


def ranks(folder: Path, seed: int) -> None:
    path = folder / "cl100k_base.tiktoken"
    path.write_bytes(mutated_bytes((folder / "good").read_bytes(), seed))
    use(TokenizerSpec(("TikTokenizer", "GPT2BPETokenizer")[seed % 2], tokenizer_model=str(path)))


def sentencepiece(folder: Path, seed: int) -> None:
    path = folder / "m.model"
    path.write_bytes(mutated_bytes((folder / "good").read_bytes(), seed))
    use(TokenizerSpec("SentencePieceTokenizer", tokenizer_model=str(path)))


def hugging_face(folder: Path, seed: int) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(mutated_json((folder / "good").read_bytes(), seed))
    use(TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(path)))


def gpt2(folder: Path, seed: int) -> None:
    vocab, merges = (folder / "good.json").read_bytes(), (folder / "good.txt").read_bytes()
    if seed % 2:
        vocab = mutated_json(vocab, seed)
    else:
        merges = mutated_bytes(merges, seed)
    (folder / "vocab.json").write_bytes(vocab)
    (folder / "merges.txt").write_bytes(merges)
    use(TokenizerSpec("GPT2BPETokenizer", str(folder / "vocab.json"), str(folder / "merges.txt")))


def configuration(folder: Path, seed: int) -> None:
    """Read and, where it is accepted, describe it as --dry-run does."""
    good = sorted(folder.glob("good*.json"))
    path = folder / "config.json"
    path.write_bytes(mutated_json(good[seed % len(good)].read_bytes(), seed))
    config = load_config(path, ["--model.vocab_size=50257"] if seed % 2 else [], 32)
    if config.model.vocab_size is not None and config.training.train_epochs is None:
        render(dry_run(config, compile_plan(config)))


WHAT: dict[str, Callable[[Path, int], None]] = {
    "ranks": ranks,
    "sentencepiece": sentencepiece,
    "hugging-face": hugging_face,
    "gpt2": gpt2,
    "configurations": configuration,
}


def address_space() -> int:
    """Bytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> int:
    what, folder, first, stop = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    started = False
    for seed in range(first, stop):
        print(f"seed {seed}", flush=True)
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS, -1))
        try:
            WHAT[what](folder, seed)
            said = "taken"
        except ConfigError as error:
            said = "refused" if str(error).isprintable() and len(str(error)) < 2000 else f"unreadable {error!a:.300}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error!s:.300}".encode("unicode_escape").decode()
        print(f"end {said}", flush=True)
        if not started:  # what is imported late is in memory now
            started = True
            resource.setrlimit(resource.RLIMIT_AS, (address_space() + MEMORY, -1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
