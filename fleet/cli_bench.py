"""``fleet bench``: every claim about speed and memory, run and judged.

A bench is a function in a module of its own that takes options (``Annotated[int, "its help"]``;
positional-only ones are arguments) and returns a `fleet.claims.Found`.  One line in `BENCHES`
makes it a command and a section of the table of all.
"""

import inspect
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, get_args

import typer

from hostsim.core.errors import ResultsError, WorkerError

if TYPE_CHECKING:
    from fleet.claims import Found, Group


class Bench(NamedTuple):
    """Where a bench is, and what it measures in a line."""

    place: str  # module:function
    doc: str
    in_all: bool = True


BENCHES: Final = {
    "memory": Bench("fleet.bench:memory", "Bytes of state a simulated GiB, beside the budget."),
    "growth": Bench(
        "fleet.bench_growth:growth", "What a host costs in fleets of 10, 100 and 1,000."
    ),
    "guest": Bench("fleet.bench_guest:guest", "What a guest costs: resident state, faults."),
    "mmu": Bench("fleet.bench_mmu:mmu", "TLBs and nested walks, beside a C++ twin."),
    "placement": Bench("fleet.bench_placement:placement", "VMs placed a second."),
    "trace": Bench("fleet.bench_trace:trace", "The trace of 100,000 VMs that others replay."),
    "buddy": Bench("fleet.bench_buddy:buddy", "Allocations and frees on a host 90 % full."),
    "boot": Bench("fleet.bench_boot:boot", "A VM of 16 GiB boots and ends."),
    "day": Bench("fleet.bench_day:day", "1,000 hosts for a day, every mechanism on."),
    "churn": Bench("fleet.bench_churn:churn", "Host-hours a core-second; what mechanisms cost."),
    "ray": Bench("fleet.bench_ray:ray", "What Ray costs; waiting at barriers."),
    "start": Bench("fleet.bench_start:start", "Time to the first simulated event."),
    "results": Bench("fleet.bench_results:results", "Values written, bytes a value."),
    "project": Bench("fleet.bench_project:project", "10,000 hosts for a week on larger clusters."),
    "report": Bench("fleet.bench_report:report", "A report of 100 hosts, opened in Chromium."),
    "query": Bench("fleet.bench_query:query", "Ten million rows, and questions to them."),
    "profile": Bench(
        "fleet.bench_profile:profile", "Where CPU time goes, by mechanism.", in_all=False
    ),
    "determinism": Bench("fleet.bench:determinism", "The same bytes for any number of workers."),
    "cluster": Bench("fleet.bench_cluster:cluster", "The same bytes on three nodes, one cut off."),
    "migration": Bench("fleet.bench_migration:migration", "A host drained: what VMs go through."),
    "fragmentation": Bench(
        "fleet.validate_mm_compaction:fragmentation",
        "Fragmentation by order-0 churn; also in fleet validate mm.",
        in_all=False,
    ),
}

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
OutOption = Annotated[Path | None, typer.Option("-o", "--out", help="Write the JSON here.")]
RepeatOption = Annotated[int, typer.Option(min=1, help="Measure so often; all samples are kept.")]

bench_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure speed and memory and judge every claim about them; without a name, all.",
)
_FORWARD = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


@bench_app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Measure speed and memory and judge every claim about them; without a name, all."""
    if context.invoked_subcommand is None:
        run_all()


@bench_app.command("all")
def run_all(as_json: JsonOption = False, out: OutOption = None, repeat: RepeatOption = 1) -> None:
    """Run every bench, each in a process of its own, and print one table.

    \b
    Example:
      fleet bench all -o today.json
    """
    from fleet import claims

    groups = []
    console = claims.console()
    for name, bench in BENCHES.items():
        if not bench.in_all:
            continue
        if sys.stderr.isatty():
            typer.echo(f"running {name}", err=True)
        groups.append(_elsewhere(name, repeat))
        if not as_json:
            console.print(claims.table(groups[-1:], costs=True))
    _finish(groups, as_json, out, details=False)


@bench_app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="What --json wrote before.")],
    b: Annotated[Path, typer.Argument(help="What it wrote afterwards.")],
    as_json: JsonOption = False,
) -> None:
    """Tell a change from noise between two documents of fleet bench; exit code 1 if B is slower.

    Documents that fleet bench ab wrote were measured by turns and are compared pair by pair. All
    others hold whatever the machine did meanwhile: their differences are shown, and not judged.

    \b
    Example:
      fleet bench compare before.json after.json
    """
    from fleet.bench_compare import read_document

    _print_compared(read_document(a), read_document(b), as_json)


@bench_app.command()
def ab(
    other: Annotated[Path, typer.Argument(metavar="CHECKOUT", help="The other one, A; this is B.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A bench.")],
    pairs: Annotated[int, typer.Option(min=2, help="Runs of each, by turns.")] = 5,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write PREFIX-a.json, PREFIX-b.json.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a bench in two checkouts by turns and compare: A first, then B first, and so on.

    Both run on this Python with its packages; compiled kernels are loaded before the first pair.

    \b
    Example:
      git worktree add ../before main && fleet bench ab ../before placement
    """
    from fleet.bench_ab import run_pairs

    if name not in BENCHES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(BENCHES)}")
    documents = run_pairs(other, name, pairs)
    if out:
        for which, content in zip("ab", documents, strict=True):
            _write(out.with_name(f"{out.name}-{which}.json"), json.dumps(content, indent=2))
    _print_compared(*documents, as_json)


def _print_compared(a: dict[str, Any], b: dict[str, Any], as_json: bool) -> None:
    from fleet import bench_compare, claims

    rows = bench_compare.compare(a, b)
    paired = a["session"] == b["session"]
    if as_json:
        found = {"paired": paired, "rows": [row._asdict() for row in rows]}
        typer.echo(json.dumps(found, indent=2))
    else:
        claims.console().print(bench_compare.table(rows))
        if not paired:
            typer.echo(
                "Measured in two sessions: the machine may have changed as well as the program."
                " fleet bench ab CHECKOUT NAME measures by turns."
            )
    if any(row.verdict in bench_compare.WORSE for row in rows):
        raise typer.Exit(1)


def _elsewhere(name: str, repeat: int) -> "Group":
    """Run a bench in a process of its own; one that does not run is a claim that fails."""
    from fleet import claims
    from fleet.bench_ab import run_bench

    try:
        return claims.groups_of(run_bench(None, name, repeat))[0]
    except WorkerError as error:
        failed = claims.Claim("runs", "yes", "", f"no: {error}", False)
        return claims.Group(name, [claims.Found([failed])])


def _finish(groups: "list[Group]", as_json: bool, out: Path | None, details: bool) -> None:
    """Print or write what was found; exit code 1 if a claim fails."""
    from fleet import claims

    made = json.dumps(claims.document(groups), indent=2)
    if out:
        _write(out, made)
    failed = sum(group.failed for group in groups)
    if as_json:
        typer.echo(made)
    else:
        if details:
            for line in groups[0].runs[-1].lines:
                typer.echo(line)
            claims.console().print(claims.table(groups, costs=True))
        total = sum(len(group.claims) for group in groups)
        if total:
            typer.echo(f"{total - failed} of {total} claims hold")
    if failed:
        raise typer.Exit(1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None


def _command(name: str, function: "Callable[..., Found]") -> Callable[..., None]:
    """Return a bench as a command: its own options, and those that all have."""
    parameters = inspect.signature(function, eval_str=True).parameters
    plain = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]

    def command(as_json: bool, out: Path | None, repeat: int, **given: Any) -> None:
        from fleet import claims
        from fleet.usage import measured

        arguments = [given.pop(n) for n in plain]
        runs = []
        for _ in range(repeat):
            with measured() as cost:
                found = function(*arguments, **given)
            cpu_s = cost.cpu_s if found.cpu_s is None else found.cpu_s
            peak = cost.memory_bytes if found.peak_bytes is None else found.peak_bytes
            runs.append(found._replace(cpu_s=cpu_s, peak_bytes=peak))
        _finish([claims.Group(name, runs)], as_json, out, details=True)

    shared = inspect.signature(run_all, eval_str=True).parameters.values()
    own = [_option(parameter) for parameter in parameters.values()]
    both = sorted((*own, *shared), key=lambda p: p.default is not p.empty)
    command.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
    command.__doc__ = (function.__doc__ or "").replace(r"\b", "\b")  # typer keeps those lines
    return command


def _option(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter as typer wants it."""
    kind, text = get_args(parameter.annotation)
    info: Any = typer.Argument(help=text)
    if parameter.kind is not parameter.POSITIONAL_ONLY:
        info = typer.Option("--" + parameter.name.strip("_").replace("_", "-"), help=text)
    return parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[kind, info])


def _add(name: str, bench: Bench) -> None:
    def behind() -> typer.Typer:
        module, _, function = bench.place.partition(":")
        app = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        app.command()(_command(name, getattr(import_module(module), function)))
        return app

    def forward(context: typer.Context) -> None:
        behind()(args=context.args, prog_name=f"fleet bench {name}")

    forward.behind = behind  # type: ignore[attr-defined]  # docs/reference.py looks there
    bench_app.command(name, context_settings=_FORWARD, help=bench.doc)(forward)


for _name, _bench in BENCHES.items():
    _add(_name, _bench)
