"""--backend gigatoken: equal ids or a refusal; the package is optional, so some tests are skipped without it."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.gigatoken_backend import PROBE
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.preprocess_flags import parse
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from tests.data.test_tiktoken_ranks import write_ranks
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def fake(ids: Any) -> types.ModuleType:
    """A module that calls itself gigatoken and encodes every text as `ids(text)`."""

    class Encoder:
        @staticmethod
        def from_json(data: str) -> Encoder:
            return Encoder()

        def encode_batch(self, texts: list[str], parallel: bool) -> Any:
            parts = [ids(text) for text in texts]
            offsets = np.cumsum([0, *map(len, parts)])
            content = types.SimpleNamespace(data=np.array(sum(parts, []), np.uint32))
            layout = types.SimpleNamespace(content=content, offsets=types.SimpleNamespace(data=offsets))
            return types.SimpleNamespace(layout=layout)

    module = types.ModuleType("gigatoken")
    module.Tokenizer = Encoder  # type: ignore[attr-defined]
    return module


def test_equal_ids_are_taken_and_others_refused(spec: TokenizerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = load_tokenizer(spec)
    monkeypatch.setitem(sys.modules, "gigatoken", fake(lambda text: reference.encode_batch([text])[0]))
    tokenizer = load_tokenizer(replace(spec, backend="gigatoken"))
    assert tokenizer.encode_batch(TEXTS) == reference.encode_batch(TEXTS) and tokenizer.encode_batch([]) == []
    assert tokenizer.info == reference.info and tokenizer.decode([0]) == reference.decode([0])
    monkeypatch.setitem(sys.modules, "gigatoken", fake(lambda text: [1] * len(text)))
    with pytest.raises(ConfigError, match=r"gigatoken gives other ids than the reference library for tokenizer\.json"):
        load_tokenizer(replace(spec, backend="gigatoken"))


def test_what_it_cannot_do_is_one_sentence(
    spec: TokenizerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    with pytest.raises(ConfigError, match="needs the package gigatoken: pip install gigatoken"):
        load_tokenizer(replace(spec, backend="gigatoken"))
    with pytest.raises(ConfigError, match="--backend must be auto or gigatoken, not fast"):
        load_tokenizer(replace(spec, backend="fast"))
    monkeypatch.setitem(sys.modules, "gigatoken", types.ModuleType("gigatoken"))
    with pytest.raises(ConfigError, match=r"gigatoken cannot use tokenizer.json \(.*\)\. Leave --backend out"):
        load_tokenizer(replace(spec, backend="gigatoken"))
    ranks = write_ranks(tmp_path / "p50k_base.tiktoken")
    with pytest.raises(ConfigError, match="gigatoken cannot use .*p50k_base.tiktoken"):
        load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=ranks, backend="gigatoken"))


def test_the_flag_reaches_the_tokenizer() -> None:
    flags = ["--input", "a.jsonl", "--output-prefix", "a", "--tokenizer-type", "GPT2BPETokenizer"]
    assert parse(flags, None).tokenizer.backend == "auto"
    assert parse([*flags, "--backend", "gigatoken"], None).tokenizer.backend == "gigatoken"


def test_the_real_package_gives_the_same_bytes(spec: TokenizerSpec, tmp_path: Path) -> None:
    pytest.importorskip("gigatoken", reason="gigatoken is not installed")
    source = str(write_jsonl(tmp_path / "a.jsonl", [*TEXTS, *PROBE]))
    sha256 = set()
    for backend in ("auto", "gigatoken"):
        settings = PreprocessSettings(
            (source,), str(tmp_path / backend), replace(spec, backend=backend), append_eod=True
        )
        sha256.add(preprocess(settings)["text"].bin_sha256)
    assert len(sha256) == 1
    ranks = write_ranks(tmp_path / "cl100k_base.tiktoken")
    both = [
        load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=ranks, backend=backend)).encode_batch(TEXTS)
        for backend in ("auto", "gigatoken")
    ]
    assert both[0] == both[1]
