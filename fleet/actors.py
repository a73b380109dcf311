"""Ray: shards of hosts as actors, on an embedded local Ray or on a cluster.

State lives in actors, so nothing is retried behind our back: ``advance`` names its epoch, a dead
worker ends the run with a clear message, and ``--resume`` continues from the last checkpoint.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

from fleet import cluster, handshake  # first: ray reads its environment when it is imported

# isort: split
import ray
import ray.exceptions

from fleet.migration import Emigrant
from fleet.mmu_figures import SampleUsage
from fleet.scenario import Scenario
from fleet.shard import (
    Arrivals,
    Move,
    Shard,
    ShardCommands,
    ShardPlan,
    Tables,
    shard_plans,
    split_hosts,
)
from fleet.usage import Usage, usage_of_process
from hostsim.core.errors import HugefleetError, WorkerError

START_ATTEMPTS = 2  # starting a local Ray has a hard time-out that a loaded machine can miss
OBJECT_STORE_BYTES = 256 << 20  # rows of an epoch pass through it: 45 MB for 10,000 hosts
LOOK_EVERY_S = 10.0  # between two looks at whether the workers still live


class ShardActor(Shard):
    """A shard in a process of its own, which computes as the driver would or not at all."""

    def __init__(self, plan: ShardPlan, expected: handshake.Machine) -> None:
        different = handshake.differences(expected, handshake.describe())
        if different:  # a machine that joined the cluster while the run was going on
            raise WorkerError(f"node {ray.util.get_node_ip_address()} has {different}")
        super().__init__(plan)

    def usage(self) -> Usage:
        """Return what this process uses."""
        return usage_of_process(os.getpid())

    def pid(self) -> int:
        """Return the number of this process on its machine."""
        return os.getpid()


def nr_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0))


def start(workers: int, address: str | None) -> bool:
    """Start or join Ray; return whether it is ours to shut down.

    Raises
    ------
    WorkerError
        It does not start, or nothing answers at the address.
    """
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {
            "address": "local",  # not a cluster that happens to run on this machine
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options["address"] = address
    attempts_left = START_ATTEMPTS if address is None else 1
    while not ray.is_initialized():
        attempts_left -= 1
        try:
            ray.init(**options)
        except Exception as error:  # ray raises whatever its start-up met
            ray.shutdown()
            if attempts_left == 0:
                where = f"reach Ray at {address}" if address else "start a local Ray"
                text = f"cannot {where}: {error} (--inline runs without Ray)"
                raise WorkerError(text) from error
    return True


class RayBackend:
    """Hosts in shard actors; results are used in host-id order, whatever order they finish in."""

    name = "ray"

    def __init__(
        self,
        scenario: Scenario,
        workers: int | None = None,
        hosts_per_actor: int | None = None,
        address: str | None = None,
    ) -> None:
        self.remote = address is not None
        self.ours = start(workers or nr_cores(), address)
        self.actors: list[Any] = []
        self.room = cluster.make_room(scenario.nr_hosts, workers, hosts_per_actor)
        self.host_ids = split_hosts(scenario.nr_hosts, self.room.nr_shards)
        self._plans = shard_plans(scenario, self.room.nr_shards)
        self._expected = handshake.describe()
        try:
            nodes = self.room.nodes()
            self.nodes = [node.address for node in nodes]
            if self.remote:
                cluster.check_nodes(nodes)
                cluster.warm_nodes(nodes)
            self.actors = [self._new_actor(shard) for shard in range(self.room.nr_shards)]
        except BaseException:
            self.close()
            raise
        self._pending: list[Any] = []
        self._processes: list[int] = []  # of the actors on this machine
        if not self.remote:
            self._processes = self.pids()

    def _new_actor(self, shard: int) -> Any:
        """Make the actor of a shard where there is room for it."""
        options = {"max_restarts": 0, "max_task_retries": 0, **self.room.options(shard)}
        actor: Any = ray.remote(**options)(ShardActor)
        return actor.remote(self._plans[shard], self._expected)

    def emigrate(self, epoch: int, t_ns: int, moves: list[list[Move]]) -> list[list[Emigrant]]:
        """Send VMs away at the barrier before an epoch; by shard, in the order of the moves."""
        return self._get(
            [
                actor.emigrate.remote(epoch, t_ns, part)
                for actor, part in zip(self.actors, moves, strict=True)
            ]
        )

    def submit(
        self,
        epoch: int,
        t0_ns: int,
        t1_ns: int,
        commands: list[ShardCommands],
        arriving: list[Arrivals],
    ) -> None:
        """Let every shard advance by one epoch; returns at once."""
        self._pending = [
            actor.advance.remote(epoch, t0_ns, t1_ns, part, vms)
            for actor, part, vms in zip(self.actors, commands, arriving, strict=True)
        ]

    def collect(self) -> list[Tables]:
        """Wait for the epoch submitted last and return its rows, one entry a shard."""
        rows: list[Tables] = self._get(self._pending)
        self._pending = []
        return rows

    def save(self) -> list[tuple[int, bytes]]:
        """Return the state of every host, in host-id order."""
        states = self._get([actor.save.remote() for actor in self.actors])
        return sorted((state for part in states for state in part), key=lambda state: state[0])

    def restore(self, epoch: int, states: dict[int, bytes]) -> None:
        """Take up the states of all hosts at the start of an epoch."""
        parts = [[states[host_id] for host_id in host_ids] for host_ids in self.host_ids]
        self._get(
            [
                actor.restore.remote(epoch, part)
                for actor, part in zip(self.actors, parts, strict=True)
            ]
        )

    def remote_usage(self) -> list[tuple[float, int]]:
        """Return CPU seconds and memory of actors on other machines."""
        if not self.remote:
            return []
        return list(self._get([actor.usage.remote() for actor in self.actors]))

    def sampling(self) -> list[SampleUsage]:
        """Return what samples of address translation have cost each actor."""
        return self._get([actor.sampling.remote() for actor in self.actors])

    def pids(self) -> list[int]:
        """Return the process of each actor."""
        return self._get([actor.pid.remote() for actor in self.actors])

    def close(self) -> None:
        """End the actors, and Ray if it is ours."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        self.room.close()
        if self.ours:
            ray.shutdown()

    def _get(self, references: Sequence[Any]) -> list[Any]:
        try:
            waiting = list(references)
            while waiting:
                gone = [pid for pid in self._processes if not os.path.exists(f"/proc/{pid}")]
                _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_EVERY_S)
                if waiting and gone:  # Ray does not always notice
                    raise WorkerError(
                        f"a worker died: process {gone[0]} is gone"
                        " (--resume continues from the last checkpoint)"
                    )
            return list(ray.get(list(references)))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HugefleetError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise WorkerError(
                f"a worker died: {reason}"
                " (often memory: fewer --workers or a smaller fleet need less;"
                " --resume continues from the last checkpoint)"
            ) from error
