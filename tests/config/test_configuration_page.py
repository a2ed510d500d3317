"""docs/configuration.md lists every setting with its type and default, as the schema has them."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config import schema
from megatron_slw.config.load import resolve

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
SECTIONS: dict[str, type[schema.Section]] = {
    "`megatron_slw.model`": schema.ModelConfig,
    "`megatron_slw.parallel`": schema.ParallelConfig,
    "`megatron_slw.data`": schema.DataConfig,
    "`megatron_slw.training`": schema.TrainingConfig,
    "`megatron_slw.evaluation`": schema.EvaluationConfig,
    "A task of `megatron_slw.evaluation.tasks`": schema.TaskConfig,
    "`megatron_slw.checkpoint`": schema.CheckpointConfig,
    "`megatron_slw.logging`": schema.LoggingConfig,
    "`megatron_slw.logging.wandb`": schema.WandbConfig,
    "`megatron_slw.ops`": schema.OpsConfig,
    "`optimizer`": schema.OptimizerConfig,
    "The curriculum": schema.CurriculumConfig,
}
WORDS = {
    "PositiveInt": "integer > 0",
    "NonNegativeInt": "integer >= 0",
    "Probability": "number in [0, 1)",
    "NonNegativeFloat": "number >= 0",
    "PositiveFloat": "number > 0",
    "NegativeFloat": "number < 0",
    "Fraction01": "number in (0, 1]",
    "AtLeastTwo": "integer >= 2",
    "Switch": "true or false",
    "Text": "text",
    "DataPath": "text or list",
    "WandbConfig": "object",
    "None": "null",
    "TaskConfig": "task",
}


def in_words(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.BinOp):
        return f"{in_words(annotation.left)} or {in_words(annotation.right)}"
    if isinstance(annotation, ast.Subscript):
        items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if ast.unparse(annotation.value) == "Literal":
            *first, last = [str(ast.literal_eval(item)) for item in items]
            return f"{', '.join(first)} or {last}" if first else last
        element = in_words(items[0])
        if element == "task":
            return "list of tasks"
        return f"list of {element}" if ast.unparse(items[1]) == "..." else f"{len(items)} x {element}"
    return WORDS[ast.unparse(annotation)]


def in_text(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(map(in_text, default))
    return default if isinstance(default, str) else json.dumps(default)


def rows_of_schema(cls: type[schema.Section]) -> dict[str, tuple[str, str]]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef), f"{cls} is no class"
    types = {ast.unparse(n.target): in_words(n.annotation) for n in body.body if isinstance(n, ast.AnnAssign)}
    fields = cls.model_fields
    return {
        name: (kind, "required" if fields[name].is_required() else in_text(fields[name].default))
        for name, kind in types.items()
    }


def rows_of_page(title: str) -> dict[str, tuple[str, str]]:
    part = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]*) \| ([^|]+) \|$", part, flags=re.M)
    assert all(len(meaning) > 8 for *_, meaning in rows), f"a setting of {title} has no meaning"
    return {name: (kind, default.strip()) for name, kind, default, _ in rows}


@pytest.mark.parametrize("title", SECTIONS)
def test_page_lists_the_settings_of(title: str) -> None:
    assert rows_of_page(title) == rows_of_schema(SECTIONS[title])


def test_no_section_is_left_out() -> None:
    sections = {
        cls for _, cls in inspect.getmembers(schema, inspect.isclass) if issubclass(cls, schema.Section)
    }
    assert sections == set(SECTIONS.values()) | {schema.Section, schema.RunConfig}


def test_the_example_is_a_valid_run() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), flags=re.S)
    config = resolve(json.loads(example), world_size=64)
    assert config.gradient_accumulation_steps == 1 and config.curriculum is not None
