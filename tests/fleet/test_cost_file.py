"""Files of costs: into a scenario and a host's table, and what is refused."""

import json

import numpy as np
import pytest

from fleet.cost_file import FORMAT, read_costs, write_costs
from fleet.loading import build, load
from fleet.scenario_state import CostsSection
from hostsim.core.errors import ScenarioError
from hostsim.host import OP_KIND, OP_MM, OP_NR, OP_TOUCH, Host
from hostsim.mm.cost import C_CLEAR_PAGE, C_FAULT, DEFAULT_NS, NAMES, NR_COSTS
from hostsim.mm.mm_types import P_COST_NS


def test_section_is_the_table():
    assert tuple(CostsSection.model_fields) == NAMES
    assert CostsSection().spec() == DEFAULT_NS


@pytest.fixture
def costs_path(tmp_path):
    write_costs({"costs": {"fault": 900, "split": 5000}}, tmp_path / "costs.json")
    return tmp_path / "costs.json"


def test_file_is_found_beside_the_scenario_and_kept_in_it(costs_path):
    path = costs_path.parent / "a.toml"
    path.write_text('[[hosts]]\ncosts = "costs.json"\n')
    scenario = load(str(path))
    spec = scenario.groups[0].spec
    expected = {**dict(zip(NAMES, DEFAULT_NS, strict=True)), "fault": 900, "split": 5000}
    assert spec.costs == tuple(expected.values())
    costs_path.unlink()
    assert build(json.loads(json.dumps(scenario.document)), "a", scenario.origin) == scenario


def host_with(**costs):
    hosts = {"memory": "1GiB", "reserved": "512MiB", "slab": {"base": "16MiB"}, "costs": costs}
    hosts |= {"thp": {"enabled": "never"}}
    return Host(build({"hosts": [hosts]}, "x", "x").groups[0].spec, 0, 0)


def cost_of_touching(host, pages):
    mm, _ = host.start(0, 4096, 16, False)
    before = int(host.mem.pool[P_COST_NS])
    ops = np.zeros((1, 4), np.int64)
    ops[0, [OP_MM, OP_KIND, OP_NR]] = mm, OP_TOUCH, pages
    assert host.apply(ops, 1) == 1
    return int(host.mem.pool[P_COST_NS]) - before


def test_costs_are_what_the_host_charges():
    """A guest's 1000 small pages: what a fault or a clear costs more, they cost 1000 times."""
    base = cost_of_touching(host_with(), 1000)
    dearer = DEFAULT_NS[C_FAULT] + 500
    assert cost_of_touching(host_with(fault=dearer), 1000) - base == 1000 * 500
    dearer = DEFAULT_NS[C_CLEAR_PAGE] + 7
    assert cost_of_touching(host_with(clear_page=dearer), 1000) - base == 1000 * 7


def test_costs_outlive_a_reboot():
    host = host_with(fault=1234)
    host.reboot(0)
    assert host.mem.cost[C_FAULT] == 1234
    assert host.mem.cost[:NR_COSTS].tolist()[C_CLEAR_PAGE] == DEFAULT_NS[C_CLEAR_PAGE]


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"falt": 1}, "costs.falt: is no cost\n    hint: did you mean fault?"),
        ({"fault": 0}, "costs.fault: 0 is not 1 to 1,000,000,000 ns"),
        ({"fault": 1.5}, "costs.fault: 1.5 is not"),
        (None, 'holds no table "costs"'),
    ],
)
def test_wrong_costs_are_named(tmp_path, costs, message):
    path = tmp_path / "c.json"
    write_costs({"costs": costs}, path)
    with pytest.raises(ScenarioError) as caught:
        read_costs(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is no file of costs, or is damaged: not JSON"),
        ('{"format": "hugefleet snapshot", "version": 1}', "is no file of costs"),
        (json.dumps({"format": FORMAT, "version": 9}), "has format version 9"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ScenarioError, match=message):
        read_costs(tmp_path / "c.json")


def test_cost_set_in_a_file_is_judged_there():
    with pytest.raises(ScenarioError, match=r"hosts\[0\].costs.fautl: unknown key"):
        build({"hosts": [{"costs": {"fautl": 1}}]}, "x", "x")
