"""Text to datasets: every document in order, the same bytes for any number of workers, all or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.data import preprocess as module
from megatron_slw.data import workers
from megatron_slw.data.indexed import IndexedDataset, verify_checksums
from megatron_slw.data.preprocess import Counts, PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from megatron_slw.data.vocabulary import check_ids
from megatron_slw.data.workers import PIECES_PER_WORKER
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def settings(spec: TokenizerSpec, folder: Path, *inputs: Path, workers: int = 1) -> PreprocessSettings:
    return PreprocessSettings(
        tuple(map(str, inputs)), str(folder / "out"), spec, append_eod=True, workers=workers
    )


def test_documents_come_out_as_they_went_in(spec: TokenizerSpec, tmp_path: Path) -> None:
    seen: list[Counts] = []
    text = tmp_path / "b.txt"
    text.write_text("A text file.\n")
    sidecars = preprocess(
        settings(spec, tmp_path, write_jsonl(tmp_path / "a.jsonl", TEXTS), text), seen.append
    )
    dataset = IndexedDataset(tmp_path / "out_text_document")
    tokenizer = load_tokenizer(spec)
    expected = [text for text in [*TEXTS, "A text file.\n"] if text]
    decoded = [tokenizer.decode(dataset.document(i).tolist()) for i in range(dataset.num_documents)]
    assert decoded == [text + "<|endoftext|>" for text in expected]
    assert [int(dataset.document(i)[-1]) for i in range(len(expected))] == [tokenizer.info.eod_id] * len(
        expected
    )
    assert sidecars == {"text": dataset.sidecar} and dataset.sidecar is not None
    assert (dataset.sidecar.empty_documents, dataset.sidecar.tokenizer) == (1, tokenizer.info)
    assert dataset.sidecar.text_bytes == sum(len(text.encode()) for text in expected)
    assert seen[-1].read_bytes == seen[-1].total_bytes and seen[-1].tokens == dataset.num_tokens
    assert dataset.dtype.name == "uint16"
    verify_checksums(dataset)
    check_ids(dataset, tokenizer.info.vocab_size)


def test_each_key_has_its_dataset(spec: TokenizerSpec, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "T", "body": "long body"}\n{"title": "", "body": "another"}\n')
    sidecars = preprocess(
        PreprocessSettings((str(path),), str(tmp_path / "out"), spec, json_keys=("body", "title"))
    )
    tokenizer = load_tokenizer(spec)
    body, title = (IndexedDataset(tmp_path / f"out_{key}_document") for key in ("body", "title"))
    assert [tokenizer.decode(body[i].tolist()) for i in range(2)] == ["long body", "another"]
    assert [tokenizer.decode(title[i].tolist()) for i in range(len(title))] == ["T"]
    assert sidecars["title"].empty_documents == 1


BAD = {
    "json": (b'{"text": "a"}\n\n{"text": "b"\n', r"a\.jsonl, line 3 is not valid JSON"),
    "key": (b'{"text": "a"}\n{"content": "b"}\n', r'a\.jsonl, line 2 has no key "text"'),
    "utf-8": (
        b'{"text": "a"}\n' * 70_000 + b'{"text": "\xc3"}\n',
        r"a\.jsonl, line 70001 is not valid UTF-8",
    ),
    "nothing": (b"\n\n", r"a\.jsonl: there is no text in --input"),
    "only empty": (b'{"text": ""}\n', "there is no text in --input"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_named_and_leaves_nothing(spec: TokenizerSpec, tmp_path: Path, name: str) -> None:
    data, message = BAD[name]
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        preprocess(settings(spec, tmp_path, tmp_path / "a.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_bad_text_in_a_worker_is_named_and_the_old_dataset_stays(
    spec: TokenizerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ALONE_BYTES", 1)
    preprocess(settings(spec, tmp_path, write_jsonl(tmp_path / "a.jsonl", ["first"])))
    before = (tmp_path / "out_text_document.bin").read_bytes()
    (tmp_path / "b.txt").write_bytes(b"text \x80")
    with pytest.raises(ConfigError, match=r"b\.txt is not valid UTF-8 \(byte 5 is 0x80\)\. "):
        preprocess(settings(spec, tmp_path, tmp_path / "a.jsonl", tmp_path / "b.txt", workers=2))
    assert (tmp_path / "out_text_document.bin").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    verify_checksums(IndexedDataset(tmp_path / "out_text_document"))


def test_settings_that_cannot_work_are_refused(spec: TokenizerSpec, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(ConfigError, match="--workers must be at least 1, not 0"):
        preprocess(settings(spec, tmp_path, path, workers=0))
    with pytest.raises(ConfigError, match="--json-keys has one key twice: a a"):
        preprocess(PreprocessSettings((str(path),), str(tmp_path / "out"), spec, json_keys=("a", "a")))
    with pytest.raises(ConfigError, match=r"b\.txt is one text, but --json-keys has 2 keys"):
        preprocess(PreprocessSettings((str(tmp_path / "b.txt"),), "out", spec, json_keys=("a", "b")))


def test_append_eod_needs_an_end_token(spec: TokenizerSpec, tmp_path: Path) -> None:
    text = Path(str(spec.tokenizer_model)).read_text().replace("<|endoftext|>", "[END]")
    (tmp_path / "t.json").write_text(text)
    other = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(tmp_path / "t.json"))
    with pytest.raises(ConfigError, match=r"--append-eod is set, but t\.json has no end-of-document token"):
        preprocess(settings(other, tmp_path, write_jsonl(tmp_path / "a.jsonl", TEXTS)))


def test_reading_does_not_run_ahead_of_writing(
    spec: TokenizerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces under way are bounded: with a pool that reads ahead, all 40 would be read before the first."""
    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    monkeypatch.setattr(workers, "ALONE_BYTES", 1)
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i:02}.txt")
        paths[-1].write_text(f"text {i}")
    read: list[int] = []
    real = module.read_pieces

    def counting(*arguments: object) -> object:
        for piece in real(*arguments):
            read.append(1)
            yield piece

    monkeypatch.setattr(module, "read_pieces", counting)
    written: list[tuple[int, int]] = []
    preprocess(
        settings(spec, tmp_path, *paths, workers=2),
        lambda counts: written.append((counts.documents, len(read))),
    )
    assert len(written) == 40 and all(ahead - done < 2 * PIECES_PER_WORKER for done, ahead in written)
