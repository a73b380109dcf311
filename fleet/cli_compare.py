"""``fleet compare``: runs of the same arrivals, held against each other."""

import json
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
