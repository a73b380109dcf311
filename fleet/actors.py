"""Ray: shards of hosts as actors, on an embedded local Ray or on a cluster.

State lives in actors, so nothing is retried behind our back. When a worker or its machine dies,
its shards are made anew on what is left, restored from the last checkpoint and given the same
commands again (`fleet.journal`), while the others wait with the state that they have. A call
names its epoch and the actor's attempt: an actor that was given up but still lives, cut off on a
lost machine, is asked nothing any more, refuses the calls of its successor, and only the driver
writes files.
"""

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial, partialmethod
from typing import Any, NamedTuple

from fleet import cluster, handshake  # first: ray reads its environment when it is imported

# isort: split
import ray
import ray.exceptions
from ray._private.parameter import RayParams

from fleet.collector import collect_rarely
from fleet.journal import Journal
from fleet.migration import Emigrant
from fleet.mmu_board import BoardPlace, make_board, open_board
from fleet.mmu_figures import SampleUsage, share_samples
from fleet.scenario import Scenario
from fleet.shard import (
    Load,
    Move,
    Shard,
    ShardPlan,
    Step,
    Tables,
    shard_plans,
    split_hosts,
)
from fleet.usage import Usage, machine, start_ticks, usage_of_process
from hostsim.core.errors import HugefleetError, WorkerError

_LOG = logging.getLogger(__name__)
START_ATTEMPTS = 2  # starting a local Ray has a hard time-out that a loaded machine can miss
OBJECT_STORE_BYTES = 256 << 20  # rows of an epoch pass through it: 45 MB for 10,000 hosts
LOOK_EVERY_S = 0.2  # between two looks at whether the workers on this machine still live
LOOK_AT_FILES_S = 1.0  # between two looks at how far runs are that report nothing
HOSTS_PER_CALL = 16  # whose states are on the way at once, a shard
MAX_LOSSES = 3  # of one shard in one epoch: what kills it will do so again
_Steps = Generator[Any, Any, None]  # yields references of calls, takes their results


class ActorIdentity(NamedTuple):
    """Where an actor lives."""

    machine: str
    pid: int
    start_ticks: int | None
    node_id: str  # Ray's


class ShardActor(Shard):
    """A shard in a process of its own, which computes as the driver would or not at all.

    It is one of perhaps several attempts at that shard.

    Parameters
    ----------
    place, first
        Where samples of translation are shared, and at which part of them this one begins.
    """

    def __init__(
        self,
        plan: ShardPlan,
        expected: handshake.Machine,
        attempt: int,
        place: BoardPlace,
        first: float,
    ) -> None:
        different = handshake.differences(expected, handshake.describe())
        if different:  # a machine that joined the cluster while the run was going on
            raise WorkerError(f"node {ray.util.get_node_ip_address()} has {different}")
        super().__init__(plan)
        collect_rarely()
        board = open_board(place, first)
        if board:
            share_samples(board)
        self.attempt = attempt

    def advance_as(self, attempt: int, step: Step) -> Tables:
        """Advance all hosts by one epoch, if this is the attempt that is meant.

        Raises
        ------
        ValueError
            It is not.
        """
        if attempt != self.attempt:
            raise ValueError(f"attempt {self.attempt} of a shard was given up for {attempt}")
        return self.advance(step)

    def advance_again(self, attempt: int, step: Step) -> None:
        """Advance by an epoch whose rows and emigrants are known."""
        self.emigrate(step.epoch, step.t0_ns, step.moves)
        self.advance_as(attempt, step)

    def usage(self) -> Usage:
        """Return what this process uses."""
        return usage_of_process(os.getpid())

    def identity(self) -> ActorIdentity:
        """Return where this actor lives."""
        context: Any = ray.get_runtime_context()
        pid = os.getpid()
        return ActorIdentity(machine(), pid, start_ticks(pid), str(context.get_node_id()))


def nr_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def _fewest_processes() -> Iterator[None]:
    """Let a local Ray do without its autoscaler and its log monitor.

    Nothing is scaled, and no log is forwarded (``log_to_driver``); each takes some 50 MiB, and half
    a second of CPU time to start.  ``ray.init`` has no option for them.
    """
    class_: Any = RayParams
    made = class_.__init__
    class_.__init__ = partialmethod(made, no_monitor=True, include_log_monitor=False)
    try:
        yield
    finally:
        class_.__init__ = made


def start(workers: int, address: str | None, metrics_port: int | None = None) -> bool:
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
        if metrics_port is not None:
            options["_metrics_export_port"] = metrics_port
    else:
        options["address"] = address
    attempts_left = START_ATTEMPTS if address is None else 1
    while not ray.is_initialized():
        attempts_left -= 1
        try:
            with _fewest_processes():
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
        metrics_port: int | None = None,
    ) -> None:
        self.remote = address is not None
        self.ours = start(workers or nr_cores(), address, metrics_port)
        self.actors: list[Any] = []
        try:
            self.room = cluster.make_room(scenario.nr_hosts, workers, hosts_per_actor)
        except BaseException:
            if self.ours:
                ray.shutdown()
            raise
        self.host_ids = split_hosts(scenario.nr_hosts, self.room.nr_shards)
        self._plans = shard_plans(scenario, self.room.nr_shards)
        self._expected = handshake.describe()
        self._board_file, self.board = make_board(scenario)
        self.begin_s = time.perf_counter()
        self._attempts = [0] * self.room.nr_shards
        self._journal = Journal()
        self._epoch = 0  # the next one to submit
        self._moves: list[list[Move]] = [[] for _ in self.host_ids]  # that left before it
        self._barrier_ns = 0  # when they did
        self._pending: dict[int, Any] = {}
        self._losses: Counter[int] = Counter()  # by shard, since all have answered
        self._recoveries: list[dict[str, Any]] = []
        self._identities: list[ActorIdentity | None] = [None] * self.room.nr_shards
        try:
            nodes = self.room.nodes()
            self.nodes = [node.address for node in nodes]
            if self.remote:
                cluster.check_nodes(nodes)
                cluster.warm_nodes(nodes)
            self._start_actors(self.room.nr_shards)
        except BaseException:
            self.close()
            raise

    def _start_actors(self, nr_shards: int) -> None:
        self.actors = [self._new_actor(shard) for shard in range(nr_shards)]
        self._identities = list(self._ask(lambda actor, _: actor.identity.remote()))

    def _new_actor(self, shard: int) -> Any:
        """Make the actor of a shard where there is room for it."""
        attempt = self._attempts[shard]
        options = {"max_restarts": 0, "max_task_retries": 0, **self.room.options(shard, attempt)}
        actor: Any = ray.remote(**options)(ShardActor)
        first = shard / len(self._plans)
        return actor.remote(self._plans[shard], self._expected, attempt, self.board, first)

    def emigrate(self, epoch: int, t_ns: int, moves: list[list[Move]]) -> list[list[Emigrant]]:
        """Send VMs away at the barrier before an epoch; by shard, in the order of the moves."""
        self._epoch = epoch
        sent = self._ask(lambda actor, shard: actor.emigrate.remote(epoch, t_ns, moves[shard]))
        # from here on, who is brought back at this epoch sends them again
        self._moves, self._barrier_ns = moves, t_ns
        return list(sent)

    def submit(self, steps: list[Step]) -> None:
        """Let every shard advance by one epoch; returns at once."""
        self._journal.note(steps)
        self._epoch = steps[0].epoch
        self._pending = {shard: self._advance(shard) for shard in range(len(self.actors))}

    def _advance(self, shard: int) -> Any:
        step = self._journal.steps[-1][shard]
        return self.actors[shard].advance_as.remote(self._attempts[shard], step)

    def collect(self) -> list[Tables]:
        """Wait for the epoch submitted last and return its rows, one entry a shard."""
        rows: list[Tables] = self._ask(lambda _, shard: self._advance(shard), self._pending)
        self._pending = {}
        self._epoch += 1
        self._moves = [[] for _ in self.host_ids]
        return rows

    def save(self) -> Iterator[tuple[int, bytes]]:
        """Return the state of every host, some of every shard at a time."""
        for first in range(0, max(map(len, self.host_ids)), HOSTS_PER_CALL):
            last = first + HOSTS_PER_CALL
            for part in self._ask(partial(_save, first=first, last=last)):
                yield from part

    def restore(self, epoch: int, load: Load) -> None:
        """Take up the states of all hosts at the start of an epoch."""
        self._journal.begin(epoch, load)
        self._epoch = epoch
        self._finish({shard: self._restored(shard) for shard in range(len(self.actors))})

    def begin_journal(self, epoch: int, load: Load) -> None:
        """Note a new checkpoint: what is lost from now on is brought back from there."""
        self._journal.begin(epoch, load)

    def recoveries(self) -> list[dict[str, Any]]:
        """Return what was lost on the way and brought back."""
        return self._recoveries

    def remote_usage(self) -> list[tuple[float, int]]:
        """Return CPU seconds and memory of actors on other machines."""
        if not self.remote:
            return []
        return list(self._ask(lambda actor, _: actor.usage.remote()))

    def sampling(self) -> list[SampleUsage]:
        """Return what samples of address translation have cost each actor."""
        return list(self._ask(lambda actor, _: actor.sampling.remote()))

    def pids(self) -> list[int]:
        """Return the process of each actor."""
        return [found.pid for found in self._identities if found]

    def close(self) -> None:
        """End the actors, and Ray if it is ours."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        self._board_file.close()
        self.room.close()
        if self.ours:
            ray.shutdown()

    def _ask(self, call: Callable[[Any, int], Any], asked: dict[int, Any] | None = None) -> Any:
        """Call all actors and return their answers by shard; what is lost is brought back first."""
        asked = asked or {}
        answers: dict[int, Any] = {}

        def steps(shard: int) -> _Steps:
            reference = asked.pop(shard, None)
            answers[shard] = yield reference or call(self.actors[shard], shard)

        shards = range(len(self.actors))
        self._finish({shard: steps(shard) for shard in shards}, steps)
        return [answers[shard] for shard in shards]

    def _finish(
        self, running: dict[int, _Steps], then: Callable[[int], _Steps] | None = None
    ) -> None:
        """Go through the steps of shards at the same time; a lost shard begins ``then`` anew.

        Raises
        ------
        WorkerError
            A shard is lost again and again.
        """
        waiting = {next(steps): (shard, steps) for shard, steps in running.items()}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK_EVERY_S)
            lost = {}
            for reference in ready:
                shard, steps = waiting.pop(reference)
                try:
                    waiting[steps.send(_answer(reference))] = shard, steps
                except StopIteration:
                    pass
                except ray.exceptions.RayError as error:
                    lost[shard] = _reason(error)
            for reference, (shard, _) in list(waiting.items()):
                found = self._identities[shard]
                if found and _has_ended(found):
                    del waiting[reference]
                    lost[shard] = f"process {found.pid} is gone"
            for shard, reason in lost.items():
                steps = self._brought_back(shard, reason, then)
                waiting[next(steps)] = shard, steps
        self._losses.clear()

    def _brought_back(
        self, shard: int, reason: str, then: Callable[[int], _Steps] | None
    ) -> _Steps:
        """Make a lost shard anew, in the state that it had, and go on with what it was asked."""
        begin_s = time.perf_counter()
        hosts, epoch, journal = self.host_ids[shard], self._epoch, self._journal
        named = ", ".join(map(str, hosts[:3])) + (", ..." if len(hosts) > 3 else "")
        self._losses[shard] += 1
        if self._losses[shard] > MAX_LOSSES:
            raise WorkerError(
                f"the worker of hosts {named} died {MAX_LOSSES + 1} times"
                f" at epoch {epoch}: {reason}"
                " (often memory: fewer --workers or a smaller fleet need less;"
                " --resume continues from the last checkpoint)"
            )
        again = epoch - journal.epoch
        _LOG.warning(
            "worker of hosts %s died at epoch %d (%s): recomputing %d epochs from %s",
            named,
            epoch,
            reason,
            again,
            f"the checkpoint of epoch {journal.epoch}" if journal.load else "the seed",
        )
        ray.kill(self.actors[shard])
        self._identities[shard] = None
        self._attempts[shard] += 1
        self.actors[shard] = self._new_actor(shard)
        yield from self._restored(shard)
        restored_s = time.perf_counter() - begin_s
        for steps in journal.before(epoch):
            yield self.actors[shard].advance_again.remote(self._attempts[shard], steps[shard])
        if self._moves[shard]:
            t_ns = self._barrier_ns
            yield self.actors[shard].emigrate.remote(epoch, t_ns, self._moves[shard])
        self._recoveries.append(
            {
                "epoch": epoch,
                "from_epoch": journal.epoch,
                "shard": shard,
                "reason": reason,
                "noticed_s": round(begin_s - self.begin_s, 3),  # since the workers were started
                "restored_s": round(restored_s, 3),
                "again_s": round(time.perf_counter() - begin_s - restored_s, 3),
            }
        )
        if then:
            yield from then(shard)

    def _restored(self, shard: int) -> _Steps:
        """Find where an actor lives, and give it the states of the last checkpoint."""
        self._identities[shard] = yield self.actors[shard].identity.remote()
        load, hosts = self._journal.load, self.host_ids[shard]
        for first in range(0, len(hosts) if load else 0, HOSTS_PER_CALL):
            assert load is not None
            states = load(hosts[first : first + HOSTS_PER_CALL])
            yield self.actors[shard].restore.remote(self._journal.epoch, first, states)


def _save(actor: Any, _shard: int, first: int, last: int) -> Any:
    return actor.save.remote(first, last)


def _answer(reference: Any) -> Any:
    """Return what a call returned; what it raised on purpose is raised here."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HugefleetError | ValueError):
            raise error.cause from None
        raise RuntimeError(str(error)) from error  # our bug, not a loss


def _has_ended(identity: ActorIdentity) -> bool:
    """Say whether an actor's process is seen to have ended: Ray does not always notice."""
    if identity.machine != machine():
        return False
    return start_ticks(identity.pid) != identity.start_ticks


def _reason(error: Exception) -> str:
    """Return the first line of what Ray says, and the last if an actor could not be made."""
    lines = re.sub("\x1b\\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    in_creation = "creation task" in lines[0] and len(lines) > 1
    return f"{lines[0]} {lines[-1]}" if in_creation else lines[0]


def run_each(
    function: Callable[..., None], arguments: list[tuple[Any, ...]], workers: int | None
) -> Iterator[None]:
    """Call a function with each of some arguments, a worker process each; yields now and then.

    A call whose worker died is made again: the function must be able to go on where it was.

    Raises
    ------
    WorkerError
        Workers die again and again, or Ray does not start.
    """
    ours = start(min(workers or nr_cores(), len(arguments)), None)
    try:
        call: Any = ray.remote(num_cpus=1, max_retries=0)(_one_call)
        running = {call.remote(function, *args): index for index, args in enumerate(arguments)}
        losses: Counter[int] = Counter()
        while running:
            yield
            ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_AT_FILES_S)
            for reference in ready:
                index = running.pop(reference)
                try:
                    _answer(reference)
                except ray.exceptions.RayError as error:
                    losses[index] += 1
                    if losses[index] > MAX_LOSSES:
                        text = f"a worker died {MAX_LOSSES + 1} times: {_reason(error)}"
                        raise WorkerError(f"{text} (fewer --workers need less memory)") from None
                    _LOG.warning("a worker died (%s): its run goes on", _reason(error))
                    running[call.remote(function, *arguments[index])] = index
        yield
    finally:
        if ours:
            ray.shutdown()


def _one_call(function: Callable[..., None], *args: Any) -> None:
    collect_rarely()
    function(*args)
