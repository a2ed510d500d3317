"""What benchmarks on a CPU set before they begin, and what they write about the machine."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

from megatron_slw.ops.choice import BUILT, FOLDER

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Freed memory stays with the process, as in the quickstart: else page faults are most of what is measured."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def processor_name() -> str:
    """The processor's own name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instruction_set() -> str:
    """That of the built CPU kernels, or none."""
    built = FOLDER / BUILT["cpu"]
    if not built.is_file():
        return "none"
    kernels = ctypes.CDLL(str(built))
    kernels.megatron_slw_isa.restype = ctypes.c_char_p
    return str(kernels.megatron_slw_isa().decode())


def describe() -> dict[str, object]:
    """Processor, processors to run on, processes that wanted to run in the last minute, instruction set, PyTorch."""
    return {
        "machine": processor_name(), "processors": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 2),
        "isa": instruction_set(), "torch": torch.__version__,
    }  # fmt: skip
