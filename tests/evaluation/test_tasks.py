"""From files to figures: every figure is worked out by hand for a model that finds all tokens equally likely."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import TaskConfig
from megatron_slw.data.dataset_tokenizer import dataset_tokenizer
from megatron_slw.data.tokenizer import Tokenizer
from megatron_slw.evaluation.scoring import RowScores
from megatron_slw.evaluation.tasks import Task, open_task
from tests.evaluation.task_files import write_task_files

LENGTH = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Tokenizer:
    return dataset_tokenizer(data)


def opened(tokenizer: Tokenizer, task: str, path: Path, **changes: Any) -> Task:
    settings = {"task": task, "data": str(path), **changes}
    return open_task(TaskConfig.model_validate(settings), tokenizer, LENGTH)


def uniform(task: Task, nats: float = 2.0) -> dict[str, float]:
    """Figures where each label costs `nats`, and every other row is right."""
    counted = np.array([row.counted for row in task.rows])
    return task.figures(RowScores(nats * counted, np.arange(len(counted)) % 2 == 0))


def test_lambada_scores_the_whole_last_word(data: Path, tokenizer: Tokenizer) -> None:
    task = opened(tokenizer, "lambada", data.parent / "lambada.jsonl")
    lines = [json.loads(line) for line in (data.parent / "lambada.jsonl").read_text().splitlines()]
    tokens = []
    for row, line in zip(task.rows, lines, strict=True):
        ids = row.ids.tolist()
        assert row.labels <= LENGTH
        assert tokenizer.decode(ids[1 + row.scored :]) == " lantern"
        text = f"{line['context']} {line['continuation']}"
        assert text.endswith(tokenizer.decode(ids)), "cut at the left where it is longer than the model"
        tokens.append(row.counted)
    assert max(row.labels for row in task.rows) == LENGTH, "one is long enough to be cut"
    figures = uniform(task)
    assert figures["examples"] == 9 and figures["accuracy"] == pytest.approx(5 / 9)
    assert figures["perplexity"] == pytest.approx(math.exp(2 * np.mean(tokens)))


def test_lambada_takes_passages_too(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (data.parent / "lambada.jsonl").read_text().splitlines()]
    passages = [json.dumps({"text": f"{line['context']} {line['continuation']}"}) for line in lines]
    (tmp_path / "p.jsonl").write_text("\n".join(passages))
    both = (data.parent / "lambada.jsonl", tmp_path / "p.jsonl")
    one, other = (opened(tokenizer, "lambada", path, limit=4) for path in both)
    assert [row.ids.tolist() for row in one.rows] == [row.ids.tolist() for row in other.rows]
    assert [row.scored for row in one.rows] == [row.scored for row in other.rows] and len(one.rows) == 4


def test_wikitext_counts_each_token_once_and_words_as_written(data: Path, tokenizer: Tokenizer) -> None:
    path = data.parent / "wikitext.txt"
    text = path.read_text()
    for stride in (None, 8, 1):
        task = opened(tokenizer, "wikitext", path, stride=stride)
        assert all(row.labels == LENGTH for row in task.rows)
        eod = tokenizer.info.eod_id
        assert [int(row.ids[0]) == eod for row in task.rows].count(True) >= 2, "an article begins after end of document"
        figures = uniform(task)
        assert figures["tokens"] == task.tokens and figures["loss"] == pytest.approx(2.0)
        assert (figures["articles"], figures["bytes"]) == (2, len(text.encode()))
        assert figures["word_perplexity"] == pytest.approx(math.exp(2 * task.tokens / figures["words"]))
        assert figures["bits_per_byte"] == pytest.approx(2 * task.tokens / math.log(2) / len(text.encode()))
        assert len({task.tokens, opened(tokenizer, "wikitext", path).tokens}) == 1
    first = opened(tokenizer, "wikitext", path, limit=1)
    assert uniform(first)["articles"] == 1


def test_wikitext_raw_and_detokenized(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = data.parent / "wikitext.txt"
    raw, plain = opened(tokenizer, "wikitext", path, detokenize=False), opened(tokenizer, "wikitext", path)
    text, detokenized = (tokenizer.decode(task.rows[0].ids[1:]) for task in (raw, plain))
    assert text.startswith(" \n = Old <unk> = \n \n") and detokenized.startswith("\n= Old <unk> =\n\n")
    assert raw.tokens > plain.tokens
    (tmp_path / "pages.jsonl").write_text(
        "\n".join(json.dumps({"page": page}) for page in (" \n = A = \n \n x", " = B = \n \n y"))
    )
    assert uniform(opened(tokenizer, "wikitext", tmp_path / "pages.jsonl"))["articles"] == 2


def test_text_is_scored_as_training_saw_it(data: Path, tokenizer: Tokenizer) -> None:
    task = opened(tokenizer, "text", data.parent / "text.jsonl", limit=3)
    texts = [json.loads(line)["text"] for line in (data.parent / "text.jsonl").read_text().splitlines()[:3]]
    ids = sum(([*tokenizer.encode_batch([text])[0], tokenizer.info.eod_id] for text in texts), [])
    figures = uniform(task)
    assert figures == {
        "documents": 3, "bytes": len("".join(texts).encode()), "tokens": len(ids), "loss": pytest.approx(2.0),
        "perplexity": pytest.approx(math.exp(2)),
        "bits_per_byte": pytest.approx(2 * len(ids) / math.log(2) / len("".join(texts).encode())),
    }  # fmt: skip


WRONG = {
    "lambada as text": ("text", '{"context": "a b", "continuation": "c"}\n', "x.jsonl", 'line 1 has no key "text"'),
    "lambada as wikitext": ("wikitext", '{"context": "a", "continuation": "c"}\n', "x.jsonl", 'has no key "page"'),
    "text as wikitext": ("wikitext", "Just words.\n", "x.txt", "it is no WikiText file. Use the task text"),
    "wikitext as lambada": ("lambada", " = A = \n", "x.txt", "is no LAMBADA file"),
    "questions as lambada": ("lambada", '{"question": "a", "answer": "b"}\n', "x.jsonl", 'line 1 has no key "context"'),
    "no word": ("lambada", '{"text": "word"}\n', "x.jsonl", "line 1 has no word after a context"),
    "empty word": ("lambada", '{"context": "a b", "continuation": " "}\n', "x.jsonl", "line 1 has no word"),
    "cut short": ("lambada", '{"text": "a b c"}\n{"text": "a b', "x.jsonl", "line 2 is not valid JSON"),
    "cut in a character": ("wikitext", b" = A = \n \n \xe2\x80", "x.txt", "is not valid UTF-8"),
    "empty jsonl": ("lambada", "\n\n", "x.jsonl", "has no text to score"),
    "empty text": ("text", "", "x.txt", "has no text to score"),
    "empty wikitext": ("wikitext", " \n", "x.txt", "has no text to score"),
    "unknown ending": ("text", "x", "x.csv", "must end in .jsonl"),
    "lists": ("text", "[1]\n", "x.jsonl", "line 1 is not a JSON object"),
    "damaged gzip": ("text", b"\x1f\x8b\x08\x00\x00", "x.txt.gz", "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_one_sentence(tokenizer: Tokenizer, tmp_path: Path, case: str) -> None:
    task, content, name, message = WRONG[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        opened(tokenizer, task, path)
    text = str(caught.value)
    assert message in text and str(path) in text and "\n" not in text and text.endswith("."), text


def test_figures_survive_a_hopeless_model(data: Path, tokenizer: Tokenizer) -> None:
    task = opened(tokenizer, "lambada", data.parent / "lambada.jsonl")
    assert uniform(task, 1e4)["perplexity"] == math.inf
    assert uniform(opened(tokenizer, "wikitext", data.parent / "wikitext.txt"), 1e4)["perplexity"] == math.inf
