"""Small texts, and a tokenizer trained on them, for tests of preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_slw.data.tokenizer import TokenizerSpec
from megatron_slw.data.tokenizer_training import train_byte_level_bpe

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n" * 5,
    "",
    "def get(self, name):\n    return self.values[name]  # déjà vu, 東京, 🦊\n" * 7,
    "a",
    "<|endoftext|> is only text here, and so is </s>.",
    "0123456789 " * 40,
]


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    """Write one object a line, with another key beside the text."""
    path.write_text("".join(json.dumps({key: text, "number": i}) + "\n" for i, text in enumerate(texts)))
    return path


def small_tokenizer(folder: Path) -> TokenizerSpec:
    """Train 300 pieces on the texts; a second or less."""
    write_jsonl(folder / "train.jsonl", TEXTS)
    path = str(folder / "tokenizer.json")
    train_byte_level_bpe([str(folder / "train.jsonl")], path, 300)
    return TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=path)
