"""A shard: some hosts of the fleet, advanced one after the other by one process.

Which hosts share a shard is a run-time choice and never changes a result.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.captured import captured_on
from fleet.collector import give_back
from fleet.migration import Emigrant
from fleet.mmu_figures import SampleUsage, usage_of_samplers
from fleet.node import START, Commands, Node
from fleet.plan import EpochPlan
from fleet.scenario import Scenario
from fleet.state import pack, unpack
from fleet.trace import Trace
from hostsim.core.errors import InvariantError, ResultsError
from hostsim.core.stats import NODE_TABLES, TABLES

Load = Callable[[Sequence[int]], list[bytes]]  # reads the states of some hosts
Tables = dict[str, NDArray[np.int64]]
MakeNode = Callable[..., Any]
CHECK_VARIABLE = "FLEET_CHECK"  # 1: validators run after every epoch


class Move(NamedTuple):
    """A VM that changes hosts at a barrier."""

    vm_id: int
    source: int  # host
    destination: int
    reason: int  # index into hostsim.core.stats.REASON_NAMES


Arrivals = tuple[tuple[int, Emigrant], ...]  # host and VM, in the order of the moves


class ShardCommands(NamedTuple):
    """The commands of one epoch for the hosts of a shard, host after host."""

    first: NDArray[np.int64]  # (hosts + 1,) where each host's commands begin
    t_ns: NDArray[np.int64]
    kind: NDArray[np.int8]
    vm_id: NDArray[np.int64]
    vcpus: NDArray[np.int32]
    memory_pages: NDArray[np.int64]
    age_ns: NDArray[np.int64]  # > 0: a standing VM that has run so long


class Step(NamedTuple):
    """One epoch of one shard, with the barrier before it."""

    epoch: int
    t0_ns: int
    t1_ns: int
    moves: list[Move]  # that leave
    commands: ShardCommands
    arriving: Arrivals = ()  # the VMs that move in at the barrier


class ShardPlan(NamedTuple):
    """All that a shard is made from."""

    scenario: Scenario
    host_ids: tuple[int, ...]  # ascending
    check: bool


def split_hosts(nr_hosts: int, nr_shards: int) -> list[tuple[int, ...]]:
    """Deal hosts to shards in turn, so that a packed low end of the fleet spreads evenly."""
    return [tuple(range(shard, nr_hosts, nr_shards)) for shard in range(nr_shards)]


def shard_plans(scenario: Scenario, nr_shards: int) -> list[ShardPlan]:
    """Return what each shard is made from."""
    check = os.environ.get(CHECK_VARIABLE) == "1"
    split = split_hosts(scenario.nr_hosts, nr_shards)
    return [ShardPlan(scenario, host_ids, check) for host_ids in split]


def commands_for(plan: EpochPlan, trace: Trace, host_ids: Sequence[int]) -> ShardCommands:
    """Cut a shard's commands out of the plan of an epoch."""
    ids = np.asarray(host_ids, np.int64)
    begin = np.searchsorted(plan.host_id, ids, "left")
    counts = np.searchsorted(plan.host_id, ids, "right") - begin
    first = np.concatenate([[0], np.cumsum(counts)])
    rows = np.arange(first[-1]) + np.repeat(begin - first[:-1], counts)
    vm, t_ns = plan.vm[rows], plan.t_ns[rows]
    return ShardCommands(
        first,
        t_ns,
        plan.kind[rows],
        trace.vm_id[vm],
        trace.vcpus[vm],
        trace.memory_pages[vm],
        np.where(plan.kind[rows] == START, t_ns - trace.start_ns[vm], 0),
    )


def in_host_order(parts: Iterable[Tables]) -> Tables:
    """Join the rows of all shards by host; rows of one host keep their order."""
    parts = list(parts)
    joined = {}
    for table in NODE_TABLES:
        column = [column.name for column in TABLES[table]].index("host_id")
        host = np.concatenate([part[table][:, column] for part in parts])
        place = np.empty(len(host), np.int64)
        place[np.argsort(host, kind="stable")] = np.arange(len(host))
        rows = joined[table] = np.empty((len(host), len(TABLES[table])), np.int64)
        for part in parts:
            rows[place[: len(part[table])]] = part[table]
            place = place[len(part[table]) :]
    return joined


class Shard:
    """Some hosts with their guests; the same code runs in-process and in a Ray actor."""

    def __init__(self, plan: ShardPlan, make_node: MakeNode = Node) -> None:
        self.plan = plan
        self.epoch = 0
        self._sampled = usage_of_samplers()
        scenario = plan.scenario
        specs = scenario.host_specs()
        captured = captured_on(scenario, plan.host_ids)
        self.nodes = [
            make_node(
                specs[host_id],
                scenario.guests,
                host_id,
                scenario.seed,
                scenario.tick_ns,
                scenario.vm_rows_ns,
                vms,
            )
            for host_id, vms in zip(plan.host_ids, captured, strict=True)
        ]
        gc.freeze()  # what is there by now stays: no collection need look at it

    def emigrate(self, epoch: int, t_ns: int, moves: Sequence[Move]) -> list[Emigrant]:
        """Send VMs away at the barrier before an epoch, in the order of their moves.

        Raises
        ------
        ValueError
            The epoch is not the one this shard is at.
        """
        self._expect(epoch)
        leaving: dict[int, Emigrant] = {}
        for host_id, node in zip(self.plan.host_ids, self.nodes, strict=True):
            own = [(move.vm_id, move.reason) for move in moves if move.source == host_id]
            sent = node.emigrate(t_ns, own, self.plan.scenario.migration_terms) if own else []
            leaving |= {vm_id: emigrant for (vm_id, _), emigrant in zip(own, sent, strict=True)}
        return [leaving[move.vm_id] for move in moves]

    def advance(self, step: Step) -> Tables:
        """Advance all hosts by one epoch, behind its barrier, and return their rows.

        Raises
        ------
        ValueError
            The epoch is not the one this shard is at: its state is lost or another's.
        InvariantError
            A host's state is inconsistent; the message names host, epoch and seed.
        """
        self._expect(step.epoch)
        parts = []
        for index, node in enumerate(self.nodes):
            own = [vm for host_id, vm in step.arriving if host_id == self.plan.host_ids[index]]
            try:
                if own:
                    node.immigrate(step.t0_ns, own, self.plan.scenario.migration_terms)
                parts.append(
                    node.advance(_host_commands(step.commands, index), step.t0_ns, step.t1_ns)
                )
                if self.plan.check:
                    node.check()
            except InvariantError as error:
                where = f"host {self.plan.host_ids[index]}, epoch {step.epoch}"
                seed = self.plan.scenario.seed
                raise InvariantError(f"{where}, seed {seed}: {error}") from error
        self.epoch += 1
        rows = {
            table: np.concatenate([getattr(part, table) for part in parts]) for table in NODE_TABLES
        }
        del parts
        give_back()
        return rows

    def _expect(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise ValueError(f"shard is at epoch {self.epoch}, not {epoch}")

    def sampling(self) -> SampleUsage:
        """Return what samples of address translation have cost this process since it began."""
        now, then = usage_of_samplers(), self._sampled
        return SampleUsage(now.samples - then.samples, now.hits - then.hits, now.cpu_s - then.cpu_s)

    def save(self, first: int, last: int) -> list[tuple[int, bytes]]:
        """Return the states of this shard's hosts from the first to before the last."""
        part = slice(first, last)
        return [
            (host_id, pack(node.save()))
            for host_id, node in zip(self.plan.host_ids[part], self.nodes[part], strict=True)
        ]

    def restore(self, epoch: int, first: int, states: list[bytes]) -> None:
        """Take up the states of some of this shard's hosts at the start of an epoch.

        Raises
        ------
        ResultsError
            A state does not fit its host.
        """
        for index, packed in enumerate(states, first):
            try:
                self.nodes[index].restore(unpack(packed))
            except ValueError as error:
                host_id = self.plan.host_ids[index]
                raise ResultsError(f"checkpoint of host {host_id}: {error}") from error
        self.epoch = epoch


def _host_commands(commands: ShardCommands, index: int) -> Commands:
    part = slice(commands.first[index], commands.first[index + 1])
    return Commands(
        commands.t_ns[part],
        commands.kind[part],
        commands.vm_id[part],
        commands.vcpus[part],
        commands.memory_pages[part],
        commands.age_ns[part],
    )


class InlineBackend:
    """All hosts in this process."""

    name = "inline"

    def __init__(self, scenario: Scenario, make_node: MakeNode = Node) -> None:
        self.host_ids = split_hosts(scenario.nr_hosts, 1)
        self.nodes: list[str] = []  # none but this machine
        self.shard = Shard(shard_plans(scenario, 1)[0], make_node)
        self._rows: Tables = {}

    def emigrate(self, epoch: int, t_ns: int, moves: list[list[Move]]) -> list[list[Emigrant]]:
        """Send VMs away at the barrier before an epoch; by shard, in the order of the moves."""
        return [self.shard.emigrate(epoch, t_ns, moves[0])]

    def submit(self, steps: list[Step]) -> None:
        """Advance by one epoch."""
        self._rows = self.shard.advance(steps[0])

    def collect(self) -> list[Tables]:
        """Return the rows of the epoch submitted last, one entry a shard."""
        return [self._rows]

    def save(self) -> Iterator[tuple[int, bytes]]:
        """Return the state of every host, one at a time."""
        for index in self.host_ids[0]:
            yield from self.shard.save(index, index + 1)

    def restore(self, epoch: int, load: Load) -> None:
        """Take up the states of all hosts at the start of an epoch."""
        for index in self.host_ids[0]:
            self.shard.restore(epoch, index, load([index]))

    def begin_journal(self, epoch: int, load: Load) -> None:
        """Note a new checkpoint: nothing is lost here without the driver."""

    def recoveries(self) -> list[dict[str, Any]]:
        """Return what was lost on the way and brought back: nothing."""
        return []

    def remote_usage(self) -> list[tuple[float, int]]:
        """Return CPU seconds and memory of processes elsewhere: there are none."""
        return []

    def sampling(self) -> list[SampleUsage]:
        """Return what samples of address translation have cost."""
        return [self.shard.sampling()]

    def close(self) -> None:
        """End: nothing to do."""
