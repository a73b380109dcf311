"""Ready-made relations over the tables of a run: what operators ask first, ratios computed.

A view is a lazy relation with a name, so ``fleet query RUN coverage`` prints one and
``SELECT ... FROM coverage`` works like a table's.  Views over time have a row a step: by default
an epoch, an hour unless the scenario says otherwise.
"""

from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from fleet.loading import build
from fleet.rundir import RunDirectory, epoch_of
from fleet.scan import scan
from fleet.scenario import Scenario
from fleet.view_columns import VIEW_COLUMNS
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_HOUR, NS_PER_MS, NS_PER_S, PAGE_BYTES

FLEET = "fleet"  # the class of guests that stands for all of them
_GIB_PAGES = (1 << 30) // PAGE_BYTES
_MIB_PAGES = (1 << 20) // PAGE_BYTES
_PPM = 1e6  # unit of shares and slow-downs in the tables
_PER_MILLE = 1e3
_ORDERS = range(11)
_SWAP_COUNTERS = ("pswpin", "pswpout")


class Source(NamedTuple):
    """A run, as the views see it."""

    run: RunDirectory
    scenario: Scenario
    step_ns: int

    @property
    def last_ns(self) -> int:
        """Return the time of the last rows that are written."""
        parts = self.run.parts["hosts"]
        nr_epochs = epoch_of(parts[-1]) + 1 if parts else 0
        return min(nr_epochs * self.scenario.epoch_ns, self.scenario.duration_ns)

    def at_steps(self, table: str) -> pl.LazyFrame:
        """Return the rows at the end of every step, and those at the end of the run."""
        t_ns = pl.col("t_ns")
        ends = (t_ns % self.step_ns == 0) | (t_ns == self.last_ns)
        return scan(self.run, table).filter(ends)


def view(run: RunDirectory, name: str, step_ns: int | None = None) -> pl.LazyFrame:
    """Return a view of a run, computed when it is collected.

    Parameters
    ----------
    name
        One of `fleet.view_columns.VIEW_COLUMNS`.
    step_ns
        Time between two rows of the views over time; an epoch if left out.
    """
    record = run.record
    scenario = build(dict(record["scenario"]), record["name"], str(run.store))
    source = Source(run, scenario, step_ns or scenario.epoch_ns)
    names = [column.name for column in VIEW_COLUMNS[name]]
    return _VIEWS[name](source).select(names)


def _total(name: str) -> pl.Expr:
    """Return the sum of a column, as wide as it needs to be."""
    return pl.col(name).cast(pl.Int64).sum()


def _ratio(top: pl.Expr, bottom: pl.Expr) -> pl.Expr:
    """Return a quotient, null where there is nothing to divide by."""
    return pl.when(bottom != 0).then(top / bottom)


def _grown(name: str) -> pl.Expr:
    """Return how much a counter grew since the row before; counters begin at 0."""
    return pl.col(name) - pl.col(name).shift(1, fill_value=0)


def _sums_over_time(source: Source, *names: str) -> pl.LazyFrame:
    """Return sums over hosts at every step, with the host-hours since the step before."""
    sums = source.at_steps("hosts").group_by("t_ns").agg(pl.len(), *map(_total, names))
    return sums.sort("t_ns").with_columns(
        t_h=pl.col("t_ns") / NS_PER_HOUR,
        host_h=_grown("t_ns") / NS_PER_HOUR * pl.col("len"),
    )


def _huge_coverage() -> pl.Expr:
    huge = pl.col("nr_anon_transparent_hugepages") * HPAGE_PMD_NR
    return _ratio(huge, pl.col("nr_guest_pages"))


def _effective_coverage() -> pl.Expr:
    return _ratio(pl.col("effective_huge_pages") * HPAGE_PMD_NR, pl.col("guest_used_pages"))


def _coverage(source: Source) -> pl.LazyFrame:
    sums = _sums_over_time(
        source,
        *("nr_vms", "nr_guest_pages", "nr_anon_transparent_hugepages"),
        *("guest_used_pages", "guest_huge_pages", "effective_huge_pages"),
        *("thp_fault_alloc", "thp_fault_fallback", "pages_collapsed"),
    )
    fallback, alloc = _grown("thp_fault_fallback"), _grown("thp_fault_alloc")
    guest_huge = pl.col("guest_huge_pages") * HPAGE_PMD_NR
    return sums.with_columns(
        guest_gib=pl.col("nr_guest_pages") / _GIB_PAGES,
        huge_coverage_ratio=_huge_coverage(),
        guest_coverage_ratio=_ratio(guest_huge, pl.col("guest_used_pages")),
        effective_coverage_ratio=_effective_coverage(),
        thp_fallback_ratio=_ratio(fallback, fallback + alloc),
        collapses_per_host_h=_grown("pages_collapsed") / pl.col("host_h"),
    )


def _over_hosts(value: pl.Expr, name: str) -> list[pl.Expr]:
    """Return 5th percentile, median and 95th percentile over hosts; the outer ones by rank."""
    return [
        value.quantile(0.05, "nearest").alias(f"{name}_p5"),
        value.median().alias(f"{name}_median"),
        value.quantile(0.95, "nearest").alias(f"{name}_p95"),
    ]


def _fragmentation(source: Source) -> pl.LazyFrame:
    partial = _total("pageblocks_partial") * HPAGE_PMD_NR
    huge_free = pl.col("nr_free_order9") + pl.col("nr_free_order10")
    rows = source.at_steps("hosts").group_by("t_ns")
    return (
        rows.agg(
            *_over_hosts(pl.col("unusable_index_order9") / _PER_MILLE, "unusable_ratio"),
            free_gib_per_host=pl.col("nr_free_pages").mean() / _GIB_PAGES,
            partial_pageblocks_ratio=_ratio(partial, _total("managed_pages")),
            hosts_no_free_2m=(huge_free == 0).sum().cast(pl.Int64),
            hosts_no_free_32m=(pl.col("nr_free_32m") == 0).sum().cast(pl.Int64),
            hosts_no_free_1g=(pl.col("nr_free_1g") == 0).sum().cast(pl.Int64),
        )
        .sort("t_ns")
        .with_columns(t_h=pl.col("t_ns") / NS_PER_HOUR)
    )


def _buddy(source: Source) -> pl.LazyFrame:
    names = [f"nr_free_order{order}" for order in _ORDERS]
    long = (
        source.at_steps("hosts")
        .select("t_ns", *(pl.col(name).cast(pl.Int64) for name in names))
        .unpivot(on=names, index="t_ns", variable_name="order", value_name="blocks")
        .with_columns(pl.col("order").replace_strict(names, list(_ORDERS), return_dtype=pl.Int64))
    )
    grouped = long.group_by("t_ns", "order").agg(
        *_over_hosts(pl.col("blocks"), "free_blocks"), blocks=pl.col("blocks").sum()
    )
    pages = pl.col("blocks") * 2 ** pl.col("order")
    return grouped.sort("t_ns", "order").with_columns(
        t_h=pl.col("t_ns") / NS_PER_HOUR,
        share_of_free_ratio=_ratio(pages, pages.sum().over("t_ns")),
    )


def _stalls(source: Source) -> pl.LazyFrame:
    sums = _sums_over_time(
        source,
        *("stall_ns", "allocstall", "daemon_ns", "swap_used_pages", "oom_kill", *_SWAP_COUNTERS),
    )

    def rate(name: str, unit: float = 1.0) -> pl.Expr:
        return _grown(name) / unit / pl.col("host_h")

    return sums.with_columns(
        stall_ms_per_host_h=rate("stall_ns", NS_PER_MS),
        allocstalls_per_host_h=rate("allocstall"),
        daemon_s_per_host_h=rate("daemon_ns", NS_PER_S),
        swap_in_mib_per_host_h=rate("pswpin", _MIB_PAGES),
        swap_out_mib_per_host_h=rate("pswpout", _MIB_PAGES),
        swap_used_gib_per_host=pl.col("swap_used_pages") / _GIB_PAGES / pl.col("len"),
        oom_kills=_grown("oom_kill"),
    )


def _mean(name: str, weight: pl.Expr, unit: float) -> pl.Expr:
    """Return a weighted mean."""
    return _ratio((weight * pl.col(name)).sum(), weight.sum()) / unit


def _translation() -> list[pl.Expr]:
    """Return figures of address translation, means over the vCPUs that run programs."""
    weight = pl.col("weight")
    walks = weight * pl.col("tlb_misses")
    guest_cycles = _mean("walk_guest_cycles", walks, 1000)
    ept_cycles = _mean("walk_ept_cycles", walks, 1000)
    return [
        pl.len().cast(pl.Int64).alias("nr_vms"),
        weight.sum().alias("running_vcpus"),
        _mean("tlb_misses", weight, _PPM / 1000).alias("misses_per_1000"),
        _mean("tlb_misses_error", weight, _PPM / 1000).alias("misses_per_1000_error"),
        _mean("walk_guest_reads", walks, 1000).alias("guest_reads_per_walk"),
        _mean("walk_ept_reads", walks, 1000).alias("ept_reads_per_walk"),
        (guest_cycles + ept_cycles).alias("cycles_per_walk"),
        _mean("walk_share", weight, _PPM).alias("walk_ratio"),
        _mean("slowdown_all_huge", weight, _PPM).alias("slowdown_all_huge"),
        _mean("slowdown_native", weight, _PPM).alias("slowdown_native"),
    ]


def _tlb(source: Source) -> pl.LazyFrame:
    classes = source.scenario.guests.behaviours
    numbers = list(range(len(classes)))
    behaviour = pl.col("behaviour").cast(pl.Int64)
    load = behaviour.replace_strict(numbers, [c.load for c in classes], return_dtype=pl.Float64)
    name = behaviour.replace_strict(numbers, [c.name for c in classes], return_dtype=pl.String)
    sampled = (pl.col("ended") == 0) & (pl.col("slowdown_all_huge") > 0)
    rows = (
        source.at_steps("vms")
        .filter(sampled)
        .with_columns(behaviour=name, weight=pl.col("vcpus") * load)
    )
    by_class = rows.group_by("t_ns", "behaviour").agg(_translation())
    all_classes = rows.with_columns(behaviour=pl.lit(FLEET))
    everyone = all_classes.group_by("t_ns", "behaviour").agg(_translation())
    last = pl.col("behaviour") == FLEET
    return (
        pl.concat([by_class, everyone])
        .sort("t_ns", last, "behaviour")
        .with_columns(t_h=pl.col("t_ns") / NS_PER_HOUR)
    )


def _top(source: Source) -> pl.LazyFrame:
    """Return the hosts as of the last row, those whose guests lose most first."""
    end_ns, step_ns = source.last_ns, min(source.step_ns, source.last_ns)
    epochs_back = -(-step_ns // source.scenario.epoch_ns) + 1
    hosts = scan(source.run, "hosts", last_epochs=epochs_back)
    counters = ("stall_ns", "oom_kill", "thp_fault_alloc", "thp_fault_fallback")
    before = hosts.filter(pl.col("t_ns") == end_ns - step_ns).select("host_id", *counters)
    now = hosts.filter(pl.col("t_ns") == end_ns)
    joined = now.join(before, on="host_id", how="left", suffix="_before")

    def grown(name: str) -> pl.Expr:
        return pl.col(name) - pl.col(f"{name}_before").fill_null(0)

    running = pl.col("running_milli_vcpus") / 1000
    waits = pl.when(running > 0).then(running * (1 - _PPM / pl.col("slowdown_all_huge")))
    fallback, alloc = grown("thp_fault_fallback"), grown("thp_fault_alloc")
    return joined.with_columns(
        lost_vcpus=waits.fill_null(0.0) + grown("stall_ns") / step_ns,
        stall_ms_per_h=grown("stall_ns") / NS_PER_MS / (step_ns / NS_PER_HOUR),
        oom_kills=grown("oom_kill"),
        huge_coverage_ratio=_huge_coverage(),
        effective_coverage_ratio=_effective_coverage(),
        thp_fallback_ratio=_ratio(fallback, fallback + alloc),
        unusable_ratio=pl.col("unusable_index_order9") / _PER_MILLE,
        free_gib=pl.col("nr_free_pages") / _GIB_PAGES,
        swap_used_gib=pl.col("swap_used_pages") / _GIB_PAGES,
    ).sort("lost_vcpus", "unusable_ratio", "host_id", descending=[True, True, False])


_VIEWS: dict[str, Callable[[Source], pl.LazyFrame]] = {
    "top": _top,
    "coverage": _coverage,
    "fragmentation": _fragmentation,
    "buddy": _buddy,
    "stalls": _stalls,
    "tlb": _tlb,
}
