"""The shape of the code: layers, ownership, sizes. Every rule is also shown a source that breaks it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import architecture_rules as rules

ROOT = Path(__file__).resolve().parents[1]
Rule = Callable[[rules.Tree], list[str]]
LONG = "def f() -> None:\n" + "    pass\n" * 99

BAD: list[tuple[Rule, dict[str, str], str]] = [
    (rules.layers, {"megatron_slw/config/a.py": "import megatron_slw.slw.plan"}, "megatron_slw.slw.plan"),
    (rules.layers, {"megatron_slw/slw/a.py": "def f():\n    from megatron_slw.train import loop"}, "py:2"),
    (rules.layers, {"megatron_slw/model/a.py": "from megatron_slw.data.loader import Blocks"}, "layer 3"),
    (rules.layers, {"megatron_slw/model/a.py": "from ..train import loop"}, "megatron_slw.train"),
    (rules.layers, {"megatron_slw/data/a.py": "from megatron_slw.parallel import groups"}, "layer 2"),
    (rules.layers, {"megatron_slw/ops/a.py": "import megatron_slw.slw.schedule"}, "layer 1"),
    (
        rules.layers,
        {"megatron_slw/checkpoint/format.py": "from . import load", "megatron_slw/checkpoint/load.py": ""},
        "megatron_slw.checkpoint.load",
    ),
    (rules.layers, {"megatron_slw/train/a.py": "import tools.preprocess_data"}, "entry point"),
    (rules.layers, {"tools/a.py": "from pretrain_gpt import main"}, "entry point pretrain_gpt"),
    (rules.layers, {"examples/a.py": "from tools.evaluate import main"}, "entry point tools.evaluate"),
    (rules.layers, {"tools/a.py": "import b", "tools/b.py": ""}, "entry point tools.b"),
    (rules.layers, {"megatron_slw/utils.py": ""}, "has no layer"),
    (
        rules.testing_is_for_tests,
        {"tools/a.py": "from megatron_slw.testing import tiny_config"},
        "tools/a.py:1",
    ),
    (
        rules.testing_is_for_tests,
        {"megatron_slw/train/a.py": "from megatron_slw import testing", "megatron_slw/testing.py": ""},
        "train/a.py:1",
    ),
    (rules.deepspeed_in_few_files, {"megatron_slw/checkpoint/a.py": "import deepspeed.utils"}, "a.py:1"),
    (rules.deepspeed_in_few_files, {"tools/a.py": "def f():\n    from deepspeed import comm"}, "a.py:2"),
    (
        rules.environment_in_one_file,
        {"megatron_slw/train/a.py": "import os\nx = os.environ['A']"},
        "os.environ",
    ),
    (rules.environment_in_one_file, {"tools/a.py": "from os import getenv"}, "os.getenv"),
    (rules.no_torch_at_import, {"megatron_slw/slw/a.py": "import torch"}, "a -> torch"),
    (
        rules.no_torch_at_import,
        {"megatron_slw/data/a.py": "if True:\n    from torch import nn"},
        "a -> torch",
    ),
    (
        rules.no_torch_at_import,
        {
            "megatron_slw/report/a.py": "import megatron_slw.train.b",
            "megatron_slw/train/b.py": "import torch",
        },
        "megatron_slw.train.b -> torch",
    ),
    (
        rules.no_torch_at_import,
        {
            "megatron_slw/report/a.py": "from megatron_slw.train.b import f",
            "megatron_slw/train/__init__.py": "from safetensors import torch",
            "megatron_slw/train/b.py": "",
        },
        "megatron_slw.train -> safetensors.torch",
    ),
    (
        rules.import_cycles,
        {
            "megatron_slw/slw/a.py": "from megatron_slw.slw import b",
            "megatron_slw/slw/b.py": "from .a import f",
        },
        "slw/a.py is part",
    ),
    (rules.no_code_from_data, {"megatron_slw/data/a.py": "import pickle"}, "imports pickle"),
    (rules.no_code_from_data, {"megatron_slw/data/a.py": "x = eval('1')"}, "calls eval"),
    (rules.no_code_from_data, {"megatron_slw/data/a.py": "exec('1')"}, "calls exec"),
    (
        rules.no_code_from_data,
        {"tools/a.py": "import torch\ntorch.load('x', weights_only=True)"},
        "torch.load",
    ),
    (
        rules.no_code_from_data,
        {"megatron_slw/exchange/universal.py": "import torch\ntorch.load('x', weights_only=False)"},
        "torch.load",
    ),
    (
        rules.no_code_from_data,
        {"tools/a.py": "import numpy as np\nnp.load('x', allow_pickle=True)"},
        "np.load",
    ),
    (rules.no_global_statement, {"megatron_slw/train/a.py": "def f():\n    global x"}, "global x"),
    (
        rules.file_sizes,
        {"megatron_slw/train/a.py": "x = 1\n" * 401, "megatron_slw/b.py": "x = 1\n" * 9},
        "401 lines",
    ),
    (rules.file_sizes, {"megatron_slw/train/a.py": "x = 1\n" * 181}, "median file"),
    (rules.file_sizes, {"tools/a.py": "x = 1\n" * 81}, "at most 80"),
    (rules.file_sizes, {"pretrain_gpt.py": "x = 1\n" * 61}, "at most 60"),
    (rules.function_sizes, {"megatron_slw/train/a.py": LONG}, "f has 100 lines"),
    (rules.function_sizes, {"megatron_slw/train/a.py": "def f() -> None:\n" + "    pass\n" * 60}, "1 of 1"),
    (rules.typed_arguments, {"megatron_slw/train/a.py": "def f(x, *rest: int) -> None: ..."}, "1 of 2"),
    (rules.checks_have_messages, {"megatron_slw/train/a.py": "assert 1"}, "assert 1"),
    (rules.checks_have_messages, {"megatron_slw/train/a.py": "raise ValueError"}, "raise ValueError"),
    (
        rules.checks_have_messages,
        {"megatron_slw/train/a.py": "raise errors.ConfigError() from None"},
        "ConfigError()",
    ),
]

GOOD: list[tuple[Rule, dict[str, str]]] = [
    (rules.layers, {"megatron_slw/checkpoint/save.py": "from megatron_slw.train import engine"}),
    (
        rules.layers,
        {"megatron_slw/growth/moments.py": "from . import operators", "megatron_slw/growth/operators.py": ""},
    ),
    (rules.layers, {"pretrain_gpt.py": "from megatron_slw.train.job import run"}),
    (
        rules.layers,
        {"examples/a/run.py": "from examples.a import corpus\nimport corpus", "examples/a/corpus.py": ""},
    ),
    (rules.testing_is_for_tests, {"benchmarks/a.py": "from megatron_slw.testing import tiny_config"}),
    (rules.deepspeed_in_few_files, {"megatron_slw/train/engine_state.py": "import deepspeed"}),
    (rules.environment_in_one_file, {"megatron_slw/parallel/groups.py": "import os\nx = os.environ"}),
    (rules.no_torch_at_import, {"megatron_slw/data/a.py": "def f():\n    import torch"}),
    (rules.no_torch_at_import, {"megatron_slw/data/a.py": "if TYPE_CHECKING:\n    import torch"}),
    (
        rules.import_cycles,
        {
            "megatron_slw/slw/a.py": "from . import b",
            "megatron_slw/slw/b.py": "def f():\n    from . import a",
        },
    ),
    (
        rules.no_code_from_data,
        {"megatron_slw/exchange/universal.py": "import torch\ntorch.save(1, torch.load('x', weights_only=True))"},
    ),
    (rules.no_code_from_data, {"megatron_slw/train/a.py": "import numpy as np\nmodel.eval()\nnp.load('x')"}),
    (rules.checks_have_messages, {"megatron_slw/train/a.py": "raise ValueError(x)\nraise error\nraise"}),
]


@pytest.fixture(scope="module")
def tree() -> rules.Tree:
    return rules.read_tree(ROOT)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_tree_keeps(rule: Rule, tree: rules.Tree) -> None:
    assert not (faults := rule(tree)), f"{rule.__doc__}\n" + "\n".join(faults)


@pytest.mark.parametrize(("rule", "sources", "fault"), BAD)
def test_rule_finds(rule: Rule, sources: dict[str, str], fault: str) -> None:
    found = rule(rules.parse(sources))
    assert found and any(fault in line for line in found), found


@pytest.mark.parametrize(("rule", "sources"), GOOD)
def test_rule_lets_pass(rule: Rule, sources: dict[str, str]) -> None:
    assert rule(rules.parse(sources)) == []


def test_every_rule_is_shown_a_fault() -> None:
    assert {rule for rule, _, _ in BAD} == set(rules.RULES)


def test_the_tree_was_found(tree: rules.Tree) -> None:
    assert {"megatron_slw.slw.plan", "megatron_slw.model.gpt", "pretrain_gpt"} <= set(tree)


def test_light_packages_run_without_torch(tree: rules.Tree) -> None:
    """The same rule at run time: third-party packages could bring torch in as well."""
    light = [m.name for m in tree.values() if m.inside and m.inside.split(".")[0] in rules.NO_TORCH]
    code = f"import {', '.join(light)}, sys\nprint([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_names_of_test_files_are_unique() -> None:
    """The folders of tests are no packages: two files of one name end the collection."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
