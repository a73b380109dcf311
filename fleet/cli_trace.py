"""``fleet trace``: import, generate, describe and pack VM traces."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostsim.core.errors import Problem, ScenarioError

if TYPE_CHECKING:
    from fleet.pack import PackResult
    from fleet.trace import Trace
    from fleet.trace_targets import Verdict

trace_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Import, generate, describe and pack VM traces (parquet, one schema).",
)

GENERATORS = ("azure-v1",)
MAX_COLUMNS = 10  # traces side by side in the table of stats

OutOption = Annotated[Path, typer.Option("--out", "-o", help="Trace to write, .parquet.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
DaysOption = Annotated[float, typer.Option(help="Length of the trace in days.")]
ScaleOption = Annotated[
    float, typer.Option(help="Share of the Azure region's arrivals: 1 runs 145,000 VMs at once.")
]


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse to replace a file unasked, or to write into a folder that is not there."""
    if out.exists() and not overwrite:
        raise ScenarioError([Problem(str(out), "exists", "--overwrite replaces it")])
    if not out.parent.is_dir():
        raise ScenarioError([Problem(str(out), "its folder does not exist")])


def _write(trace: "Trace", out: Path) -> None:
    """Write a trace and say so."""
    from fleet.trace import write_trace
    from hostsim.core.units import format_duration

    write_trace(trace, out)
    standing = int((trace.start_ns < 0).sum())
    typer.echo(
        f"{out}: {trace.nr_vms:,} VMs, {standing:,} of them running at time 0, "
        f"{format_duration(trace.span_ns)}",
        err=True,
    )


def _duration_ns(days: float) -> int:
    """Turn days into nanoseconds."""
    from hostsim.core.units import NS_PER_DAY

    if not days > 0:
        raise ScenarioError([Problem("--days", f"{days:g} must be positive")])
    return round(days * NS_PER_DAY)


def _pages(option: str, text: str) -> int:
    """Parse a memory size given as an option."""
    from hostsim.core.units import parse_pages

    try:
        return parse_pages(text)
    except ValueError as error:
        raise ScenarioError([Problem(option, str(error))]) from error


def _generate(name: str, seed: int, days: float, scale: float) -> "Trace":
    """Draw a trace from a built-in generator."""
    from fleet.churn import generate_azure_v1

    if name not in GENERATORS:
        message = f"{name!r} is none of {', '.join(GENERATORS)}"
        raise ScenarioError([Problem("generator", message)])
    if not scale > 0:
        raise ScenarioError([Problem("--scale", f"{scale:g} must be positive")])
    if seed < 0:
        raise ScenarioError([Problem("--seed", f"{seed} must not be negative")])
    return generate_azure_v1(seed, _duration_ns(days), scale)


@trace_app.command("import")
def import_(
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="csv, azure-v1, azure-v2, azure-packing, azure-v1-arrivals or huawei.",
        ),
    ],
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="The trace's file (or folder), as published.")
    ],
    out: OutOption,
    part: Annotated[str, typer.Option(help="azure-v1-arrivals: which part, dev or test.")] = "test",
    keep_clock: Annotated[
        bool,
        typer.Option("--keep-clock", help="azure-v1-arrivals: time 0 is the month's first second."),
    ] = False,
    machine_id: Annotated[
        int, typer.Option(help="azure-packing: machine type that hosts the VMs.")
    ] = 16,
    vcpus: Annotated[int, typer.Option(min=1, help="azure-packing: vCPUs of that machine.")] = 64,
    memory: Annotated[str, typer.Option(help="azure-packing: memory of that machine.")] = "512GiB",
    overwrite: OverwriteOption = False,
) -> None:
    """Turn a VM trace into parquet; every bad row is reported with its line.

    \b
    Formats:
      csv                your own: vm,start_s,end_s,vcpus,memory_gib; no end_s: it stays
      azure-v1           vmtable.csv.gz of AzurePublicDataset V1 (2017)
      azure-v2           vmtable.csv.gz of V2 (2019); ">24" cores count as 32, ">64" GB as 128
      azure-packing      packing_trace_zone_a_v1.sqlite (Protean, OSDI 2020)
      azure-v1-arrivals  folder of processed V1 arrivals (Bergsma et al., SOSP 2021)
      huawei             Huawei-East-1.csv of VMAgent

    \b
    Examples:
      fleet trace import csv vms.csv -o mine.parquet
      fleet trace import azure-v1 vmtable.csv.gz -o v1.parquet
      fleet trace import azure-packing trace.sqlite --vcpus 96 --memory 768GiB -o packing.parquet
    """
    from fleet.trace_csv import ImportOptions
    from fleet.trace_import import import_trace

    _check_out(out, overwrite)
    options = ImportOptions(part, keep_clock, machine_id, vcpus, _pages("--memory", memory))
    _write(import_trace(format_, path, options), out)


@trace_app.command()
def generate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="azure-v1.")],
    out: OutOption,
    days: DaysOption = 30.0,
    seed: Annotated[int, typer.Option(help="Same seed, same trace.")] = 1,
    scale: ScaleOption = 1.0,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw a trace with the statistics of a public one, standing population included.

    \b
    Examples:
      fleet trace generate azure-v1 --days 30 -o azure.parquet
      fleet trace generate azure-v1 --days 1 --scale 0.01 --seed 7 -o small.parquet
    """
    _check_out(out, overwrite)
    _write(_generate(name, seed, days, scale), out)


@trace_app.command()
def stats(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Traces in parquet.")
    ] = None,
    generator: Annotated[
        str | None, typer.Option("--generate", help="Judge a generator: azure-v1.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds for --generate.")] = "1,2,3,4,5,6,7,8,9,10",
    days: DaysOption = 30.0,
    scale: ScaleOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Print a trace's statistics beside those of Azure's public trace of 2017.

    With several traces or seeds the verdict is on their mean; "in" counts those within the range
    by themselves.  --scale also scales the expected arrival rate and concurrency.

    \b
    Examples:
      fleet trace stats azure.parquet
      fleet trace stats --generate azure-v1 --seeds 1,2,3 --days 30
    """
    from fleet.trace import read_trace
    from fleet.trace_stats import trace_stats
    from fleet.trace_targets import compare

    if bool(paths) == bool(generator):
        raise ScenarioError(
            [Problem("fleet trace stats", "give FILE... or --generate, one of them")]
        )
    found: dict[str, dict[str, Any]] = {}
    own = False
    for path in paths or []:
        trace = read_trace(path)
        own |= trace.source.startswith("csv ")
        found[str(path)] = _stats_of(trace, str(path), trace_stats)
    if generator:
        for seed in _seeds(seeds):
            typer.echo(f"generating seed {seed} ...", err=True)
            trace = _generate(generator, seed, days, scale)
            found[f"seed {seed}"] = _stats_of(trace, f"seed {seed}", trace_stats)
    verdicts = compare(list(found.values()), scale)
    if as_json:
        typer.echo(json.dumps({"traces": found, "compared": _as_records(verdicts)}, indent=1))
    else:
        _print_stats(found)
        _print_verdicts(list(found), verdicts, own)


def _stats_of(trace: "Trace", place: str, trace_stats: Any) -> dict[str, Any]:
    """Return a trace's statistics; too short a trace is the user's mistake."""
    try:
        measured: dict[str, Any] = trace_stats(trace)
    except ValueError as error:
        raise ScenarioError([Problem(place, str(error))]) from error
    return measured


def _seeds(text: str) -> list[int]:
    """Parse the list of seeds."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ScenarioError(
            [Problem("--seeds", f"{text!r} is not a list of whole numbers such as 1,2,3")]
        ) from error


def _number(value: float | None) -> str:
    """Print a number in few characters."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _print_table(rows: list[list[str]]) -> None:
    """Print rows in columns: the first left, the others right-aligned."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        typer.echo("  ".join(cells).rstrip())


def _print_stats(found: dict[str, dict[str, Any]]) -> None:
    """Print what has no target: sizes of the trace."""
    keys = (
        "new_vms",
        "standing_vms",
        "days",
        "batches",
        "batch_size_mean",
        "vcpus_per_new_vm",
        "gib_per_new_vm",
        "vm_hours",
        "core_hours",
    )
    for name, one in found.items():
        typer.echo(f"{name}: " + ", ".join(f"{key} {_number(one[key])}" for key in keys))
    typer.echo("")


def _print_verdicts(names: list[str], verdicts: list["Verdict"], own: bool) -> None:
    """Print measured beside published figures; one's own trace need not be like them."""
    words = {True: "alike" if own else "ok", False: "differs" if own else "MISS", None: "-"}
    several = len(names) > 1
    shown = names[:MAX_COLUMNS]
    head = ["", "published", "range", "mean" if several else "measured", "verdict"]
    rows = [head + (["in", *shown] if several else []) + ["source"]]
    for verdict in verdicts:
        target = verdict.target
        row = [
            target.label,
            _number(target.expected),
            f"{_number(target.low)}..{_number(target.high)}",
            _number(verdict.mean),
            words[verdict.passes],
        ]
        if several:
            row += [f"{verdict.nr_pass}/{len(names)}"]
            row += [_number(value) for value in verdict.measured[:MAX_COLUMNS]]
        rows.append([*row, target.source])
    _print_table(rows)
    judged = [verdict for verdict in verdicts if verdict.passes is not None]
    within = f"\n{sum(bool(v.passes) for v in judged)} of {len(judged)} within range"
    typer.echo(f"{within} of Azure's; yours need not be" if own else within)


def _as_records(verdicts: list["Verdict"]) -> list[dict[str, Any]]:
    """Return verdicts with stable keys."""
    return [
        {
            "name": verdict.target.key,
            "published": verdict.target.expected,
            "low": verdict.target.low,
            "high": verdict.target.high,
            "source": verdict.target.source,
            "measured": list(verdict.measured),
            "mean": verdict.mean,
            "passes": verdict.passes,
            "nr_pass": verdict.nr_pass,
        }
        for verdict in verdicts
    ]


@trace_app.command()
def pack(
    path: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace in parquet.")],
    policy: Annotated[
        str, typer.Option(help="Placement policy, such as first-fit, or all.")
    ] = "best-fit",
    vcpus: Annotated[int, typer.Option(min=1, help="vCPUs of a host.")] = 48,
    memory: Annotated[str, typer.Option(help="Memory of a host.")] = "256GiB",
    hosts: Annotated[str, typer.Option(help="Hosts in the pool, or unlimited.")] = "unlimited",
    vcpu_overcommit: Annotated[float, typer.Option(help="vCPUs offered per vCPU.")] = 1.0,
    memory_overcommit: Annotated[float, typer.Option(help="Memory offered per memory.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of random policies and predictions.")] = 0,
    choices: Annotated[int, typer.Option(help="Hosts that power-of-k looks at.")] = 2,
    lifetime_error: Annotated[
        float, typer.Option(help="Standard deviation of the log of predicted lifetimes.")
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Place a trace on equal hosts, without simulating their memory.

    \b
    Examples:
      fleet trace pack azure.parquet --policy best-fit --vcpus 48 --memory 256GiB
      fleet trace pack azure.parquet --hosts 3000 --vcpu-overcommit 2 --json
      fleet trace pack azure.parquet --policy all --lifetime-error 0.5
    """
    from fleet.pack import pack_trace, warm_up
    from fleet.placement import Tuning
    from fleet.policies import POLICIES
    from fleet.trace import read_trace

    nr_hosts = _nr_hosts(hosts)
    host_pages = _pages("--memory", memory)
    trace = read_trace(path)
    warm_up()
    tuning = Tuning(seed, choices, lifetime_error)
    overcommit = (vcpu_overcommit, memory_overcommit)
    try:
        results = [
            pack_trace(trace, name, vcpus, host_pages, nr_hosts, *overcommit, tuning)
            for name in (POLICIES if policy == "all" else (policy,))
        ]
    except ValueError as error:
        raise ScenarioError([Problem("fleet trace pack", str(error))]) from error
    found = [result._asdict() for result in results]
    if as_json:
        typer.echo(json.dumps(found if policy == "all" else found[0], indent=1))
    elif policy == "all":
        _print_packs(results)
    else:
        _print_pack(results[0])


def _print_pack(result: "PackResult") -> None:
    """Print what packing under one policy gave."""
    labels = {
        "policy": result.policy,
        "hosts in the pool": f"{result.nr_hosts:,}",
        "VMs started": f"{result.started:,}",
        "VMs rejected": f"{result.rejected:,} ({result.larger_than_any_host:,} larger than a host)",
        "host-hours with a VM": f"{result.host_hours:,.0f}",
        "lower bound": f"{result.bound_host_hours:,.0f} (+{result.over_bound_ratio:.1%})",
        "most hosts with a VM": f"{result.peak_hosts:,}",
        "empty share of the pool": f"{result.empty_ratio:.1%}",
        "placements / s": f"{result.placements_per_s:,.0f}",
        "starts, stops, rejections / s": f"{result.events_per_s:,.0f}",
    }
    for label, value in labels.items():
        typer.echo(f"{label:31}{value}")


def _print_packs(results: "list[PackResult]") -> None:
    """Print a line a policy, the fewest host-hours first."""
    typer.echo(
        f"{'policy':<20}{'host-hours':>12}{'over bound':>12}{'peak hosts':>12}"
        f"{'rejected':>10}{'placed / s':>12}"
    )
    for result in sorted(results, key=lambda r: r.host_hours):
        typer.echo(
            f"{result.policy:<20}{result.host_hours:>12,.0f}{result.over_bound_ratio:>+12.1%}"
            f"{result.peak_hosts:>12,}{result.rejected:>10,}{result.placements_per_s:>12,.0f}"
        )
    typer.echo(f"{'lower bound':<20}{max(r.bound_host_hours for r in results):>12,.0f}")
    typer.echo("hugepage-aware and drain-fragmented see no memory here and place as best-fit does")


def _nr_hosts(text: str) -> int | None:
    """Parse the size of the pool; None is unlimited."""
    if text == "unlimited":
        return None
    if not text.isdigit() or int(text) == 0:
        raise ScenarioError([Problem("--hosts", f"{text!r} is no positive number nor unlimited")])
    return int(text)
