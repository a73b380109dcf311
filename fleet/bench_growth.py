"""What a host costs as the fleet grows, and what a VM costs as hosts grow."""

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import numpy as np

from fleet.bench_runs import MIB, measured_run
from fleet.claims import Claim, Found, at_most
from fleet.loading import load
from fleet.node import START, STOP, Commands, Node
from fleet.scenario import Scenario
from fleet.scheduler import Options
from hostsim.core.rng import Stream, stream
from hostsim.core.units import NS_PER_HOUR, PAGE_SHIFT

CPU_BAR: Final = 1.2  # of a host-hour in the largest fleet, of that in the smallest
LINEAR_BAR: Final = 1.2  # memory of a further host, the same
MIB_BAR: Final = 7.0  # a host, all processes
SIZES_BAR: Final = 3.0  # of a VM on hosts of 1 TiB, of that on hosts of 64 GiB
GIB_PAGES: Final = 1 << (30 - PAGE_SHIFT)
HOST_GIB: Final = (64, 1024)
VM_PAGES: Final = 4 * GIB_PAGES
FULL_RATIO: Final = 0.7  # of memory, promised


def measure_growth(scenarios: Sequence[Scenario], options: Options) -> list[dict[str, Any]]:
    """Run scenarios of growing size and return what a host costs in each.

    Returns
    -------
    list of dict
        ``hosts``, ``wall_s``, ``cpu_s``, ``cpu_ms_per_host_hour`` (of the whole run),
        ``steady_cpu_ms_per_host_hour`` (behind the first quarter), ``peak_mib_per_host`` (all
        processes).
    """
    rows = []
    for scenario in scenarios:
        found = measured_run(scenario, options)
        cost = found.record["execution"]
        rows.append(
            {
                "hosts": scenario.nr_hosts,
                "wall_s": cost["wall_s"],
                "cpu_s": cost["cpu_s"],
                "cpu_ms_per_host_hour": 1000.0 * cost["cpu_s"] / cost["host_hours"],
                "steady_cpu_ms_per_host_hour": 1000.0
                * found.steady_cpu_s
                / found.steady_host_hours,
                "peak_mib_per_host": found.peak_bytes / MIB / scenario.nr_hosts,
            }
        )
    return rows


def judge(rows: list[dict[str, Any]]) -> list[Claim]:
    """Hold growth against its bars."""
    first, last = rows[0], rows[-1]
    over = f"{last['hosts']:,} hosts over {first['hosts']:,}"
    per_hour = last["steady_cpu_ms_per_host_hour"] / first["steady_cpu_ms_per_host_hour"]
    claims = [
        at_most(f"CPU a host-hour behind the first quarter, {over}", per_hour, CPU_BAR),
        at_most(
            f"memory a host, all processes, {last['hosts']:,} hosts",
            last["peak_mib_per_host"],
            MIB_BAR,
            "MiB",
        ),
    ]
    if len(rows) > 2:
        early, late = (_further_host_mib(*pair) for pair in (rows[:2], rows[-2:]))
        name = f"memory of a further host, up to {last['hosts']:,} over up to {rows[1]['hosts']:,}"
        claims.append(at_most(name, late / early, LINEAR_BAR))
    return claims


def _further_host_mib(small: dict[str, Any], large: dict[str, Any]) -> float:
    total = [row["peak_mib_per_host"] * row["hosts"] for row in (small, large)]
    return float((total[1] - total[0]) / (large["hosts"] - small["hosts"]))


def measure_sizes(hours: int, total_gib: int = HOST_GIB[-1]) -> dict[int, float]:
    """Return CPU milliseconds a VM event by GiB of a host: as much memory, the same VMs.

    VMs of 4 GiB start, live for hours and end on hosts that are kept as full as they go; MMU
    samples are left out.
    """
    return {gib: _event_ms(gib, total_gib // gib, hours) for gib in HOST_GIB if gib <= total_gib}


def _event_ms(gib: int, nr_hosts: int, hours: int) -> float:
    """Return the CPU time of an event on some hosts, behind the first hour."""
    scenario = load(
        "churn", [f"hosts.memory={gib}GiB", "mmu.enabled=false", f"hosts.count={nr_hosts}"]
    )
    nr_vms = int(gib * FULL_RATIO) * GIB_PAGES // VM_PAGES
    nodes, plans = [], []
    for host_id, spec in enumerate(scenario.host_specs()):
        arguments = scenario.seed, scenario.tick_ns, scenario.vm_rows_ns
        nodes.append(Node(spec, scenario.guests, host_id, *arguments))
        plans.append(_plan(host_id, nr_vms, hours))
    spent_s, events = 0.0, 0
    for hour in range(hours + 1):
        begin_s = time.process_time()
        for node, plan in zip(nodes, plans, strict=True):
            node.advance(plan[hour], hour * NS_PER_HOUR, (hour + 1) * NS_PER_HOUR)
        if hour:
            spent_s += time.process_time() - begin_s
            events += sum(len(plan[hour].t_ns) for plan in plans)
    return 1000.0 * spent_s / events


def _plan(host_id: int, nr_vms: int, hours: int) -> list[Commands]:
    """Start VMs in the first hour; then replace each once an hour, at a time of its own."""
    rng = stream(0, Stream.BENCH, host_id)
    plans, running = [], np.zeros(0, np.int64)
    for hour in range(hours + 1):
        t_ns = hour * NS_PER_HOUR + np.sort(rng.integers(0, NS_PER_HOUR, nr_vms))
        new = hour * nr_vms + np.arange(nr_vms)
        ends = np.repeat(STOP, len(running)), running, t_ns[: len(running)]
        starts = np.repeat(START, nr_vms), new, t_ns
        kind, vm_id, when = (np.concatenate(pair) for pair in zip(ends, starts, strict=True))
        order = np.lexsort((kind, when))
        plans.append(
            Commands(
                when[order],
                kind[order].astype(np.int8),
                vm_id[order],
                np.full(len(order), 2, np.int32),
                np.full(len(order), VM_PAGES),
                np.zeros(len(order), np.int64),
            )
        )
        running = new
    return plans


def growth(
    hosts: Annotated[str, "Fleet sizes."] = "10,100,1000",
    hours: Annotated[int, "Simulated hours."] = 6,
    inline: Annotated[bool, "One process, without Ray."] = False,
) -> Found:
    r"""Run the churn scenario at several fleet sizes and print what a host costs.

    CPU a host-hour is compared behind the first quarter of the epochs: without the start of
    Python and Ray and without the VMs that stand from the beginning.

    \b
    Example:
      fleet bench growth --hosts 10,100 --hours 2
    """
    base = load("churn")
    scale = float(base.document["vms"]["scale"]) / base.nr_hosts
    scenarios = [
        load(
            "churn",
            [f"hosts.count={n}", f"vms.scale={scale * int(n):.6f}", f"run.duration={hours}h"],
        )
        for n in hosts.split(",")
    ]
    rows = measure_growth(scenarios, Options(inline=inline, checkpoint_epochs=0))
    sizes = measure_sizes(min(hours, 4))
    small, large = HOST_GIB
    name = f"CPU a VM event, hosts of {large:,} GiB over {small} GiB, the same VMs"
    claims = [*judge(rows), at_most(name, sizes[large] / sizes[small], SIZES_BAR)]
    head = ("CPU ms/host-hour", "behind the first quarter", "MiB/host, all")
    lines = [f"{'hosts':>6}{'wall s':>9}{'CPU s':>9}{head[0]:>18}{head[1]:>26}{head[2]:>15}"]
    lines += [
        f"{row['hosts']:>6}{row['wall_s']:>9.1f}{row['cpu_s']:>9.1f}"
        f"{row['cpu_ms_per_host_hour']:>18.2f}{row['steady_cpu_ms_per_host_hour']:>26.2f}"
        f"{row['peak_mib_per_host']:>15.2f}"
        for row in rows
    ]
    lines += [f"hosts of {gib:>5,} GiB: {ms:.2f} CPU ms a VM event" for gib, ms in sizes.items()]
    return Found(claims, {"fleets": rows, "event_ms": sizes}, lines)
