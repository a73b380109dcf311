"""``fleet snapshot``: a real host in, its health, and simulated hosts that start as it is."""

import json
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
