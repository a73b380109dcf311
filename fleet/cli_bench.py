"""``fleet bench``: what the simulator costs, measured and held against its budget."""

import json
from pathlib import Path
from typing import Annotated

import typer

bench_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure memory and speed; tables on stdout.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="PATH=VALUE, any field of the scenario.")
]


@bench_app.command()
def memory(
    scenario: Annotated[str, typer.Argument(help="Scenario to run first.")] = "churn",
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a scenario in this process and print the bytes of state per simulated GiB.

    \b
    Examples:
      fleet bench memory
      fleet bench memory churn --set run.duration=2h
    """
    from fleet.bench import measure_memory
    from fleet.loading import load

    found = measure_memory(load(scenario, set_ or []))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{found['scenario']}, {found['hosts']} hosts: KiB of state a simulated GiB")
    typer.echo(f"  {'':<32}{'budget':>8}{'mean':>8}{'largest':>9}")
    total = {"part": "allocator (first three)", **found["allocator"]}
    for row in (*found["parts"], total):
        typer.echo(
            f"  {row['part']:<32}{row['budget_kib']:>8.1f}{row['mean_kib']:>8.2f}"
            f"{row['largest_kib']:>9.2f}"
        )
    for which, key in (("over the fleet", "mean_kib"), ("on the largest host", "largest_kib")):
        verdict = "within" if total[key] <= total["budget_kib"] else "OVER"
        typer.echo(f"  allocator {which}: {verdict} the budget")


@bench_app.command()
def growth(
    hosts: Annotated[str, typer.Option(help="Fleet sizes.")] = "10,100,1000",
    hours: Annotated[int, typer.Option(min=1, help="Simulated hours.")] = 6,
    inline: Annotated[bool, typer.Option("--inline", help="One process, without Ray.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the churn scenario at several fleet sizes and print what a host costs.

    \b
    Example:
      fleet bench growth --hosts 10,100 --hours 2
    """
    from fleet.bench import measure_growth
    from fleet.loading import load
    from fleet.scheduler import Options

    base = load("churn")
    scale = float(base.document["vms"]["scale"]) / base.nr_hosts
    scenarios = [
        load(
            "churn",
            [f"hosts.count={n}", f"vms.scale={scale * int(n):.6f}", f"run.duration={hours}h"],
        )
        for n in hosts.split(",")
    ]
    rows = measure_growth(scenarios, Options(inline=inline, checkpoint_epochs=0))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    typer.echo(
        f"{'hosts':>6}{'wall s':>9}{'CPU s':>9}{'CPU ms/host-hour':>18}{'MiB/host, all':>15}"
    )
    for row in rows:
        typer.echo(
            f"{row['hosts']:>6}{row['wall_s']:>9.1f}{row['cpu_s']:>9.1f}"
            f"{row['cpu_ms_per_host_hour']:>18.2f}{row['peak_mib_per_host']:>15.2f}"
        )


@bench_app.command()
def determinism(
    scenario: Annotated[str, typer.Argument(help="Scenario to run.")] = "smoke",
    hosts: Annotated[int, typer.Option(min=1, help="Hosts, one Ray actor each in one run.")] = 8,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a scenario inline, on 1, 2 and 4 workers and on an actor a host; compare all bytes.

    \b
    Example:
      fleet bench determinism smoke --set run.duration=1h
    """
    from fleet.bench import measure_determinism
    from fleet.loading import load

    found = measure_determinism(load(scenario, [f"hosts.count={hosts}", *(set_ or [])]))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for name, digests in found.items():
            cells = "  ".join(f"{table} {digest[:12]}" for table, digest in digests.items())
            typer.echo(f"  {name:<24}{cells}")
    first = next(iter(found.values()))
    same = all(digests == first for digests in found.values())
    if not as_json:
        typer.echo(f"  all {len(found)} runs: {'the same bytes' if same else 'DIFFERENT'}")
    if not same:
        raise typer.Exit(1)


@bench_app.command()
def fragmentation(
    memory: Annotated[str, typer.Option(help="Memory of the host.")] = "128GiB",
    kernel: Annotated[str, typer.Option(help="Kernel profile; 6.0 was measured.")] = "6.1",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of 10 % churn.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Fill memory with small pages, free half of them at random, churn, and judge what is left.

    \b
    Example:
      fleet bench fragmentation --memory 8GiB --rounds 20
    """
    from fleet.validate_mm_compaction import judge, order0_churn
    from hostsim.core.units import PAGE_SHIFT, parse_bytes

    pages = parse_bytes(memory) >> PAGE_SHIFT
    states = []
    for state in order0_churn(pages, kernel, rounds):
        states.append(state)
        if not as_json:
            typer.echo(
                f"  after {state.rounds:>3} rounds: {state.free_huge:>7} free blocks of 2 MiB, "
                f"{state.moves:>9} moves for a perfect compaction"
            )
    verdicts = judge(states, pages)
    if as_json:
        found = {v.name: {**v._asdict(), "passes": v.passes} for v in verdicts}
        typer.echo(json.dumps(found, indent=2))
    else:
        for v in verdicts:
            verdict = "ok" if v.passes else "OUT"
            typer.echo(f"  {v.name:<32}{v.value:>14.4f}  {v.least:.4f} .. {v.most:.4f}  {verdict}")
    if not all(v.passes for v in verdicts):
        raise typer.Exit(1)


@bench_app.command()
def guest(as_json: JsonOption = False) -> None:
    """Print what a guest costs: bytes of resident state by size, and time of its faults.

    \b
    Example:
      fleet bench guest
    """
    from fleet.bench_guest import measure_guest

    found = measure_guest()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{'VM GiB':>8}{'booted KiB':>12}{'3/4 in use KiB':>16}{'KiB a GiB':>11}")
    for row in found["sizes"]:
        typer.echo(
            f"{row['gib']:>8}{row['booted_kib']:>12.0f}{row['grown_kib']:>16.0f}"
            f"{row['grown_kib'] / row['gib']:>11.1f}"
        )
    typer.echo(f"  huge fault, host alone       {found['host_huge_fault_ns']:8.0f} ns")
    typer.echo(f"  huge fault, guest and host   {found['guest_and_host_huge_fault_ns']:8.0f} ns")
    typer.echo(f"  page cache, 4 KiB, both      {found['guest_and_host_cache_page_ns']:8.1f} ns")


@bench_app.command()
def mmu(as_json: JsonOption = False) -> None:
    """Time TLBs and nested walks over 3 GiB, beside a C++ twin that must count the same.

    CPU time; the twin is compiled with g++ (or $CXX) and left out if there is none.

    \b
    Example:
      fleet bench mmu
    """
    from fleet.bench_mmu import judge, measure_mmu

    rows = measure_mmu()
    wrong = [judge(row) for row in rows]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        for row, problems in zip(rows, wrong, strict=True):
            tables = f"guest THP {row['guest_thp']}, host THP {row['host_thp']}"
            typer.echo(f"{row['stream']}, {tables}: {', '.join(problems) or 'ok'}")
            counts = "  ".join(f"{name} {count:,}" for name, count in row["counted"].items())
            typer.echo(f"  kernel {row['rate'] / 1e6:8.1f} M/s  {counts}")
            if "ratio" in row:
                counts = "  ".join(f"{n} {count:,}" for n, count in row["twin_counted"].items())
                typer.echo(f"  C++    {row['twin_rate'] / 1e6:8.1f} M/s  {counts}")
                typer.echo(f"  kernel / C++ {row['ratio']:.2f}")
            else:
                typer.echo("  no C++ compiler: not compared")
    if any(wrong):
        raise typer.Exit(1)


@bench_app.command()
def placement(as_json: JsonOption = False) -> None:
    """Print how many VMs a second are placed on 1,000 and 10,000 hosts, by CPU time.

    \b
    Example:
      fleet bench placement
    """
    from fleet.bench_placement import measure_placement

    rows = measure_placement()
    if as_json:
        typer.echo(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        typer.echo(
            f"{'policy':<12}{'hosts':>8}{'VMs':>11}{'rejected':>10}{'sum of hosts':>15}"
            f"{'placements/s':>14}{'events/s':>12}  bar"
        )
        for row in rows:
            verdict = "ok" if row.passes else "OUT"
            unit = row.unit.removesuffix("_per_s")
            typer.echo(
                f"{row.policy:<12}{row.nr_hosts:>8,}{row.started:>11,}{row.rejected:>10,}"
                f"{row.host_sum:>15,}{row.placements_per_s:>14,.0f}{row.events_per_s:>12,.0f}"
                f"  {row.bar:,.0f} {unit}/s {verdict}"
            )
    if not all(row.passes for row in rows):
        raise typer.Exit(1)


@bench_app.command()
def cluster(as_json: JsonOption = False) -> None:
    """Compare three Ray nodes with one and with none, then cut one off; all bytes, and the time.

    Each node has an address of its own, in a network namespace: as root, with iproute2.

    \b
    Example:
      fleet bench cluster
    """
    import tempfile

    from fleet.bench_cluster import measure_cluster

    steps = []
    with tempfile.TemporaryDirectory() as folder:
        for step in measure_cluster(Path(folder)):
            steps.append(step)
            if not as_json:
                same = "the same bytes" if step.same_bytes else "DIFFERENT"
                line = f"  {step.step:<22}{step.wall_s:>7.1f} s  {same:<16}{', '.join(step.nodes)}"
                if step.recovered_s is not None:
                    line += f"  went on after {step.recovered_s:.1f} s"
                typer.echo(line)
    if as_json:
        typer.echo(json.dumps([{**s._asdict(), "passes": s.passes} for s in steps], indent=2))
    if not all(step.passes for step in steps):
        raise typer.Exit(1)


@bench_app.command()
def migration(set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Drain a host, by pre-copy and by post-copy, and print what its VMs go through.

    \b
    Examples:
      fleet bench migration
      fleet bench migration --set migration.mib_per_s=298 --set hosts.khugepaged.pages_to_scan=65536
    """
    from fleet.bench_migration import AFTER_HOURS, measure_migration
    from fleet.loading import load

    found = [
        measure_migration(load("drain", [*(set_ or []), f"migration.mode={mode}"]))
        for mode in ("precopy", "postcopy")
    ]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    names = ("before", "on_arrival", *(f"after_{hours}h" for hours in AFTER_HOURS))
    for row in found:
        vm_s, down_ms = row["vm_s"], row["downtime_ms"]
        typer.echo(
            f"{row['mode']}: {row['vms']} VMs, {row['sent_gib']:.1f} GiB in {row['total_s']:.1f} s,"
            " one after the other"
        )
        typer.echo(
            f"  a VM         {vm_s['median']:.2f} s (median), {vm_s['max']:.2f} s (longest);"
            f" downtime {down_ms['median']:.0f} ms (median), {down_ms['max']:.0f} ms (longest)"
        )
        cells = [
            f"{name.replace('_', ' ')} {'-' if ratio is None else f'{100 * ratio:.1f} %'}"
            for name, ratio in ((name, row["huge_ratio"][name]) for name in names)
        ]
        typer.echo(f"  huge pages   {', '.join(cells)}")
        typer.echo(f"               of the {row['stayed']} VMs that stay so long")
