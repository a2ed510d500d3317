"""Several processes: the bytes of one, in order, whoever encodes a piece; a process that dies is one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.data import preprocess as module
from megatron_slw.data import workers
from megatron_slw.data.corpus import read_pieces
from megatron_slw.data.encode import EncodeSettings, encode_piece
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.preprocess import PreprocessSettings, preprocess, resumable
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from megatron_slw.data.workers import ALONE_BYTES, PIECES_PER_WORKER, Crew, crew, encoded_pieces
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Started(ProcessPoolExecutor):
    """A pool whose processes are there before the first piece, so that a small corpus reaches them."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future = super().submit(function, *arguments, **keywords)
        if not arguments:
            future.result()
        return future


@pytest.mark.parametrize("kind", ["lines", "files"])
def test_any_number_of_workers_gives_the_same_bytes(
    spec: TokenizerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 5_000)
    monkeypatch.setattr(workers, "ALONE_BYTES", 1)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Started)
    here: list[int] = []
    monkeypatch.setattr(workers, "encode_piece", lambda *given: here.append(1) or encode_piece(*given))
    texts = [text * (1 + i % 5) + str(i) for i in range(60) for text in TEXTS]
    source = tmp_path / "in"
    source.mkdir()
    if kind == "lines":
        write_jsonl(source / "a.jsonl", texts)
    for number, text in enumerate(texts if kind == "files" else ()):
        (source / f"{number:04}.txt").write_text(text)
    files, counts = [], []
    for number in (1, 2, 3):
        here.clear()
        preprocess(PreprocessSettings((str(source),), str(tmp_path / f"{number}"), spec, workers=number))
        names = [f"{number}_text_document.{ending}" for ending in ("bin", "idx", "json")]
        files.append([(tmp_path / name).read_bytes() for name in names])
        counts.append(len(here))
    assert files[0] == files[1] == files[2]
    assert IndexedDataset(tmp_path / "3_text_document").num_documents == len(texts)
    assert counts[0] > 30 and max(counts[1:]) < counts[0], "other processes encode some"


class Unsteady(Executor):
    """Finishes only every `good`-th piece; begins no other one."""

    def __init__(self, good: int) -> None:
        self.good, self.pieces = good, 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if not arguments or (self.good and self.pieces % self.good == 0):
            future.set_result(function(*arguments, **keywords))
        self.pieces += bool(arguments)
        return future


@pytest.mark.parametrize("good", [0, 1, 2, 5])
def test_what_the_others_have_not_begun_is_encoded_here_and_stays_in_order(
    spec: TokenizerSpec, tmp_path: Path, good: int
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(40)])
    tokenizer, settings = load_tokenizer(spec), EncodeSettings(spec)
    others = Unsteady(good)
    read: list[int] = []

    def counted() -> Iterator[Any]:
        for piece in read_pieces([str(source)], 1):
            read.append(1)
            yield piece

    texts = []
    for done, result in enumerate(encoded_pieces(settings, tokenizer, counted(), Crew(2, others)), 1):
        texts.append(tokenizer.decode(result.keys[0].tokens.tolist()))
        assert len(read) - done < 2 * PIECES_PER_WORKER
    assert texts == [f"text {i}" for i in range(40)]
    assert others.pieces == 40


def test_pieces_are_encoded_here_until_another_process_is_there(spec: TokenizerSpec, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(40)])
    tokenizer, others, late = load_tokenizer(spec), Unsteady(1), Future[int]()
    pieces = read_pieces([str(source)], 1)
    results = encoded_pieces(EncodeSettings(spec), tokenizer, pieces, Crew(3, others, started=(late, Future())))
    first = [next(results) for _ in range(25)]
    assert others.pieces == 0
    late.set_result(1)
    texts = [tokenizer.decode(result.keys[0].tokens.tolist()) for result in [*first, *results]]
    assert texts == [f"text {i}" for i in range(40)] and others.pieces == 15


@pytest.mark.parametrize(("number", "size", "processes"), [(1, 0, 0), (8, ALONE_BYTES, 0), (3, 0, 2), (3, 1 << 30, 2)])
def test_other_processes_are_started_where_they_pay(
    spec: TokenizerSpec, monkeypatch: pytest.MonkeyPatch, number: int, size: int, processes: int
) -> None:
    started: list[int] = []
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda count, *rest: started.append(count) or Unsteady(1))
    with crew(spec, number, size, None) as found:
        assert sum(started) == processes == len(found.started)
        assert found.workers == (number if processes else 1) and found.helps


def test_a_tokenizer_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["x" * ALONE_BYTES])
    gone = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(tmp_path / "gone.json"))
    with pytest.raises(ConfigError, match="gone.json does not exist"):
        preprocess(PreprocessSettings((str(source),), str(tmp_path / "out"), gone, workers=2))
    assert capfd.readouterr().err == ""


def test_a_worker_that_dies_leaves_what_was_saved(
    spec: TokenizerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Unsteady):
        def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
            if self.pieces > 20:
                raise BrokenProcessPool
            return super().submit(function, *arguments, **keywords)

    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    monkeypatch.setattr(module, "_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(workers, "ALONE_BYTES", 1)
    dying = Dying(1)
    source = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(40)])
    settings = PreprocessSettings((str(source),), str(tmp_path / "out"), spec, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", lambda *given: dying)
        with pytest.raises(ConfigError, match="a worker process died, .* the same command goes on where it was"):
            preprocess(settings)
    assert resumable(settings)
    said: list[str] = []
    preprocess(settings, say=said.append)
    assert said[0].startswith("going on after ")
    assert IndexedDataset(tmp_path / "out_text_document").num_documents == 40
