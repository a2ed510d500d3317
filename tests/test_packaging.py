"""What is imported is declared, what is declared is pinned, and the pins lie in the declared ranges."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.architecture_rules import PACKAGE, imports, read_tree

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> dict[str, Requirement]:
    return {r.name: r for r in map(Requirement, PROJECT["dependencies"])}


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_is_pinned_within_its_range() -> None:
    assert pins().keys() == declared().keys()
    for name, version in pins().items():
        assert declared()[name].specifier.contains(version), f"{name} {version} is outside {declared()[name]}"


def test_every_imported_package_is_declared() -> None:
    tree = read_tree(ROOT)
    product = [m for m in tree.values() if not m.name.startswith("benchmarks")]
    imported = {(item.target.split(".")[0], m.path) for m in product for item in imports(m, tree)}
    known = set(sys.stdlib_module_names) | {PACKAGE, "examples"} | set(declared())
    known.add("pydantic_core")  # a part of pydantic, pinned by it
    known.add("apex")  # NVIDIA's, which no index has: imported where it is installed and asked for
    known |= {Requirement(r).name for extra in PROJECT["optional-dependencies"].values() for r in extra}
    assert not (unknown := {(name, path) for name, path in imported if name not in known}), unknown


def test_ci_calls_make_test_and_nothing_else() -> None:
    path = ROOT / ".ci" / "run"
    commands = [
        line for line in path.read_text().splitlines() if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["make test"]
    assert path.stat().st_mode & 0o111, f"{path} is not executable"


def test_no_index_host_is_named() -> None:
    for name in (
        "requirements.txt",
        "requirements-dev.txt",
        "Makefile",
        "pyproject.toml",
        ".ci/run",
        "setup.py",
    ):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links|trusted-host", text), name


def test_version_is_read_without_importing() -> None:
    """setuptools reads a literal; anything computed would import the package while it is being built."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
    values = [
        n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__version__"
    ]
    assert len(values) == 1 and isinstance(values[0], ast.Constant)
