"""A small dataset with its tokenizer, and files of each task in the same words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec
from megatron_slw.data.tokenizer_training import train_byte_level_bpe

WORDS = ["stone", "river", "lantern", "of", "the", "a", "walks", "sees", "quietly", "old", "“gate”", "and", "1 @,@ 000"]


def sentence(generator: np.random.Generator, words: int) -> str:
    return " ".join(generator.choice(WORDS, words))


def write_task_files(folder: Path, texts: list[str] | None = None) -> Path:
    """Write lambada.jsonl, wikitext.txt and text.jsonl (of `texts`) into `folder`; the prefix of the dataset.

    The dataset has 280 ids, its tokenizer lies beside it.
    """
    generator = np.random.default_rng(11)
    texts = texts or [sentence(generator, int(count)) for count in generator.integers(5, 60, 60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pairs = [{"context": sentence(generator, int(n)), "continuation": "lantern"} for n in generator.integers(3, 20, 9)]
    (folder / "lambada.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    pages = [f" = {title} = \n \n {sentence(generator, 40)} . \n \n" for title in ("Old <unk>", "River")]
    (folder / "wikitext.txt").write_text(" \n" + "".join(pages))
    train_byte_level_bpe([str(folder / "text.jsonl")], str(folder / "tokenizer.json"), 280, ["text"])
    spec = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(folder / "tokenizer.json"))
    preprocess(PreprocessSettings((str(folder / "text.jsonl"),), str(folder / "data"), spec, append_eod=True))
    return folder / "data_text_document"
