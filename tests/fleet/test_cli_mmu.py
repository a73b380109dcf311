"""The commands about address translation, as a user types them."""

import json
import re
import subprocess
import sys

import pytest

from fleet import cli_mmu
from fleet.hardware import builtin_names, load_cpu
from hostsim.core.errors import ScenarioError
from hostsim.mmu.cpus import reach_pages


def fleet(*args):
    return subprocess.run(
        [sys.executable, "-m", "fleet", *args],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_walk_prints_every_cell_and_the_total():
    out = fleet("walk", "--guest", "4K", "--host", "2M").stdout.splitlines()
    assert out[1].split() == [
        "to",
        "read",
        "EPT",
        "4",
        "EPT",
        "3",
        "EPT",
        "2",
        "EPT",
        "1",
        "itself",
    ]
    assert [line.split() for line in out[2:7]] == [
        ["PML4E", "1", "1", "1", ".", "1"],
        ["PDPTE", "1", "1", "1", ".", "1"],
        ["PDE", "1", "1", "1", ".", "1"],
        ["PTE", "1", "1", "1", ".", "1"],
        ["page", "1", "1", "1", ".", "."],
    ]
    assert out[7].strip() == "4 guest + 15 EPT = 19 references"


def test_walk_in_json_with_other_depths_and_found_levels():
    found = json.loads(
        fleet("walk", "--host", "4K", "--guest-levels", "5", "--host-found", "2", "--json").stdout
    )
    assert (found["guest_levels"], found["host_levels"]) == (5, 4)
    assert found["references"] == 5 + 6 * 2
    assert found["steps"][0]["what"] == "PML5E"


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (cli_mmu.walk, {"guest": "3M"}, "'3M' is none of 4K, 2M, 1G"),
        (cli_mmu.walk, {"levels": 3}, "3 is neither 4 nor 5"),
        (cli_mmu.walk, {"guest": "2M", "guest_found": 3}, "has no 3 levels to find"),
        (cli_mmu.walk, {"guest": "1G", "cpu": "nehalem"}, "nehalem has no 1G pages: 4K, 2M"),
        (cli_mmu.walk, {"levels": 5, "cpu": "zen2"}, "zen2 has no 5-level paging"),
        (cli_mmu.walk, {"cpu": "no-such.toml"}, "no-such.toml: cannot be read"),
        (cli_mmu.cpus, {"name": "cascade-lak"}, "cascade-lake"),
        (cli_mmu.mmu, {"workload": "gupss"}, "nearest: gups"),
        (cli_mmu.mmu, {"workload": "gups", "cpu": "zen7"}, "nearest: zen"),
        (
            cli_mmu.mmu,
            {"workload": "gups", "memory": "4GiB"},
            "192 GiB does not fit in a guest of 4",
        ),
        (cli_mmu.mmu, {"workload": "gups", "mode": "xen"}, "neither native nor virt"),
        (
            cli_mmu.mmu,
            {"workload": "gups", "mode": "native", "host_thp": "on"},
            "no host below a native run",
        ),
        (cli_mmu.mmu, {"workload": "gups", "footprint": "3"}, "is not a memory size"),
        (cli_mmu.mmu, {"workload": "gups", "footprint": "0B"}, "less than a page"),
        (cli_mmu.mmu, {"workload": "gups", "levels": 5}, "cascade-lake has no 5-level paging"),
        (
            cli_mmu.mmu,
            {"workload": "gups", "guest_thp": "yes"},
            "'yes' is none of on, off, madvise",
        ),
    ],
)
def test_bad_input_is_named(command, options, message):
    with pytest.raises(ScenarioError, match=re.escape(message)):
        command(**options)


def test_bad_input_exits_2_without_a_traceback():
    done = fleet("mmu", "gupss")
    assert done.returncode == 2
    assert done.stderr.startswith("error: gupss: is no workload\n    hint: nearest: gups")


def test_cpus_lists_all_with_their_reach():
    out = fleet("cpus").stdout
    for name in builtin_names():
        assert f"\n{name} " in f"\n{out}"
    assert "reach 4K 6 MiB, 2M 3 GiB, 1G 16 GiB" in out


@pytest.mark.parametrize(
    ("name", "reach_mib"),
    [
        ("nehalem", {"4K": 2, "2M": 64}),
        ("cascade-lake", {"4K": 6, "2M": 3 << 10}),
        ("ice-lake-sp", {"4K": 8, "2M": 2 << 10}),
        ("zen4", {"4K": 12, "2M": 6 << 10}),
        ("zen5", {"4K": 16, "2M": 8 << 10}),
    ],
)
def test_reach_of_the_second_level(name, reach_mib):
    cpu = load_cpu(name)
    assert {size: reach_pages(cpu, size) >> 8 for size in reach_mib} == reach_mib


def test_every_row_of_a_cpu_has_a_source():
    for name in builtin_names():
        cpu = load_cpu(name)
        assert all(tlb.source for tlb in (*cpu.tlbs, *cpu.instruction_tlbs))


def test_a_cpu_of_ones_own_and_its_mistakes(tmp_path):
    from importlib.resources import files

    text = files("scenarios").joinpath("cpus", "zen2.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    assert load_cpu(str(mine)).name == "mine"
    mine.write_text(text.replace("ways = 64", "ways = 48", 1).replace("count = 2", "count = 2.5"))
    with pytest.raises(ScenarioError, match=r"walkers\.count"):
        load_cpu(str(mine))
    mine.write_text(text.replace("ways = 64", "ways = 48", 1))
    with pytest.raises(ScenarioError, match=r"tlb\[0\]: 64 entries are not a multiple of 48 ways"):
        load_cpu(str(mine))
