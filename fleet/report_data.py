"""The frames behind a report: a run's tables, binned over time so that a page stays small.

Gauges are means over a bin, counters their growth in it.  Nothing here is a row of the tables:
what leaves this module is at most some hundred points a curve.
"""

from typing import Any, Final, NamedTuple

import polars as pl

from fleet import report_events
from fleet.rundir import RunDirectory
from fleet.scan import scan
from fleet.scenario import Scenario
from hostsim.core.units import (
    HPAGE_PMD_NR,
    NR_PAGE_ORDERS,
    NS_PER_DAY,
    NS_PER_HOUR,
    NS_PER_MIN,
    NS_PER_MS,
    PAGE_BYTES,
)

MAX_BINS: Final = 300  # points of a curve: about one a pixel on a phone
MIN_BINS: Final = 60
MAX_HOST_BINS: Final = 1_500_000  # hosts times bins held in memory
MAX_CELLS: Final = 96  # columns of a heat map
WORST: Final = 10  # hosts with a drill-down
WORST_VMS: Final = 100  # rows of its list of VMs
PPM: Final = 1e6
HUGE_ON_HOST: Final = "huge on the host"  # names of curves
HUGE_ON_BOTH: Final = "huge in guest and host"
FREE: Final = "free"
UNUSABLE: Final = "of it, unusable for 2 MiB"
STALLS: Final = "stalls"
GIB: Final = 1 << 30
MIB: Final = 1 << 20
_GAUGES: Final = (
    "nr_vms",
    "committed_vcpus",
    "committed_pages",
    "managed_pages",
    "nr_free_pages",
    "nr_guest_pages",
    "nr_anon_transparent_hugepages",
    "guest_used_pages",
    "effective_huge_pages",
    "unusable_index_order9",
    "running_milli_vcpus",
    "slowdown_all_huge",
    *(f"nr_free_order{order}" for order in range(NR_PAGE_ORDERS)),
)
_COUNTERS: Final = ("stall_ns", "daemon_ns", "oom_kill")


class Clock(NamedTuple):
    """How time is counted and cut."""

    unit: str  # min, h or d
    unit_ns: int
    bin_ns: int
    duration_ns: int

    def bins(self) -> pl.Expr:
        """Return the bin of a row whose ``t_ns`` is the end of what it describes."""
        return (pl.col("t_ns") - 1) // self.bin_ns

    def end(self, bins: pl.Expr) -> pl.Expr:
        """Return the end of a bin in units of time."""
        end_ns = ((bins + 1) * self.bin_ns).clip(upper_bound=self.duration_ns)
        return end_ns / self.unit_ns


class Frames(NamedTuple):
    """All that a run's charts are drawn from; shares are in percent."""

    clock: Clock
    coverage: pl.DataFrame  # t, host, p5, p95, effective
    load: pl.DataFrame  # t, VMs, and what they rent and have resident (% of memory)
    orders: pl.DataFrame  # start, end, order, MiB a host
    fragmentation: pl.DataFrame  # t, p5, median, p95
    waits: pl.DataFrame  # t, mean and p95 over hosts of stalls and daemons
    translation: pl.DataFrame  # a row a class of guests
    events: pl.DataFrame  # start, end, kind, count
    worst: pl.DataFrame  # a row a host, worst first
    ends: pl.DataFrame  # a row a host, as of the last bin: coverage, unusable, busy vCPUs
    details: dict[int, dict[str, Any]]  # of the worst hosts: curves, VMs and events


def clock_of(scenario: Scenario) -> Clock:
    """Choose a unit of time and bins that are whole ticks."""
    duration_ns, tick_ns = scenario.duration_ns, scenario.tick_ns
    unit, unit_ns = "h", NS_PER_HOUR
    if duration_ns <= 2 * NS_PER_HOUR:
        unit, unit_ns = "min", NS_PER_MIN
    elif duration_ns > 4 * NS_PER_DAY:
        unit, unit_ns = "d", NS_PER_DAY
    bins = max(MIN_BINS, min(MAX_BINS, MAX_HOST_BINS // scenario.nr_hosts))
    ticks = -(-duration_ns // tick_ns)
    return Clock(unit, unit_ns, tick_ns * -(-ticks // bins), duration_ns)


def frames_of(run: RunDirectory, scenario: Scenario) -> Frames:
    """Read a run and return what its report shows."""
    clock = clock_of(scenario)
    hosts = _binned(run, clock)
    worst = worst_hosts(hosts, clock.bin_ns)
    chosen = [int(host) for host in worst["host_id"].head(WORST)]
    return Frames(
        clock=clock,
        coverage=_coverage(hosts, clock),
        load=_load(hosts, clock),
        orders=_orders(hosts, clock),
        fragmentation=_fragmentation(hosts, clock),
        waits=_waits(hosts, clock),
        translation=_translation(run, scenario),
        events=report_events.events(run, clock),
        worst=worst,
        ends=_ends(hosts),
        details=_details(run, scenario, clock, hosts, chosen),
    )


def _binned(run: RunDirectory, clock: Clock) -> pl.DataFrame:
    """Return a row a host and bin: means of gauges, growth of counters."""
    aggregated = (
        scan(run, "hosts")
        .group_by("host_id", clock.bins().alias("bin"))
        .agg(*(pl.col(name).mean() for name in _GAUGES), *(pl.col(c).max() for c in _COUNTERS))
        .collect(engine="streaming")
        .sort("host_id", "bin")
    )
    growth = [
        (pl.col(name) - pl.col(name).shift(1, fill_value=0).over("host_id")) for name in _COUNTERS
    ]
    return aggregated.with_columns(growth)


def percent(top: pl.Expr, bottom: pl.Expr) -> pl.Expr:
    """Return a share in percent, null where there is nothing to have a share of."""
    return pl.when(bottom > 0).then(100 * top / bottom)


def _huge(column: str) -> pl.Expr:
    return pl.col(column) * HPAGE_PMD_NR


HOST_COVERAGE: Final = percent(_huge("nr_anon_transparent_hugepages"), pl.col("nr_guest_pages"))
EFFECTIVE_COVERAGE: Final = percent(_huge("effective_huge_pages"), pl.col("guest_used_pages"))


def _ends(hosts: pl.DataFrame) -> pl.DataFrame:
    """Return how hosts stand at the end."""
    last = hosts.filter(pl.col("bin") == pl.col("bin").max())
    return last.select(
        "host_id",
        HOST_COVERAGE.alias("coverage"),
        (pl.col("unusable_index_order9") / 10).alias("unusable"),
        (pl.col("running_milli_vcpus") / 1000).alias("busy_vcpus"),
    )


def _by_time(hosts: pl.DataFrame, clock: Clock, *columns: pl.Expr) -> pl.DataFrame:
    """Aggregate over hosts; the first column is the time at the end of a bin."""
    grouped = hosts.lazy().group_by("bin").agg(*columns).sort("bin")
    return grouped.select(clock.end(pl.col("bin")).alias("t"), pl.exclude("bin")).collect()


def _quantile(values: pl.Expr, q: float) -> pl.Expr:
    return values.quantile(q, "nearest")


def _coverage(hosts: pl.DataFrame, clock: Clock) -> pl.DataFrame:
    of_host = ("nr_guest_pages", "nr_anon_transparent_hugepages")
    names = (*of_host, "guest_used_pages", "effective_huge_pages")
    summed = [pl.col(name).sum() for name in names]
    bands = [_quantile(HOST_COVERAGE, q).alias(n) for q, n in ((0.05, "p5"), (0.95, "p95"))]
    found = _by_time(hosts, clock, *summed, *bands)
    return found.select(
        "t", HOST_COVERAGE.alias("host"), "p5", "p95", EFFECTIVE_COVERAGE.alias("effective")
    )


def _load(hosts: pl.DataFrame, clock: Clock) -> pl.DataFrame:
    names = ("nr_vms", "committed_pages", "managed_pages", "nr_guest_pages")
    found = _by_time(hosts, clock, *(pl.col(name).sum() for name in names))
    memory = pl.col("managed_pages")
    return found.select(
        "t",
        pl.col("nr_vms").alias("vms"),
        percent(pl.col("committed_pages"), memory).alias("rented"),
        percent(pl.col("nr_guest_pages"), memory).alias("resident"),
    )


def _orders(hosts: pl.DataFrame, clock: Clock) -> pl.DataFrame:
    """Return free memory by order in cells of time, MiB a host."""
    step = -(-(hosts.select(pl.col("bin").max()).item() + 1) // MAX_CELLS)
    wide = clock._replace(bin_ns=clock.bin_ns * step)
    names = [f"nr_free_order{order}" for order in range(NR_PAGE_ORDERS)]
    found = (
        hosts.lazy()
        .group_by((pl.col("bin") // step).alias("cell"))
        .agg(pl.col(name).mean() for name in names)
        .unpivot(index="cell", on=names, variable_name="order", value_name="blocks")
        .with_columns(pl.col("order").str.strip_prefix("nr_free_order").cast(pl.Int64))
        .sort("cell", "order")
        .collect()
    )
    mib = pl.col("blocks") * 2.0 ** pl.col("order") * PAGE_BYTES / MIB
    start = pl.col("cell") * wide.bin_ns / clock.unit_ns
    return found.select(
        start.alias("start"), wide.end(pl.col("cell")).alias("end"), "order", mib.alias("mib")
    )


def _fragmentation(hosts: pl.DataFrame, clock: Clock) -> pl.DataFrame:
    index = pl.col("unusable_index_order9") / 10
    bands = ((0.05, "p5"), (0.5, "median"), (0.95, "p95"))
    return _by_time(hosts, clock, *(_quantile(index, q).alias(name) for q, name in bands))


def _waits(hosts: pl.DataFrame, clock: Clock) -> pl.DataFrame:
    """Return stalls in ms a host and hour, and daemons' CPU time in percent of one CPU."""
    stall = pl.col("stall_ns") / NS_PER_MS / (clock.bin_ns / NS_PER_HOUR)
    daemon = 100 * pl.col("daemon_ns") / clock.bin_ns
    return _by_time(
        hosts,
        clock,
        stall.mean().alias("stall mean"),
        _quantile(stall, 0.95).alias("stall p95"),
        stall.max().alias("stall worst"),
        daemon.mean().alias("daemon mean"),
        _quantile(daemon, 0.95).alias("daemon p95"),
    )


def _translation(run: RunDirectory, scenario: Scenario) -> pl.DataFrame:
    """Return what translation costs each class of guests, over the VM rows with figures.

    Means are by vCPU, those of a walk by vCPU and miss; quantiles are over rows: a VM, an hour.
    """
    vcpus = pl.col("vcpus").cast(pl.Float64)
    walks = vcpus * pl.col("tlb_misses")
    returned = 100 * (1 - PPM / pl.col("slowdown_all_huge"))

    def mean(value: pl.Expr, weight: pl.Expr) -> pl.Expr:
        return (value * weight).sum() / weight.sum()

    share = pl.col("walk_share") / (PPM / 100)
    found = (
        scan(run, "vms")
        .filter(pl.col("slowdown_all_huge") > 0)
        .group_by("behaviour")
        .agg(
            pl.len().alias("rows"),
            mean(share, vcpus).alias("walks"),
            _quantile(share, 0.05).alias("walks p5"),
            _quantile(share, 0.95).alias("walks p95"),
            mean(returned, vcpus).alias("returned"),
            _quantile(returned, 0.05).alias("returned p5"),
            _quantile(returned, 0.95).alias("returned p95"),
            mean(pl.col("walk_guest_reads") / 1000, walks).alias("guest reads"),
            mean(pl.col("walk_ept_reads") / 1000, walks).alias("ept reads"),
            mean(pl.col("tlb_misses") / 1000, vcpus).alias("misses"),
        )
        .collect(engine="streaming")
        .sort("walks", descending=True)
    )
    return found.with_columns(_class_names(scenario)).drop("behaviour")


def _class_names(scenario: Scenario) -> pl.Expr:
    names = [behaviour.name for behaviour in scenario.guests.behaviours]
    codes = list(range(len(names)))
    return pl.col("behaviour").replace_strict(codes, names, default="?").alias("class")


def _returned() -> pl.Expr:
    """Return the share of run time that huge pages everywhere would return, in percent."""
    slowdown = pl.col("slowdown_all_huge")
    return pl.when(slowdown > 0).then(100 * (1 - PPM / slowdown)).otherwise(0.0)


def worst_hosts(hosts: pl.DataFrame, bin_ns: int) -> pl.DataFrame:
    """Return the hosts that ran VMs, the worst first, with figures of the whole run.

    Hosts on which memory ran out come first, then those whose guests lose most: vCPUs' worth of
    work that huge pages everywhere would return, and stalls.
    """
    busy = pl.col("running_milli_vcpus") / 1000
    lost = (busy * _returned() / 100).fill_null(0.0) + pl.col("stall_ns") / bin_ns
    huge, effective = _huge("nr_anon_transparent_hugepages"), _huge("effective_huge_pages")
    found = hosts.lazy().filter(pl.col("nr_vms") > 0).group_by("host_id")
    figures = (
        pl.col("nr_vms").mean().alias("vms"),
        percent(huge.sum(), pl.col("nr_guest_pages").sum()).alias("coverage"),
        percent(effective.sum(), pl.col("guest_used_pages").sum()).alias("effective"),
        (pl.col("unusable_index_order9").mean() / 10).alias("unusable"),
        lost.mean().alias("lost"),
        (pl.col("stall_ns").sum() / NS_PER_MS).alias("stall_ms"),
        pl.col("oom_kill").sum().alias("killed"),
    )
    by = ["killed", "lost", "unusable", "host_id"]
    return found.agg(figures).sort(by, descending=[True, True, True, False]).collect()


def _details(
    run: RunDirectory, scenario: Scenario, clock: Clock, hosts: pl.DataFrame, chosen: list[int]
) -> dict[int, dict[str, Any]]:
    """Return curves, VMs and events of some hosts, as the page embeds them: lists by column."""
    curves = hosts.filter(pl.col("host_id").is_in(chosen)).select(
        "host_id",
        clock.end(pl.col("bin")).alias("t"),
        HOST_COVERAGE.alias(HUGE_ON_HOST),
        EFFECTIVE_COVERAGE.alias(HUGE_ON_BOTH),
        percent(pl.col("nr_free_pages"), pl.col("managed_pages")).alias(FREE),
        (pl.col("unusable_index_order9") / 10).alias(UNUSABLE),
        (pl.col("stall_ns") / NS_PER_MS).alias(STALLS),
    )
    vms, events = _vms_of(run, scenario, chosen), report_events.events_of(run, clock, chosen)

    def of(frame: pl.DataFrame, host: int) -> dict[str, list[Any]]:
        own = rounded(frame.filter(pl.col("host_id") == host).drop("host_id"))
        return own.to_dict(as_series=False)

    return {
        host: {"curves": of(curves, host), "vms": of(vms, host), "events": of(events, host)}
        for host in chosen
    }


def _vms_of(run: RunDirectory, scenario: Scenario, hosts: list[int]) -> pl.DataFrame:
    """Return the VMs of some hosts as of their last row, those with most in small pages first."""
    vms = scan(run, "vms")
    rows = (
        vms.filter(pl.col("host_id").is_in(hosts) & (pl.col("ended") == 0))
        .filter(pl.col("t_ns") == pl.col("t_ns").max())
        .with_columns(_class_names(scenario))
        .collect()
    )
    small = pl.col("rss_pages") - _huge("huge_pages")
    found = rows.sort([small, pl.col("vm_id")], descending=[True, False])
    return (
        found.group_by("host_id", maintain_order=True)
        .head(WORST_VMS)
        .select(
            "host_id",
            pl.col("vm_id").alias("vm"),
            "class",
            "vcpus",
            (pl.col("memory_pages") * PAGE_BYTES / GIB).alias("memory"),
            (pl.col("rss_pages") * PAGE_BYTES / GIB).alias("resident"),
            percent(_huge("huge_pages"), pl.col("rss_pages")).alias("huge"),
            percent(_huge("effective_huge_pages"), pl.col("guest_used_pages")).alias("effective"),
            (pl.col("walk_share") / (PPM / 100)).alias("walks"),
            _returned().alias("returned"),
        )
    )


def rounded(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame with floats of four digits: what a chart can show."""
    return frame.with_columns(pl.col(pl.Float64).round_sig_figs(4))
