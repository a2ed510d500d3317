"""Builds the package and, where the machine can, its kernels. Everything that is data stands in pyproject.toml.

MEGATRON_SLW_CUDA=0|1|auto says whether the CUDA kernels are built; auto builds them where there are nvcc and a PyTorch
for CUDA. MEGATRON_SLW_CUDA_ARCHITECTURES names the architectures (80,90).
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildKernels(build_ext):
    """Puts the libraries of csrc/ beside megatron_slw/ops/library.py."""

    def run(self) -> None:
        spec = importlib.util.spec_from_file_location("build_kernels", ROOT / "csrc" / "build.py")
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        in_place = self.inplace or self.editable_mode
        place = (ROOT if in_place else Path(self.build_lib)) / "megatron_slw" / "ops"
        cuda = os.environ.get("MEGATRON_SLW_CUDA", "auto")
        architectures = os.environ.get("MEGATRON_SLW_CUDA_ARCHITECTURES", "80,90").split(",")
        try:
            self.built = kernels.build(place, cuda, architectures)
        except kernels.BuildError as error:
            if cuda == "1":
                raise
            print(f"kernels not built, plain PyTorch serves every operator: {error}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in getattr(self, "built", [])]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("megatron_slw.ops.kernels", [])], cmdclass={"build_ext": BuildKernels})
