"""Progress on stderr, for work over two seconds: bars on a terminal, now and then a line elsewhere.

with Progress() as progress:
    model = ssmquant.load(path)
    progress.finished("load")
    quantised = ssmquant.quantize(model, recipe, progress=progress)
progress.seconds        # {"load": 0.3, "calibrate": 8.1, …}
"""

from __future__ import annotations

from time import perf_counter
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ssmquant.cli.console import stderr

__all__ = ["Progress"]

_SILENT_SECONDS = 2.0
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A progress callback (what, done, total) that also keeps the seconds of each step.

    Time since the call before belongs to the step that a call names, so that steps need no announcement.
    """

    def __init__(self) -> None:
        """Start the clock."""
        self.seconds: dict[str, float] = {}
        self._start = self._before = perf_counter()
        self._last_line = float("-inf")
        self._tasks: dict[str, TaskID] = {}
        self._console = stderr()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> Progress:
        """Return the callback."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars off the terminal."""
        if self._tasks:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report `done` of `total` in the step `what`."""
        self.finished(what)
        if self._before - self._start < _SILENT_SECONDS:
            return
        if self._console.is_terminal:
            self._draw(what, done, total)
        elif self._before - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = self._before
            self._console.print(f"{what}: {done} of {total}", markup=False)

    def finished(self, what: str) -> None:
        """Count the time since the last report to the step `what`."""
        now = perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._before
        self._before = now

    def _draw(self, what: str, done: int, total: int) -> None:
        self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
