"""Progress on stderr: simulated time, epochs, VM events a second, time left.

Silent unless stderr is a terminal.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleet.scheduler import Progress
from hostsim.core.units import format_duration


@contextmanager
def shown(title: str) -> Iterator[Callable[[Progress], None] | None]:
    """Show a bar while a run advances; yields what the run is to call, or None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.completed:.0f}/{task.total:.0f}  {task.fields[state]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    first: list[tuple[float, int]] = []  # when the first epoch was done, and its events
    with bar:
        task = bar.add_task(title, total=1, state="starting")

        def on_epoch(progress: Progress) -> None:
            if not first:
                first.append((time.perf_counter(), progress.vm_events))
            begin_s, events = first[0]
            rate = (progress.vm_events - events) / max(time.perf_counter() - begin_s, 1e-3)
            state = f"{format_duration(progress.t_ns)} simulated, {rate:,.0f} VM events/s"
            bar.update(task, total=progress.nr_epochs, completed=progress.epoch, state=state)

        yield on_epoch
