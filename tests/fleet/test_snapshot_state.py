"""From a snapshot to a scenario's values, and what follows from them."""

import json
import re

import pytest
from test_snapshot_capture import FILES, root  # noqa: F401  (a fixture)

from fleet.loading import build, load
from fleet.scenario import to_toml
from fleet.snapshot_capture import capture
from fleet.snapshot_file import write_snapshot
from fleet.snapshot_state import divided_zones, known_zones, section_of
from hostsim.core.errors import ScenarioError

DMA, DMA32 = (0, "DMA"), (0, "DMA32")
# A DMA32 zone of 1000 pageblocks beside the DMA zone of the made host.
NEXT = {
    "proc/buddyinfo": "Node 0, zone    DMA32   5   0   0   0   0   0   0   0   0   1   150 \n",
    "proc/zoneinfo": "Node 0, zone    DMA32\n  pages free 154117\n  min 90\n  low 100\n  high 110\n"
    "  spanned  512000\n  present  512000\n  managed  500000\n",
}
TYPES = """Node    0, zone    DMA32, type    Unmovable    2   0   0   0   0   0   0   0   0   0   0
Node    0, zone    DMA32, type      Movable    3   0   0   0   0   0   0   0   0   1   150
Node    0, zone    DMA32, type          CMA    0   0   0   0   0   0   0   0   0   0   0
"""
BLOCKS = "Node 0, zone    DMA32           40          950  10\n"


@pytest.fixture
def host(root):  # noqa: F811
    """Add a second zone to the made host; return where it lies."""
    for name, text in NEXT.items():
        (root / name).write_text(FILES[name] + text)
    free = FILES["proc/pagetypeinfo"].partition("\n\n")[0]
    blocks = "Number of blocks type Unmovable Movable CMA\nNode 0, zone DMA 1 7 0\n"
    (root / "proc/pagetypeinfo").write_text(f"{free}\n{TYPES}\n{blocks}{BLOCKS}")
    return root


def scenario_of(host, *lines):
    write_snapshot(capture(host), host / "host.json")
    path = host / "a.toml"
    path.write_text("\n".join(["[[hosts]]", 'snapshot = "host.json"', *lines]))
    return load(str(path))


def test_types_that_the_model_lacks_count_as_movable(host):
    zone = known_zones(capture(host))[DMA32]
    assert zone.pageblocks.tolist() == [40, 960, 0, 0]
    assert zone.free[:, 0].tolist() == [2, 3, 0, 0]


def test_count_that_is_cut_off_is_what_is_missing_of_the_total(host):
    path = host / "proc/pagetypeinfo"
    path.write_text(path.read_text().replace("Movable    3 ", "Movable    >1 "))
    assert known_zones(capture(host))[DMA32].free[:, 0].tolist() == [2, 3, 0, 0]


def test_without_pagetypeinfo_kernel_memory_has_pageblocks_of_its_own(host):
    """1023 KiB of SUnreclaim are a pageblock, 3 MiB of SReclaimable two."""
    (host / "proc/pagetypeinfo").unlink()
    with (host / "proc/meminfo").open("a") as file:
        file.write("SUnreclaim: 1023 kB\nSReclaimable: 3072 kB\n")
    zones = divided_zones(capture(host))
    assert zones[DMA32].pageblocks.tolist() == [1, 997, 2, 0]
    assert zones[DMA].pageblocks.tolist() == [0, 8, 0, 0]
    assert zones[DMA32].free[1].tolist() == [5, 0, 0, 0, 0, 0, 0, 0, 0, 1, 150]
    assert not scenario_of(host).document["hosts"][0]["snapshot"]["types_known"]


def test_what_a_file_does_not_set_is_the_hosts(host):
    spec = scenario_of(host).groups[0].spec
    assert (spec.vcpus, spec.nr_nodes, spec.kernel) == (2, 1, "6.12")
    assert spec.memory_pages == 1008 * 512
    assert spec.thp_enabled == "madvise"
    assert ("ksm/run", "1") in spec.settings
    assert spec.state.zones[1].marks == (90, 100, 110)
    used = 1008 * 512 - 3585 - 154117 - 7 - 1024  # neither per-CPU pages nor the VM's 4 MiB
    assert used + 17 + 110 + 1008 * 16 <= spec.reserved_pages < used + 127 + 1008 * 16 + 512


def test_what_a_file_sets_is_its_own(host):
    scenario = scenario_of(host, 'kernel = "6.1"', "[hosts.thp]", 'enabled = "never"')
    assert scenario.groups[0].spec.kernel == "6.1"
    assert scenario.groups[0].spec.thp_enabled == "never"


@pytest.mark.parametrize(
    ("release", "profile"), [("6.9.1", "6.1"), ("6.10-x", "6.12"), ("5.14.0-1.el9", "6.1")]
)
def test_kernel_profile_follows_the_release(host, release, profile):
    """Free pages stand on their label's lists since 6.10."""
    (host / "proc/sys/kernel/osrelease").write_text(release)
    assert scenario_of(host).groups[0].spec.kernel == profile


def test_resolved_scenario_needs_no_file(host):
    scenario = scenario_of(host)
    document = json.loads(json.dumps(scenario.document))
    (host / "host.json").unlink()
    assert build(document, "a", scenario.origin) == scenario
    (host / "b.toml").write_text(to_toml(scenario.document))
    assert load(str(host / "b.toml")).document == scenario.document


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('memory = "4GiB"', "memory 4GiB is not that of the snapshot host.json, 2016MiB; leave"),
        ("vcpus = 4", "vcpus 4 is not that of the snapshot host.json, 2;"),
        ('reserved = "1GiB"', "reserved 1GiB is less than what is in use in the snapshot"),
    ],
)
def test_what_contradicts_the_snapshot_is_a_problem(host, line, message):
    with pytest.raises(ScenarioError, match=re.escape(message)):
        scenario_of(host, line)


def test_missing_file_is_named_with_its_place(host):
    (host / "a.toml").write_text('[[hosts]]\nsnapshot = "none.json"\n')
    with pytest.raises(ScenarioError) as caught:
        load(str(host / "a.toml"))
    (problem,) = caught.value.problems
    assert problem.place == f"{host}/a.toml: hosts[0].snapshot"
    assert "none.json cannot be read: No such file" in problem.message


def test_file_can_be_set_on_the_command_line(host):
    write_snapshot(capture(host), host / "host.json")
    (host / "a.toml").write_text("[[hosts]]\n")
    scenario = load(str(host / "a.toml"), [f"hosts.snapshot={host}/host.json"])
    assert scenario.groups[0].spec.state is not None


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("buddyinfo", "zone    DMA32", "zone    Movable", "zone Movable: hosts have DMA"),
        ("buddyinfo", "150 ", "150 0 ", "has 12 orders, not 11"),
    ],
)
def test_machines_that_the_model_lacks_are_refused(host, name, old, new, message):
    path = host / "proc" / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ScenarioError, match=message):
        section_of(capture(host), "host.json")
