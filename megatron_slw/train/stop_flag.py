"""A signal to this process, noted for whoever looks: SIGTERM, SIGUSR1 and Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Notes one of `SIGNALS`; a second Ctrl-C acts as without it. A context manager."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The number of the last one that came."""
        self._previous: dict[int, object] = {}

    def __call__(self) -> bool:
        """Whether one came."""
        return self.received is not None

    def __enter__(self) -> StopFlag:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
