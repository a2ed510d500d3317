"""Turn text into a token dataset: PREFIX_KEY_document.bin, .idx and .json for each JSON key.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer.json --append-eod

Killed at any moment, the same command goes on where it was. On several machines: mpirun -n RANKS python ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.mpi import mpi_workers
from megatron_slw.data.preprocess import PreprocessSettings, preprocess, resumable
from megatron_slw.data.preprocess_flags import parse
from megatron_slw.data.throughput import ThroughputReport, bad_documents, summary
from megatron_slw.parallel.launch import read_launch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, 2 for wrong input, 130 when interrupted."""
    settings = parse(argv, __doc__)
    try:
        with mpi_workers(read_launch().world_size) as (writes, executor):
            return _run(settings, executor) if writes else 0
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _run(settings: PreprocessSettings, executor: Executor | None) -> int:
    if executor is not None:
        settings = replace(settings, workers=executor.num_workers)  # type: ignore[attr-defined]
    start = time.monotonic()
    try:
        with ThroughputReport(sys.stderr) as report:
            sidecars = preprocess(settings, report, report.say, executor)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        left = "the same command goes on where it was" if resumable(settings) else "nothing was written"
        print(f"interrupted: {left}.", file=sys.stderr)
        return 130
    for key, sidecar in sidecars.items():
        print(summary(settings.prefix(key), sidecar, time.monotonic() - start))
    if table := bad_documents(next(iter(sidecars.values()))):
        print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
