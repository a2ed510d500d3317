"""Every CUDA source compiles without a GPU, and no kernel spills registers or needs a stack frame."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path.name for path in (ROOT / "csrc").glob("*.cu"))


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_kernels", ROOT / "csrc" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spilling(report: str) -> list[str]:
    """The kernels that the assembler's report gives a stack frame or spilled bytes."""
    found = []
    kernel = "?"
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            kernel = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if any(int(number) for number in match.groups()):
                found.append(f"{kernel}: {match[0]}")
    return found


def test_spills_are_seen() -> None:
    line = "    {} bytes stack frame, {} bytes spill stores, {} bytes spill loads"
    head = "ptxas info    : Compiling entry function '_Z4rows' for 'sm_90'\n"
    assert not spilling(head + line.format(0, 0, 0))
    assert spilling(head + line.format(8, 0, 0)) and spilling(head + line.format(0, 4, 4))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_without_spills(tmp_path: Path, source: str, architecture: str) -> None:
    build = builder()
    commands = build.cuda_commands(build.torch_folder(), tmp_path, [architecture])
    (command,) = [command for command in commands if str(ROOT / "csrc" / source) in command]
    result = subprocess.run([*command, "-Xptxas", "-v"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Compiling entry function" in result.stderr, "the report names no kernel"
    assert not (faults := spilling(result.stderr)), faults


def test_each_operator_has_both_sources() -> None:
    """A kernel that exists for one device alone would be silently slow on the other."""
    names = {name: set() for name in (".cpp", ".cu")}
    for suffix, registered in names.items():
        for path in (ROOT / "csrc").glob(f"*{suffix}"):
            registered |= set(re.findall(r'm\.impl\("(\w+)"', path.read_text()))
    assert names[".cpp"] == names[".cu"] and len(names[".cpp"]) > 10
