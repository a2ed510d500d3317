"""A job on a blend of corpora, and what it does when the data is not what its checkpoint was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train.job import open_data
from tests.checkpoint import jobs
from tests.data.token_datasets import TOKENIZER, write_dataset


def blended(folder: Path, **changes: Any) -> RunConfig:
    path = (0.25, f"{folder}/a", 0.75, f"{folder}/b")
    return tiny_config(folder, data__path=path, evaluation__interval=5, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "a", documents=100, seed=1)
    write_tiny_dataset(tmp_path / "b", documents=100, seed=2)
    return tmp_path


def test_a_blend_trains_the_same_batches_on_two_ranks_and_after_a_resume(pool: WorkerPool, folder: Path) -> None:
    straight = pool.run(jobs.run, 1, (blended(folder), 8, (4,)))[0]
    resumed = pool.run(jobs.run, 2, (blended(folder, world_size=2), 8))
    assert resumed[0]["start"].step == 4 and sorted(resumed[0]["losses"]) == [4, 5, 6, 7]
    for step, loss in resumed[0]["losses"].items():
        both = np.concatenate([rank["tokens"][step] for rank in resumed])
        assert np.array_equal(both, straight["tokens"][step]), f"step {step} read other tokens"
        assert loss == pytest.approx(straight["losses"][step], rel=1e-4)


def test_a_resume_on_changed_data_is_refused_unless_allowed(
    pool: WorkerPool, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = blended(folder)
    pool.run(jobs.run, 1, (config, 4, (4,)))
    pool.run(jobs.run, 1, (config, 5))  # nothing has changed
    for changes, fact in (
        ({"data__path": (0.5, f"{folder}/a", 0.5, f"{folder}/b")}, r"corpora\.1\.share 3, but this run's has 1"),
        ({"training__seed": 7}, "seed 1234, but this run's has 7"),
        ({"data": {"split": "900,99,1"}}, "split '949,50,1', but this run's has '900,99,1'"),
    ):
        changed = tiny_config(folder, **({"data__path": config.data.path, "evaluation__interval": 5} | changes))
        with pytest.raises(Exception, match=f"ConfigError: .*dataset with {fact}.*data.allow_changed to true"):
            pool.run(jobs.run, 1, (changed, 5))
    write_tiny_dataset(folder / "b", documents=100, seed=3)
    with pytest.raises(Exception, match=r"dataset with corpora\.1\.\w+ .*data.allow_changed"):
        pool.run(jobs.run, 1, (config, 5))
    capfd.readouterr()
    allowed = tiny_config(folder, data={"path": config.data.path, "allow_changed": True}, evaluation__interval=5)
    (result,) = pool.run(jobs.run, 1, (allowed, 5))
    assert result["start"].step == 4
    assert "warning: " in (said := capfd.readouterr().err) and "going on" in said


def test_corpora_of_two_tokenizers_are_refused(pool: WorkerPool, folder: Path) -> None:
    write_dataset(folder / "a", [range(300)] * 20, tokenizer=replace(TOKENIZER, vocab_size=300))
    write_dataset(folder / "b", [range(300)] * 20, tokenizer=replace(TOKENIZER, vocab_size=300, sha256="cd" * 32))
    with pytest.raises(Exception, match=r"a was made with tokenizer.json .* but .*b with tokenizer.json \(cdcd"):
        pool.run(jobs.run, 1, (blended(folder), 1))


def test_ids_of_every_corpus_without_a_tokenizer_are_read(pool: WorkerPool, folder: Path) -> None:
    write_tiny_dataset(folder / "b", documents=100, vocab_size=400, seed=2)
    with pytest.raises(Exception, match=r"b\.bin: document \d+ has token id 3\d\d"):
        pool.run(jobs.run, 1, (blended(folder), 1))


def test_weights_of_too_many_digits_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data__path=(0.1234567, "nowhere/a", 1, "nowhere/b"))
    with pytest.raises(ConfigError, match="fewer digits"):
        open_data(config)
