"""The tasks that a model is judged by: from a file to rows of tokens, and from what these cost to figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.rules import check_task
from megatron_slw.config.schema import TaskConfig
from megatron_slw.data.corpus import TEXT_ENDINGS
from megatron_slw.data.document_text import utf8_size
from megatron_slw.data.tokenizer import Tokenizer
from megatron_slw.evaluation import lambada, wikitext
from megatron_slw.evaluation.perplexity import Score, bits_per_byte, safe_exp
from megatron_slw.evaluation.rows import Row, stream_rows
from megatron_slw.evaluation.scoring import RowScores
from megatron_slw.evaluation.text import document_stream, read_documents

Figures = dict[str, float | int]


@dataclass(frozen=True, eq=False)
class Task:
    """Ready to be scored by any model with this tokenizer."""

    name: str
    rows: tuple[Row, ...]
    figures: Callable[[RowScores], Figures]

    @property
    def tokens(self) -> int:
        """Labels that count."""
        return sum(row.counted for row in self.rows)


def open_task(settings: TaskConfig, tokenizer: Tokenizer, length: int) -> Task:
    """Read and encode a task's file.

    Args:
        settings: which task and file.
        tokenizer: the model's.
        length: of the model, in tokens.

    Raises:
        ConfigError: the file is missing, damaged, empty or of another task.
    """
    check_task(settings, length)
    return {"wikitext": _wikitext, "lambada": _lambada, "text": _text}[settings.task](settings, tokenizer, length)


def _some(settings: TaskConfig, found: Sequence[object]) -> None:
    if not found:
        raise ConfigError(f"{settings.data} has no text to score.")


def _text(settings: TaskConfig, tokenizer: Tokenizer, length: int) -> Task:
    texts = islice(read_documents(settings.data, settings.json_key or "text"), settings.limit)
    stream = document_stream(tokenizer, texts)
    rows = stream_rows(stream.ids, length, settings.stride, stream.starts)
    _some(settings, rows)

    def figures(scores: RowScores) -> Figures:
        score = _score(scores, rows)
        sizes: Figures = {"documents": stream.documents, "bytes": stream.text_bytes}
        return sizes | _per_token(score) | {"bits_per_byte": bits_per_byte(score.nats, stream.text_bytes)}

    return Task(settings.label, tuple(rows), figures)


def _wikitext(settings: TaskConfig, tokenizer: Tokenizer, length: int) -> Task:
    pages = list(islice(_articles(settings), settings.limit))
    _some(settings, "".join(pages).strip())
    eod = [] if tokenizer.info.eod_id is None else [tokenizer.info.eod_id]
    texts = [wikitext.detokenize(page) for page in pages] if settings.detokenize else pages
    rows = []
    for ids in tokenizer.encode_batch(texts):
        rows += stream_rows(np.asarray(eod + ids, np.int64), length, settings.stride)
    words = sum(wikitext.count_words(page) for page in pages)
    size = sum(utf8_size(page) for page in pages)

    def figures(scores: RowScores) -> Figures:
        score = _score(scores, rows)
        sizes: Figures = {"articles": len(pages), "bytes": size, "words": words}
        per_word = {"word_perplexity": safe_exp(score.nats / words)}
        return sizes | _per_token(score) | per_word | {"bits_per_byte": bits_per_byte(score.nats, size)}

    return Task(settings.label, tuple(rows), figures)


def _articles(settings: TaskConfig) -> list[str]:
    path = Path(settings.data)
    if not path.name.endswith(TEXT_ENDINGS):
        return [page for page in read_documents(path, settings.json_key or "page") if page.strip()]
    text = "".join(read_documents(path))
    if text.strip() and not any(wikitext.is_title(line) for line in text.splitlines()):
        raise ConfigError(f"{path} has no line like ' = Title = ': it is no WikiText file. Use the task text.")
    return wikitext.articles(text)


def _lambada(settings: TaskConfig, tokenizer: Tokenizer, length: int) -> Task:
    examples = list(islice(lambada.read_examples(settings.data), settings.limit))
    _some(settings, examples)
    rows = lambada.example_rows(tokenizer, examples, length, settings.data)

    def figures(scores: RowScores) -> Figures:
        nats, right = float(scores.nats.mean()), float(scores.greedy.mean())
        return {"examples": len(rows), "accuracy": right, "perplexity": safe_exp(nats)}

    return Task(settings.label, tuple(rows), figures)


def _score(scores: RowScores, rows: Sequence[Row]) -> Score:
    return Score(float(scores.nats.sum()), sum(row.counted for row in rows))


def _per_token(score: Score) -> Figures:
    return {"tokens": score.labels, "loss": score.loss, "perplexity": score.perplexity}
