"""Progress bars for long work."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class SpeedColumn(ProgressColumn):
    """Units a second, once there is something to measure."""

    def __init__(self, unit: str) -> None:
        """Count in `unit`, e.g. "rows"."""
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The speed of `task`."""
        speed = task.finished_speed or task.speed
        digits = 0 if speed and speed >= 10 else 1
        return Text(f"{speed:,.{digits}f} {self.unit}/s" if speed else "", "progress.data.speed")


def progress_bar(unit: str = "rows", show: bool = True, console: Console | None = None) -> Progress:
    """A bar with counts, speed, time spent and time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        SpeedColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not show,
        console=console,
    )
