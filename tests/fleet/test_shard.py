import numpy as np
import pytest
from fakenode import FakeNode, row, stack

from fleet.node import START
from fleet.plan import EpochPlan
from fleet.shard import (
    Move,
    Shard,
    ShardCommands,
    Step,
    commands_for,
    in_host_order,
    shard_plans,
    split_hosts,
)
from fleet.trace import make_trace
from hostsim.core.errors import InvariantError
from hostsim.core.stats import NODE_TABLES
from hostsim.core.units import NS_PER_HOUR


@pytest.mark.parametrize(("nr_hosts", "nr_shards"), [(5, 1), (5, 2), (5, 5)])
def test_every_host_is_in_one_shard(nr_hosts, nr_shards):
    split = split_hosts(nr_hosts, nr_shards)
    assert sorted(host for hosts in split for host in hosts) == list(range(nr_hosts))


def plan_and_trace():
    trace = make_trace(
        np.array([-100, 5, 7, 9]),
        np.array([8, 50, 50, 50]),
        np.array([1, 2, 3, 4]),
        np.array([10, 20, 30, 40]),
        np.zeros(4),
        np.arange(4),
        ("f",),
        100,
    )
    nothing = np.zeros(0, np.int64)
    plan = EpochPlan(
        np.array([0, 8, 5, 9, 7]),
        np.array([0, 0, 1, 1, 3]),
        np.array([1, 0, 1, 1, 1], np.int8),
        np.array([0, 0, 1, 3, 2]),
        nothing,
        nothing,
        nothing.astype(np.int8),
    )
    return plan, trace


def test_commands_are_cut_by_host():
    plan, trace = plan_and_trace()
    commands = commands_for(plan, trace, (1, 2, 3))
    assert commands.first.tolist() == [0, 2, 2, 3]
    assert commands.vm_id.tolist() == [1, 3, 2]
    assert commands.memory_pages.tolist() == [20, 40, 30]


def test_standing_vm_starts_with_its_age_and_others_with_none():
    plan, trace = plan_and_trace()
    assert commands_for(plan, trace, (0, 1)).age_ns.tolist() == [100, 0, 0, 0]


def test_rows_are_joined_in_host_order_keeping_each_hosts_own():
    def part(*hosts):
        return {
            table: stack(table, [row(table, host_id=h, t_ns=t) for h in hosts for t in (2, 1)])
            for table in NODE_TABLES
        }

    joined = in_host_order([part(0, 2), part(1)])
    assert joined["hosts"][:, :2].tolist() == [[2, 0], [1, 0], [2, 1], [1, 1], [2, 2], [1, 2]]


def test_shard_refuses_an_epoch_that_is_not_its_next(small):
    shard = Shard(shard_plans(small(), 1)[0], FakeNode)
    plan, trace = plan_and_trace()
    with pytest.raises(ValueError, match="shard is at epoch 0, not 1"):
        shard.advance(Step(1, 0, 1, [], commands_for(plan, trace, range(5))))


def test_validators_run_each_epoch_on_demand_and_errors_name_host_epoch_and_seed(
    small, monkeypatch
):
    monkeypatch.setenv("FLEET_CHECK", "1")
    shard = Shard(shard_plans(small(), 1)[0], FakeNode)
    plan, trace = plan_and_trace()
    commands = commands_for(plan, trace, range(5))
    shard.advance(Step(0, 0, 600 * 10**9, [], commands))
    assert [node.checks for node in shard.nodes] == [1] * 5
    shard.nodes[2].starts = -10
    with pytest.raises(InvariantError, match="host 2, epoch 1, seed 1: starts is negative"):
        shard.advance(Step(1, 600 * 10**9, 1200 * 10**9, [], commands))


def commands_of(*starts):
    """Return the commands of one host: VMs that start at times, 1 GiB each."""
    nr = len(starts)
    return ShardCommands(
        np.array([0, nr]),
        np.array([t_ns for t_ns, _ in starts], np.int64),
        np.full(nr, START, np.int8),
        np.array([vm_id for _, vm_id in starts], np.int64),
        np.full(nr, 1, np.int32),
        np.full(nr, 1 << 18, np.int64),
        np.zeros(nr, np.int64),
    )


def test_shards_brought_back_send_and_take_a_vm_as_they_did_the_first_time(small):
    """As `actors.ShardActor.advance_again`: what leaves a second time is thrown away."""
    hour = NS_PER_HOUR
    source, target = (
        Shard(plan._replace(host_ids=plan.host_ids[:1])) for plan in shard_plans(small(), 2)[:2]
    )
    moves = [Move(7, 0, 1, 0)]
    source.advance(Step(0, 0, hour, [], commands_of((0, 7), (0, 8))))
    target.advance(Step(0, 0, hour, [], commands_of((0, 9))))
    states = [shard.save(0, 1)[0][1] for shard in (source, target)]
    (emigrant,) = source.emigrate(1, hour, moves)
    steps = [
        Step(1, hour, 2 * hour, moves, commands_of((hour, 10))),
        Step(1, hour, 2 * hour, [], commands_of(), ((1, emigrant),)),
    ]
    rows = [shard.advance(step) for shard, step in zip((source, target), steps, strict=True)]
    assert len(rows[1]["migrations"]) == 1
    for shard, step, state, first in zip((source, target), steps, states, rows, strict=True):
        again = Shard(shard.plan)
        again.restore(1, 0, [state])
        for left in again.emigrate(1, hour, step.moves):
            assert left.course == emigrant.course
            np.testing.assert_array_equal(left.runs, emigrant.runs)
        second = again.advance(step)
        for table in NODE_TABLES:
            np.testing.assert_array_equal(second[table], first[table], err_msg=table)
        assert again.save(0, 1) == shard.save(0, 1)
