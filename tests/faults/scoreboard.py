"""The scoreboard of the fault campaign: its rows, what peers do, and the table and JSON that a run leaves."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One kind of fault."""

    title: str
    peer: str
    """What maintained systems do there, as measured or read in their sources in autumn 2026."""


ROWS = {
    1: Row("resume, same layout", "Megatron-LM restored the wrong random state on 252 of 256 ranks (its PR 6858)"),
    2: Row("resume, other layout", "DeepSpeed refuses; its offline converter keeps 17 of 17 masters"),
    3: Row("token ledger over kills", "no such test found"),
    4: Row("kill -9 in a save", "DeepSpeed 0.19.8: `latest` can name a checkpoint without a shard"),
    5: Row("disk full, I/O error", "no such test found"),
    6: Row("signals", "Megatron-LM and OLMo-core handle them; no test from end to end found"),
    7: Row("damaged checkpoint", "DeepSpeed 0.19.8: 11 of 15 refused, 4 loaded silently"),
    8: Row("hostile files", "DeepSpeed 0.19.8 runs code from checkpoint files"),
    9: Row("NaN, Inf, spike", "OLMo-core: one NaN blinds its detector; 64 steps unguarded after a resume"),
    10: Row("hang, straggler, dead rank", "DeepSpeed waits 10 minutes and names nobody"),
    11: Row("asynchronous checkpoints", "none of the peers tests a kill during one"),
    12: Row("determinism", "Megatron-LM: bit-equal in a mode that costs about 15 %"),
}


@dataclass
class Tally:
    """Injections of one row."""

    tried: int = 0
    passed: int = 0
    failed_ids: list[str] = field(default_factory=list)


class Scoreboard:
    """Counts injections while a session runs."""

    def __init__(self) -> None:
        self.tallies: dict[int, Tally] = {}

    def add(self, row: int, node_id: str, passed: bool, injections: int) -> None:
        """One finished test: `injections` faults were tried, all of them withstood or the test failed."""
        tally = self.tallies.setdefault(row, Tally())
        tally.tried += injections
        if passed:
            tally.passed += injections
        else:
            tally.failed_ids.append(node_id)

    def lines(self) -> list[str]:
        """The table."""
        out = [f"{'':>2} {'fault':<28} {'tried':>6} {'passed':>6}  elsewhere"]
        for number, tally in sorted(self.tallies.items()):
            row = ROWS[number]
            out.append(f"{number:>2} {row.title:<28} {tally.tried:>6} {tally.passed:>6}  {row.peer}")
            out += [f"   again: python -m pytest -m '' '{node_id}'" for node_id in tally.failed_ids]
        return out

    def write(self, path: Path, seconds: float) -> None:
        """The same as JSON, with the machine it ran on."""
        rows = [
            {
                "row": n,
                "fault": ROWS[n].title,
                "tried": t.tried,
                "passed": t.passed,
                "failed": t.failed_ids,
                "elsewhere": ROWS[n].peer,
            }
            for n, t in sorted(self.tallies.items())
        ]
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        path.write_text(json.dumps({"seconds": round(seconds), "machine": machine, "rows": rows}, indent=1) + "\n")
