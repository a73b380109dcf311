"""``fleet sweep`` and ``fleet compare``: runs of the same arrivals, held against each other."""

import json
import time
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
BaselineOption = Annotated[
    str | None, typer.Option(metavar="ARM", help="What the others are held against: first arm.")
]
MarginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--margin",
        metavar="FIGURE=SIZE",
        help="Smallest difference that matters: memory_used=1, huge_coverage=5.",
    ),
]
AfterOption = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Leave out the time until then: 2h.")
]


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="SWEEP | RUN RUN...", help="A sweep, or several runs.")
    ],
    baseline: BaselineOption = None,
    margin: MarginOption = None,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print differences between runs of the same arrivals, with intervals and verdicts.

    A difference is better or worse where the data show it, none where they show that it is
    smaller than matters, and "cannot tell (~N more)" says how many more seeds would probably do.

    \b
    Examples:
      fleet compare sweeps/thp
      fleet compare runs/always runs/never
      fleet compare sweeps/thp --baseline enabled=never --margin memory_used=1 --after 2h
    """
    print_comparison(runs, baseline, margin, after, as_json)


def sweep(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A built-in name, or a TOML file.")
    ],
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary",
            metavar="PATH=V1,V2",
            help="A field and its values, as for --set; several make a grid.",
        ),
    ],
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds of each arm; 3 or more for intervals.")
    ] = 3,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one field in all arms."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="First seed. Default: the scenario's.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the sweep. Default: sweeps/SCENARIO.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. Default: one a core.")
    ] = None,
    inline: Annotated[bool, typer.Option("--inline", help="One after the other, no Ray.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the sweep in --out; seeds may be added."),
    ] = False,
    baseline: BaselineOption = None,
    margin: MarginOption = None,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a scenario over a grid of fields and seeds, same arrivals in every arm, and compare.

    \b
    Examples:
      fleet sweep churn --vary hosts.thp.enabled=always,madvise,never --seeds 3 \\
          --set hosts.count=20 --set vms.scale=0.0063
      fleet sweep my.toml --vary placement.policy=best-fit,worst-fit --out sweeps/policy
      fleet sweep my.toml ... --out sweeps/policy --resume --seeds 8
    """
    if inline and workers:
        raise typer.BadParameter("--inline excludes --workers")
    from fleet import progress
    from fleet.sweeping import cost
    from fleet.sweeping import sweep as swept

    target = out or f"sweeps/{scenario.rpartition('/')[2].removesuffix('.toml')}"
    begin_s = time.perf_counter()
    try:
        with progress.sweep_shown(target) as watch:
            swept(
                scenario,
                _varied(vary),
                seeds,
                out=target,
                overrides=set_ or [],
                first_seed=seed,
                workers=workers,
                inline=inline,
                resume=resume,
                watch=watch,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command with --resume goes on", err=True)
        raise typer.Exit(130) from None
    print_comparison([target], baseline, margin, after, as_json)
    if not as_json:
        wall_s = time.perf_counter() - begin_s
        nr_runs, cpu_s = cost(target)
        spent = f"{nr_runs} runs, {cpu_s:.0f} CPU-s in all"
        typer.echo(f"{spent}; {wall_s:.0f} s by this command; tables in {target}", err=True)


def _varied(texts: list[str]) -> dict[str, list[str]]:
    from fleet.grid import parse_vary
    from hostsim.core.errors import Problem, ScenarioError

    found: dict[str, list[str]] = {}
    problems = []
    for text in texts:
        try:
            path, values = parse_vary(text)
            if path in found:
                raise ValueError("varies a field for the second time")
            found[path] = values
        except ValueError as error:
            problems.append(Problem(f"--vary {text}", str(error)))
    if problems:
        raise ScenarioError(problems)
    return found


def print_comparison(
    places: list[str],
    baseline: str | None,
    margin: list[str] | None,
    after: str | None,
    as_json: bool,
) -> None:
    """Compare and print, as JSON or for people."""
    from fleet import comparison_text
    from fleet.cli_query import duration_option, screen_width
    from fleet.comparison import compare as compared

    after_ns = 0 if after is None else duration_option("after", after)
    found = compared(places, baseline, _margins(margin or []), after_ns)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        typer.echo(comparison_text.as_text(found, screen_width()))


def _margins(texts: list[str]) -> dict[str, float]:
    margins = {}
    for text in texts:
        name, _, size = text.partition("=")
        try:
            margins[name] = float(size)
        except ValueError:
            raise typer.BadParameter(f"--margin {text}: is not FIGURE=SIZE") from None
        if not margins[name] > 0:
            raise typer.BadParameter(f"--margin {text}: is not more than 0")
    return margins
