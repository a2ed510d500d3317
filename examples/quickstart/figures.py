"""What came out: held-out bits per byte beside gzip's, samples, and how fast the training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.evaluation.baselines import gzip_bits_per_byte, unigram_bits_per_byte
from megatron_slw.train.metrics import read_metrics

FORMULA = "-log p of every held-out token (those that end documents too) in nats / ln 2 / UTF-8 bytes of the text"
SAMPLE_TOKENS = 80
SAMPLE_PROMPTS = ("def get_path(self, name", "class ParseError(", "    def __init__(self")


def training_figures(metrics: Path, tokens_before: int = 0) -> dict[str, Any]:
    """Steps, tokens, speed and losses of a finished stage of a run.

    Args:
        metrics: its metrics.jsonl.
        tokens_before: trained before it began; its speed is that of the others.
    """
    steps, evaluations = read_metrics(metrics)
    seconds = sum(record["step_time_s"] for record in steps)
    return {
        "steps": len(steps),
        "tokens": steps[-1]["tokens"],
        "tokens_before": tokens_before,
        "tokens_per_s": round((steps[-1]["tokens"] - tokens_before) / seconds, 1),
        "train_s": round(seconds, 1),
        "resumed_at_steps": [record["step"] - 1 for record in steps if record.get("resumed")],
        "val_loss": evaluations[-1]["val_loss"] if evaluations else None,
        "flops": steps[-1]["flops"],
    }


def whole_run(small: Mapping[str, Any], grown: Mapping[str, Any], growth: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of both stages together, from those of each; `growth` has what the grown one's count began with."""
    seconds = small["train_s"] + grown["train_s"]
    return {
        "steps": small["steps"] + grown["steps"],
        "tokens": grown["tokens"],
        "tokens_per_s": round(grown["tokens"] / seconds, 1),
        "train_s": round(seconds, 1),
        "resumed_at_steps": small["resumed_at_steps"] + grown["resumed_at_steps"],
        "val_loss": grown["val_loss"],
        "flops": small["flops"] + grown["flops"] - growth["flops_before"],
        "flops_without_growth": grown["flops"],
    }


def held_out_figures(checkpoint: Path, dataset: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Bits per byte of all held-out text: under the model at full length, by gzip -9, and by single bytes.

    Args:
        checkpoint: the model.
        dataset: prefix of the held-out documents' tokens, each document with its end-of-document token.
        texts: the same documents.

    Raises:
        ConfigError: the dataset is not of these documents.
    """
    from megatron_slw.checkpoint.inference import load_model  # torch: seconds that the other steps save
    from megatron_slw.evaluation.perplexity import Score, bits_per_byte
    from megatron_slw.evaluation.rows import stream_rows
    from megatron_slw.evaluation.scoring import ScoredModel, score_rows

    tokens = IndexedDataset(dataset)
    joined = "".join(texts).encode()
    sidecar = tokens.sidecar
    if sidecar is None or sidecar.tokenizer is None or sidecar.text_bytes != len(joined):
        raise ConfigError(f"{dataset} is not of the {len(joined):,} bytes that were held out. Remove its folder.")
    loaded = load_model(checkpoint)
    # Training saw an end-of-document token before each document; here it is the first one's context.
    stream = np.concatenate([[sidecar.tokenizer.eod_id], tokens.tokens])
    rows = stream_rows(stream, loaded.config.model.seq_length)
    found = score_rows(ScoredModel.alone(loaded.model, loaded.config), rows)
    score = Score(float(found.nats.sum()), len(stream) - 1)
    return {
        "val_bits_per_byte": round(bits_per_byte(score.nats, len(joined)), 4),
        "gzip_bits_per_byte": round(gzip_bits_per_byte(joined), 4),
        "unigram_bits_per_byte": round(unigram_bits_per_byte(joined), 4),
        "held_out_bytes": len(joined),
        "held_out_tokens": score.labels,
        "held_out_loss": round(score.loss, 4),
        "bits_per_byte_is": FORMULA,
    }


def write_samples(checkpoint: Path, dataset: Path, prompts: Sequence[str]) -> list[str]:
    """One text for each prompt, prompt included: temperature 0.8, top-k 50."""
    from megatron_slw.checkpoint.inference import load_model
    from megatron_slw.evaluation.generate import writer_of
    from megatron_slw.evaluation.sampling import Sampling
    from megatron_slw.evaluation.text import dataset_tokenizer

    loaded = load_model(checkpoint, verify=False)
    tokenizer = dataset_tokenizer(dataset)
    writer, sampling = writer_of(loaded, tokenizer), Sampling(temperature=0.8, top_k=50, seed=1)
    return [prompt + writer.write([prompt], SAMPLE_TOKENS, sampling)[0] for prompt in prompts]


def first_words(text: str, words: int = 4, characters: int = 40) -> str:
    """The beginning of a text, as a prompt."""
    return " ".join(text.split()[:words])[:characters]
