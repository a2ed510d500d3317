"""Builds the kernels' libraries beside megatron_slw/ops/library.py, which loads them.

    python csrc/build.py [--cuda 0|1|auto] [--architectures 80,90]

`pip install` runs the same through setup.py. Only PyTorch's stable ABI is used: what is built with one PyTorch from
2.11 on runs with the others. Nothing of PyTorch is imported, so that an isolated build needs only its headers.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
PLACE = SOURCES.parent / "megatron_slw" / "ops"
INTERFACE = 2  # as in megatron_slw/ops/choice.py
OPERATORS = ("softmax", "layer_norm", "bias_gelu", "dropout_residual", "cross_entropy")
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11
CXX_FLAGS = ("-std=gnu++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas")
INSTRUCTION_SETS = {
    "scalar": (),
    "avx2": ("-mavx2", "-mbmi2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mbmi2", "-mfma", "-mf16c"),
}
QUIET_INTRINSICS = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")  # GCC 12 on its own headers
NVCC_FLAGS = ("-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr")


class BuildError(Exception):
    """A library that was asked for cannot be built."""


class Missing(BuildError):
    """There is no compiler, or nothing to compile against: the plain implementations serve instead."""


def torch_folder() -> Path:
    """The installed torch package; an isolated build finds that of the environment it was started from."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    for folder in [*folders, Path(sysconfig.get_path("purelib")) / "torch"]:
        if (folder / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return folder
    raise Missing("the kernels need PyTorch's headers (torch >= 2.11) and found none: install torch first")


def compiler() -> str:
    """The C++ compiler: $CXX, or the first known one on the PATH."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and shutil.which(name):
            return name
    raise Missing("the kernels need a C++20 compiler and found none")


def stale(target: Path) -> bool:
    """Whether a source is newer than the library."""
    if not target.is_file():
        return True
    newest = max(path.stat().st_mtime for path in SOURCES.rglob("*") if path.is_file())
    return target.stat().st_mtime < newest


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run commands, as many at a time as there are processors; the first failure's output is the error."""

    def run(command: Sequence[str]) -> None:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise BuildError(f"{' '.join(command)}\n{result.stderr[-4000:]}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))


def cpu_commands(torch: Path, objects: Path) -> list[list[str]]:
    """One compilation per operator, and one of all kernels per instruction set."""
    start = [compiler(), *CXX_FLAGS]
    commands = []
    for name in (*OPERATORS, "cpu/sums", "cpu/choose"):
        target = objects / f"{name.replace('/', '_')}.o"
        include = ["-isystem", str(torch / "include")]
        commands.append([*start, STABLE_ABI, *include, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(target)])
    sets = INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else {"scalar": ()}
    for name, flags in sets.items():
        own = [f"-DSLW_ISA={name}", *flags, *QUIET_INTRINSICS]
        commands.append([*start, *own, "-c", str(SOURCES / "cpu" / "isa.cpp"), "-o", str(objects / f"isa_{name}.o")])
    return commands[::-1]  # the long ones first


def cuda_commands(torch: Path, objects: Path, architectures: Sequence[str]) -> list[list[str]]:
    """One compilation per operator, for all architectures."""
    start = ["nvcc", *NVCC_FLAGS, STABLE_ABI, "-DUSE_CUDA", "-I", str(torch / "include")]
    for number in architectures:
        start += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    return [
        [*start, "-c", str(SOURCES / f"{name}.cu"), "-o", str(objects / f"{name}_cuda.o")]
        for name in OPERATORS
        if (SOURCES / f"{name}.cu").is_file()
    ]


def link(
    commands: Sequence[Sequence[str]], linker: str, torch: Path, libraries: Sequence[str], target: Path
) -> None:
    """Compile, then link what the commands left into the library, which appears whole or not at all."""
    run_all(commands)
    objects = [command[-1] for command in commands]
    part = target.with_suffix(f".{os.getpid()}.part")
    names = [f"-l{name}" for name in libraries]
    run_all([[linker, "-shared", *objects, "-L", str(torch / "lib"), *names, "-o", str(part)]])
    part.replace(target)


def wants_cuda(setting: str, torch: Path) -> bool:
    """"1" must be possible; "auto" takes it where there are nvcc and a PyTorch for CUDA."""
    if setting not in ("0", "1", "auto"):
        raise BuildError(f"MEGATRON_SLW_CUDA is {setting!r}: 0, 1 or auto")
    if setting == "1" and not shutil.which("nvcc"):
        raise BuildError("MEGATRON_SLW_CUDA=1 needs nvcc on the PATH")
    return setting == "1" or (
        setting == "auto" and shutil.which("nvcc") is not None and (torch / "lib" / "libtorch_cuda.so").is_file()
    )


def build(place: Path, cuda: str = "auto", architectures: Sequence[str] = ("80", "90")) -> list[Path]:
    """Build what this machine can into `place`, unless it is there and newer than the sources."""
    torch = torch_folder()
    place.mkdir(parents=True, exist_ok=True)
    built = []
    for name, wanted in (("cpu", True), ("cuda", wants_cuda(cuda, torch))):
        target = place / f"libmegatron_slw_{name}.{INTERFACE}.so"
        objects = SOURCES.parent / "build" / "csrc" / name
        objects.mkdir(parents=True, exist_ok=True)
        if wanted and stale(target):
            if name == "cpu":
                link(cpu_commands(torch, objects), compiler(), torch, ["torch_cpu"], target)
            else:
                # nvcc knows where its run-time library lies
                link(cuda_commands(torch, objects, architectures), "nvcc", torch, ["torch_cpu", "torch_cuda"], target)
        if wanted:
            built.append(target)
    return built


def main(argv: list[str] | None = None) -> int:
    """Build in place; exit 1 with the compiler's words where that fails, 0 where there is no compiler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", default=os.environ.get("MEGATRON_SLW_CUDA", "auto"))
    parser.add_argument("--architectures", default=os.environ.get("MEGATRON_SLW_CUDA_ARCHITECTURES", "80,90"))
    args = parser.parse_args(argv)
    try:
        for path in build(PLACE, args.cuda, args.architectures.split(",")):
            print(path)
    except Missing as missing:
        print(f"{missing}; plain PyTorch serves every operator")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
