"""Host-hours a core-second, with all mechanisms and with fewer and fewer: what each costs."""

from typing import Annotated, Final, NamedTuple

from fleet.bench_runs import measured_run
from fleet.claims import Found, at_least
from fleet.loading import load
from fleet.scheduler import Options
from fleet.warmup import warm_up

NEVER_MS: Final = 10**9  # between two passes: longer than any run of the bench


class Variant(NamedTuple):
    """What is switched off, or on again, beside all that stands above it."""

    name: str
    overrides: tuple[str, ...]
    bar: float | None = None  # host-hours a core-second


VARIANTS: Final = (
    Variant("all mechanisms", ()),
    Variant("without MMU samples: churn with daemons on", ("mmu.enabled=false",), 400.0),
    Variant(
        "without balloons and reporting either",
        ("guests.balloon_ratio=0", "guests.free_page_reporting_ratio=0"),
    ),
    Variant(
        "guests idle but for growing",
        ("guests.mix={idle=1.0}", "guests.reuse_per_hour=0", "guests.cold_reads_per_hour=0"),
    ),
    Variant(
        "without khugepaged and kernel memory: churn only",
        (
            f"hosts.khugepaged.scan_sleep_millisecs={NEVER_MS}",
            f"guests.khugepaged.scan_sleep_millisecs={NEVER_MS}",
            "hosts.slab.rate_pages_per_s=0",
        ),
        4000.0,
    ),
    Variant(
        "no kernels in VMs: churn with daemons on",
        (
            "guests.kernel=none",
            "placement.memory_overcommit=1.0",
            "hosts.khugepaged.scan_sleep_millisecs=10000",
            "hosts.slab.rate_pages_per_s=1.0",
        ),
        400.0,
    ),
    Variant(
        "no kernels in VMs, no daemons: churn only",
        (f"hosts.khugepaged.scan_sleep_millisecs={NEVER_MS}", "hosts.slab.rate_pages_per_s=0"),
        4000.0,
    ),
)


def churn(
    hosts: Annotated[int, "Hosts."] = 20,
    hours: Annotated[int, "Simulated hours."] = 24,
) -> Found:
    r"""Run the churn scenario in this process with all mechanisms, then with fewer and fewer.

    CPU time behind the first quarter of the epochs: without the start of Python and without the
    VMs that stand from the beginning. Rows are written in all variants.

    \b
    Example:
      fleet bench churn --hosts 5 --hours 8
    """
    base = load("churn")
    scale = float(base.document["vms"]["scale"]) / base.nr_hosts * hosts
    fixed = [f"hosts.count={hosts}", f"run.duration={hours}h", f"vms.scale={scale:.6f}"]
    warm_up()
    claims, rows, overrides = [], [], list(fixed)
    for variant in VARIANTS:
        overrides += variant.overrides
        found = measured_run(load("churn", overrides), Options(inline=True, checkpoint_epochs=0))
        rate = found.steady_host_hours / found.steady_cpu_s
        row = {
            "variant": variant.name,
            "host_hours_per_core_s": rate,
            "cpu_ms_per_host_hour": 1000.0 / rate,
            "cpu_ms_per_vm_event": 1000.0 * found.steady_cpu_s / max(found.steady_events, 1),
        }
        rows.append(row)
        if variant.bar is not None:
            claim = at_least(f"host-hours a core-second, {variant.name}", rate, variant.bar)
            claims.append(claim._replace(cpu_s=found.steady_cpu_s, peak_bytes=found.peak_bytes))
    lines = [f"{'':<52}{'host-h/core-s':>14}{'ms/host-h':>11}{'ms/VM event':>13}"]
    lines += [
        f"{row['variant']:<52}{row['host_hours_per_core_s']:>14.0f}"
        f"{row['cpu_ms_per_host_hour']:>11.2f}{row['cpu_ms_per_vm_event']:>13.2f}"
        for row in rows
    ]
    return Found(claims, rows, lines)
