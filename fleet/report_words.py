"""What a run says in plain words: sentences computed from its figures, each with a verdict.

The yardsticks are this report's own rules of thumb; they stand on the page beside the verdicts.
"""

from typing import Any, Final, NamedTuple

import polars as pl

from fleet.report_data import Frames
from hostsim.core.units import format_bytes, format_duration

GOOD, FAIR, POOR, PLAIN = "good", "fair", "poor", ""


class Sentence(NamedTuple):
    """One thing that a run says."""

    topic: str  # where on the page it is shown
    verdict: str  # good, fair, poor, or nothing where there is nothing to judge
    text: str


class Yardstick(NamedTuple):
    """From where on something is good, or poor."""

    what: str
    good: float
    poor: float
    unit: str
    more_is_better: bool = False

    def judge(self, value: float | None) -> str:
        """Return the verdict on a value."""
        if value is None:
            return PLAIN
        sign = -1.0 if self.more_is_better else 1.0
        if sign * value <= sign * self.good:
            return GOOD
        return FAIR if sign * value <= sign * self.poor else POOR

    def __str__(self) -> str:
        least, most = ("at least", "below") if self.more_is_better else ("at most", "above")
        unit = f" {self.unit}" if self.unit else ""
        good, poor = f"{self.good:,g}{unit}", f"{self.poor:,g}{unit}"
        return f"{self.what}: good {least} {good}, poor {most} {poor}"


COVERAGE: Final = Yardstick("guest memory in huge pages on the hosts", 90, 70, "%", True)
RETURNED: Final = Yardstick("run time that huge pages everywhere would return", 0.5, 2, "%")
UNUSABLE: Final = Yardstick("free memory unusable for 2 MiB on the p95 host", 10, 50, "%")
STALL: Final = Yardstick("stalls in the worst hour of the worst host", 100, 10_000, "ms")
REJECTED: Final = Yardstick("VMs for which there was no host", 0, 1, "%")
KILLED: Final = Yardstick("VMs killed", 0, 0, "")
NAMED_HOSTS: Final = 3
YARDSTICKS: Final = (REJECTED, KILLED, COVERAGE, RETURNED, UNUSABLE, STALL)


def number(value: float | None, digits: int = 1) -> str:
    """Return a number for people, with so many digits behind the point."""
    if value is None:
        return "-"
    least = 10.0**-digits
    if 0 < abs(value) < least:
        return f"less than {least:g}"
    return f"{value:,.{digits}f}"


def several(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def sentences(summary: dict[str, Any], frames: Frames) -> list[Sentence]:
    """Return what a run says, in the order of the page."""
    return [
        *_demand(summary),
        *_kills(summary, frames),
        *_moves(summary),
        _coverage(summary, frames),
        *_translation(summary, frames),
        _fragmentation(frames),
        _waits(frames),
        *_worst(frames),
    ]


def _demand(summary: dict[str, Any]) -> list[Sentence]:
    vms = summary["vms"]
    hosts, time = several(summary["hosts"], "host"), format_duration(summary["duration_ns"])
    running = f"{vms['ended']:,} ended and {vms['running']:,} still run at the end"
    ran = Sentence(
        "load",
        PLAIN,
        f"{hosts} ran for {time} of simulated time. {several(vms['arrived'], 'VM')} arrived and"
        f" {vms['started']:,} started; {running}.",
    )
    if not vms["rejected"]:
        return [ran, Sentence("events", GOOD, "There was a host for every VM.")]
    share = 100 * vms["rejected"] / max(vms["arrived"], 1)
    text = f"For {several(vms['rejected'], 'VM')} ({number(share)} %) there was no host."
    return [ran, Sentence("events", REJECTED.judge(share), text)]


def _kills(summary: dict[str, Any], frames: Frames) -> list[Sentence]:
    killed, oom = summary["vms"]["killed"], summary["counters"]["oom_kill"]
    if not killed:
        return [Sentence("events", GOOD, "No VM was killed.")]
    parts = []
    if oom:
        found = frames.worst.filter(pl.col("killed") > 0).sort("killed", descending=True)
        hosts = [str(host) for host in found["host_id"]]
        where = f"on {several(len(hosts), 'host')}, most on host {hosts[0]}"
        if len(hosts) <= NAMED_HOSTS:
            where = f"on host {' and host '.join(hosts)}"
        parts.append(f"{several(oom, 'VM')} because memory ran out {where}")
    if killed > oom:
        parts.append(f"{several(killed - oom, 'VM')} because a host failed")
    again = summary["vms"]["restarted"]
    more = f" {again:,} started again." if again else ""
    return [Sentence("events", POOR, f"Killed: {' and '.join(parts)}.{more}")]


def _moves(summary: dict[str, Any]) -> list[Sentence]:
    moved = summary["migrations"]
    if not moved["arrived"]:
        return [Sentence("events", PLAIN, "No VM was moved to another host.")]
    before, after = moved["huge_before_ratio"] or 0.0, moved["huge_coverage_ratio"] or 0.0
    text = (
        f"{several(moved['arrived'], 'VM')} moved to another host,"
        f" {format_bytes(moved['sent_bytes'])} in all; the median VM stood still for"
        f" {moved['downtime_ns'] / 1e6:,.0f} ms. {100 * before:.0f} % of their memory lay in huge"
        f" pages before, {100 * after:.0f} % on arrival."
    )
    return [Sentence("events", PLAIN, text)]


def _first_last(frame: pl.DataFrame, column: str) -> tuple[float, float]:
    values = frame[column].drop_nulls()
    return float(values[0]), float(values[-1])


def _coverage(summary: dict[str, Any], frames: Frames) -> Sentence:
    ratio = summary["at_end"]["huge_coverage_ratio"]
    if ratio is None:
        return Sentence("coverage", PLAIN, "No guest memory is resident at the end.")
    share, ram = 100 * ratio, format_bytes(summary["at_end"]["guest_ram_bytes"])
    begin, _ = _first_last(frames.coverage, "host")
    text = f"At the end {number(share)} % of {ram} of guest memory lies in huge pages on the hosts"
    text += f" ({number(begin)} % at the beginning)"
    known = frames.coverage["effective"].drop_nulls()
    if len(known):
        text += f", and {number(float(known[-1]))} % of what guests use is huge in guest and"
        text += " host alike, as the TLB needs it"
    worst = frames.ends.drop_nulls("coverage").sort("coverage", "host_id").row(0, named=True)
    text += f". The host with least has {number(worst['coverage'])} % (host {worst['host_id']})."
    return Sentence("coverage", COVERAGE.judge(share), text)


def _translation(summary: dict[str, Any], frames: Frames) -> list[Sentence]:
    cost = summary["translation"]
    if cost["walk_ratio"] is None or frames.translation.is_empty():
        return [Sentence("translation", PLAIN, "No program ran whose translation was sampled.")]
    returned = 100 * (1 - 1 / cost["slowdown_all_huge"])
    busy = float(frames.ends["busy_vcpus"].sum())
    worst = frames.translation.row(0, named=True)
    text = (
        f"Programs spend {number(100 * cost['walk_ratio'])} % of their run time in page walks, most"
        f" in the class {worst['class']} ({number(worst['walks'])} %). Huge pages everywhere would"
        f" return {number(returned, 2)} % of run time: the work of {number(busy * returned / 100)}"
        f" of {number(busy, 0)} busy vCPUs."
    )
    guest, ept = cost["guest_references_per_walk"], cost["ept_references_per_walk"]
    found = [Sentence("translation", RETURNED.judge(returned), text)]
    if guest is not None and ept is not None:
        text = (
            f"A page walk makes {number(guest + ept)} references to memory on average,"
            f" {number(guest)} to the guest's page tables and {number(ept)} to the EPT."
            " Without walk caches it would be 24."
        )
        found.append(Sentence("walks", PLAIN, text))
    return found


def _fragmentation(frames: Frames) -> Sentence:
    end = frames.fragmentation.row(-1, named=True)
    worst = frames.ends.sort(["unusable", "host_id"], descending=[True, False]).row(0, named=True)
    text = (
        f"On the median host {number(end['median'])} % of free memory lies in blocks too small for"
        f" a huge page at the end; one host in twenty has {number(end['p95'])} % or more, the worst"
        f" {number(worst['unusable'])} % (host {worst['host_id']})."
    )
    return Sentence("fragmentation", UNUSABLE.judge(end["p95"]), text)


def _waits(frames: Frames) -> Sentence:
    waits = frames.waits
    most, mean = waits["stall worst"].max(), waits["stall mean"].mean()
    daemon = waits["daemon mean"].mean()
    assert isinstance(most, float)
    assert isinstance(mean, float)
    assert isinstance(daemon, float)
    used = f" The kernel's daemons use {number(daemon, 2)} % of one CPU a host."
    if most == 0:
        return Sentence("stalls", GOOD, f"No access waited for compaction or reclaim.{used}")
    text = (
        f"Accesses waited {number(mean, 2)} ms a host and hour for compaction and reclaim,"
        f" {number(most, 2)} ms an hour at worst.{used}"
    )
    return Sentence("stalls", STALL.judge(most), text)


def _worst(frames: Frames) -> list[Sentence]:
    if frames.worst.is_empty():
        return [Sentence("hosts", PLAIN, "No host ran a VM.")]
    row = frames.worst.row(0, named=True)
    text = (
        f"Host {row['host_id']} is the worst: {several(row['killed'], 'VM')} killed for memory,"
        f" {number(row['lost'], 2)} vCPUs' worth of work lost to page walks and stalls; over the"
        f" run {number(row['coverage'])} % of its guest memory lies in huge pages, and"
        f" {number(row['unusable'])} % of its free memory is unusable for them."
    )
    return [Sentence("hosts", PLAIN, text)]
