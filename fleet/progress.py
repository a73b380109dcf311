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
    begin_s = time.perf_counter()
    with bar:
        task = bar.add_task(title, total=None, completed=0, state="starting", start=True)
        bar.update(task, total=1)

        def on_epoch(progress: Progress) -> None:
            rate = progress.vm_events / max(time.perf_counter() - begin_s, 1e-9)
            state = f"{format_duration(progress.t_ns)} simulated, {rate:,.0f} VM events/s"
            bar.update(task, total=progress.nr_epochs, completed=progress.epoch, state=state)

        yield on_epoch
