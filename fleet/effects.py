"""What two runs are compared by: figures in units that people act on.

A figure is a sum over hosts and ticks divided by another, so that it exists for a run and for a
host alike; those of the whole fleet only say so.  Each has the smallest difference that matters,
the *margin*: a judgement, stated so that it can be disagreed with (``--margin``).
"""

from typing import NamedTuple

import polars as pl

from fleet.rundir import RunDirectory
from fleet.scan import scan
from hostsim.core.units import (
    HPAGE_PMD_NR,
    NS_PER_DAY,
    NS_PER_HOUR,
    NS_PER_MS,
    NS_PER_S,
    PAGE_BYTES,
)

_GIB_PAGES = (1 << 30) // PAGE_BYTES
_MIB_PAGES = (1 << 20) // PAGE_BYTES
_HUNDRED_DAYS = 100 * NS_PER_DAY
_COUNTERS = ("stall_ns", "daemon_ns", "thp_fault_alloc", "thp_fault_fallback", "oom_kill", "pswpin")


class Effect(NamedTuple):
    """One figure of a run.

    ``better`` is 1 where more is better, -1 where less is.  The margin is in the figure's unit,
    or a share of ``margin_of``, a figure of the run: ``memory_gib`` of a host, or ``nr_hosts``.
    """

    name: str
    title: str
    unit: str
    better: int
    margin: float
    doc: str
    margin_of: str = ""
    of_hosts: bool = True  # exists for a single host, too


EFFECTS = (
    Effect("huge_coverage", "huge coverage", "%", 1, 1.0, "Guest memory that huge PMDs map."),
    Effect(
        "effective_coverage",
        "effective coverage",
        "%",
        1,
        1.0,
        "Memory in use inside guests that is huge on both sides and aligned alike.",
    ),
    Effect(
        "cycles_lost",
        "run time lost",
        "%",
        -1,
        0.1,
        "Run time that huge pages everywhere would return; less is cycles returned.",
    ),
    Effect(
        "memory_used",
        "memory used",
        "GiB/host",
        -1,
        0.002,
        "Memory of a host that is not free, page tables included.",
        "memory_gib",
    ),
    Effect(
        "empty_hosts",
        "empty hosts",
        "hosts",
        1,
        0.01,
        "Hosts without a VM, mean over epochs.",
        "nr_hosts",
        False,
    ),
    Effect(
        "vms_rejected",
        "VMs rejected",
        "%",
        -1,
        0.1,
        "VMs that no host took, of those that arrived.",
        of_hosts=False,
    ),
    Effect(
        "thp_fallback", "THP fallback", "%", -1, 1.0, "Eligible faults that fell back to 4 KiB."
    ),
    Effect(
        "unusable_index",
        "fragmentation",
        "%",
        -1,
        1.0,
        "Free memory in blocks smaller than a huge page, mean over hosts.",
    ),
    Effect(
        "stalls",
        "stalls",
        "ms/host-hour",
        -1,
        10.0,
        "Time that accesses waited for direct compaction and reclaim.",
    ),
    Effect(
        "daemon_cpu",
        "daemons",
        "CPU-s/host-day",
        -1,
        60.0,
        "CPU time of khugepaged, kcompactd and ksmd.",
    ),
    Effect("swap_in", "swap-in", "MiB/host-hour", -1, 1.0, "Pages read back from the swap area."),
    Effect(
        "oom_kills",
        "OOM kills",
        "/100 host-days",
        -1,
        1.0,
        "VMs killed because memory ran out.",
    ),
    Effect(
        "migrations",
        "migrations",
        "/100 host-days",
        -1,
        1.0,
        "VMs that moved to another host.",
        of_hosts=False,
    ),
)
BY_NAME = {effect.name: effect for effect in EFFECTS}


class Figures(NamedTuple):
    """What a run is compared by."""

    run: dict[str, float | None]  # by effect, and what margins are shares of
    hosts: pl.DataFrame  # host_id and the effects of hosts, a row a host in order


def figures(run: RunDirectory, tick_ns: int, after_ns: int = 0) -> Figures:
    """Compute the figures of a run and of its hosts.

    Parameters
    ----------
    after_ns
        Leave out what happened until then.
    """
    hosts = _sums(run, tick_ns, after_ns)
    parts = {name: (top, bottom) for name, top, bottom in _quotients()}
    by_host = hosts.select(
        "host_id",
        *((pl.when(bottom > 0).then(top / bottom)).alias(n) for n, (top, bottom) in parts.items()),
    )
    whole = hosts.select(
        *(
            pl.when(bottom.sum() > 0).then(top.sum() / bottom.sum()).alias(name)
            for name, (top, bottom) in parts.items()
        ),
        memory_gib=pl.col("memory_pages").mean() / _GIB_PAGES,
        nr_hosts=pl.len().cast(pl.Float64),
    ).row(0, named=True)
    return Figures(whole | _of_fleet(run, hosts, after_ns), by_host)


def _sums(run: RunDirectory, tick_ns: int, after_ns: int) -> pl.DataFrame:
    """Return sums over the ticks of each host; counters as what they grew by."""
    weight = pl.col("running_milli_vcpus")
    slowdown = pl.col("slowdown_all_huge")
    lost = pl.when(slowdown > 0).then(weight * (1 - 1e6 / slowdown)).otherwise(0.0)
    used = pl.col("managed_pages") - pl.col("nr_free_pages") - pl.col("nr_pcp_pages")
    counted = pl.col("t_ns") > after_ns

    def total(value: pl.Expr) -> pl.Expr:
        return value.filter(counted).cast(pl.Float64).sum()

    def grown(name: str) -> pl.Expr:
        before = pl.col(name).filter(~counted).max().fill_null(0)
        return (pl.col(name).max() - before).cast(pl.Float64).alias(name)

    sums = (
        scan(run, "hosts")
        .group_by("host_id")
        .agg(
            *map(grown, _COUNTERS),
            ticks=counted.sum().cast(pl.Float64),
            huge_pages=total(pl.col("nr_anon_transparent_hugepages")) * HPAGE_PMD_NR,
            guest_pages=total(pl.col("nr_guest_pages")),
            effective_pages=total(pl.col("effective_huge_pages")) * HPAGE_PMD_NR,
            used_inside_pages=total(pl.col("guest_used_pages")),
            used_pages=total(used),
            managed_pages=total(pl.col("managed_pages")),
            unusable=total(pl.col("unusable_index_order9")),
            lost=total(lost),
            weight=total(weight),
        )
    )
    return (
        sums.sort("host_id")
        .with_columns(
            time_ns=pl.col("ticks") * tick_ns,
            memory_pages=pl.col("managed_pages") / pl.col("ticks"),
        )
        .collect(engine="streaming")
    )


def _quotients() -> list[tuple[str, pl.Expr, pl.Expr]]:
    """Return dividend and divisor of the effects of hosts, over `_sums`."""
    col = pl.col
    fallback, ticks, time_ns = col("thp_fault_fallback"), col("ticks"), col("time_ns")
    return [
        ("huge_coverage", 100 * col("huge_pages"), col("guest_pages")),
        ("effective_coverage", 100 * col("effective_pages"), col("used_inside_pages")),
        ("cycles_lost", 100 * col("lost"), col("weight")),
        ("memory_used", col("used_pages") / _GIB_PAGES, ticks),
        ("thp_fallback", 100 * fallback, fallback + col("thp_fault_alloc")),
        ("unusable_index", col("unusable") / 10, ticks),
        ("stalls", col("stall_ns") / NS_PER_MS, time_ns / NS_PER_HOUR),
        ("daemon_cpu", col("daemon_ns") / NS_PER_S, time_ns / NS_PER_DAY),
        ("swap_in", col("pswpin") / _MIB_PAGES, time_ns / NS_PER_HOUR),
        ("oom_kills", col("oom_kill"), time_ns / _HUNDRED_DAYS),
    ]


def _of_fleet(run: RunDirectory, hosts: pl.DataFrame, after_ns: int) -> dict[str, float | None]:
    """Return the figures that no single host has."""
    counted = pl.col("t_ns") > after_ns
    empty = scan(run, "fleet").filter(counted).select(pl.col("empty_hosts").mean()).collect().item()
    rejects = _count(run, "events", (pl.col("event").cast(pl.String) == "reject") & counted)
    arrived = int(run.record["tally"].get("arrivals", 0))
    hundred_days = float(hosts["time_ns"].sum()) / _HUNDRED_DAYS
    return {
        "empty_hosts": empty,
        "vms_rejected": 100 * rejects / arrived if arrived else None,
        "migrations": _count(run, "migrations", counted) / hundred_days if hundred_days else None,
    }


def _count(run: RunDirectory, table: str, which: pl.Expr) -> int:
    return int(scan(run, table).filter(which).select(pl.len()).collect().item())
