"""The chaos suite: kills at seeded random moments of a run of 50 hosts, one after the other.

    python tests/chaos/fleet_chaos.py [--kills 25] [--seed 1] [--only worker]

Workers and nodes die under a driver that goes on (three Ray nodes on this machine); drivers are
``fleet run`` processes that end by SIGKILL, at a moment or in the middle of a write, and go on
with ``--resume``. Each must end with the bytes of a run that nothing disturbed. Times are wall
times: from the kill until the new actor has the state of the last checkpoint, and what it took to
compute the epochs since.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from chaos import WriteFaults, die, digest, draw, leftovers

SCENARIO = "churn"
SETTINGS = (
    "hosts.count=50",
    "hosts.memory=16GiB",
    "hosts.reserved=2GiB",
    "vms.scale=0.0012",
    "run.duration=6h",
    "run.epoch_ticks=6",
    "failures.mtbf=100h",
    "maintenance=[{hosts = 10, start = '2h'}]",
    "mmu.enabled=false",
)
EVERY = 3  # epochs between checkpoints
NR_EPOCHS = 12
KINDS = ("worker", "driver", "node", "worker", "write")  # in turn
say = functools.partial(print, flush=True)
BAR_S = {"worker": 5.0, "node": 15.0}


@contextlib.contextmanager
def node_cluster():
    """Start a head node without CPUs and two nodes with one each, all on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    from fleet import actors

    actors.cluster  # noqa: B018  sets what ray reads from its environment
    if ray.is_initialized():
        ray.shutdown()
    health = {
        "health_check_initial_delay_ms": 500,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": health}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, include_dashboard=False)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    cluster.wait_for_nodes()
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


class Killer:
    """Kills a worker or a node some time after an epoch."""

    def __init__(self, cluster, kind, epoch, delay_s, shard=0, wait=False):
        self.cluster, self.kind, self.epoch = cluster, kind, epoch
        self.delay_s, self.shard, self.wait = delay_s, shard, wait
        self.killed_s = None

    def make_backend(self, scenario):
        from fleet.actors import RayBackend

        self.backend = RayBackend(scenario, workers=2)
        return self.backend

    def __call__(self, progress):
        if progress.epoch == self.epoch:
            self.timer = threading.Timer(self.delay_s, self._kill)
            self.timer.start()
            if self.wait:
                self.timer.join()
                self._wait_until_seen()

    def _wait_until_seen(self):
        """Wait until Ray knows that a node is gone: a short run would end before."""
        import ray

        end_s = time.monotonic() + 30
        while sum(node["Alive"] for node in ray.nodes()) > len(self.cluster.list_all_nodes()):
            if time.monotonic() > end_s:
                raise TimeoutError("Ray does not see that the node is gone")
            time.sleep(0.05)

    def _kill(self):
        if not self.backend.actors:
            return  # the run has ended
        found = self.backend._identities[self.shard]
        self.orphan = self.backend.actors[self.shard]
        self.killed_s = time.perf_counter()
        if self.kind == "worker":
            os.kill(found.pid, signal.SIGKILL)
            return
        for node in self.cluster.list_all_nodes():
            if node.node_id == found.node_id:
                self.cluster.remove_node(node, allow_graceful=False)

    def repair(self):
        """Put another node in the place of the one that was killed."""
        self.timer.join()
        if self.kind == "node":
            self.cluster.add_node(num_cpus=1, include_dashboard=False)
            self.cluster.wait_for_nodes()

    def orphan_answer(self):
        """Ask the actor that was given up to do the work of its successor."""
        import ray

        step = self.backend._journal.steps[-1][self.shard]
        try:
            ray.get(self.orphan.advance_as.remote(1, step), timeout=10)
        except (ray.exceptions.RayError, ValueError) as error:
            return type(error).__name__
        return "advanced"


def fleet_run(out, *arguments, at=None):
    """Start ``fleet run`` on the chaos scenario; ``at``: dies at that step of writing."""
    program = ["-m", "fleet"] if at is None else [__file__, "--die-at", str(at), "--"]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    run = ["run", SCENARIO, *settings, "--out", str(out), "--checkpoint-epochs", str(EVERY)]
    return subprocess.Popen(
        [sys.executable, *program, *run, "--json", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Wait for a process; return its exit code."""
    _, errors = process.communicate(timeout=1800)
    if process.returncode > 0:
        sys.stderr.write(errors)
    return process.returncode


def epochs_written(out):
    """Return how many epochs the manifest has."""
    try:
        parts = json.loads((out / "_manifest.json").read_text())["parts"]
    except (OSError, ValueError):
        return 0
    return len({part["epoch"] for part in parts})


def kill_driver(out, epoch, delay_s, backend):
    """Kill ``fleet run`` some time after an epoch was written; return where it stood."""
    process = fleet_run(out, *backend)
    while process.poll() is None and epochs_written(out) < epoch:
        time.sleep(0.005)
    time.sleep(delay_s)
    process.kill()
    finish(process)
    return epochs_written(out)


class Chaos:
    """The undisturbed run, and what is killed."""

    def __init__(self, folder, seed):
        self.folder, self.seed = folder, seed
        self.whole = folder / "whole"

    def prepare(self):
        """Run undisturbed, once a backend; both must agree."""
        counter = self.folder / "steps"
        process = fleet_run(self.whole, "--inline", at=f"0:{counter}")
        if finish(process) != 0:
            raise SystemExit("the undisturbed run failed")
        self.steps = int(counter.read_text())
        execution = json.loads((self.whole / "run.json").read_text())["execution"]
        self.epoch_s = execution["advance_wall_s"] / NR_EPOCHS
        self.expected = digest(self.whole)

    def moment(self, *key, epochs=NR_EPOCHS - 1):
        """Return a random epoch and a delay into the next."""
        epoch = int(epochs * draw(self.seed, *key, "epoch"))
        return epoch, self.epoch_s * draw(self.seed, *key, "delay")

    def external(self, number, kind, out):
        """Kill a driver and resume; return a description and no times."""
        backend = ("--inline",) if number % 2 else ("--workers", "2")
        epoch, delay_s = self.moment(number)
        if kind == "write":
            at = 1 + int(self.steps * draw(self.seed, number, "step"))
            code = finish(fleet_run(out, "--inline", at=at))
            what = f"driver, write step {at} of {self.steps}"
            if code != -signal.SIGKILL:
                return f"{what}: NOT KILLED ({code})", None
        else:
            stood = kill_driver(out, epoch, delay_s, backend)
            what = f"driver ({backend[0]}), {stood} epochs written"
        if finish(fleet_run(out, "--resume", *backend)) != 0:
            what += ": RESUME FAILED"
        return what, None

    def internal(self, number, kind, out, cluster):
        """Kill a worker or a node under a driver that goes on."""
        from fleet import scheduler
        from fleet.loading import load

        scenario = load(SCENARIO, list(SETTINGS))
        options = scheduler.Options(checkpoint_epochs=EVERY, overwrite=True)
        found = []
        for trial in range(5):  # a run may end before it misses what was killed: another moment
            epoch, delay_s = self.moment(number, trial, epochs=NR_EPOCHS - 5)
            killer = Killer(cluster, kind, 1 + epoch, delay_s, number % 2)
            record = scheduler.run(scenario, out, options, killer, killer.make_backend)
            killer.repair()
            found = record["execution"]["recoveries"]
            if found:
                break
        what = f"{kind}, {delay_s:.2f} s after epoch {1 + epoch}"
        if not found:
            return f"{what}: NOT MISSED", None
        noticed_s = killer.backend.begin_s + found[0]["noticed_s"] - killer.killed_s
        return f"{what}: recomputed {found[0]['epoch'] - found[0]['from_epoch']} epochs", (
            noticed_s,
            noticed_s + found[0]["restored_s"],
            found[0]["again_s"],
        )

    def one(self, number, kind, cluster):
        """Kill once; print a line; return whether the bytes are right, and the times."""
        out = self.folder / f"kill{number:02d}"
        internal = kind in BAR_S
        what, times = (
            self.internal(number, kind, out, cluster)
            if internal
            else self.external(number, kind, out)
        )
        same = digest(out) == self.expected and not leftovers(out)
        shown = "{:8.2f} {:8.2f} {:8.2f}".format(*times) if times else " " * 26
        say(f"{number:4d}  {what:<58}{shown}  {'same' if same else 'DIFFERENT'}")
        shutil.rmtree(out)
        return same, times


def main():
    """Run the suite; exit 1 if a run ended otherwise or a time is over its bar."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(set(KINDS)))
    arguments = parser.parse_args()
    kinds = [arguments.only or KINDS[i % len(KINDS)] for i in range(arguments.kills)]
    worst, right = {}, 0
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        chaos = Chaos(Path(folder), arguments.seed)
        chaos.prepare()
        inside = set(kinds) & set(BAR_S)
        cluster = stack.enter_context(node_cluster()) if inside else None
        say(f"{'kill':<64}{'noticed':>8} {'restored':>8} {'again':>8}  bytes")
        for number, kind in enumerate(kinds):
            same, times = chaos.one(number, kind, cluster)
            right += same
            if times:
                worst.setdefault(kind, []).append(times[1])
    say(f"{right} of {len(kinds)} runs ended with the bytes of the undisturbed run")
    for kind, seconds in worst.items():
        seconds.sort()
        median, most = seconds[len(seconds) // 2], seconds[-1]
        verdict = "within" if most <= BAR_S[kind] else "OVER"
        say(
            f"{kind}: restored {median:.1f} s after the kill (median), {most:.1f} s at most:"
            f" {verdict} the bar of {BAR_S[kind]:g} s; then the epochs since the checkpoint"
        )
    return 0 if right == len(kinds) else 1


def run_dying(at, *arguments):
    """Be ``fleet`` until a step of writing; 0:FILE counts the steps into a file."""
    from fleet.cli import main as fleet

    step, _, counter = at.partition(":")
    sys.argv = ["fleet", *arguments]
    with WriteFaults(int(step), die).installed() as faults:
        try:
            fleet()
        finally:
            if counter:
                Path(counter).write_text(str(faults.count))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--die-at"]:
        run_dying(sys.argv[2], *sys.argv[4:])
    else:
        sys.exit(main())
