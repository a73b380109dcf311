"""``fleet walk``, ``fleet mmu`` and ``fleet cpus``: address translation without a fleet."""

import json
from typing import Annotated, Any

import typer

from hostsim.core.errors import Problem, ScenarioError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
SIZES = ("4K", "2M", "1G")


def _size(option: str, text: str) -> str:
    size = text.upper().removesuffix("B").removesuffix("I")
    if size not in SIZES:
        raise ScenarioError([Problem(option, f"{text!r} is none of {', '.join(SIZES)}")])
    return size


def _levels(option: str, levels: int) -> int:
    if levels not in (4, 5):
        raise ScenarioError([Problem(option, f"{levels} is neither 4 nor 5")])
    return levels


def _check_has(name: str, guest: str, host: str | None, levels: tuple[int, int]) -> None:
    """Refuse page sizes and depths that a CPU does not have."""
    from fleet.hardware import load_cpu

    cpu = load_cpu(name)
    sizes = dict.fromkeys([guest] if host is None else [guest, host])
    depths = dict.fromkeys(levels[:1] if host is None else levels)
    problems = [
        Problem("--cpu", f"{name} has no {size} pages: {', '.join(cpu.sizes)}")
        for size in sizes
        if size not in cpu.sizes
    ]
    problems += [
        Problem("--cpu", f"{name} has no {depth}-level paging")
        for depth in depths
        if depth not in cpu.levels
    ]
    if problems:
        raise ScenarioError(problems)


def walk(
    guest: Annotated[str, typer.Option(help="Page size in the guest: 4K, 2M or 1G.")] = "4K",
    host: Annotated[
        str | None, typer.Option(help="Page size in the EPT; left out: a native walk.")
    ] = None,
    levels: Annotated[int, typer.Option(help="Levels of all tables, 4 or 5.")] = 4,
    guest_levels: Annotated[int | None, typer.Option(help="Levels of the guest's tables.")] = None,
    host_levels: Annotated[int | None, typer.Option(help="Levels of the EPT.")] = None,
    guest_found: Annotated[
        int, typer.Option(min=0, help="Upper guest levels that walk caches hold.")
    ] = 0,
    host_found: Annotated[
        int, typer.Option(min=0, help="Upper EPT levels that walk caches hold.")
    ] = 0,
    cpu: Annotated[
        str | None, typer.Option(help="Only what this CPU has: page sizes and levels.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the memory references of one page walk with cold caches, cell by cell.

    \b
    Examples:
      fleet walk --guest 4K --host 2M
      fleet walk --guest 4K --host 4K --levels 5
      fleet walk --guest 2M --host 4K --guest-found 1
    """
    from hostsim.mmu.coldwalk import cold_walk, nr_references

    guest_size = _size("--guest", guest)
    host_size = _size("--host", host) if host is not None else None
    depths = (
        _levels("--guest-levels", guest_levels if guest_levels is not None else levels),
        _levels("--host-levels", host_levels if host_levels is not None else levels),
    )
    if cpu is not None:
        _check_has(cpu, guest_size, host_size, depths)
    try:
        steps = cold_walk(guest_size, host_size, *depths, guest_found, host_found)
    except ValueError as error:
        raise ScenarioError([Problem("fleet walk", str(error))]) from None
    guest_reads = sum(step.guest_reads for step in steps)
    total = nr_references(steps)
    if as_json:
        found = {
            "guest": guest_size,
            "host": host_size,
            "guest_levels": depths[0],
            "host_levels": depths[1] if host_size else None,
            "steps": [step._asdict() for step in steps],
            "guest_references": guest_reads,
            "ept_references": total - guest_reads,
            "references": total,
        }
        typer.echo(json.dumps(found, indent=2))
        return
    if host_size is None:
        typer.echo(f"native, {guest_size} page, {depths[0]} levels")
    else:
        typer.echo(
            f"{guest_size} guest page on {host_size} host pages,"
            f" {depths[0]} guest levels, {depths[1]} EPT levels"
        )
    columns = range(depths[1], 0, -1) if host_size else range(0)
    typer.echo(
        f"  {'to read':<8}" + "".join(f"{f'EPT {level}':>7}" for level in columns) + "  itself"
    )
    for step in steps:
        cells = "".join(f"{1 if level in step.ept_levels else '.':>7}" for level in columns)
        typer.echo(f"  {step.what:<8}{cells}{step.guest_reads or '.':>8}")
    typer.echo(f"  {guest_reads} guest + {total - guest_reads} EPT = {total} references")


def _pages(option: str, text: str) -> int:
    from hostsim.core.units import parse_pages

    try:
        pages = parse_pages(text)
    except ValueError as error:
        raise ScenarioError([Problem(option, str(error))]) from None
    if pages < 1:
        raise ScenarioError([Problem(option, f"{text!r} is less than a page")])
    return pages


def _thp(option: str, text: str) -> str:
    words = {"on": "always", "off": "never", "madvise": "madvise"}
    if text not in words:
        raise ScenarioError([Problem(option, f"{text!r} is none of {', '.join(words)}")])
    return words[text]


def mmu(
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="A profile, or a file.")],
    cpu: Annotated[str, typer.Option(help="One of fleet cpus, or a TOML file.")] = "cascade-lake",
    mode: Annotated[str, typer.Option(help="native or virt.")] = "virt",
    guest_thp: Annotated[
        str, typer.Option(help="Huge pages of the guest (natively: at all): on, off, madvise.")
    ] = "on",
    host_thp: Annotated[
        str | None, typer.Option(help="Huge pages of the host: on or off. Default: on.")
    ] = None,
    footprint: Annotated[
        str | None, typer.Option(help="Memory of the program. Default: the profile's.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the guest. Default: footprint and 1/16 more.")
    ] = None,
    levels: Annotated[int, typer.Option(help="Levels of all tables, 4 or 5.")] = 4,
    accesses: Annotated[
        int, typer.Option(min=8000, help="Simulated accesses, after as many to warm up.")
    ] = 2_000_000,
    seed: Annotated[int, typer.Option(help="Seed of the accesses.")] = 1,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also all huge, and native: two more runs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate a program's accesses and print TLB misses, walk references and what they cost.

    \b
    Examples:
      fleet mmu gups --cpu cascade-lake --mode virt --guest-thp off --host-thp off
      fleet mmu redis --cpu zen4 --footprint 8GiB --compare
    """
    from fleet import mmu as runs
    from fleet.hardware import load_cpu
    from fleet.profiles import load_workload
    from hostsim.core.units import PAGE_SHIFT

    if mode not in ("native", "virt"):
        raise ScenarioError([Problem("--mode", f"{mode!r} is neither native nor virt")])
    if mode == "native" and host_thp is not None:
        raise ScenarioError([Problem("--host-thp", "there is no host below a native run")])
    chosen = load_cpu(cpu)
    if _levels("--levels", levels) not in chosen.levels:
        raise ScenarioError([Problem("--levels", f"{cpu} has no {levels}-level paging")])
    size = None if footprint is None else _pages("--footprint", footprint) << PAGE_SHIFT
    program = load_workload(workload, size)
    setup = runs.Setup(
        mode == "virt",
        _thp("--guest-thp", guest_thp),
        _thp("--host-thp", host_thp or "on"),
        levels,
        runs.memory_for(program) if memory is None else _pages("--memory", memory),
    )
    runs.check_fits(program, setup)
    found = runs.describe(program, chosen, setup, *runs.run(program, chosen, setup, accesses, seed))
    if compare:
        others = {
            "all_huge": setup._replace(guest_thp="always", host_thp="always"),
            "native": setup._replace(nested=False),
        }
        for name, other in others.items():
            _, cost = runs.run(program, chosen, other, accesses, seed)
            found[f"slowdown_against_{name}"] = found["run_cycles_per_operation"] / cost.run_cycles
    typer.echo(json.dumps(found, indent=2) if as_json else as_text(found))


_READ_NAMES = {
    "guest": "guest",
    "ept_for_tables": "EPT, for tables",
    "ept_for_data": "EPT, for data",
}


def as_text(found: dict[str, Any]) -> str:
    """Return a run as text."""
    from hostsim.core.units import format_bytes

    where = f"{found['workload']} on {found['cpu']}, {found['mode']}"
    thp = f"guest THP {found['guest_thp']}"
    if found["host_thp"]:
        thp += f", host THP {found['host_thp']}"
    lines = [
        f"{where}, {thp}, footprint {format_bytes(found['footprint_bytes'])}",
        f"  huge in the guest    {found['guest_huge_ratio']:8.1%}",
        f"  huge for the TLB     {found['effective_huge_ratio']:8.1%}",
        f"  accesses             {found['accesses']:>10,}",
        f"  first-level hits     {found['l1_hits_per_access']:8.2%}",
        f"  second-level hits    {found['l2_hits_per_access']:8.2%}",
        f"  walks                {found['walks_per_access']:8.2%}"
        f" +- {found['walks_per_access_error']:.2%},"
        f" {found['walks_per_1000_instructions']:.3g} of 1000 instructions",
        f"  references a walk    {found['references_per_walk']:8.3f}"
        f"  guest {found['guest_references_per_walk']:.3f}"
        f" + EPT {found['ept_references_per_walk']:.3f}",
    ]
    if found["reads"]:
        lines.append(f"    {'entries':<18}{'a walk':>8}{'L1':>8}{'L2':>8}{'LLC':>8}{'DRAM':>8}")
    for read in found["reads"]:
        places = "".join(f"{read[place]:8.1%}" for place in ("l1", "l2", "llc", "dram"))
        name = f"{_READ_NAMES[read['of']]} L{read['level']}"
        lines.append(f"    {name:<18}{read['per_walk']:8.3f}{places}")
    lines += [
        f"  cycles a walk        {found['cycles_per_walk']:8.1f}"
        f"  EPT part {found['ept_cycles_ratio']:.1%}",
        f"  cycles an operation  {found['run_cycles_per_operation']:8.1f}"
        f"  in walks {found['walk_cycles_per_operation']:.1f}",
        f"  walk share           {found['walk_share']:8.2%}  of run cycles, all walkers",
    ]
    for key, name in (("all_huge", "all huge"), ("native", "native")):
        if f"slowdown_against_{key}" in found:
            lines.append(f"  against {name:<13}{found[f'slowdown_against_{key}']:8.3f}  run time")
    return "\n".join(lines)


def cpus(
    name: Annotated[
        str | None, typer.Argument(metavar="CPU", help="One CPU with the source of every row.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the CPUs and the geometry of their TLBs and walk caches.

    \b
    Examples:
      fleet cpus
      fleet cpus cascade-lake
    """
    from fleet.hardware import builtin_names, load_cpu
    from hostsim.core.units import PAGE_SHIFT, format_bytes
    from hostsim.mmu.cpus import reach_pages, shares_tlb

    chosen = [load_cpu(name)] if name else [load_cpu(known) for known in builtin_names()]
    if as_json:
        typer.echo(json.dumps([_plain(cpu) for cpu in chosen], indent=2))
        return
    for cpu in chosen:
        reach = ", ".join(
            f"{size} {format_bytes(reach_pages(cpu, size) << PAGE_SHIFT)}" for size in cpu.sizes
        )
        typer.echo(f"{cpu.name:<18}{cpu.title}")
        typer.echo(
            f"  levels {', '.join(map(str, cpu.levels))}; {cpu.walkers} walks at a time;"
            f" reach {reach}"
        )
        for tlb in (*cpu.tlbs, *cpu.instruction_tlbs):
            ways = "full" if tlb.ways == tlb.entries else f"{tlb.ways} ways"
            if tlb.group_ways:
                ways += ", " + ", ".join(
                    f"{group} for {size}"
                    for group, size in zip(tlb.group_ways, tlb.sizes, strict=True)
                )
            source = f"  [{tlb.source}]" if name else ""
            typer.echo(f"  {tlb.name:<18}{tlb.entries:>6}  {'+'.join(tlb.sizes):<10}{ways}{source}")
        stores = ", ".join(
            f"{('', '', 'PDE', 'PDPTE', 'PML4E', 'PML5E')[level]} {entries}"
            for level, entries in cpu.walk_caches.entries.items()
        )
        if shares_tlb(cpu):
            stores = "PDE in the L2 dTLB, " + stores
        typer.echo(f"  walk caches: {stores}; nested TLB {cpu.walk_caches.nested_entries}")


def _plain(value: object) -> object:
    """Return nested named tuples as dicts."""
    if hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value
