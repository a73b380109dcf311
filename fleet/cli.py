"""The command ``fleet``: arguments in, messages and exit codes out.

Nothing heavy is imported before a command runs, so that ``fleet --help`` answers at once.
Exit codes: 0 done, 1 failed, 2 bad usage or scenario, 130 interrupted.
"""

import functools
import json
import os
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.collector import collect_rarely
from hostsim.core import jit_options
from hostsim.core.errors import HugefleetError, ScenarioError

if TYPE_CHECKING:
    from fleet.scenario import Scenario

DEBUG_VARIABLE = "FLEET_DEBUG"  # 1: show tracebacks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="First steps:  fleet run smoke --inline   then"
    "   fleet query runs/smoke-1 'SELECT event, COUNT(*) FROM events GROUP BY event'",
)

ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A built-in name, or a TOML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change one field: hosts.thp.enabled=madvise, hosts[1].memory=64GiB, run.duration=1h.",
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Same as --set run.seed=N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run directory: path or URI.")]


def _load(name: str, overrides: list[str] | None, seed: int | None = None) -> "Scenario":
    from fleet.loading import load

    seeds = [] if seed is None else [f"run.seed={seed}"]
    return load(name, [*(overrides or []), *seeds])


@functools.cache
def _say_compiling() -> None:
    typer.echo("compiling kernels, once per version and machine: about a minute", err=True)


_FORWARD = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


def _forward(context: typer.Context, module: str, attribute: str) -> None:
    """Hand the rest of the command line to an app, or one function, imported only now."""
    target = getattr(import_module(module), attribute)
    sub_app = target
    if not isinstance(target, typer.Typer):
        sub_app = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        sub_app.command()(target)
    sub_app(args=context.args, prog_name=f"fleet {context.info_name}")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hugefleet {version('hugefleet')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Simulate fleets of KVM hosts: exact Linux memory management, hugepages, VM churn."""


@app.command()
def run(
    scenario: ScenarioArgument,
    set_: SetOption = None,
    seed: SeedOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run directory, a path or file://, s3://, gs:// URI. Default: runs/NAME-SEED."
        ),
    ] = None,
    inline: Annotated[bool, typer.Option("--inline", help="One process, without Ray.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes. Default: one a core.")
    ] = None,
    hosts_per_actor: Annotated[
        int | None, typer.Option(min=1, help="Hosts a Ray actor; 1 is one actor a host.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running Ray cluster, or auto.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that --out holds.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run that --out holds.")
    ] = False,
    checkpoint_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs between checkpoints; 0 for none.")
    ] = 24,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port for Prometheus of the embedded Ray."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a scenario, write its tables and print a summary.

    \b
    Examples:
      fleet run smoke --inline
      fleet run churn --out runs/a --set hosts.thp.enabled=madvise
      fleet run my.toml --workers 4 --seed 7
    """
    if inline and (workers or hosts_per_actor or address):
        raise typer.BadParameter("--inline excludes --workers, --hosts-per-actor and --address")
    if overwrite and resume:
        raise typer.BadParameter("--overwrite excludes --resume")
    if metrics_port:
        _check_metrics(inline, address)
    resolved = _load(scenario, set_, seed)
    target = out or f"runs/{resolved.name}-{resolved.seed}"
    from fleet import progress, scheduler, summary

    options = scheduler.Options(
        inline,
        workers,
        hosts_per_actor,
        address,
        overwrite,
        resume,
        checkpoint_epochs,
        metrics_port,
    )
    try:
        with progress.shown(resolved.name) as on_epoch:
            scheduler.run(resolved, target, options, on_epoch)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; continue with --out {target} --resume", err=True)
        raise typer.Exit(130) from None
    found = summary.summarise(target)
    typer.echo(json.dumps(found, indent=2) if as_json else summary.as_text(found))
    if not as_json:
        typer.echo(f"  {'tables':<18}{target}")


def _check_metrics(inline: bool, address: str | None) -> None:
    """Refuse to export metrics where nothing would serve them."""
    if inline:
        raise typer.BadParameter("--inline excludes --metrics-port: Ray exports the metrics")
    if address:
        raise typer.BadParameter(
            "--metrics-port is of the embedded Ray; on a cluster: ray start --metrics-export-port"
        )
    if find_spec("prometheus_client") is None:
        raise typer.BadParameter(
            "--metrics-port needs Ray's metrics agent: pip install 'hugefleet[metrics]'"
        )


@app.command("summary")
def show_summary(run_directory: RunArgument, as_json: JsonOption = False) -> None:
    """Print the summary of a run again."""
    from fleet import summary

    found = summary.summarise(run_directory)
    typer.echo(json.dumps(found, indent=2) if as_json else summary.as_text(found))


@app.command(context_settings=_FORWARD)
def query(context: typer.Context) -> None:
    """Ask the tables and views of a run with polars SQL."""
    _forward(context, "fleet.cli_query", "query")


@app.command()
def show(scenario: ScenarioArgument, set_: SetOption = None, seed: SeedOption = None) -> None:
    """Print a scenario with every default filled in, as TOML."""
    from fleet.scenario import to_toml

    typer.echo(to_toml(_load(scenario, set_, seed).document), nl=False)


@app.command()
def check(
    scenario: Annotated[
        str | None, typer.Argument(metavar="SCENARIO", help="A built-in name, or a TOML file.")
    ] = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of scenario files.")
    ] = False,
) -> None:
    """Find every problem of a scenario without running it."""
    if schema:
        from fleet.scenario import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if scenario is None:
        raise typer.BadParameter("name a scenario, or ask for --schema")
    resolved = _load(scenario, set_, seed)
    from fleet.demand import arrivals, open_demand

    asked = int(arrivals(open_demand(resolved), resolved.duration_ns).sum())
    typer.echo(f"{resolved.name}: ok, {resolved.nr_hosts:,} hosts, {asked:,} VMs arrive")


@app.command()
def scenarios() -> None:
    """List the built-in scenarios and the questions they ask."""
    from fleet.loading import builtin_names, builtin_text, question

    for name in builtin_names():
        lines = question(builtin_text(name)).splitlines()
        typer.echo("\n".join([name, *(f"    {line}" for line in lines)]))


@app.command(context_settings=_FORWARD)
def sweep(context: typer.Context) -> None:
    """Run a scenario over a grid of fields and seeds, and compare the arms."""
    _forward(context, "fleet.cli_compare", "sweep")


@app.command(context_settings=_FORWARD)
def compare(context: typer.Context) -> None:
    """Print differences between runs of the same arrivals, with intervals and verdicts."""
    _forward(context, "fleet.cli_compare", "compare")


@app.command(context_settings=_FORWARD)
def columns(context: typer.Context) -> None:
    """Print every column of the tables and views with its unit and meaning."""
    _forward(context, "fleet.cli_query", "columns")


@app.command("warmup")
def compile_kernels() -> None:
    """Compile all kernels into the cache, so that the next run starts at once."""
    from fleet.recordings import replayed
    from fleet.warmup import warm_up

    begin_s = time.perf_counter()
    warm_up()
    for _ in replayed("6.12"):  # what replays alone use
        pass
    used, children = os.times()[:2], os.times()[2:4]
    typer.echo(
        f"kernels are ready: {time.perf_counter() - begin_s:.1f} s,"
        f" {sum(used) + sum(children):.1f} CPU-s"
    )


@app.command(context_settings=_FORWARD)
def trace(context: typer.Context) -> None:
    """Import, generate and describe VM traces."""
    _forward(context, "fleet.cli_trace", "trace_app")


@app.command(context_settings=_FORWARD)
def snapshot(context: typer.Context) -> None:
    """Read a real host, show its health, start simulated hosts from it."""
    _forward(context, "fleet.cli_snapshot", "snapshot_app")


@app.command(context_settings=_FORWARD)
def calibrate(context: typer.Context) -> None:
    """Measure what page faults, clearing and copying cost on this machine."""
    _forward(context, "fleet.cli_calibrate", "calibrate")


@app.command(context_settings=_FORWARD)
def replay(context: typer.Context) -> None:
    """Run op scripts on the simulated memory manager, printed as a real kernel recorded them."""
    _forward(context, "fleet.cli_replay", "replay")


@app.command(context_settings=_FORWARD)
def bench(context: typer.Context) -> None:
    """Run and judge every claim about speed and memory."""
    _forward(context, "fleet.cli_bench", "bench_app")


@app.command(context_settings=_FORWARD)
def walk(context: typer.Context) -> None:
    """Count the memory references of one page walk, native or nested."""
    _forward(context, "fleet.cli_mmu", "walk")


@app.command(context_settings=_FORWARD)
def mmu(context: typer.Context) -> None:
    """Simulate a program's TLB misses and walks on one CPU, native or under KVM."""
    _forward(context, "fleet.cli_mmu", "mmu")


@app.command(context_settings=_FORWARD)
def largepages(context: typer.Context) -> None:
    """Run the THP commit message's benchmark on a simulated machine, beside its table."""
    _forward(context, "fleet.cli_largepages", "largepages")


@app.command(context_settings=_FORWARD)
def validate(context: typer.Context) -> None:
    """Run and judge every claim about fidelity: claim, expected, source, printed, verdict."""
    _forward(context, "fleet.cli_validate", "validate")


@app.command(context_settings=_FORWARD)
def report(context: typer.Context) -> None:
    """Write one self-contained HTML page about a run, or its charts as files."""
    _forward(context, "fleet.cli_report", "report")


@app.command("map", context_settings=_FORWARD)
def map_host(context: typer.Context) -> None:
    """Draw what each 2 MiB of a host's physical memory holds, at one time or several."""
    _forward(context, "fleet.cli_map", "map_host")


@app.command(context_settings=_FORWARD)
def cpus(context: typer.Context) -> None:
    """List the CPUs whose translation hardware can be simulated."""
    _forward(context, "fleet.cli_mmu", "cpus")


def _print_error(error: HugefleetError) -> None:
    if isinstance(error, ScenarioError):
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
    else:
        typer.echo(f"{type(error).__name__}: {error}", err=True)


def main() -> None:
    """Run the command line; the one place where errors become messages and exit codes."""
    jit_options.processes = len(os.sched_getaffinity(0))
    jit_options.announce = _say_compiling
    collect_rarely()
    try:
        app(prog_name="fleet")
    except HugefleetError as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        _print_error(error)
        sys.exit(2 if isinstance(error, ScenarioError) else 1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        reason = str(error).strip().splitlines() or [""]
        typer.echo(
            f"internal error: {type(error).__name__}: {reason[-1]}"
            f" ({DEBUG_VARIABLE}=1 shows where)",
            err=True,
        )
        sys.exit(1)
