"""The same run twice has the same bits: losses, random draws, weights, moments. There are no loader threads to vary."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from tests.faults import policy_jobs, spike_jobs
from tests.faults.test_refused_steps import LAYOUTS, MORE

QUICK = ("one", "pp2")
ALL = {name: changes for name, changes in (LAYOUTS | MORE).items() if name != "sgd-dp2"}
PARAMS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.campaign) for name in ALL]


@pytest.mark.fault(12)
@pytest.mark.parametrize("layout", PARAMS)
def test_the_same_run_twice_is_bit_equal(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    write_tiny_dataset(tmp_path / "data")
    dropout = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}
    config = tiny_config(tmp_path, **ALL[layout], **dropout)
    first, second = (pool.run(policy_jobs.without, config.world_size, (config, (), 10)) for _ in range(2))
    for rank, (one, two) in enumerate(zip(first, second, strict=True)):
        assert one["losses"] == two["losses"] and one["draws"] == two["draws"], f"rank {rank}"
        assert not spike_jobs.differing(one["state"], two["state"]), f"rank {rank}"


def test_two_seeds_are_two_runs(pool: WorkerPool, tmp_path: Path) -> None:
    """The comparison above can fail."""
    write_tiny_dataset(tmp_path / "data")
    one, two = (
        pool.run(policy_jobs.without, 1, (tiny_config(tmp_path, training__seed=seed), (), 3))[0] for seed in (1, 2)
    )
    assert one["losses"] != two["losses"] and spike_jobs.differing(one["state"], two["state"])
