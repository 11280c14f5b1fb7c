"""The epochs of each row as they end: `history/ROW.jsonl`, and event files for TensorBoard where that is asked for."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from kimiajax.errors import UserError
from kimiajax.runs.layout import RunFolder

SCALARS = ("loss", "accuracy", "learning_rate", "images_per_second")


class History:
    """Of one run. A line holds the phase and the fields of an epoch: epoch (from 1), loss (nats), accuracy in [0, 1],
    learning rate, images a second, seconds."""

    def __init__(self, folder: RunFolder, tensorboard: bool = False):
        self._folder, self._tensorboard = folder, tensorboard
        self._events: dict[tuple[str, str], Any] = {}

    @staticmethod
    def check(tensorboard: bool) -> None:
        """Raises UserError where event files are asked for and cannot be written."""
        if tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise UserError('--tensorboard: tensorboardX is not installed; `pip install "kimiajax[track]"`')

    def of(self, row: str, phase: str) -> Callable[[Any], None]:
        """What takes the epochs of a row's phase."""
        path = self._folder.history(row)

        def record(epoch: Any) -> None:
            fields = asdict(epoch)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"phase": phase, **fields}) + "\n")
            if self._tensorboard:
                self._write_events(row, phase, fields)

        return record

    def close(self) -> None:
        """Ends all event files so far."""
        for events in self._events.values():
            events.close()
        self._events.clear()

    def _write_events(self, row: str, phase: str, fields: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        # One file a phase: two that begin in the same second would have the same name.
        if (row, phase) not in self._events:
            folder = str(self._folder.events(row))
            self._events[row, phase] = SummaryWriter(folder, filename_suffix=f".{phase}")
        events = self._events[row, phase]
        for name in SCALARS:
            if fields[name] is not None:
                events.add_scalar(f"{phase}/{name}", fields[name], fields["epoch"])
        events.flush()
