"""Counts what the fault tests inject. `make faults` runs them all; `make test` those without the `campaign` mark.

A test of this folder carries `@pytest.mark.fault(ROW)`, the row of the scoreboard. Each injection is one parametrized
test where it can be, so that its id, with the seed in it, is what replays it. A test that injects many in a loop says
how many by the `injections` fixture, and prints the seed of the one that failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.scoreboard import ROWS, Scoreboard

BOARD = pytest.StashKey[Scoreboard]()
BEGAN = pytest.StashKey[float]()
COUNT = "injections"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BOARD] = Scoreboard()
    config.stash[BEGAN] = time.monotonic()


@pytest.fixture
def injections(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Say that the test injected this many faults rather than one."""
    return lambda count: record_property(COUNT, count)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    # That of the parameters, where they have one, comes after that of the function.
    marks = [mark for mark in item.own_markers if mark.name == "fault"] or list(item.iter_markers("fault"))
    if marks and (report.when == "call" or report.failed):
        (row,) = marks[-1].args
        if row not in ROWS:
            raise pytest.UsageError(f"{item.nodeid}: the scoreboard has no row {row}")
        if not report.skipped:
            count = dict(report.user_properties).get(COUNT, 1)
            item.config.stash[BOARD].add(row, item.nodeid, report.passed, count)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    board = config.stash[BOARD]
    if board.tallies:
        terminalreporter.section("faults injected")
        for line in board.lines():
            terminalreporter.write_line(line)
    target = config.getoption("--fault-results")
    if target and board.tallies:
        board.write(Path(target), time.monotonic() - config.stash[BEGAN])
