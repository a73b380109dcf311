import numpy as np
import pytest
from tiny import SMALL

from fleet.demand import arrivals_digest, open_demand
from fleet.grid import parse_vary, plan
from fleet.trace import make_trace
from hostsim.core.errors import ScenarioError

THP = {"hosts.thp.enabled": ["always", "never"]}


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1,2", ("a.b", ["1", "2"])),
        (" a = x , y ", ("a", ["x", "y"])),
        ("a={p=1,q=2},{p=3}", ("a", ["{p=1,q=2}", "{p=3}"])),
        ("a=\"x,y\",'z'", ("a", ['"x,y"', "'z'"])),
        ("a=one", ("a", ["one"])),
    ],
)
def test_values_are_split_at_commas_outside_of_brackets_and_quotes(text, expected):
    assert parse_vary(text) == expected


@pytest.mark.parametrize("text", ["a", "=1,2", "a=", "a=1,,2", "a=1,"])
def test_text_that_varies_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"is not PATH=V1,V2|has an empty value"):
        parse_vary(text)


def test_grid_has_every_combination_at_every_seed(toml):
    vary = THP | {"placement.policy": ["best-fit", "worst-fit"]}
    grid = plan(toml, vary, nr_seeds=2, first_seed=5)
    assert grid.arms == [
        "enabled=always,policy=best-fit",
        "enabled=always,policy=worst-fit",
        "enabled=never,policy=best-fit",
        "enabled=never,policy=worst-fit",
    ]
    assert [(run.arm, run.seed) for run in grid.runs] == [
        (arm, seed) for seed in (5, 6) for arm in grid.arms
    ]
    run = grid.runs[6]
    assert run.place == "enabled=never,policy=best-fit/seed-6"
    assert run.scenario.seed == 6
    assert {group.spec.thp_enabled for group in run.scenario.groups} == {"never"}
    assert run.scenario.placement.policy == "best-fit"


def test_seeds_begin_with_that_of_the_scenario(toml):
    assert plan(toml, THP, 2, ["run.seed=7"]).seeds == [7, 8]


def test_arms_of_one_seed_see_the_same_vms(toml):
    grid = plan(toml, THP | {"guests.thp.enabled": ["always", "madvise"]}, nr_seeds=2)
    digests = {
        (run.seed, arrivals_digest(open_demand(run.scenario), run.scenario.duration_ns))
        for run in grid.runs
    }
    assert len(digests) == 2


def test_names_that_no_folder_can_have_are_made_plain(toml):
    grid = plan(toml, {"hosts[0].name": ["a/b", "a b"]}, nr_seeds=1)
    assert grid.arms == ["name=a_b.0", "name=a_b.1"]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"hosts[0].count": ["3", "4"]}, "count=4: is a fleet of 6 hosts, count=3 of 5"),
        ({"vms.scale": ["0.001", "0.002"]}, "has other arrivals than .*\n.*other VMs arrive"),
        ({"run.seed": ["1", "2"]}, "would give the arms other arrivals\n.*--seeds N"),
        ({"run.duration": ["1h", "2h"]}, "has other arrivals than .*\n.*unlike length"),
        ({"hosts.thp.enabled": ["always", "always"]}, "is there twice"),
        ({"hosts.thp.enabled": ["always"]}, "is one arm; there is nothing to compare"),
        ({"hosts.thp.enabeld": ["1", "2"]}, "unknown key\n    hint: did you mean enabled"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(toml, vary, message):
    with pytest.raises(ScenarioError, match=message):
        plan(toml, vary, nr_seeds=2)


def test_all_wrong_values_are_named_at_once_by_their_option(toml):
    vary = {"hosts.thp.enabled": ["alwys", "never"], "placement.policy": ["best-fit", "worst"]}
    with pytest.raises(ScenarioError) as caught:
        plan(toml, vary, 1, ["run.tick=7"])
    places = {problem.place for problem in caught.value.problems}
    assert places == {
        "--vary hosts.thp.enabled=alwys",
        "--vary placement.policy=worst",
        "--set run.tick=7",
    }


def trace(*, end=10, pages=2**18, start=1, vcpus=2):
    columns = ([start, 20], [end, 30], [vcpus, 1], [pages, 2**18])
    one, two, three, four = (np.array(column, np.int64) for column in columns)
    zero = np.zeros(2, np.int16)
    return make_trace(one, two, three.astype(np.int32), four, zero, one, ("a",), 100)


def test_digest_is_of_number_start_end_and_size_of_those_that_arrive():
    base = arrivals_digest(trace(), 15)
    assert arrivals_digest(trace(), 15) == base
    assert arrivals_digest(trace(), 20) == base  # the second VM comes at 20
    others = [trace(end=11), trace(pages=2**19), trace(start=2), trace(vcpus=3)]
    found = {arrivals_digest(other, 15) for other in others} | {arrivals_digest(trace(), 21)}
    assert len(found | {base}) == 6
