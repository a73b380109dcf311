"""What an operator wants to know of a run, computed from its tables."""

from pathlib import Path
from typing import Any

import polars as pl

from fleet.loading import build
from fleet.rundir import RunDirectory, open_run
from fleet.scan import scan
from fleet.scenario import Scenario
from fleet.store import Store
from hostsim.core.errors import InvariantError
from hostsim.core.units import (
    HPAGE_PMD_NR,
    NS_PER_MS,
    NS_PER_S,
    PAGE_BYTES,
    PAGEBLOCK_NR_PAGES,
    format_bytes,
    format_duration,
)


def summarise(place: str | Path | Store) -> dict[str, Any]:
    """Return the figures of a run; names say the unit, ratios are in [0, 1].

    Raises
    ------
    ResultsError
        The place is no run.
    InvariantError
        VMs are missing: started, rejected, ended and running do not add up.
    """
    run = open_run(place)
    scenario = build(dict(run.record["scenario"]), run.record["name"], str(run.store))
    last = _last_rows(run, scenario)
    vms = _vm_counts(run, last)
    return {
        "name": run.record["name"],
        "seed": run.record["seed"],
        "status": run.record["status"],
        "hosts": scenario.nr_hosts,
        "duration_ns": scenario.duration_ns,
        "vms": vms,
        "migrations": _migrations(run),
        "at_end": _gauges(last),
        "fleet": _fleet(run),
        "counters": _counters(last),
        "translation": _translation(last),
        "cost": _cost(run),
    }


def _last_rows(run: RunDirectory, scenario: Scenario) -> pl.DataFrame:
    """Return each host's last row, with what its group offers."""
    capacity = pl.DataFrame(
        {
            "host_id": range(scenario.nr_hosts),
            "vcpus": [spec.vcpus for spec in scenario.host_specs()],
            "memory_pages": [spec.memory_pages for spec in scenario.host_specs()],
        },
        schema={"host_id": pl.Int32, "vcpus": pl.Int64, "memory_pages": pl.Int64},
    )
    hosts = scan(run, "hosts")
    last = hosts.filter(pl.col("t_ns") == pl.col("t_ns").max()).collect()
    return last.join(capacity, on="host_id").sort("host_id")


def _vm_counts(run: RunDirectory, last: pl.DataFrame) -> dict[str, int]:
    """Count VMs by what became of them, and insist that they balance."""
    found = scan(run, "events").group_by(pl.col("event").cast(pl.String)).len().collect()
    events = dict(found.iter_rows())
    started, ended = events.get("start", 0), events.get("end", 0) + events.get("kill", 0)
    counts = {
        "arrived": int(run.record["tally"].get("arrivals", 0)),
        "started": started,
        "rejected": events.get("reject", 0),
        "ended": ended,
        "killed": events.get("kill", 0),
        "restarted": events.get("restart", 0),
        "migrated": events.get("migrate", 0),
        "running": int(last["nr_vms"].sum()),
    }
    if run.complete:
        if counts["started"] + counts["rejected"] != counts["arrived"]:
            raise InvariantError(f"{run.store}: started + rejected is not arrived: {counts}")
        if counts["started"] + counts["restarted"] != counts["ended"] + counts["running"]:
            raise InvariantError(f"{run.store}: started is not ended + running: {counts}")
    return counts


def _migrations(run: RunDirectory) -> dict[str, Any]:
    """Return how VMs moved: times are medians over migrations."""
    found = scan(run, "migrations").collect()
    rss, before = int(found["rss_pages"].sum()), int(found["rss_before_pages"].sum())
    return {
        "arrived": len(found),
        "total_ns": _number(found["total_ns"].median()),
        "downtime_ns": _number(found["downtime_ns"].median()),
        "downtime_max_ns": _number(found["downtime_ns"].max()),
        "sent_bytes": int(found["sent_pages"].sum()) * PAGE_BYTES,
        "huge_before_ratio": _ratio(int(found["huge_before_pages"].sum()) * HPAGE_PMD_NR, before),
        "huge_coverage_ratio": _ratio(int(found["huge_pages"].sum()) * HPAGE_PMD_NR, rss),
    }


def _migration_lines(moved: dict[str, Any]) -> list[tuple[str, str]]:
    if not moved["arrived"]:
        return []
    total_s, downtime_ms = moved["total_ns"] / NS_PER_S, moved["downtime_ns"] / NS_PER_MS
    return [
        (
            "migrations",
            f"{moved['arrived']:,}, {format_bytes(moved['sent_bytes'])} sent;"
            f" median {total_s:.1f} s, downtime {downtime_ms:.0f} ms",
        ),
        (
            "",
            f"huge coverage {_percent(moved['huge_before_ratio'])} before,"
            f" {_percent(moved['huge_coverage_ratio'])} on arrival",
        ),
    ]


def _ratio(top: float, bottom: float) -> float | None:
    return round(top / bottom, 6) if bottom else None


def _over_hosts(values: pl.Series) -> dict[str, float | None]:
    """Return the mean and the 95th percentile (nearest rank) over hosts."""
    return {"mean": _number(values.mean()), "p95": _number(values.quantile(0.95, "nearest"))}


def _number(value: Any) -> float | None:
    return None if value is None else round(float(value), 6)


def _gauges(last: pl.DataFrame) -> dict[str, Any]:
    index = last["unusable_index_order9"] / 1000
    huge_pages = int(last["nr_anon_transparent_hugepages"].sum()) * HPAGE_PMD_NR
    guest_pages = int(last["nr_guest_pages"].sum())
    blocks = int(last["managed_pages"].sum()) // PAGEBLOCK_NR_PAGES
    return {
        "committed_vcpus_ratio": _over_hosts(last["committed_vcpus"] / last["vcpus"]),
        "committed_memory_ratio": _over_hosts(last["committed_pages"] / last["memory_pages"]),
        "touched_memory_ratio": _over_hosts(last["nr_guest_pages"] / last["memory_pages"]),
        "free_memory_ratio": _over_hosts(last["nr_free_pages"] / last["memory_pages"]),
        "guest_ram_bytes": guest_pages * PAGE_BYTES,
        "huge_coverage_ratio": _ratio(huge_pages, guest_pages),
        "unusable_index_order9": {
            "median": _number(index.median()),
            "p95": _number(index.quantile(0.95, "nearest")),
        },
        "partial_pageblocks_ratio": _ratio(int(last["pageblocks_partial"].sum()), blocks),
    }


def _fleet(run: RunDirectory) -> dict[str, float | int | None]:
    """Return the figures of the table ``fleet``: at the end, and packing as a mean over time."""
    rows = scan(run, "fleet").sort("t_ns").collect()
    if rows.is_empty():
        return {}
    end = rows.row(-1, named=True)
    hosts, pageblocks = end["nr_hosts"], end["managed_pages"] // PAGEBLOCK_NR_PAGES
    faults = end["thp_fault_alloc"] + end["thp_fault_fallback"]
    return {
        "packing_density_ratio": _ratio(end["committed_vcpus"], end["occupied_vcpus"]),
        "packing_density_mean_ratio": _ratio(
            float(rows["committed_vcpus"].sum()), float(rows["occupied_vcpus"].sum())
        ),
        "empty_hosts": end["empty_hosts"],
        "empty_hosts_mean": _number(rows["empty_hosts"].mean()),
        "full_hosts": end["full_hosts"],
        "stranded_memory_ratio": _ratio(end["stranded_pages"], end["offered_pages"]),
        "stranded_memory_mean_ratio": _ratio(
            float(rows["stranded_pages"].sum()), float(rows["offered_pages"].sum())
        ),
        **{
            f"hosts_without_free_{size}_ratio": _ratio(end[f"hosts_no_free_{size}"], hosts)
            for size in ("2m", "32m", "1g")
        },
        "unmovable_memory_ratio": _ratio(end["unmovable_pages"], end["managed_pages"]),
        "unmovable_pageblocks_ratio": _ratio(end["pageblocks_holding_unmovable"], pageblocks),
        "thp_success_ratio": _ratio(end["thp_fault_alloc"], faults),
    }


def _counters(last: pl.DataFrame) -> dict[str, Any]:
    alloc, fallback = int(last["thp_fault_alloc"].sum()), int(last["thp_fault_fallback"].sum())
    return {
        "thp_fault_alloc": alloc,
        "thp_fault_fallback": fallback,
        "thp_fallback_ratio": _ratio(fallback, alloc + fallback),
        "oom_kill": int(last["oom_kill"].sum()),
        "allocstall": int(last["allocstall"].sum()),
    }


def _translation(last: pl.DataFrame) -> dict[str, float | None]:
    """Return what address translation costs the programs that run, a mean over their vCPUs."""
    weight = last["running_milli_vcpus"]
    walks = weight * last["tlb_misses"]

    def mean(name: str, weights: pl.Series, unit: float) -> float | None:
        return _ratio(float((weights * last[name]).sum()), float(weights.sum()) * unit)

    return {
        "tlb_misses_ratio": mean("tlb_misses", weight, 1e6),
        "tlb_misses_ratio_error": mean("tlb_misses_error", weight, 1e6),
        "guest_references_per_walk": mean("walk_guest_reads", walks, 1e3),
        "ept_references_per_walk": mean("walk_ept_reads", walks, 1e3),
        "guest_walk_cycles": mean("walk_guest_cycles", walks, 1e3),
        "ept_walk_cycles": mean("walk_ept_cycles", walks, 1e3),
        "walk_ratio": mean("walk_share", weight, 1e6),
        "slowdown_all_huge": mean("slowdown_all_huge", weight, 1e6),
        "slowdown_native": mean("slowdown_native", weight, 1e6),
    }


def _cost(run: RunDirectory) -> dict[str, Any]:
    cost = run.record["execution"]
    keys = ("backend", "shards", "wall_s", "advance_wall_s", "cpu_s", "peak_memory_bytes", "mmu")
    found = {key: cost.get(key) for key in keys}
    return found | {
        "host_hours_per_core_s": _ratio(cost.get("host_hours", 0), cost.get("cpu_s", 0))
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _short(value: float | None) -> str:
    value = value or 0.0
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _translation_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what TLB misses cost, and what is to be had; nothing if no program was sampled."""
    cost, mmu = found["translation"], found["cost"].get("mmu") or {}
    if cost["walk_ratio"] is None:
        return []
    huge, native = (1.0 - 1.0 / cost[f"slowdown_{name}"] for name in ("all_huge", "native"))
    lines = [
        (
            "TLB",
            f"{1000 * cost['tlb_misses_ratio']:.1f} +- {1000 * cost['tlb_misses_ratio_error']:.1f}"
            f" misses a thousand accesses, {_percent(cost['walk_ratio'])} of run time in walks",
        ),
        (
            "",
            f"huge pages everywhere would return {100 * huge:.2f} % of run time,"
            f" no hypervisor {100 * native:.2f} %",
        ),
    ]
    if mmu:
        lines.append(
            (
                "MMU samples",
                f"{mmu['samples']:,} in {mmu['cpu_s']:.1f} s of CPU time,"
                f" {mmu['memo_hits']:,} VM rows from memory",
            )
        )
    return lines


def _fleet_lines(fleet: dict[str, Any]) -> list[tuple[str, str]]:
    """Say how full and how whole the fleet is; means are over the epochs."""
    if not fleet:
        return []
    sizes = (("2 MiB", "2m"), ("32 MiB", "32m"), ("1 GiB", "1g"))
    return [
        (
            "packing density",
            f"{_percent(fleet['packing_density_ratio'])} of the vCPUs of hosts in use"
            f" ({_percent(fleet['packing_density_mean_ratio'])} mean)",
        ),
        ("empty hosts", f"{fleet['empty_hosts']:,} ({fleet['empty_hosts_mean']:.1f} mean)"),
        (
            "stranded memory",
            f"{_percent(fleet['stranded_memory_ratio'])} of memory, at {fleet['full_hosts']:,}"
            f" hosts without a vCPU left ({_percent(fleet['stranded_memory_mean_ratio'])} mean)",
        ),
        (
            "no free block",
            ", ".join(
                f"{_percent(fleet[f'hosts_without_free_{key}_ratio'])} of {size}"
                for size, key in sizes
            )
            + " (share of hosts)",
        ),
        (
            "unmovable",
            f"{_percent(fleet['unmovable_memory_ratio'])} of memory,"
            f" in {_percent(fleet['unmovable_pageblocks_ratio'])} of pageblocks",
        ),
    ]


def as_text(found: dict[str, Any]) -> str:
    """Print the figures for people, in at most 90 columns."""
    vms, now, counted, cost = found["vms"], found["at_end"], found["counters"], found["cost"]
    index = now["unusable_index_order9"]

    def over_hosts(key: str) -> str:
        return f"{_percent(now[key]['mean'])} mean, {_percent(now[key]['p95'])} p95 over hosts"

    nr_hosts = found["hosts"]
    again = f" + {vms['restarted']:,} restarted" if vms["restarted"] else ""
    rows = [
        ("hosts", f"{nr_hosts:,} for {format_duration(found['duration_ns'])}"),
        (
            "VMs",
            f"{vms['arrived']:,} arrived = {vms['started']:,} started"
            f" + {vms['rejected']:,} rejected",
        ),
        (
            "",
            f"{vms['started']:,} started{again} = {vms['ended']:,} ended"
            f" ({vms['killed']:,} killed) + {vms['running']:,} running",
        ),
        *_migration_lines(found["migrations"]),
        ("vCPUs committed", over_hosts("committed_vcpus_ratio")),
        ("memory committed", over_hosts("committed_memory_ratio")),
        ("memory touched", over_hosts("touched_memory_ratio")),
        ("memory free", over_hosts("free_memory_ratio")),
        (
            "huge coverage",
            f"{_percent(now['huge_coverage_ratio'])} of"
            f" {format_bytes(now['guest_ram_bytes'])} guest RAM",
        ),
        (
            "THP fallback",
            f"{_percent(counted['thp_fallback_ratio'])} of"
            f" {counted['thp_fault_alloc'] + counted['thp_fault_fallback']:,} eligible faults",
        ),
        *_fleet_lines(found["fleet"]),
        (
            "fragmentation",
            f"{_percent(index['median'])} median, {_percent(index['p95'])} p95"
            " of free memory unusable for 2 MiB",
        ),
        ("partial blocks", f"{_percent(now['partial_pageblocks_ratio'])} of pageblocks"),
        *_translation_lines(found),
        ("wall time", f"{cost['wall_s']:.1f} s, {cost['advance_wall_s']:.1f} s of it simulating"),
        ("CPU time", f"{cost['cpu_s']:.1f} s, all processes"),
        ("peak memory", f"{format_bytes(cost['peak_memory_bytes'])}, all processes"),
        ("speed", f"{_short(cost['host_hours_per_core_s'])} host-hours per core-second"),
    ]
    title = f"{found['name']}, seed {found['seed']}: {found['status']}"
    return "\n".join([title, *(f"  {name:<18}{text}" for name, text in rows)])
