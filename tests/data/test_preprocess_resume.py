"""Killed at any moment, the same command goes on where it was and ends with the same bytes."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_slw.data.corpus import read_pieces
from megatron_slw.data.indexed import IndexedDataset, verify_checksums
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "tests.data.killed_run"
NAMES = [f"out_text_document.{ending}" for ending in ("bin", "idx", "json")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of three kinds, a tokenizer, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("resume")
    small_tokenizer(folder)
    texts = [text + str(i) for i in range(60) for text in TEXTS]
    source = write_jsonl(folder / "a.jsonl", texts)
    source.write_bytes(source.read_bytes() + b'{"text": "broken"\n')
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(write_jsonl(folder / "plain", texts[::-1]).read_bytes()))
    (folder / "c.txt").write_text("\n\n".join(texts))
    (folder / "whole").mkdir()
    assert ended(start(folder, folder / "whole"))[0] == 0
    return folder


def start(
    folder: Path, output: Path, point: str = "never", count: int = 1, flags: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    inputs = [str(folder / name) for name in ("a.jsonl", "b.jsonl.gz", "c.txt")]
    command = [sys.executable, "-m", SCRIPT, point, str(count), "--input", *inputs, "--output-prefix"]
    command += [str(output / "out"), "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model"]
    command += [str(folder / "tokenizer.json"), "--append-eod", "--on-error", "skip", "--split-on-blank-lines"]
    command += flags or ("--workers", "1")
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Status and standard error."""
    _, err = run.communicate()
    return run.returncode, err


def contents(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in NAMES]


def last_state(folder: Path) -> int:
    """How often a whole run saves its state: for every piece, and once more."""
    paths = [str(folder / name) for name in ("a.jsonl", "b.jsonl.gz", "c.txt")]
    return len(list(read_pieces(paths, 20_000, blank_lines=True))) + 1


CHAINS = {
    "while writing": [
        ("after tokens are added", 2),
        ("after the tokens are synced", 3),
        ("after a state is saved", 1),
        ("after a state is saved", 3),
        ("after tokens are added", 1),
    ],
    "at the end": [("after a state is saved", 4), ("before a rename", 7), ("while cleaning up", 1)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_kills_ends_with_the_same_bytes(folder: Path, tmp_path: Path, name: str) -> None:
    went_on = 0
    for point, count in CHAINS[name]:
        status, err = ended(start(folder, tmp_path, point, count))
        assert status == -signal.SIGKILL, err
        went_on += "going on after" in err
    status, err = ended(start(folder, tmp_path))
    assert status == 0, err
    # The first run has nothing to go on from, and one that was killed while cleaning up had already ended.
    assert went_on + ("going on after" in err) == len(CHAINS[name]) - (name == "at the end")
    assert contents(tmp_path) == contents(folder / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    verify_checksums(IndexedDataset(tmp_path / "out_text_document"))


def test_killed_while_the_files_are_put_in_place(folder: Path, tmp_path: Path) -> None:
    """One run saves its state often; the renames after the last of these are those of .bin, .json and .idx."""
    assert ended(start(folder, tmp_path, "after the tokens are synced", last_state(folder)))[0] == -signal.SIGKILL
    kills = 0
    for count in range(2, 10):  # the first rename is that of the last state
        status, err = ended(start(folder, tmp_path, "before a rename", count))
        assert "going on after" in err, err
        if status == 0:
            break
        assert status == -signal.SIGKILL, err
        kills += 1
    assert kills >= 3
    assert contents(tmp_path) == contents(folder / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_killed_from_outside_with_workers_and_shuffled(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    flags = ("--workers", "2", "--shuffle-documents")
    assert ended(start(folder, tmp_path / "whole", flags=(*flags[2:], "--workers", "1")))[0] == 0
    run = start(folder, tmp_path, flags=flags)
    assert run.stderr is not None
    for line in run.stderr:
        if "Mtok/s" in line and (tmp_path / "out_text_document.resume.json").exists():
            run.kill()
            break
    assert ended(run)[0] == -signal.SIGKILL
    status, err = ended(start(folder, tmp_path, flags=flags))
    assert status == 0 and "going on after" in err and "shuffling" in err, err
    assert contents(tmp_path) == contents(tmp_path / "whole") != contents(folder / "whole")


def test_other_flags_or_inputs_start_over_and_say_why(folder: Path, tmp_path: Path) -> None:
    over = "starting over instead of going on with an unfinished run: "

    def half_way_then(*flags: str) -> str:
        assert ended(start(folder, tmp_path, "after a state is saved", 2))[0] == -signal.SIGKILL
        if "touch" in flags:
            (folder / "c.txt").touch()
        elif "unlink" in flags:
            (tmp_path / "out_text_document.lengths.partial").unlink()
        status, err = ended(start(folder, tmp_path, flags=() if len(flags) == 1 else flags))
        assert status == 0, err
        return err

    assert over + "the flags changed since.\n" in half_way_then("--workers", "1", "--on-error", "replace")
    assert over + "the inputs changed since.\n" in half_way_then("touch")
    assert over + "temporary files of" in half_way_then("unlink")
    assert contents(tmp_path) == contents(folder / "whole")
