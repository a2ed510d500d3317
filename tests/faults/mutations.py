"""Files made wrong by a seed: bytes of any file, and the values in a JSON file. The same seed makes the same file."""

from __future__ import annotations

import json
import random
from typing import Any

EXPRESSION = "__import__('os').system('touch executed')"
"""What would leave a file behind if anything evaluated it."""
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**53 + 1, 2**63, 10**19, -(2**63), 1e308, -0.0, 5e-324, 0.5, "", " ", "0",
    "\x00", "\ud800", "../../etc/passwd", "/dev/zero", "%s%n{0}${HOME}$(touch executed)", EXPRESSION, "os:system",
    "\u202e\U0001f98a", "x" * 70_000, [], {}, [[]], [None], {"": {}}, {"__class__": "object", "__proto__": 1},
)  # fmt: skip
TEXTS = (
    "NaN", "-Infinity", "1e999", "1" * 5000, "[" * 100_000, '{"a":' * 50_000, '"\\ud800"', '"\\u0000"', "//", "'x'",
    "0x10", "01", "1.", "\ufeff", "{} {}",
)  # fmt: skip
"""What is put into the text of a JSON file as it stands."""


def mutated_bytes(content: bytes, seed: int) -> bytes:
    """One to eight changes: flipped bits, bytes put in, taken out, doubled or moved, numbers at their limits, a cut."""
    chosen, data = random.Random(seed), bytearray(content)
    for _ in range(chosen.choice((1, 1, 1, 2, 4, 8))):
        at, size = chosen.randrange(len(data) + 1), chosen.choice((1, 2, 4, 8, 64, 1000))
        kind = chosen.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chosen.randrange(8)
        elif kind == 1:
            data[at:at] = chosen.randbytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size] * chosen.choice((1, 2, 50))
        elif kind == 4:
            source = chosen.randrange(len(data) + 1)
            data[at : at + size] = data[source : source + size]
        elif kind == 5:
            data[at : at + size] = chosen.choice((b"\xff", b"\x00", b"\x7f", b"\x80")) * size
        elif kind == 6:
            data[at:at] = chosen.choice(TEXTS).encode("utf-8", "surrogatepass")
        elif chosen.random() < 0.3:
            del data[at:]
    return bytes(data)


def mutated_json(content: bytes, seed: int) -> bytes:
    """Every third one by its bytes; the others stay JSON, with one to three values or names changed."""
    if seed % 3 == 0:
        return mutated_bytes(content, seed)
    chosen = random.Random(seed)
    tree = json.loads(content)
    for _ in range(chosen.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            break
        owner, key = chosen.choice(places)
        kind = chosen.randrange(6)
        if kind < 3:
            owner[key] = chosen.choice(VALUES)
        elif kind == 3:
            del owner[key]
        elif kind == 4:
            other, name = chosen.choice(places)
            owner[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
        elif isinstance(owner, dict):
            owner[chosen.choice(("enabled", "type", "", EXPRESSION, f"{key}s", "x" * 5000))] = owner.pop(key)
        else:
            owner += owner[:1] * 3
    return json.dumps(tree).encode()


def _keys(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else range(len(owner))


def _places(tree: Any) -> Any:
    """Every (object or list, key) of a tree; of long lists and objects the first 50."""
    if isinstance(tree, dict | list):
        for key in list(_keys(tree))[:50]:
            yield tree, key
            yield from _places(tree[key])
