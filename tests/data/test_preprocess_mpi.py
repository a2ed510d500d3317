"""Under mpirun the ranks share the work and the bytes are those of one process; needs mpi4py and an mpirun."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.data import mpi
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
# First the one of the package mpich, beside the interpreter: it is that of mpi4py's wheel.
MPIRUN = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
WHY = "needs mpi4py and mpirun: pip install mpi4py mpich"
needs_mpi = pytest.mark.skipif(find_spec("mpi4py") is None or MPIRUN is None, reason=WHY)


def run(folder: Path, ranks: int, name: str, *script: str) -> subprocess.CompletedProcess[str]:
    """Preprocess folder/a.jsonl to folder/name; on one rank without mpirun."""
    command = [MPIRUN or "mpirun", "-n", str(ranks)] if ranks > 1 else []
    command += [sys.executable, "-m", "tests.data.killed_run", *(script or ("never", "1"))]
    command += ["--input", str(folder / "a.jsonl"), "--output-prefix", str(folder / name), "--workers", "1"]
    command += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder / "tokenizer.json")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def contents(folder: Path, name: str) -> list[bytes]:
    return [(folder / f"{name}_text_document.{ending}").read_bytes() for ending in ("bin", "idx", "json")]


@needs_mpi
def test_any_number_of_ranks_gives_the_same_bytes_and_goes_on(tmp_path: Path) -> None:
    small_tokenizer(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [text + str(i) for i in range(60) for text in TEXTS])
    assert run(tmp_path, 1, "one").returncode == 0
    for ranks in (2, 4):
        done = run(tmp_path, ranks, f"ranks{ranks}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(" documents ") == 1, "one rank speaks"
        assert contents(tmp_path, f"ranks{ranks}") == contents(tmp_path, "one")
    assert run(tmp_path, 3, "killed", "after a state is saved", "2").returncode != 0
    done = run(tmp_path, 2, "killed")
    assert done.returncode == 0 and "going on after" in done.stderr
    assert contents(tmp_path, "killed") == contents(tmp_path, "one")


@needs_mpi
def test_bad_text_ends_every_rank_with_status_2(tmp_path: Path) -> None:
    small_tokenizer(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 3_000 + "oops\n")
    done = run(tmp_path, 3, "out")
    assert done.returncode == 2 and done.stderr.count("line 3001 is not valid JSON") == 1
    assert not list(tmp_path.glob("out*"))


def test_many_ranks_without_mpi4py_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="2 processes were started, but mpi4py is not installed"):
        with mpi.mpi_workers(2):
            pass
    with mpi.mpi_workers(1) as (writes, executor):
        assert writes and executor is None
