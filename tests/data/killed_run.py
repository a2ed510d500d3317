"""A preprocessing run that kills itself with SIGKILL at a chosen point; run as a script by tests of going on.

    python killed_run.py POINT COUNT <flags of preprocess_data.py>

POINT is a name of POINTS; the process dies when it gets there for the COUNT-th time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from megatron_slw.data import preprocess, throughput, workers
from megatron_slw.data.writer import IndexedDatasetWriter
from tools import preprocess_data

POINTS: dict[str, tuple[Any, str, bool]] = {
    "never": (preprocess, "save_state", False),
    "after a state is saved": (preprocess, "save_state", True),
    "after the tokens are synced": (preprocess, "save_state", False),
    "after tokens are added": (IndexedDatasetWriter, "add_documents", True),
    "before a rename": (os, "replace", False),
    "while cleaning up": (IndexedDatasetWriter, "clean_up", False),
}
"""Name: owner and name of a function, and whether to die after it or before."""


def dying(function: Callable[..., Any], count: int, after: bool) -> Callable[..., Any]:
    """The function, but the process dies at its `count`-th call."""
    calls: list[int] = []

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **keywords)
        if len(calls) == count:
            for written in arguments[:1]:
                if isinstance(written, IndexedDatasetWriter):
                    written._bin.flush()  # the worst case: tokens on disk that no state knows of
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def main() -> int:
    """Run; every piece is small and saved, and gives a line of progress."""
    point, count = sys.argv[1], int(sys.argv[2])
    preprocess._COMMIT_SECONDS = 0.0
    preprocess.PIECE_BYTES = 20_000
    workers.ALONE_BYTES = 1
    throughput._LINE_SECONDS = 0.0
    if point != "never":
        owner, name, after = POINTS[point]
        setattr(owner, name, dying(getattr(owner, name), count, after))
    return preprocess_data.main(sys.argv[3:])


if __name__ == "__main__":
    raise SystemExit(main())
