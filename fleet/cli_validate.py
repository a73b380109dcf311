"""``fleet validate``: every claim about fidelity, run and judged."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostsim.core.errors import Problem, ScenarioError

if TYPE_CHECKING:
    from fleet.validate_mm import Check

NAMES = ("mm", "replay", "mmu", "fleet")


def validate(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help=f"One of {', '.join(NAMES)}; else all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")] = False,
) -> None:
    """Run checks and print claim, expected, source, printed, verdict.

    mm: the memory manager against its specification, and fragmentation under random churn.
    replay: op scripts beside recordings of Linux 6.1 and 6.12.
    mmu: cold walks, the LRU oracle, the seed's table, native measurements; and what follows for
    KVM.
    fleet: the demand of a month, what KSM saves, what free page reporting saves and costs. Exit
    code 1 if a claim fails.

    \b
    Examples:
      fleet validate replay
      fleet validate --json
    """
    if name is not None and name not in NAMES:
        raise ScenarioError([Problem("NAME", f"{name!r} is none of {', '.join(NAMES)}")])
    chosen = NAMES if name is None else (name,)
    rows: list[dict[str, Any]] = []
    for group in chosen:
        for title, checks in _groups(group):
            _progress(f"{group}: {title}")
            for check in checks():
                rows.append({"group": group, **check._asdict()})
                if not as_json:
                    typer.echo(_line(check))
    more = _beside() if "mmu" in chosen else {}
    failed = sum(not row["verdict"] for row in rows)
    if as_json:
        typer.echo(json.dumps({"claims": rows, "failed": failed, **more}, indent=2))
    else:
        for line in _beside_lines(more):
            typer.echo(line)
        typer.echo(f"{len(rows) - failed} of {len(rows)} claims hold")
    if failed:
        raise typer.Exit(1)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        typer.echo(f"running {text}", err=True)


def _groups(group: str) -> Iterator[tuple[str, "Callable[[], Iterable[Check]]"]]:
    if group == "mm":
        from fleet import validate_mm

        yield from validate_mm.CHECKS.items()
        yield "order-0 churn", _churn
    elif group == "fleet":
        from fleet import validate_fleet

        yield from validate_fleet.CHECKS.items()
    elif group == "replay":
        from fleet import validate_replay

        yield from validate_replay.CHECKS.items()
    else:
        from fleet import validate_mmu

        yield from validate_mmu.CHECKS.items()


def _churn() -> "Iterator[Check]":
    from fleet.validate_mm import Check
    from fleet.validate_mm_compaction import judge, order0_churn
    from hostsim.core.units import PAGE_SHIFT

    pages = 128 << (30 - PAGE_SHIFT)
    for found in judge(list(order0_churn(pages, "6.1")), pages):
        yield Check(
            f"order-0 churn of 128 GiB: {found.name}",
            f"{found.least:g} to {found.most:g}",
            "LLFree, ATC 2023, artifact",
            f"{found.value:g}",
            found.passes,
        )


def _line(check: "Check") -> str:
    verdict = "ok  " if check.verdict else "FAIL"
    return (
        f"{verdict} {check.name}\n"
        f"       expected {check.expected}  printed {check.printed}  [{check.source}]"
    )


def _beside() -> dict[str, Any]:
    """Return what is printed of the MMU and not judged."""
    from fleet.validate_mmu import haswell, predictions

    _progress("mmu: a check, and predictions")
    return {
        "haswell": [row._asdict() for row in haswell()],
        "kvm": [row._asdict() for row in predictions()],
    }


def _beside_lines(found: dict[str, Any]) -> Iterator[str]:
    if not found:
        return
    yield "A check that nothing was fitted on (not judged):"
    for row in found["haswell"]:
        yield f"  {row['name']}: published {row['published']}, printed {row['printed']}"
    yield "What follows for KVM with EPT (4K: no huge pages; THP: in both kernels):"
    yield (
        f"  {'':<26}{'run KVM/native':>16}{'walks KVM/native':>18}{'EPT part':>16}"
        f"{'reads a walk':>15}{'speed-up of THP in':>24}"
    )
    yield (
        f"  {'':<26}{'4K':>8}{'THP':>8}{'4K':>9}{'THP':>9}{'4K':>8}{'THP':>8}"
        f"{'native':>8}{'KVM':>7}{'host':>8}{'guest':>8}{'both':>8}"
    )
    for row in found["kvm"]:
        yield (
            f"  {row['profile'] + ', ' + row['cpu']:<26}"
            f"{row['time_ratio_4k']:>8.3f}{row['time_ratio_thp']:>8.3f}"
            f"{row['walk_ratio_4k']:>9.2f}{row['walk_ratio_thp']:>9.2f}"
            f"{row['ept_part_4k']:>8.1%}{row['ept_part_thp']:>8.1%}"
            f"{row['references_native']:>8.2f}{row['references_nested']:>7.2f}"
            f"{row['host_only']:>8.3f}{row['guest_only']:>8.3f}{row['both']:>8.3f}"
        )
