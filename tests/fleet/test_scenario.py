from typing import get_args

import pytest

from fleet.behaviours import behaviour, behaviour_names
from fleet.policies import POLICIES
from fleet.profiles import load_workload
from fleet.scenario_fleet import PlacementSection
from fleet.sections import duration_text, pages_text
from hostsim.core.errors import ScenarioError
from hostsim.core.units import NS_PER_HOUR, parse_duration_ns, parse_pages


@pytest.mark.parametrize("text", ["1792MiB", "64GiB", "2TiB", "4KiB", "0KiB"])
def test_pages_are_printed_exactly(text):
    assert pages_text(parse_pages(text)) == text


@pytest.mark.parametrize("text", ["90min", "1h", "36h", "2d", "250ms", "7ns"])
def test_durations_are_printed_exactly(text):
    assert duration_text(parse_duration_ns(text)) == text


def test_groups_have_consecutive_host_numbers(small):
    scenario = small()
    assert [(g.name, g.first_host_id, g.nr_hosts) for g in scenario.groups] == [
        ("a", 0, 3),
        ("b", 3, 2),
    ]
    assert [spec.vcpus for spec in scenario.host_specs()] == [16, 16, 16, 8, 8]


def test_last_epoch_may_be_shorter(small):
    scenario = small("run.duration=70min", "run.vm_rows=10min")
    assert scenario.nr_epochs == 3
    assert scenario.epoch_bounds_ns(2) == (NS_PER_HOUR, NS_PER_HOUR * 7 // 6)


def test_document_holds_every_default(small):
    document = small().document
    assert document["hosts"][0]["thp"] == {
        "enabled": "always",
        "defrag": "madvise",
        "use_zero_page": True,
        "policy": "linux",
    }
    assert document["hosts"][1]["thp"]["enabled"] == "madvise"
    assert "path" not in document["vms"]


def test_policies_of_a_scenario_are_those_of_the_pool():
    annotation = PlacementSection.model_fields["policy"].annotation
    assert set(get_args(annotation)) == set(POLICIES)


def test_a_host_has_a_known_cpu(small):
    assert {spec.cpu for spec in small("hosts.cpu=zen4").host_specs()} == {"zen4"}
    with pytest.raises(ScenarioError, match="'icelake' is no CPU; nearest: ice-lake-sp"):
        small("hosts.cpu=icelake")


def test_samples_can_be_turned_off_and_sized(small):
    assert small("mmu.accesses=16000").host_specs()[0].mmu_accesses == 16_000
    assert small("mmu.enabled=false").host_specs()[0].mmu_accesses == 0
    with pytest.raises(ScenarioError, match="greater than or equal to 8000"):
        small("mmu.accesses=100")


@pytest.mark.parametrize("name", behaviour_names())
def test_a_class_of_guests_runs_a_known_workload(name):
    assert load_workload(behaviour(name, 1.0).workload).pages > 0


def test_guests_have_khugepageds_files(small):
    settings = dict(small("guests.khugepaged.max_ptes_none=0").guests.settings)
    assert settings["khugepaged/max_ptes_none"] == "0"


def test_a_host_has_one_node_or_equal_ones(small):
    assert {spec.nr_nodes for spec in small().host_specs()} == {1}
    assert {spec.nr_nodes for spec in small("hosts.numa_nodes=4").host_specs()} == {4}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (("hosts.numa_nodes=3",), "numa_nodes.*1, 2 or 4"),
        (("hosts.numa_nodes=4", "hosts.vcpus=10"), "vcpus 10 is not a multiple of numa_nodes 4"),
        (
            ("hosts.numa_nodes=2", "hosts.memory=65538MiB"),
            "memory 65538MiB is not a multiple of 8MiB, 4MiB a node",
        ),
        (
            ("hosts.numa_nodes=4", "hosts.memory=12GiB"),
            "memory 12GiB is less than 16GiB, 4GiB a node",
        ),
    ],
)
def test_nodes_of_a_host_are_equal_and_large_enough(small, fields, match):
    with pytest.raises(ScenarioError, match=match):
        small(*fields)
