"""The trace of `fleet.bench_workload`: placed without memory, and with all of it simulated."""

import tempfile
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import polars as pl

from fleet.bench_placement import FIRST_FIT, placed
from fleet.bench_workload import GIB_SHIFT, HOST_PAGES, HOST_VCPUS, churn_trace, first_vms
from fleet.claims import Claim, Found, at_most, same
from fleet.loading import build, load
from fleet.rundir import open_run
from fleet.scan import scan
from fleet.scheduler import Options, run
from fleet.trace import write_trace
from hostsim.core.units import NS_PER_HOUR, format_bytes

RESERVED_GIB: Final = 8
WALL_BAR_S: Final = 60.0  # on two cores
NR_HOSTS: Final = 1_000
NR_VMS: Final = 100_000
HOST_SUMS: Final = {case.nr_vms: case.host_sum for case in FIRST_FIT}


class Simulated(NamedTuple):
    """The trace on hosts with all of their memory."""

    vms: int
    hosts: int
    wall_s: float
    cpu_s: float  # all processes
    peak_bytes: int
    arrived: int
    started: int
    rejected: int
    ended: int  # killed ones among them
    killed: int
    running: int
    host_sum: int

    @property
    def all_accounted_for(self) -> bool:
        """Whether every VM is where it must be."""
        here = self.arrived == self.vms == self.started + self.rejected
        return here and self.started == self.ended + self.running


def simulate(
    nr_vms: int, nr_hosts: int, options: Options, drawn_vms: int, *overrides: str
) -> Simulated:
    """Run the first VMs of the trace on hosts with all mechanisms, until the last has arrived.

    A host has 8 GiB more than it offers, for its kernel and QEMU.
    """
    trace = first_vms(churn_trace(drawn_vms, nr_hosts), nr_vms)
    hours = -(-trace.span_ns // NS_PER_HOUR)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "trace.parquet"
        write_trace(trace, path)
        scenario = build(
            load("churn").document | {"vms": {"source": "trace", "path": str(path)}},
            "trace",
            "trace",
            [
                f"run.duration={hours}h",
                f"hosts.count={nr_hosts}",
                f"hosts.vcpus={HOST_VCPUS}",
                f"hosts.memory={(HOST_PAGES >> GIB_SHIFT) + RESERVED_GIB}GiB",
                f"hosts.reserved={RESERVED_GIB}GiB",
                "placement.policy=first-fit",
                "placement.vcpu_overcommit=1.0",
                "placement.memory_overcommit=1.0",
                *overrides,
            ],
        )
        out = Path(name) / "run"
        record = run(scenario, out, options)
        opened = open_run(out)
        starts = scan(opened, "events").filter(pl.col("event").cast(pl.String) == "start")
        host_sum = starts.select(pl.col("host_id").cast(pl.Int64).sum()).collect().item()
        last = scan(opened, "hosts").filter(pl.col("t_ns") == pl.col("t_ns").max())
        running = last.select(pl.col("nr_vms").cast(pl.Int64).sum()).collect().item()
    tally, cost = record["tally"], record["execution"]
    return Simulated(
        nr_vms,
        nr_hosts,
        cost["wall_s"],
        cost["cpu_s"],
        cost["peak_memory_bytes"],
        tally["arrivals"],
        tally["start"],
        tally["reject"],
        tally["end"] + tally["kill"],
        tally["kill"],
        running,
        host_sum,
    )


def judge(found: Simulated) -> list[Claim]:
    """Hold a simulated trace against the bar of time, and against what was asked and placed."""
    name = f"first-fit, {found.hosts:,} hosts, {found.vms:,} VMs, all mechanisms"
    wall = at_most(f"{name}: wall time on two cores", found.wall_s, WALL_BAR_S, "s")
    where = f"{found.ended:,} ended + {found.running:,} running + {found.rejected:,} rejected"
    claims = [
        wall._replace(cpu_s=found.cpu_s, peak_bytes=found.peak_bytes),
        Claim(
            f"{name}: every VM accounted for", f"{found.vms:,}", "", where, found.all_accounted_for
        ),
    ]
    expected = HOST_SUMS.get(found.vms)
    if expected is not None:
        source = "a heap and a scan in Python, numpy and numba"
        claims.append(same(f"{name}: sum of host numbers", found.host_sum, expected, source))
    return claims


def trace(
    vms: Annotated[int, "The first so many of the trace's 100,000 VMs."] = NR_VMS,
    inline: Annotated[bool, "One process, without Ray."] = False,
    placement_only: Annotated[bool, "Leave out the run with all mechanisms."] = False,
) -> Found:
    r"""Replay the trace of 100,000 VMs in four days: placed only, then with all mechanisms.

    1,000 hosts of 96 vCPUs and 384 GiB, first fit. Fewer VMs are the first ones, in less time.

    \b
    Examples:
      fleet bench trace --placement-only
      fleet bench trace --vms 10000
    """
    only = placed(FIRST_FIT)
    if placement_only:
        return only
    options = Options(inline=inline, checkpoint_epochs=0)
    found = simulate(vms, NR_HOSTS, options, NR_VMS)
    lines = [
        *only.lines,
        f"all mechanisms: {found.vms:,} VMs on {found.hosts:,} hosts, {found.wall_s:.1f} s wall,"
        f" {found.cpu_s:.1f} CPU-s, {format_bytes(found.peak_bytes)} in all processes,"
        f" {found.killed} VMs killed",
    ]
    details = {"placement": only.details, "simulated": found._asdict()}
    return Found([*only.claims, *judge(found)], details, lines)
