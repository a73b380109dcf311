"""A thousand well-filled hosts for a day, every mechanism on: time, memory, the worst host."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

from fleet.bench_runs import Measured, measured_run
from fleet.claims import Claim, Found, at_most, same
from fleet.loading import load
from fleet.scheduler import Options
from fleet.sql import query
from fleet.summary import summarise

WALL_S: Final = 120.0
CPU_S: Final = 200.0
PEAK_BYTES: Final = 8 << 30
WHOLE_HOSTS, WHOLE_HOURS = 1000, 24  # what the bars are of


def day(
    hosts: Annotated[int, "Hosts."] = WHOLE_HOSTS,
    hours: Annotated[int, "Simulated hours."] = WHOLE_HOURS,
    workers: Annotated[int, "Worker processes; 0: none, all in this process."] = 2,
    keep: Annotated[str, "Keep the run in this folder."] = "",
) -> Found:
    r"""Run scenario day: 70 to 85 % of memory in use, hosts of 96 vCPUs, rows every 5 minutes.

    \b
    Examples:
      fleet bench day
      fleet bench day --hosts 20 --hours 4 --workers 0
    """
    base = load("day")
    scale = float(base.document["vms"]["scale"]) / base.nr_hosts * hosts
    changes = [f"hosts.count={hosts}", f"run.duration={hours}h", f"vms.scale={scale:.6f}"]
    options = Options(inline=not workers, workers=workers or None, checkpoint_epochs=0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(keep or Path(folder) / "run")
        found = measured_run(load("day", changes), options, out=out)
        summary = summarise(out)
        worst = query(out, "top").row(0, named=True)
    return Found(
        judge(found, summary, hosts, hours),
        {"summary": summary, "worst_host": worst},
        _lines(found, summary, worst),
        found.cpu_s,
        found.peak_bytes,
    )


def judge(found: Measured, summary: dict[str, Any], hosts: int, hours: int) -> list[Claim]:
    """Hold a run against the bars; of a smaller one only what must hold of any is judged."""
    vms = summary["vms"]
    ended = vms["started"] + vms["restarted"] == vms["ended"] + vms["running"]
    arrived = vms["arrived"] == vms["started"] + vms["rejected"]
    claims = [
        same(f"{hosts:,} hosts, {hours} h: every VM accounted for", arrived and ended, True, "")
    ]
    if (hosts, hours) == (WHOLE_HOSTS, WHOLE_HOURS):
        used = 1.0 - summary["at_end"]["free_memory_ratio"]["mean"]
        wall_s = float(found.record["execution"]["wall_s"])
        claims += [
            same("memory in use at the end, 70 to 85 %", 0.70 <= used <= 0.85, True, ""),
            at_most("1,000 hosts for a day, two cores: wall time", wall_s, WALL_S, "s"),
            at_most("the same: CPU time of all processes", found.cpu_s, CPU_S, "s"),
            at_most("the same: memory of all processes", float(found.peak_bytes), PEAK_BYTES, "B"),
        ]
    return claims


def _lines(found: Measured, summary: dict[str, Any], worst: dict[str, Any]) -> list[str]:
    vms, now, mmu = summary["vms"], summary["at_end"], summary["cost"]["mmu"]
    rate = found.steady_host_hours / found.steady_cpu_s
    return [
        f"{vms['arrived']:,} VMs arrived, {vms['rejected']:,} found no host,"
        f" {vms['ended']:,} ended, {vms['running']:,} run",
        f"memory in use {1 - now['free_memory_ratio']['mean']:.1%},"
        f" huge coverage {now['huge_coverage_ratio']:.1%}",
        f"behind the first quarter: {rate:,.0f} host-hours a core-second,"
        f" {1000 / rate:.2f} CPU ms a host-hour, {found.steady_wall_s:.1f} s",
        f"{mmu['samples']:,} MMU samples took {mmu['cpu_s']:.1f} CPU-s",
        f"worst host: {worst['host_id']}, {worst['lost_vcpus']:.2f} vCPUs lost to page walks,"
        f" {worst['nr_vms']} VMs, huge coverage {worst['huge_coverage_ratio']:.1%}",
    ]
