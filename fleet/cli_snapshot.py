"""``fleet snapshot``: a real host in, its health, and simulated hosts that start as it is."""

import json
from pathlib import Path
from typing import Annotated

import typer

snapshot_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Read a real host, show its health, start simulated hosts from it.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
FilesArgument = Annotated[
    list[str], typer.Argument(metavar="SNAPSHOT...", help="Files of fleet snapshot capture.")
]


@snapshot_app.command()
def capture(
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="File to write; - is stdout.")
    ] = "host.json",
    root: Annotated[
        str, typer.Option(metavar="DIR", help="Folder that holds the host's proc and sys.")
    ] = "/",
    pid: Annotated[
        list[int] | None,
        typer.Option(help="A process that is a VM, beside those named qemu-system-* and qemu-kvm."),
    ] = None,
    host_name: Annotated[
        bool, typer.Option("--host-name", help="Keep the host's name; it is left out otherwise.")
    ] = False,
) -> None:
    """Read this host into one file; as root it reads more, and it says what it could not read.

    Nothing is changed, and no command line is kept.

    \b
    Examples:
      sudo fleet snapshot capture -o host.json
      fleet snapshot capture --pid 4711
    """
    from fleet.snapshot_capture import capture as read_host
    from fleet.snapshot_file import to_json, write_snapshot

    found = read_host(root, pid or [], host_name)
    if out == "-":
        typer.echo(to_json(found), nl=False)
    else:
        write_snapshot(found, out)
        typer.echo(
            f"{out}: Linux {found.kernel_release}, {found.nr_cpus} CPUs,"
            f" {len(found.processes)} VMs; next: fleet snapshot show {out}",
            err=True,
        )
    if not found.consistent:
        typer.echo(
            "warning: memory changed while it was read, so that buddyinfo and pagetypeinfo are"
            " not of one moment; pagetypeinfo is what apply uses",
            err=True,
        )
    for entry in found.unread:
        typer.echo(f"not read: {entry.what} ({entry.why}): {entry.cost}", err=True)


@snapshot_app.command()
def show(files: FilesArgument, as_json: JsonOption = False) -> None:
    """Print the health of hosts in the metrics of the simulator, with advice.

    Advice names its reason and the command that tries it on simulated hosts; fleet snapshot apply
    writes the scenario that it names.

    \b
    Examples:
      fleet snapshot show host.json
      fleet snapshot show a.json b.json --json
    """
    from fleet.snapshot_file import read_snapshot
    from fleet.snapshot_show import advice, health
    from fleet.snapshot_table import as_lines

    found = [(path, health(read_snapshot(path))) for path in files]
    if as_json:
        rows = [{"file": path, **host, "advice": advice(host)} for path, host in found]
        typer.echo(json.dumps({"hosts": rows}, indent=2))
        return
    for index, (path, host) in enumerate(found):
        if index:
            typer.echo("")
        for line in as_lines(path, host, advice(host)):
            typer.echo(line)


@snapshot_app.command()
def apply(
    files: FilesArgument,
    scenario: Annotated[
        str, typer.Option(help="Scenario from which everything but the hosts is taken.")
    ] = "churn",
    count: Annotated[int, typer.Option(min=1, help="Hosts a snapshot.")] = 1,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Scenario to write.")
    ] = Path("my-hosts.toml"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; compare captured and simulated counts.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a scenario whose hosts start as real ones were: a group of hosts a snapshot.

    With --check, start one simulated host a snapshot and compare its buddyinfo and pagetypeinfo
    with those captured; exit code 1 if a count differs.

    \b
    Examples:
      fleet snapshot apply host.json -o my-hosts.toml
      fleet snapshot apply a.json b.json --count 10 --scenario overcommit
      fleet snapshot apply host.json --check
    """
    from fleet import snapshot_apply

    snapshots = snapshot_apply.read_all(files)
    if check:
        found = [
            (path, snapshot_apply.applied(snapshot, path))
            for path, snapshot in zip(files, snapshots, strict=True)
        ]
        differing = sum(row.differing for _, rows in found for row in rows)
        if as_json:
            rows = [{"file": path, **row._asdict()} for path, part in found for row in part]
            typer.echo(json.dumps({"compared": rows, "differing": differing}, indent=2))
        else:
            for path, part in found:
                typer.echo("\n".join(snapshot_apply.check_lines(path, part)))
            typer.echo("all counts are equal" if not differing else f"{differing} counts differ")
        if differing:
            raise typer.Exit(1)
        return
    snapshot_apply.check_out(out, overwrite)
    text, resolved = snapshot_apply.scenario_text(files, scenario, count, out)
    out.write_text(text, encoding="utf-8")
    for line in snapshot_apply.describe(files, resolved):
        typer.echo(line, err=True)
    typer.echo(f"{out} is written; next: fleet run {out}", err=True)
