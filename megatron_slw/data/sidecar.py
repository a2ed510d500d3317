"""PREFIX.json: what a token dataset was made with and what its files must be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.data.inputs import Sources
from megatron_slw.data.layout import AGAIN

FORMAT = "megatron_slw token dataset"
VERSION = 2
"""1 had no field after idx_sha256; it is still read."""
_LARGEST = 1 << 20
_CHUNK = 1 << 22


@dataclass(frozen=True)
class TokenizerInfo:
    """What tells one tokenizer from another."""

    type: str
    """As --tokenizer-type names it."""
    name: str
    """File name without its folder, or the name of the encoding."""
    sha256: str
    """Of the tokenizer's file, or of the SHA-256s of its files."""
    vocab_size: int
    """Every id lies below it."""
    eod_id: int | None
    """The id that ends a document, where the tokenizer has one."""


@dataclass(frozen=True)
class Sidecar:
    """The facts beside a dataset. Equal input, tokenizer and flags give equal sidecars."""

    tokenizer: TokenizerInfo | None
    documents: int
    empty_documents: int
    """Read, but left out of the dataset."""
    tokens: int
    text_bytes: int | None
    """UTF-8 bytes of the text; bits per byte are reckoned with it."""
    bin_sha256: str
    idx_sha256: str
    skipped_documents: dict[str, int] = field(default_factory=dict)
    """Left out by --on-error, by what was wrong with them."""
    replaced_documents: int = 0
    """In which --on-error replace put U+FFFD."""
    shuffle_seed: int | None = None
    """Of --shuffle-documents; None is the order of the input."""
    sources: Sources | None = None
    """The files it was made of."""

    def to_json(self) -> dict[str, object]:
        """Return the JSON object `from_json` reads back."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, object], path: Path) -> Sidecar:
        """Read what `to_json` wrote; a missing, unknown or wrongly typed field raises ConfigError."""
        version = data.get("version")
        if version not in (1, VERSION) or isinstance(version, bool):
            raise ConfigError(f"{path}: version is {show(version)}, only 1 and {VERSION} are known. {AGAIN}")
        newer = _SINCE_2 if version == 1 else ()
        names = {*cls.__dataclass_fields__, "format", "version"}.difference(newer)
        if set(data) != names:
            raise ConfigError(f"{path}: {show(sorted(names ^ set(data)))} missing or unknown. {AGAIN}")
        tokenizer = _tokenizer_info(data["tokenizer"], path)
        return cls(
            tokenizer=tokenizer,
            documents=_whole(data, "documents", path),
            empty_documents=_whole(data, "empty_documents", path),
            tokens=_whole(data, "tokens", path),
            text_bytes=None if data["text_bytes"] is None else _whole(data, "text_bytes", path),
            bin_sha256=_text(data, "bin_sha256", path),
            idx_sha256=_text(data, "idx_sha256", path),
            **({} if version == 1 else _read_since_2(data, path)),
        )


_SINCE_2 = ("skipped_documents", "replaced_documents", "shuffle_seed", "sources")


def _read_since_2(data: Mapping[str, object], path: Path) -> dict[str, Any]:
    """The fields of version 2."""
    skipped, sources = data["skipped_documents"], data["sources"]
    if not isinstance(skipped, dict):
        raise ConfigError(f"{path}: skipped_documents must be an object, but is {show(skipped)}. {AGAIN}")
    if sources is not None and (not isinstance(sources, dict) or set(sources) != set(Sources.__dataclass_fields__)):
        raise ConfigError(f"{path}: sources is {show(sources)}, not its four fields. {AGAIN}")
    return {
        "skipped_documents": {kind: _whole(skipped, kind, path) for kind in skipped},
        "replaced_documents": _whole(data, "replaced_documents", path),
        "shuffle_seed": None if data["shuffle_seed"] is None else _whole(data, "shuffle_seed", path),
        "sources": None if sources is None else _sources(sources, path),
    }


def _sources(data: Mapping[str, object], path: Path) -> Sources:
    first = data["first"]
    if not isinstance(first, list) or not all(isinstance(file, list) and len(file) == 2 for file in first):
        raise ConfigError(f"{path}: sources.first must be a list of names and sizes, but is {show(first)}. {AGAIN}")
    return Sources(_whole(data, "files", path), _whole(data, "bytes", path), _text(data, "sha256", path), first)


def read_sidecar(path: Path) -> Sidecar | None:
    """Read PREFIX.json; None where there is none, or where the file is something else of the user's.

    Raises:
        ConfigError: a sidecar that is damaged, naming the file and the field.
    """
    try:
        if path.stat().st_size > _LARGEST:
            return None
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}). {AGAIN}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        return None
    return Sidecar.from_json(data, path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces of bounded size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _tokenizer_info(data: object, path: Path) -> TokenizerInfo | None:
    if data is None:
        return None
    if not isinstance(data, dict) or set(data) != set(TokenizerInfo.__dataclass_fields__):
        raise ConfigError(f"{path}: tokenizer is {show(data)}, not its five fields. {AGAIN}")
    for word in _text(data, "name", path).split(" "):  # GPT-2's has two files
        if not _is_plain(word):
            raise ConfigError(f"{path}: tokenizer.name {show(data['name'])} is not the name of a file. {AGAIN}")
    return TokenizerInfo(
        type=_text(data, "type", path),
        name=_text(data, "name", path),
        sha256=_text(data, "sha256", path),
        vocab_size=_whole(data, "vocab_size", path),
        eod_id=None if data["eod_id"] is None else _whole(data, "eod_id", path),
    )


def _is_plain(name: str) -> bool:
    """Whether it names a file in a folder and nothing outside of it."""
    return name not in (".", "..") and "/" not in name and "\\" not in name and name.isprintable()


def _whole(data: Mapping[str, object], field: str, path: Path) -> int:
    value = data[field]
    if type(value) is not int or value < 0:
        raise ConfigError(f"{path}: {field} must be a whole number, but is {show(value)}. {AGAIN}")
    return value


def _text(data: Mapping[str, object], field: str, path: Path) -> str:
    value = data[field]
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {field} must be a string, but is {show(value)}. {AGAIN}")
    return value
