"""Three Ray nodes with addresses of their own against one, against none, and with one cut off.

The same steps are a test (tests/chaos/test_nodes.py) and ``fleet bench cluster``.
"""

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fleet.bench import digest_tables
from fleet.claims import Found, at_most, same
from fleet.netns import Machines, why_not
from fleet.rundir import MANIFEST_FILE, RUN_FILE
from hostsim.core.errors import WorkerError

# Cheap hosts, and epochs enough that a link is cut long before the end.
SCENARIO = (
    "smoke",
    "--set=run.duration=72h",
    "--set=hosts.count=6",
    "--set=hosts.memory=8GiB",
    "--set=hosts.reserved=2GiB",
    "--set=hosts.slab.base=256MiB",
    "--set=vms.scale=0.001",
)
CHECKPOINT_EPOCHS = 4
CUT_AT_EPOCH = 5
WAIT_S = 300.0
RECOVERY_BAR_S = 15.0


class Done(NamedTuple):
    """A run that has ended well."""

    record: dict[str, Any]  # run.json
    digests: dict[str, str]  # by table
    stderr: str

    @property
    def nodes(self) -> list[str]:
        """The addresses of the machines that computed it."""
        return list(self.record["execution"]["nodes"])


def finished(run: "subprocess.Popen[str]", out: Path) -> Done:
    """Wait for a run and return what it left.

    Raises
    ------
    WorkerError
        It failed, or takes too long.
    """
    try:
        _, stderr = run.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        run.kill()
        _, stderr = run.communicate()
        raise WorkerError(f"{out.name}: no end after {WAIT_S:.0f} s: {stderr[-1000:]}") from None
    if run.returncode:
        raise WorkerError(f"{out.name}: exit code {run.returncode}: {stderr[-1000:]}")
    return Done(json.loads((out / RUN_FILE).read_text()), digest_tables(out), stderr)


def epochs_written(out: Path) -> int:
    """Return how many epochs the manifest of a run has by now."""
    try:
        parts = json.loads((out / MANIFEST_FILE).read_text())["parts"]
    except OSError:
        return 0
    return 1 + max((int(part["epoch"]) for part in parts), default=-1)


def wait_for_epoch(run: "subprocess.Popen[str]", out: Path, epochs: int) -> float:
    """Wait until a run has written so many epochs; return when that was.

    Raises
    ------
    WorkerError
        It ended before, or takes too long.
    """
    give_up_s = time.monotonic() + WAIT_S
    while epochs_written(out) < epochs:
        if run.poll() is not None:
            _, stderr = run.communicate()
            raise WorkerError(f"{out.name} ended at epoch {epochs_written(out)}: {stderr[-1000:]}")
        if time.monotonic() > give_up_s:
            raise WorkerError(f"{out.name} is not at epoch {epochs} after {WAIT_S:.0f} s")
        time.sleep(0.02)
    return time.monotonic()


def run_inline(out: Path) -> Done:
    """Run the scenario in one process on this machine."""
    command = [sys.executable, "-m", "fleet", "run", *SCENARIO, "--inline", "--out", str(out)]
    pipe = subprocess.PIPE
    return finished(subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe), out)


def run_on(machines: Machines, out: Path, *options: str) -> Done:
    """Run the scenario on all machines there are."""
    return finished(machines.fleet(*SCENARIO, "--out", str(out), *options), out)


def run_cut(machines: Machines, out: Path, machine: int) -> tuple[Done, float]:
    """Cut a machine off in the middle of a run; mend its link when the run has gone on.

    Its worker lives on all the while, and comes back as an orphan.

    Returns
    -------
    tuple
        The run, and the seconds from the cut until an epoch that needed the lost hosts was written.
    """
    run = machines.fleet(
        *SCENARIO, "--out", str(out), "--checkpoint-epochs", str(CHECKPOINT_EPOCHS)
    )
    wait_for_epoch(run, out, CUT_AT_EPOCH)
    machines.set_link(machine, "down")
    cut_s = time.monotonic()
    noticed = _first_line(run)  # a link that is mended before is not missed
    # What the other workers had computed by then may still be written; the next but one needs
    # the lost hosts.
    recovered_s = wait_for_epoch(run, out, epochs_written(out) + 2) - cut_s
    machines.set_link(machine, "up")
    done = finished(run, out)
    return done._replace(stderr=noticed + done.stderr), recovered_s


def _first_line(run: "subprocess.Popen[str]") -> str:
    """Wait for the first line of a run's stderr; nothing if it ends without any or takes long."""
    assert run.stderr is not None
    ready, _, _ = select.select([run.stderr], [], [], WAIT_S)
    return run.stderr.readline() if ready else ""


class Step(NamedTuple):
    """One step, as a program reads it."""

    step: str
    nodes: list[str]
    wall_s: float
    same_bytes: bool
    recovered_s: float | None  # since the node was cut off


def measure_cluster(folder: Path) -> Iterator[Step]:
    """Go through all steps, in a folder of their own; one at a time.

    Raises
    ------
    WorkerError
        There can be no namespaces here, or a run failed.
    """
    reason = why_not()
    if reason:
        raise WorkerError(reason)
    inline = run_inline(folder / "inline")

    def step(name: str, done: Done, recovered_s: float | None = None) -> Step:
        wall_s = done.record["execution"]["wall_s"]
        return Step(name, done.nodes, wall_s, done.digests == inline.digests, recovered_s)

    yield step("inline", inline)
    with Machines() as machines:
        yield step("1 node", run_on(machines, folder / "one"))
        machines.add()
        lost = machines.add()
        yield step("3 nodes", run_on(machines, folder / "three"))
        yield step("3 nodes, one cut off", *run_cut(machines, folder / "cut", lost))


def cluster() -> Found:
    """Compare three Ray nodes with one and with none, then cut one off; all bytes, and the time.

    Each node has an address of its own, in a network namespace: as root, with iproute2.
    """
    with tempfile.TemporaryDirectory() as folder:
        steps = list(measure_cluster(Path(folder)))
    claims = [same(f"{s.step}: the bytes of inline", s.same_bytes, True, "") for s in steps[1:]]
    claims += [
        at_most(f"{s.step}: the run goes on after", s.recovered_s, RECOVERY_BAR_S, "s")
        for s in steps
        if s.recovered_s is not None
    ]
    lines = [f"  {s.step:<22}{s.wall_s:>7.1f} s  {', '.join(s.nodes)}" for s in steps]
    return Found(claims, [step._asdict() for step in steps], lines)
