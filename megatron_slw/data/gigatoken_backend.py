"""--backend gigatoken: the same ids from the package of that name, where it is installed.

It remembers the words it has seen, so that it is many times faster than tiktoken on a corpus. Before it is used
it must give the ids of the reference library for a text of awkward cases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.tiktoken_ranks import RANK_ENDING
from megatron_slw.data.tokenizer_interface import FlatIds, LoadedTokenizer, TokenizerSpec

PROBE = (
    "It's the year 1999, isn't it? I'LL we'Ve don't x's\n\n\n  indented\t\ttabs \r\n end  ",
    "déjà vu, Ελληνικά, русский, 東京都は日本の首都。 한국어 עברית العربية हिन्दी ภาษาไทย 🦊👩‍👩‍👧",
    "e\u0301 \u00a0\u2003\u3000x",
    "<|endoftext|> </s> <s> <unk> <pad> <0x0A> \u2581 ___ --- //// \\n {}[]()<>=!=+-*/ 3.14159e-10 0xFFFF ½²Ⅳ٣",
    "a" * 300 + " " * 300 + "\n" * 300 + "\ufeff\u200b\x00\x1f\x85 \ufffd \U0010ffff ﬁ ｆｕｌｌ Ⅷ ",
    "",
    " ",
)
"""Contractions, runs of white space, scripts, combining marks, special tokens as text, odd code points."""


def with_gigatoken(spec: TokenizerSpec, reference: LoadedTokenizer) -> LoadedTokenizer:
    """`reference` with the encoder of gigatoken.

    Raises:
        ConfigError: it is not installed, does not read this tokenizer, or gives other ids.
    """
    try:
        import gigatoken
    except ImportError:
        raise ConfigError(
            "--backend gigatoken needs the package gigatoken: pip install gigatoken, or leave --backend out."
        ) from None
    name = reference.info.name
    try:
        encoder = _encoder(gigatoken, spec, reference.library)
        flat = _flat(encoder)
        found = flat(PROBE)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"gigatoken cannot use {name} ({reason}). Leave --backend out.") from None
    expected = reference.encode_flat(PROBE)
    if not all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True)):
        raise ConfigError(f"gigatoken gives other ids than the reference library for {name}. Leave --backend out.")
    return replace(reference, flat=flat)


def _encoder(gigatoken: Any, spec: TokenizerSpec, library: Any) -> Any:
    model = spec.tokenizer_model or spec.vocab_file or ""
    if model.endswith(RANK_ENDING):
        # Without special tokens: text is text.
        kinds = {"gpt2": "gpt2", "r50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}
        kind = "gpt2" if spec.type == "GPT2BPETokenizer" else kinds.get(Path(model).name.removesuffix(RANK_ENDING))
        if kind is None:
            raise ConfigError(f"gigatoken cannot use {model}. Leave --backend out.")
        return gigatoken.Tokenizer.from_tiktoken(model, kind, {})
    if spec.type == "SentencePieceTokenizer":
        return gigatoken.Tokenizer.from_sentencepiece(model)
    if spec.type == "TikTokenizer":
        raise ConfigError(f"--backend gigatoken needs a file: give {model}{RANK_ENDING} as --tokenizer-model.")
    data = json.loads(library.to_str())
    data["added_tokens"] = [token for token in data.get("added_tokens", ()) if not token["special"]]
    data["post_processor"] = None
    return gigatoken.Tokenizer.from_json(json.dumps(data))


def _flat(encoder: Any) -> Callable[[Sequence[str]], FlatIds]:
    def flat(texts: Sequence[str]) -> FlatIds:
        if not texts:
            return FlatIds(np.empty(0, np.uint32), np.empty(0, np.int64))
        # parallel=False: every worker of the preprocessing is a process of its own.
        layout = encoder.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data).astype(np.int64)
        return FlatIds(np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets))

    return flat
