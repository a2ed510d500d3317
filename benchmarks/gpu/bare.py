"""What the model imports but a bare GPU machine lacks: stand-ins for pydantic and DeepSpeed.

The benchmarks run the model's forward and backward alone. Of pydantic it needs classes with default values, of
DeepSpeed nothing but names. Where the real packages are installed they are used.
"""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec
from typing import Any

PACKAGES = {
    "pydantic": ("pydantic", "pydantic_core"),
    "deepspeed": (
        "deepspeed", "deepspeed.accelerator", "deepspeed.runtime", "deepspeed.runtime.pipe",
        "deepspeed.runtime.pipe.topology", "deepspeed.pipe",
    ),
}  # fmt: skip


class Record:
    """For pydantic.BaseModel: attributes from keywords, the others from the class."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def model_copy(self, update: dict[str, Any]) -> Record:
        """Another one with some attributes changed."""
        return type(self)(**vars(self) | update)


class Anything(Exception):
    """For every other name: it can be called, subclassed, raised and annotated with."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def stand_in() -> list[str]:
    """Put stand-ins in place of the packages that are not installed; return their names."""
    missing = []
    for package, modules in PACKAGES.items():
        if find_spec(package) is not None:
            continue
        missing.append(package)
        for name in modules:
            module = types.ModuleType(name)
            module.__getattr__ = lambda attribute: _value_of(attribute)  # type: ignore[method-assign]
            module.__path__ = []
            sys.modules[name] = module
    return missing


def _value_of(attribute: str) -> Any:
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return Record if attribute == "BaseModel" else Anything
