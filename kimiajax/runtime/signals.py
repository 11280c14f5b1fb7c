"""SIGTERM and Ctrl-C: they end a run at once or, while it trains, as soon as its state is saved."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from kimiajax.runtime import distributed

STATUS: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}  # 128 and the signal's number, as shells have it


class Interrupted(BaseException):
    """A run that was asked to end and has put away what it began.

    Attributes:
        status: of the process's exit.
    """

    def __init__(self, number: int):
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.status = STATUS[number]


class Interruption:
    """Whether a run was asked to end."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._deferred = False
        self._polls = 0

    @property
    def asked(self) -> bool:
        """Whether a signal waits for `raise_if_asked`."""
        return self._asked is not None

    def poll(self) -> bool:
        """Likewise; of several processes all learn of SIGTERM at the same call, which JAX's runtime sees to."""
        self._polls += 1
        if distributed.asked_to_end(self._polls):
            self._asked = signal.SIGTERM
        return self.asked

    @contextlib.contextmanager
    def on_signals(self, *numbers: int) -> Iterator[None]:
        """Within, these signals raise `Interrupted`; the main thread alone may enter."""
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal waits for `raise_if_asked`, or for the end; a second does not."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.raise_if_asked()

    def raise_if_asked(self) -> None:
        """Raises Interrupted where a signal waits."""
        if self._asked is not None:
            raise Interrupted(self._asked)

    def _receive(self, number: int, frame: Any) -> None:
        if not self._deferred or self.asked:
            raise Interrupted(number)
        self._asked = number
