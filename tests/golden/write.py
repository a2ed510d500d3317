"""Rewrite losses.json: `python -m tests.golden.write` from the repository root. The commit says why they changed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from megatron_slw.testing import WorkerPool, tiny_config
from tests.train import engine_jobs


def main() -> None:
    """Train the golden run in one process and write its losses."""
    pool = WorkerPool()
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_config(folder, training__train_steps=20)
        losses = pool.run(engine_jobs.losses, 1, (config, False))[0]
    pool.close()
    content = {"test": "tests/train/test_engine.py::test_golden_losses", "relative_tolerance": 1e-5, "losses": losses}
    Path(__file__).with_name("losses.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
