"""A host is drained: what its VMs go through, and how khugepaged repairs their memory."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import polars as pl

from fleet.claims import Found
from fleet.loading import load
from fleet.rundir import open_run
from fleet.scan import scan
from fleet.scenario import Scenario
from fleet.scheduler import Options, run
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_HOUR, NS_PER_MS, NS_PER_S, PAGE_SHIFT

AFTER_HOURS: Final = (1, 4, 12)  # behind the barrier at which the VMs moved


def measure_migration(scenario: Scenario) -> dict[str, Any]:
    """Run a scenario in this process and return how the VMs of its first barrier with moves fared.

    Returns
    -------
    dict
        ``vms``, ``sent_gib``, ``total_s`` (from the first to the last, one after the other),
        medians and maxima of ``vm_s`` and ``downtime_ms``, and the huge coverage of those VMs
        that still run after the last of the hours: ``before``, ``on_arrival`` and then (None if
        there are none).
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run(scenario, out, Options(inline=True, checkpoint_epochs=0))
        opened = open_run(out)
        moves = scan(opened, "migrations").collect()
        moves = moves.filter(pl.col("t_ns") == pl.col("t_ns").min())
        vms = scan(opened, "vms").select("t_ns", "host_id", "vm_id", "rss_pages", "huge_pages")
        rows = vms.collect()
    t_ns = int(moves["t_ns"].to_numpy().max(initial=0))  # of one barrier
    seen = {
        hours: rows.filter(pl.col("t_ns") == t_ns + hours * NS_PER_HOUR)
        .join(moves.select("host_id", "vm_id"), on=("host_id", "vm_id"))
        .sort("vm_id")
        for hours in AFTER_HOURS
    }
    stayed = pl.col("vm_id").is_in(seen[AFTER_HOURS[-1]]["vm_id"].to_list())
    later = {hours: _coverage(there.filter(stayed)) for hours, there in seen.items()}
    before = moves.select(
        "vm_id", rss_pages="rss_before_pages", huge_pages="huge_before_pages"
    ).filter(stayed)
    total_s, downtime_ms = moves["total_ns"] / NS_PER_S, moves["downtime_ns"] / NS_PER_MS
    return {
        "mode": scenario.migration.mode,
        "vms": len(moves),
        "stayed": int(before.height),
        "sent_gib": int(moves["sent_pages"].to_numpy().sum()) / (1 << 30 - PAGE_SHIFT),
        "total_s": int((moves["begin_ns"] + moves["total_ns"]).to_numpy().max(initial=0))
        / NS_PER_S,
        "vm_s": {"median": total_s.median(), "max": total_s.max()},
        "downtime_ms": {"median": downtime_ms.median(), "max": downtime_ms.max()},
        "huge_ratio": {
            "before": _coverage(before),
            "on_arrival": _coverage(moves.filter(stayed)),
            **{f"after_{hours}h": ratio for hours, ratio in later.items()},
        },
    }


def migration(
    set_: Annotated[list[str] | None, "PATH=VALUE, any field of the scenario."] = None,
) -> Found:
    r"""Drain a host, by pre-copy and by post-copy, and print what its VMs go through.

    \b
    Examples:
      fleet bench migration
      fleet bench migration --set migration.mib_per_s=298 --set hosts.khugepaged.pages_to_scan=65536
    """
    found = [
        measure_migration(load("drain", [*(set_ or []), f"migration.mode={mode}"]))
        for mode in ("precopy", "postcopy")
    ]
    return Found((), found, [line for row in found for line in _lines(row)])


def _lines(row: dict[str, Any]) -> list[str]:
    names = ("before", "on_arrival", *(f"after_{hours}h" for hours in AFTER_HOURS))
    vm_s, down_ms = row["vm_s"], row["downtime_ms"]
    cells = [
        f"{name.replace('_', ' ')} {'-' if ratio is None else f'{100 * ratio:.1f} %'}"
        for name, ratio in ((name, row["huge_ratio"][name]) for name in names)
    ]
    return [
        f"{row['mode']}: {row['vms']} VMs, {row['sent_gib']:.1f} GiB in {row['total_s']:.1f} s,"
        " one after the other",
        f"  a VM         {vm_s['median']:.2f} s (median), {vm_s['max']:.2f} s (longest);"
        f" downtime {down_ms['median']:.0f} ms (median), {down_ms['max']:.0f} ms (longest)",
        f"  huge pages   {', '.join(cells)}",
        f"               of the {row['stayed']} VMs that stay so long",
    ]


def _coverage(rows: pl.DataFrame) -> float | None:
    pages = int(rows["rss_pages"].sum())
    return int(rows["huge_pages"].sum()) * HPAGE_PMD_NR / pages if pages else None
