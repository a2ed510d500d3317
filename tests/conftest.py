"""Fixtures shared by every test: the pool of gloo processes, and the folder of evaluation text."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_slw.testing import WorkerPool

SHARED_TEXT = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-results", metavar="FILE", help="write what the fault campaign withstood, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background job is born deaf to Ctrl-C, and so would be every process that a test interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pool() -> Iterator[WorkerPool]:
    """Processes that every distributed test of the session borrows."""
    workers = WorkerPool()
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def shared_text() -> Path:
    """Folder of evaluation text that is not part of the repository; the test is skipped where it is absent."""
    if not SHARED_TEXT.is_dir():
        pytest.skip(f"no evaluation text in {SHARED_TEXT}")
    return SHARED_TEXT
