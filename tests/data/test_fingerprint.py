"""The fingerprint of the training data: equal for equal data wherever it lies, different for any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.config.schema import DataConfig
from megatron_slw.data.blend import open_samples
from megatron_slw.data.fingerprint import difference, fingerprint
from tests.data.token_datasets import INT32, TOKENIZER, write_dataset

DOCUMENTS = [[1, 2, 3, 4, 5], [6, 7, 8, 9]] * 8


def of(path: object, seed: int = 1, seq_length: int = 4, **settings: object) -> dict[str, Any]:
    data = DataConfig.model_validate({"path": path, **settings})
    return fingerprint(open_samples(data, seq_length, "train"), data, seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "a", DOCUMENTS)
    write_dataset(tmp_path / "b", DOCUMENTS[1:])
    return tmp_path


def blend(folder: Path, one: float = 0.3, other: float = 0.7) -> list[object]:
    return [one, str(folder / "a"), other, str(folder / "b")]


def test_it_is_json_and_equal_for_equal_data_anywhere(folder: Path) -> None:
    base = of(blend(folder))
    shutil.copytree(folder, folder / "moved")
    moved = of(blend(folder / "moved", 3, 7))
    assert difference(json.loads(json.dumps(base)), moved) is None
    assert [corpus["share"] for corpus in base["corpora"]] == [3, 7]
    assert base["corpora"][0]["tokenizer_sha256"] == TOKENIZER.sha256


CHANGES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "weights": (lambda f: of(blend(f, 0.4, 0.6)), "corpora.0.share"),
    "order of corpora": (lambda f: of([0.7, str(f / "b"), 0.3, str(f / "a")]), "corpora.0.share"),
    "one corpus": (lambda f: of(str(f / "a")), "corpora.count"),
    "split": (lambda f: of(blend(f), split="8,1,1"), "split"),
    "no split": (lambda f: of(blend(f), valid_path=str(f / "a")), "split"),
    "seed": (lambda f: of(blend(f), seed=2), "seed"),
    "length": (lambda f: of(blend(f), seq_length=3), "seq_length"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_changes_with(folder: Path, name: str) -> None:
    change, fact = CHANGES[name]
    found = difference(of(blend(folder)), change(folder))
    assert found is not None and found[0] == fact and found[1] != found[2]


DATA_CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a token": (lambda p: write_dataset(p, [[1, 2, 3, 4, 6], *DOCUMENTS[1:]]), "corpora.0.bin_sha256"),
    "a token more": (lambda p: write_dataset(p, [[1, 2, 3, 4, 5, 6], *DOCUMENTS[1:]]), "corpora.0.tokens"),
    "a document more": (lambda p: write_dataset(p, [[1, 2, 3, 4], [5], *DOCUMENTS[1:]]), "corpora.0.documents"),
    "where documents end": (lambda p: write_dataset(p, [[1, 2, 3, 4], [5, 6, 7, 8, 9], *DOCUMENTS[2:]]), "idx_sha256"),
    "the dtype": (lambda p: write_dataset(p, DOCUMENTS, INT32), "corpora.0.dtype"),
    "the tokenizer": (
        lambda p: write_dataset(p, DOCUMENTS, tokenizer=replace(TOKENIZER, sha256="cd" * 32)),
        "corpora.0.tokenizer_sha256",
    ),
}


@pytest.mark.parametrize("name", DATA_CHANGES)
def test_it_changes_with_the_data(folder: Path, name: str) -> None:
    change, fact = DATA_CHANGES[name]
    before = of(str(folder / "a"))
    change(folder / "a")
    found = difference(before, of(str(folder / "a")))
    assert found is not None and found[0].endswith(fact)


def test_without_a_sidecar_sizes_and_index_tell(folder: Path) -> None:
    before = of(str(folder / "a"))
    (folder / "a.json").unlink()
    alone = of(str(folder / "a"))
    assert alone["corpora"][0]["bin_sha256"] is None and alone["corpora"][0]["idx_sha256"] is not None
    assert difference(before, alone) is None, "the same data without its sidecar is the same data"
    shifted = [list(np.roll(document, 1)) for document in DOCUMENTS[1:]] + [DOCUMENTS[0]]
    write_dataset(folder / "a", shifted)
    (folder / "a.json").unlink()
    found = difference(alone, of(str(folder / "a")))
    assert found is not None and found[0] == "corpora.0.idx_sha256"


def test_what_an_older_checkpoint_kept_is_compared_as_far_as_it_goes(folder: Path) -> None:
    now = of(str(folder / "a"))
    old = {"tokens": 68, **{name: now["corpora"][0][name] for name in ("documents", "bin_sha256", "tokenizer_sha256")}}
    assert difference(old, now) is None
    assert difference(old | {"documents": 17}, now) == ("documents", 17, 16)
    found = difference(old, of(blend(folder)))
    assert found is not None and found[:2] == ("corpora.count", None)
