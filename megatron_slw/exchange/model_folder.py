"""A folder as `save_pretrained` writes it: config.json and safetensors, whole or in shards. Nothing in it is run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_slw.config.errors import ConfigError, listing, reason, show
from megatron_slw.config.json_file import read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F32", "BF16", "F16")
MAX_INDEX_BYTES = 64 << 20
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what it is."""

    file: str
    dtype: str
    shape: tuple[int, ...]


class ModelFolder:
    """The settings and the tensors of a model on disk.

    Raises:
        ConfigError: no such folder, or a file of it is missing, damaged, or of a kind that runs code when read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ConfigError(f"{self.path} is not a folder. Give one with {CONFIG} and {WEIGHTS} in it.")
        if not (self.path / CONFIG).is_file():
            raise ConfigError(f"{self.path} has no {CONFIG}: it is not the folder of a Hugging Face model.")
        self.settings = self._json(CONFIG, 1 << 20)
        self.entries = self._entries()

    @property
    def files(self) -> list[Path]:
        """Those that the tensors lie in."""
        return [self.path / name for name in sorted({entry.file for entry in self.entries.values()})]

    def tensor(self, name: str) -> Tensor:
        """One tensor in the dtype it is stored in; ConfigError where its file cannot be read."""
        file = self.entries[name].file
        try:
            with safe_open(self.path / file, framework="pt") as opened:
                return opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{self.path / file} cannot be read: {reason(error)}.") from None

    def _entries(self) -> dict[str, Entry]:
        if (self.path / WEIGHTS).is_file():
            return self._in_file(WEIGHTS)
        if (self.path / INDEX).is_file():
            return self._in_shards()
        pickles = [path.name for path in self.path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        if pickles:
            raise ConfigError(
                f"{self.path} has its weights in {sorted(pickles)[0]}, a pickle, which can run any code when it is "
                "read. Where you trust it, save it as safetensors first: AutoModelForCausalLM.from_pretrained(FOLDER)"
                ".save_pretrained(NEW_FOLDER)."
            )
        raise ConfigError(f"{self.path} has neither {WEIGHTS} nor {INDEX}: there are no weights to import.")

    def _in_shards(self) -> dict[str, Entry]:
        where = self.path / INDEX
        table = self._json(INDEX, MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ConfigError(f"{where}: weight_map must be an object of tensors and their files.")
        names = sorted({name for name in table.values() if isinstance(name, str)})
        found: dict[str, Entry] = {}
        for name in names:
            if not _SHARD.fullmatch(name):
                raise ConfigError(f"{where} names {show(name)}, which is not a plain .safetensors file.")
            if not (self.path / name).is_file():
                raise ConfigError(f"{where} names {name}, which is not there. Copy the whole model again.")
            found |= {key: entry for key, entry in self._in_file(name).items() if table.get(key) == name}
        missing = [key for key in table if key not in found]
        if missing:
            raise ConfigError(f"{where} says {show(missing[0])} lies in {show(table[missing[0]])}, but it does not.")
        return found

    def _in_file(self, name: str) -> dict[str, Entry]:
        path = self.path / name
        found = {}
        try:
            with safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    piece = opened.get_slice(key)
                    found[key] = Entry(name, piece.get_dtype(), tuple(piece.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{path} is not a whole safetensors file ({reason(error)}). Copy it again; a few hundred bytes are the "
                "pointer that git-lfs leaves in its place."
            ) from None
        for key, entry in found.items():
            if entry.dtype not in DTYPES:
                raise ConfigError(f"{path}: {show(key)} is {entry.dtype}, but weights must be {listing(DTYPES)}.")
        return found

    def _json(self, name: str, limit: int) -> dict[str, Any]:
        try:
            return read_json(self.path / name, max_bytes=limit)
        except ConfigError as error:
            raise ConfigError(f"{self.path / name} {error}") from None
