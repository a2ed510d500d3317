"""Bad text: named by file and line, left out or mended as asked, counted in the sidecar and the final table."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import documents
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.sidecar import Sidecar, read_sidecar
from megatron_slw.data.throughput import bad_documents
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl

LINES = [
    b'{"text": "good"}',
    b'{"text": "b\xffd"}',
    b'{"text": "half \\ud83e pair"}',
    b'{"text": "broken',
    b"",
    b'{"txt": "key"}',
    b'{"text": 5}',
    b'["text"]',
    b'{"text": ""}',
    b'{"txt": "\xff"}',
    b'{"text": "last"}',
]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def run(
    spec: TokenizerSpec, folder: Path, *inputs: str, workers: int = 1, **changes: object
) -> tuple[Sidecar, list[str]]:
    said: list[str] = []
    settings = PreprocessSettings(inputs, str(folder / "out"), spec, workers=workers, **changes)  # type: ignore[arg-type]
    return preprocess(settings, say=said.append)["text"], said


def texts(spec: TokenizerSpec, folder: Path) -> list[str]:
    dataset, tokenizer = IndexedDataset(folder / "out_text_document"), load_tokenizer(spec)
    return [tokenizer.decode(dataset.document(i).tolist()) for i in range(dataset.num_documents)]


@pytest.mark.parametrize("workers", [1, 2])
def test_skip_counts_and_names(spec: TokenizerSpec, tmp_path: Path, workers: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(LINES))
    sidecar, said = run(spec, tmp_path, str(tmp_path / "a.jsonl"), on_error="skip", workers=workers)
    assert texts(spec, tmp_path) == ["good", "last"]
    assert sidecar.skipped_documents == {"broken_json": 1, "invalid_utf8": 3, "missing_key": 1, "wrong_type": 2}
    assert (sidecar.empty_documents, sidecar.replaced_documents, sidecar.documents) == (1, 0, 2)
    assert [line.split(".jsonl, ")[1].split(" ")[1] for line in said] == ["2", "3", "4", "6", "7", "8", "10"]
    assert all(line.startswith(f"skipped: {tmp_path}/a.jsonl, line ") for line in said)
    assert read_sidecar(tmp_path / "out_text_document.json") == sidecar
    assert bad_documents(sidecar).splitlines()[1].split() == ["left", "out:", "invalid", "utf8", "3", "documents"]


def test_replace_mends_bytes_and_skips_the_rest(spec: TokenizerSpec, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(LINES))
    (tmp_path / "b.txt").write_bytes(b"text \x80\n")
    parquet.write_table(pa.table({"text": pa.array([b"row \xc3", None, b"good"], pa.binary())}), tmp_path / "c.parquet")
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.txt", "c.parquet")]
    sidecar, said = run(spec, tmp_path, *names, on_error="replace")
    mended = ["b\ufffdd", "half \ufffd pair"]
    assert texts(spec, tmp_path) == ["good", *mended, "last", "text \ufffd\n", "row \ufffd", "good"]
    assert sidecar.replaced_documents == 4
    assert sidecar.skipped_documents == {"broken_json": 1, "missing_key": 2, "wrong_type": 3}
    assert f"replaced: {names[1]} is not valid UTF-8 (byte 5 is 0x80)." in said
    assert f'skipped: {names[2]}, row 2 has no text under "text" but null.' in said
    assert "replaced by U+FFFD" in bad_documents(sidecar)


def test_fail_is_the_default_and_names_the_way_out(spec: TokenizerSpec, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(LINES))
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2 is not valid UTF-8 .* With --on-error skip or replace"):
        run(spec, tmp_path, str(tmp_path / "a.jsonl"))
    with pytest.raises(ConfigError, match="--on-error must be fail, skip or replace, not ignore"):
        run(spec, tmp_path, str(tmp_path / "a.jsonl"), on_error="ignore")


def test_more_than_a_few_are_counted_only(spec: TokenizerSpec, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"oops\n" * 50 + b'{"text": "good"}\n')
    sidecar, said = run(spec, tmp_path, str(tmp_path / "a.jsonl"), on_error="skip")
    assert sidecar.skipped_documents == {"broken_json": 50}
    assert len(said) == 21 and said[-1] == "30 more documents were not as they should be."


def test_replacing_changes_nothing_in_good_text() -> None:
    for text in [*TEXTS, "🦊 \ufffd \x00"]:
        line = json.dumps({"text": text}).encode()
        assert documents("a.jsonl", line, ["text"], replace=True) == [text]
    assert documents("a.jsonl", b'{"text": "\\ud800\\udc00 \\udc00 \\ud800"}', ["text"], replace=True) == [
        "𐀀 \ufffd \ufffd"
    ]


def test_an_older_sidecar_is_still_read(spec: TokenizerSpec, tmp_path: Path) -> None:
    sidecar, _ = run(spec, tmp_path, str(write_jsonl(tmp_path / "a.jsonl", TEXTS)))
    path = tmp_path / "out_text_document.json"
    data = json.loads(path.read_text())
    for name in ("skipped_documents", "replaced_documents", "shuffle_seed", "sources"):
        del data[name]
    path.write_text(json.dumps({**data, "version": 1}))
    found = IndexedDataset(tmp_path / "out_text_document").sidecar
    assert found is not None and found.sources is None and found.bin_sha256 == sidecar.bin_sha256
    path.write_text(json.dumps({**data, "version": 2}))
    with pytest.raises(ConfigError, match='"shuffle_seed".* missing or unknown'):
        read_sidecar(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("skipped_documents", 3),
        ("skipped_documents", {"broken_json": -1}),
        ("replaced_documents", None),
        ("shuffle_seed", "1"),
        ("sources", {"files": 1}),
        ("sources", {"files": 1, "bytes": 1, "sha256": "a", "first": ["a"]}),
    ],
)
def test_damaged_new_fields_are_refused(spec: TokenizerSpec, tmp_path: Path, field: str, value: object) -> None:
    run(spec, tmp_path, str(write_jsonl(tmp_path / "a.jsonl", TEXTS)))
    path = tmp_path / "out_text_document.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ConfigError, match=r"out_text_document\.json: "):
        read_sidecar(path)


def test_shuffled_documents_are_the_same_in_another_order(spec: TokenizerSpec, tmp_path: Path) -> None:
    source = str(write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(1_000)]))
    digests = {}
    for name, workers, seed in (("a", 1, 7), ("b", 2, 7), ("c", 1, 8), ("d", 1, None)):
        (tmp_path / name).mkdir()
        sidecar, _ = run(spec, tmp_path / name, source, workers=workers, shuffle_seed=seed)
        assert sidecar.shuffle_seed == seed
        digests[name] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((tmp_path / name).iterdir())]
        assert len(digests[name]) == 3, "nothing temporary is left"
        order = texts(spec, tmp_path / name)
        assert sorted(order) == sorted(f"document {i}" for i in range(1_000))
        assert (order == [f"document {i}" for i in range(1_000)]) == (seed is None)
    assert digests["a"] == digests["b"] and len({tuple(found) for found in digests.values()}) == 3
