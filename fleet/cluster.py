"""A Ray cluster: reaching it, holding its machines to the same code, and room on its nodes.

Ray answers what cannot be reached with a minute of messages, and ends the process on some faults.
So a child process tries first, and its end is told in one sentence.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by ray when it is imported
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.cloudpickle
import ray.exceptions
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from fleet import handshake
from hostsim.core.errors import Problem, ScenarioError, WorkerError

log = logging.getLogger(__name__)

CONNECT_S = 5.0  # for a TCP connection to the head node
JOIN_S = 30.0  # for Ray to let a driver in: 1-2 s on an idle machine
ANSWER_S = 120.0  # for a node to start a worker process and describe itself
COMPILE_S = 1800.0  # for a node to compile all kernels: two minutes on an idle machine
SETTLE_S = 3.0  # CPUs of a job that has just ended are given back within a second
ROOM_S = 20.0  # for the room that was counted as free to be reserved

_TRY = """
import json, logging, sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
    print(json.dumps({"joined": True}), flush=True)
except Exception as error:
    print(json.dumps({"joined": False, "reason": str(error)}), flush=True)
"""
_OTHER_TOKEN = "InvalidAuthToken"
_TOKEN_HINT = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on the head node"


def check_address(address: str) -> tuple[str, int] | None:
    """Return host and port of an address, None for ``auto``.

    Raises
    ------
    ScenarioError
        It is no address of a cluster's head node.
    """
    if address == "auto":
        return None
    hint = "HOST:PORT as `ray start --head` printed it, or auto on a machine of the cluster"
    message = "is not HOST:PORT or auto"
    if address.startswith("ray://"):
        message = "is Ray Client, through which results would travel twice"
        hint = "on a machine of the cluster: --address auto (`ray job submit -- fleet run ...`)"
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ScenarioError([Problem(f"--address {address}", message, hint)])
    return host.strip("[]"), int(port)


def reach(address: str) -> None:
    """Find out within seconds whether this machine can join the cluster.

    Raises
    ------
    ScenarioError
        It is no address.
    WorkerError
        Nothing answers there, or Ray does not let us in.
    """
    place = check_address(address)
    if place:
        try:
            socket.create_connection(place, CONNECT_S).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise _unreachable(address, reason) from None
    problem = _why_not(*_try(address))
    if problem:
        raise _unreachable(address, problem)


def _try(address: str) -> tuple[str, str]:
    """Let a child join, until it is clear that it cannot; return what it printed."""
    command = [sys.executable, "-c", _TRY, address]
    pipe = subprocess.PIPE
    errors = []
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        too_late = threading.Timer(JOIN_S, child.kill)
        too_late.start()
        for line in child.stderr:
            errors.append(line)
            if _OTHER_TOKEN in line:  # Ray would try again for 20 s
                child.kill()
        output = child.stdout.read()
        too_late.cancel()
        too_late.join()
    return output, "".join(errors)


def _unreachable(address: str, reason: str) -> WorkerError:
    return WorkerError(
        f"cannot reach Ray at {address}: {reason} (`ray status` on the head node says whether it"
        " runs; --inline runs without Ray)"
    )


def _why_not(output: str, errors: str) -> str:
    """Return why the child could not join, or nothing: Ray's own words where they say it."""
    lines = output.strip().splitlines()
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if answer.get("joined"):
        return ""
    if _OTHER_TOKEN in errors:
        return f"it demands another token; {_TOKEN_HINT}"
    if "Failed to connect to socket" in errors:
        return "its node on this machine has its files elsewhere (another container, or user)"
    if not answer:
        return f"no head node of a Ray cluster answers there within {JOIN_S:.0f} s"
    return " ".join(str(answer["reason"]).split())


class Node(NamedTuple):
    """One machine of the cluster."""

    node_id: str
    address: str


def alive_nodes() -> dict[str, Node]:
    """Return the machines that Ray believes alive, by id."""
    return {
        node["NodeID"]: Node(node["NodeID"], node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"]
    }


def _on_each(nodes: list[Node], function: Callable[[], Any], timeout_s: float) -> list[Any]:
    """Run a function once on each node, all at the same time; results in their order."""
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    references = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        references.append(task.options(scheduling_strategy=there).remote())
    _, late = ray.wait(references, num_returns=len(references), timeout=timeout_s)
    if late:
        silent = [n.address for n, r in zip(nodes, references, strict=True) if r in late]
        raise WorkerError(f"{_named(silent)} did not answer within {timeout_s:.0f} s")
    results = []
    for node, reference in zip(nodes, references, strict=True):
        try:
            results.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WorkerError(f"node {node.address}: {reason}") from error
    return results


def _named(addresses: list[str]) -> str:
    return f"node{'s' * (len(addresses) > 1)} {', '.join(addresses)}"


def check_nodes(nodes: list[Node]) -> None:
    """Hold the code on all nodes against the driver's.

    Raises
    ------
    WorkerError
        A node would compute something else; it is named, with what differs.
    """
    ray.cloudpickle.register_pickle_by_value(handshake)
    try:
        machines = _on_each(nodes, handshake.describe, ANSWER_S)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(handshake)
    here = handshake.describe()
    different = [
        f"node {node.address} has {handshake.differences(here, there)}"
        for node, there in zip(nodes, machines, strict=True)
        if handshake.differences(here, there)
    ]
    if different:
        raise WorkerError(
            f"{'; '.join(different)} (results depend on it: install the driver's on every node,"
            " then restart Ray there)"
        )
    models = sorted({here.cpu, *(machine.cpu for machine in machines)})
    if len(models) > 1:
        log.warning(
            "warning: the CPUs differ (%s); the same run elsewhere may differ in last digits",
            ", ".join(models),
        )


def _is_cold() -> bool:
    from fleet.warmup import is_cold

    return is_cold()


def _warm_up() -> None:
    from fleet.warmup import warm_up

    warm_up()


def warm_nodes(nodes: list[Node]) -> None:
    """Compile the kernels once on each machine, not once in each actor."""
    states = _on_each(nodes, _is_cold, ANSWER_S)
    cold = [node for node, is_cold in zip(nodes, states, strict=True) if is_cold]
    if cold:
        named = _named([node.address for node in cold])
        log.warning("compiling kernels on %s, once: about two minutes", named)
        _on_each(cold, _warm_up, COMPILE_S)


def _free_cpus() -> int:
    """Count CPUs that no one uses, after those of a job that has just ended came back."""
    give_up_s = time.monotonic() + SETTLE_S
    while True:
        free = int(_resources("available_resources"))
        if free >= int(_resources("cluster_resources")) or time.monotonic() > give_up_s:
            return free
        time.sleep(0.1)


def _resources(which: str) -> float:
    source: Any = ray
    return float(getattr(source, which)().get("CPU", 0.0))


class Room:
    """Reserved CPUs, spread over the nodes, and which shard uses which.

    One CPU each as far as there are any; the shards are dealt to them in turn and share them.
    """

    def __init__(self, nr_shards: int, nr_cpus: int) -> None:
        self.nr_slots = min(nr_shards, nr_cpus)
        self.nr_shards = nr_shards
        bundles = [{"CPU": 1.0}] * self.nr_slots
        self._group: Any = placement_group(bundles, strategy="SPREAD")
        if not self._group.wait(ROOM_S):
            self.close()
            raise WorkerError(
                f"{nr_cpus} CPUs of the cluster were free and are no longer: others took them"
                " (fewer --workers, or wait until they end)"
            )
        self.node_of_slot = self._nodes_of_slots()

    def _nodes_of_slots(self) -> list[str]:
        where = placement_group_table(self._group)["bundles_to_node_id"]
        return [where[slot] for slot in range(self.nr_slots)]

    def nodes(self) -> list[Node]:
        """Return the machines with room for us, by address."""
        alive = alive_nodes()
        found = {alive[node_id] for node_id in self.node_of_slot if node_id in alive}
        return sorted(found, key=lambda node: node.address)

    def options(self, shard: int, attempt: int = 0) -> dict[str, Any]:
        """Return where Ray is to put the actor of a shard, for the first time or again.

        An actor that is made again shares the CPUs of those that are left: to wait for a free
        one could take forever.
        """
        if attempt == 0:
            slot = shard % self.nr_slots
            sharing = len(range(slot, self.nr_shards, self.nr_slots))
            return {
                "num_cpus": int(1e4 / sharing) / 1e4,  # Ray's resolution
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=slot
                ),
            }
        alive = alive_nodes()
        left = [node_id for node_id in self.node_of_slot if node_id in alive] or list(alive)
        there = NodeAffinitySchedulingStrategy(left[(shard + attempt) % len(left)], soft=True)
        return {"num_cpus": 0, "scheduling_strategy": there}

    def close(self) -> None:
        """Give the CPUs back."""
        remove_placement_group(self._group)


def make_room(nr_hosts: int, workers: int | None, hosts_per_actor: int | None) -> Room:
    """Reserve CPUs for a run: one a worker, all that are free if no number is given.

    Raises
    ------
    WorkerError
        No CPU is free.
    """
    free = _free_cpus()
    if free < 1:
        total = int(_resources("cluster_resources"))
        raise WorkerError(
            f"the Ray cluster has no free CPU ({total} in all): wait until what runs there ends,"
            " or add nodes"
        )
    nr_workers = min(workers or free, nr_hosts)
    nr_shards = -(-nr_hosts // hosts_per_actor) if hosts_per_actor else nr_workers
    return Room(nr_shards, min(nr_workers, free))
