"""What goes out of the ordinary in a run: kills, moves, failures and rejections, in words."""

from typing import TYPE_CHECKING, Final

import polars as pl

from fleet.rundir import RunDirectory
from fleet.scan import scan

if TYPE_CHECKING:
    from fleet.report_data import Clock

MAX_BARS: Final = 48  # of a timeline
MOST: Final = 100  # events of a host that are listed
KINDS: Final = (  # of events in a timeline
    "killed: memory ran out",
    "killed: host failed",
    "rejected",
    "moved",
    "started again",
    "host down",
    "host back",
)
_KILLED, _FAILED, _REJECTED, _MOVED, _AGAIN, _DOWN, _UP = KINDS
_EVENT_WORDS: Final = {  # event, reason: kind, and in more words
    ("reject", "no_host_fits"): (_REJECTED, "rejected: no host fits"),
    ("reject", "larger_than_any_host"): (_REJECTED, "rejected: too large"),
    ("kill", "oom"): (_KILLED, _KILLED),
    ("kill", "failure"): (_FAILED, _FAILED),
    ("migrate", "maintenance"): (_MOVED, "moved away: maintenance"),
    ("migrate", "rebalance"): (_MOVED, "moved away: memory short"),
    ("migrate", "defragment"): (_MOVED, "moved away: memory broken"),
    ("restart", ""): (_AGAIN, _AGAIN),
    ("host_down", "failure"): (_DOWN, "host failed"),
    ("host_down", "maintenance"): (_DOWN, "host into maintenance"),
    ("host_up", ""): (_UP, _UP),
}


def _event_words(which: int) -> pl.Expr:
    """Return the kind of an event (0) or more words (1), null for what happens to every VM."""
    event, reason = pl.col("event").cast(pl.String), pl.col("reason").cast(pl.String)
    words = pl.lit(None, pl.String)
    for (name, why), texts in _EVENT_WORDS.items():
        same = (event == name) & (reason.fill_null("") == why)
        words = pl.when(same).then(pl.lit(texts[which])).otherwise(words)
    return words.alias("kind")


def events(run: RunDirectory, clock: "Clock") -> pl.DataFrame:
    """Count what went out of the ordinary, in cells of time."""
    cell_ns = clock.bin_ns * -(-clock.duration_ns // (clock.bin_ns * MAX_BARS))
    cell = pl.col("t_ns") // cell_ns
    found = (
        scan(run, "events")
        .with_columns(_event_words(0))
        .filter(pl.col("kind").is_not_null())
        .group_by(cell.alias("cell"), "kind")
        .agg(pl.len().alias("count"))
        .sort("cell", "kind")
        .collect()
    )
    wide = clock._replace(bin_ns=cell_ns)
    start = pl.col("cell") * cell_ns / clock.unit_ns
    end = wide.end(pl.col("cell"))
    return found.select(start.alias("start"), end.alias("end"), "kind", "count")


def events_of(run: RunDirectory, clock: "Clock", hosts: list[int]) -> pl.DataFrame:
    """Return what went out of the ordinary on some hosts, the first hundred each."""
    return (
        scan(run, "events")
        .filter(pl.col("host_id").is_in(hosts))
        .with_columns(_event_words(1))
        .filter(pl.col("kind").is_not_null())
        .sort("t_ns", "vm_id")
        .group_by("host_id", maintain_order=True)
        .head(MOST)
        .select("host_id", (pl.col("t_ns") / clock.unit_ns).alias("t"), "kind", "vm_id")
        .collect()
    )
