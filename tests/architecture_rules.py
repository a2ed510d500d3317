"""The rules that hold the tree in shape. Each reads a parsed tree and gives one line per fault.

They look at syntax only: nothing is imported, and a self-test can feed them a bad source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PACKAGE = "megatron_slw"
LAYERS = {
    "config": 0, "progress": 0,
    "slw": 1, "ops": 1, "growth.operators": 1, "growth.moments": 1,
    "data": 2, "parallel": 2, "checkpoint.format": 2,
    "model": 3,
    "train": 4, "checkpoint": 4, "growth": 4, "evaluation": 4, "exchange": 4, "report": 4,
    "testing": 5,
}  # fmt: skip
ENTRY_POINTS = ("tools", "examples", "pretrain_gpt")
PEERS = (0, 4)  # layers whose packages may import each other; elsewhere a package sees lower layers alone
NEVER = (("model", "data"), ("model", "train"), ("data", "parallel"), ("ops", "parallel"))
DEEPSPEED_ALLOWED = ("model.pipeline", "parallel.groups", "train.engine", "testing")
ENVIRONMENT_ALLOWED = ("parallel.groups", "parallel.launch", "testing")
NO_TORCH = ("config", "progress", "slw", "data", "report")
BRINGS_TORCH = ("torch", "deepspeed", "transformers", "safetensors.torch")
PICKLES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
RUNS_DATA = ("eval", "exec", "__import__", "importlib.import_module", "torch.load", "torch.save")
SPEAKS_DEEPSPEED = ("exchange.universal",)  # DeepSpeed's files are pickles: written, and read as weights alone
IMPORTS_USER_CODE = ("config.import_path",)  # by a path in the configuration; everything else imports by name
MAX_FILE, MEDIAN_FILE, MAX_ENTRY, MAX_TOOL = 400, 180, 60, 80
LONG_FUNCTION, MAX_FUNCTION, LONG_SHARE, TYPED_SHARE = 60, 80, 0.02, 0.95

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One parsed file; `name` is dotted (`megatron_slw.data.loader`, `tools.preprocess_data`)."""

    name: str
    path: str
    lines: int
    tree: ast.Module

    @property
    def inside(self) -> str | None:
        """The name within the package; None for files outside it."""
        return self.name.removeprefix(PACKAGE).lstrip(".") if within(self.name, PACKAGE) else None


@dataclass(frozen=True)
class Import:
    """One imported module; `at_import` where importing the importer imports it too."""

    target: str
    line: int
    at_import: bool


Tree = dict[str, Module]


def parse(sources: Mapping[str, str]) -> Tree:
    """The tree of {path relative to the root: source}."""
    modules = {}
    for path, source in sources.items():
        name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        modules[name] = Module(name, path, source.count("\n"), ast.parse(source, path))
    return modules


def read_tree(root: Path) -> Tree:
    """Every Python file of the package, the tools, the examples, the benchmarks and the entry points."""
    tops = (PACKAGE, "tools", "examples", "benchmarks")
    paths = [path for top in tops for path in sorted((root / top).rglob("*.py"))]
    paths += sorted(root.glob("pretrain*.py"))
    return parse({p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in paths})


def within(name: str, top: str) -> bool:
    """Whether `name` is the module `top` or lies below it."""
    return name == top or name.startswith(f"{top}.")


def layer_of(module: str) -> tuple[str, int] | None:
    """The layer entry that a dotted module falls under and its layer; None for one that has no layer."""
    if any(within(module, entry) for entry in ENTRY_POINTS):
        return module, 5
    if module == PACKAGE:
        return "", 0
    inside = module.removeprefix(f"{PACKAGE}.")
    keys = [key for key in LAYERS if within(inside, key)]
    return max(((key, LAYERS[key]) for key in keys), key=lambda item: len(item[0]), default=None)


def imports(module: Module, tree: Tree) -> list[Import]:
    """What a module imports; `from package import name` means the submodule where there is one."""
    found = []
    for node, at_import in _walk(module.tree, at_import=True):
        if isinstance(node, ast.Import):
            targets = [_beside(module, alias.name, tree) for alias in node.names]
            found += [Import(target, node.lineno, at_import) for target in targets]
        elif isinstance(node, ast.ImportFrom):
            base = _beside(module, _absolute(module, node), tree)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_module = full in tree or full in BRINGS_TORCH
                found.append(Import(full if is_module else base, node.lineno, at_import))
    return found


def _beside(module: Module, target: str, tree: Tree) -> str:
    """A script finds the modules of its own folder by their bare names."""
    sibling = f"{module.name.rpartition('.')[0]}.{target}"
    return sibling if module.inside is None and sibling in tree else target


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + module.path.endswith("__init__.py")]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _walk(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        runs = at_import and not isinstance(child, Function | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            runs = False
        yield child, runs
        yield from _walk(child, runs)


def _nodes(tree: Tree) -> Iterator[tuple[Module, ast.AST]]:
    for module in tree.values():
        yield from ((module, node) for node in ast.walk(module.tree))


def _product(tree: Tree) -> Iterator[Module]:
    return (module for module in tree.values() if not within(module.name, "benchmarks"))


def layers(tree: Tree) -> list[str]:
    """Imports go down only; nothing imports an entry point."""
    faults = []
    for module in _product(tree):
        own = layer_of(module.name)
        if own is None:
            faults.append(f"{module.path} has no layer: add it to LAYERS, or move it to a package with one")
            continue
        for item in imports(module, tree):
            if _is_foreign_entry_point(module, item.target):
                faults.append(f"{module.path}:{item.line} imports the entry point {item.target}")
            elif within(item.target, PACKAGE) and not _goes_down(own, layer_of(item.target)):
                faults.append(f"{module.path}:{item.line} (layer {own[1]}) must not import {item.target}")
    return faults


def _is_foreign_entry_point(module: Module, target: str) -> bool:
    own_example = within(module.name, "examples") and within(target, "examples")
    return any(within(target, entry) for entry in ENTRY_POINTS) and not own_example


def _goes_down(own: tuple[str, int], target: tuple[str, int] | None) -> bool:
    if target is None:
        return False
    own_top, target_top = own[0].split(".")[0], target[0].split(".")[0]
    if (own_top, target_top) in NEVER:
        return False
    if own[1] == target[1]:
        return own_top == target_top or own[1] in PEERS
    return own[1] > target[1]


def testing_is_for_tests(tree: Tree) -> list[str]:
    """Tests and benchmarks alone import megatron_slw.testing."""
    return [
        f"{module.path}:{item.line} imports {item.target}, which is for tests and benchmarks"
        for module in _product(tree)
        for item in imports(module, tree)
        if within(item.target, f"{PACKAGE}.testing")
    ]


def deepspeed_in_few_files(tree: Tree) -> list[str]:
    """DeepSpeed is wrapped in few files, so that a new version of it touches only these."""
    return [
        f"{module.path}:{item.line} imports {item.target}; only {', '.join(DEEPSPEED_ALLOWED)} may"
        for module in _product(tree)
        if not (module.inside or "").startswith(DEEPSPEED_ALLOWED)
        for item in imports(module, tree)
        if within(item.target, "deepspeed")
    ]


def environment_in_one_file(tree: Tree) -> list[str]:
    """The environment is an input like any other: read in one package, passed on as an argument."""
    faults = []
    for module, node in _nodes(tree):
        names = [node.attr] if isinstance(node, ast.Attribute) else []
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = [alias.name for alias in node.names]
        used = {"environ", "environb", "getenv", "putenv"} & set(names)
        if used and module.inside not in ENVIRONMENT_ALLOWED:
            faults.append(f"{module.path}:{getattr(node, 'lineno', 0)} uses os.{used.pop()}")
    return faults


def no_torch_at_import(tree: Tree) -> list[str]:
    """Importing the light packages imports no torch, not through others either: --dry-run is quick."""
    faults = []
    for module in tree.values():
        if module.inside and any(within(module.inside, light) for light in NO_TORCH):
            chain = _chain_to_torch(module.name, tree)
            if chain:
                faults.append(f"{module.path} imports torch: {' -> '.join(chain)}")
    return faults


def _chain_to_torch(start: str, tree: Tree) -> list[str]:
    """A shortest chain of imports from `start` to torch; empty without one."""
    chains = {start: [start]}
    queue = [start]
    for name in queue:
        if any(within(name, heavy) for heavy in BRINGS_TORCH):
            return chains[name]
        if name not in tree:
            continue
        targets = [item.target for item in imports(tree[name], tree) if item.at_import]
        for target in targets + _parents(name):
            if target not in chains:
                chains[target] = [*chains[name], target]
                queue.append(target)
    return []


def _parents(name: str) -> list[str]:
    """The packages whose __init__ runs before the module."""
    return [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]


def import_cycles(tree: Tree) -> list[str]:
    """Modules that import each other, at import time, directly or through others."""
    edges = {
        name: {item.target for item in imports(module, tree) if item.at_import and item.target in tree}
        for name, module in tree.items()
    }
    faults = []
    for start in sorted(edges):
        seen: set[str] = set()
        stack = [start]
        while stack:
            for target in edges[stack.pop()] - seen:
                seen.add(target)
                stack.append(target)
        if start in seen:
            faults.append(f"{tree[start].path} is part of an import cycle")
    return faults


def no_code_from_data(tree: Tree) -> list[str]:
    """No pickle, no eval, no exec: reading a file must never run what is in it."""
    faults = []
    for module in tree.values():
        faults += [
            f"{module.path}:{item.line} imports {item.target}"
            for item in imports(module, tree)
            if any(within(item.target, name) for name in PICKLES)
        ]
    for module, node in _nodes(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        pickled = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
        if called == "importlib.import_module" and module.inside in IMPORTS_USER_CODE:
            continue
        weights = called == "torch.load" and any(ast.unparse(k) == "weights_only=True" for k in node.keywords)
        if module.inside in SPEAKS_DEEPSPEED and (weights or called == "torch.save"):
            continue
        if called in RUNS_DATA or pickled:
            faults.append(f"{module.path}:{node.lineno} calls {ast.unparse(node)}")
    return faults


def no_global_statement(tree: Tree) -> list[str]:
    """State reaches code by arguments."""
    return [
        f"{module.path}:{node.lineno} declares global {', '.join(node.names)}"
        for module, node in _nodes(tree)
        if isinstance(node, ast.Global)
    ]


def file_sizes(tree: Tree) -> list[str]:
    """One sitting per file: 400 lines at most and 180 in the middle; entry points and tools are thin."""
    faults = []
    for module in tree.values():
        limit = MAX_ENTRY if module.name.startswith("pretrain") else MAX_FILE
        limit = MAX_TOOL if within(module.name, "tools") else limit
        if module.lines > limit:
            faults.append(f"{module.path} has {module.lines} lines, at most {limit}")
    sizes = [module.lines for module in tree.values() if module.inside is not None and module.lines > 2]
    if sizes and median(sizes) > MEDIAN_FILE:
        faults.append(f"the median file of the package has {median(sizes):.0f} lines, at most {MEDIAN_FILE}")
    return faults


def function_sizes(tree: Tree) -> list[str]:
    """No function beyond 80 lines, at most 2 % beyond 60."""
    sizes = sorted(
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{module.path}:{node.lineno} {node.name}")
        for module, node in _nodes(tree)
        if isinstance(node, Function)
    )
    huge = [(size, where) for size, where in sizes if size > MAX_FUNCTION]
    faults = [f"{where} has {size} lines, at most {MAX_FUNCTION}" for size, where in huge]
    long = [f"{where} ({size})" for size, where in sizes if size > LONG_FUNCTION]
    if len(long) > LONG_SHARE * len(sizes):
        faults.append(f"{len(long)} of {len(sizes)} functions have more than {LONG_FUNCTION} lines: {long}")
    return faults


def typed_arguments(tree: Tree) -> list[str]:
    """At least 95 % of the arguments are annotated."""
    arguments = []
    for module, node in _nodes(tree):
        if isinstance(node, Function):
            a = node.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            arguments += [(module.path, arg) for arg in given if arg.arg not in ("self", "cls")]
    bare = [f"{path}:{arg.lineno} {arg.arg}" for path, arg in arguments if arg.annotation is None]
    if len(bare) > (1 - TYPED_SHARE) * len(arguments):
        return [f"{len(bare)} of {len(arguments)} arguments have no type: {bare[:10]}"]
    return []


def checks_have_messages(tree: Tree) -> list[str]:
    """Every assert and every raise says what was wrong. Raising an exception that already exists is fine."""
    faults = []
    for module, node in _nodes(tree):
        mute_assert = isinstance(node, ast.Assert) and node.msg is None
        if mute_assert or (isinstance(node, ast.Raise) and _is_mute(node.exc)):
            faults.append(f"{module.path}:{getattr(node, 'lineno', 0)} has no message: {ast.unparse(node)}")
    return faults


def _is_mute(exc: ast.expr | None) -> bool:
    called = exc.func if isinstance(exc, ast.Call) else exc
    if isinstance(exc, ast.Call) and (exc.args or exc.keywords):
        return False
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name.lstrip("_")[:1].isupper()


RULES = (
    layers,
    testing_is_for_tests,
    deepspeed_in_few_files,
    environment_in_one_file,
    no_torch_at_import,
    import_cycles,
    no_code_from_data,
    no_global_statement,
    file_sizes,
    function_sizes,
    typed_arguments,
    checks_have_messages,
)
