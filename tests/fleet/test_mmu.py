"""A program on one CPU, from faulting its memory in to the cycles of its walks."""

import pytest

from fleet.cli_mmu import as_text
from fleet.hardware import load_cpu
from fleet.mmu import Setup, build_space, describe, memory_for, run
from fleet.profiles import load_workload
from hostsim.core.errors import ScenarioError

MIB = 1 << 20


def measured(name="gups", nested=True, guest="never", host="never", levels=4, size=64, cpu=""):
    workload = load_workload(name, size * MIB)
    chosen = load_cpu(cpu or "cascade-lake")
    setup = Setup(nested, guest, host, levels, memory_for(workload))
    return describe(workload, chosen, setup, *run(workload, chosen, setup, 100_000))


def test_counts_add_up():
    found = measured(size=256)
    assert found["accesses"] == 100_000
    hits = found["l1_hits_per_access"] + found["l2_hits_per_access"]
    assert hits + found["walks_per_access"] == pytest.approx(1.0)
    guest, ept = found["guest_references_per_walk"], found["ept_references_per_walk"]
    assert found["references_per_walk"] == pytest.approx(guest + ept)
    assert 3.0 < guest + ept < 24.0
    assert sum(r["per_walk"] for r in found["reads"]) == pytest.approx(guest + ept)
    for read in found["reads"]:
        assert sum(read[place] for place in ("l1", "l2", "llc", "dram")) == pytest.approx(1.0)
    assert found["walk_share"] * found["run_cycles_per_operation"] == pytest.approx(
        found["walk_cycles_per_operation"]
    )


def test_more_huge_pages_and_fewer_dimensions_mean_fewer_references_and_cycles():
    native = {thp: measured(nested=False, guest=thp) for thp in ("always", "never")}
    both = {
        (guest, host): measured(guest=guest, host=host)
        for guest in ("always", "never")
        for host in ("always", "never")
    }
    for key in ("walks_per_access", "walk_cycles_per_operation", "run_cycles_per_operation"):
        assert both["always", "always"][key] <= both["always", "never"][key]
        assert both["always", "always"][key] <= both["never", "always"][key]
        assert both["always", "never"][key] <= both["never", "never"][key]
        assert both["never", "always"][key] <= both["never", "never"][key]
        for thp in ("always", "never"):
            assert native[thp][key] <= both[thp, thp][key]
    for (guest, host), found in both.items():
        assert found["guest_huge_ratio"] == (guest == "always")
        assert found["effective_huge_ratio"] == (guest == host == "always")


def test_madvise_reaches_only_programs_that_ask():
    assert measured(guest="madvise", host="always")["guest_huge_ratio"] == 0.0
    workload = load_workload("gups", 8 * MIB)._replace(madvised=True)
    space = build_space(workload, Setup(False, "madvise", "never", 4, memory_for(workload)))
    assert space.guest_huge.all()


def test_part_of_a_footprint_can_stay_small():
    found = measured("memcached", guest="always", host="always")
    assert found["effective_huge_ratio"] == 20 / 32  # 65 % in whole windows


@pytest.mark.parametrize("name", ["zen4", "ice-lake-sp"])
def test_five_levels_change_no_miss_and_save_no_reference(name):
    four, five = measured(cpu=name), measured(cpu=name, levels=5)
    assert five["references_per_walk"] >= four["references_per_walk"]
    if name == "ice-lake-sp":  # on Zen page-directory entries share the TLB with pages
        assert five["walks_per_access"] == four["walks_per_access"]


@pytest.mark.parametrize("gib", [1, 600])
@pytest.mark.parametrize("levels", [4, 5])
def test_every_table_of_a_guest_and_its_ept_lies_in_a_frame_of_its_own(gib, levels):
    """Also beyond 512 GiB, where the level above the directories has a second table."""
    workload = load_workload("gups", gib << 30)
    space = build_space(workload, Setup(True, "always", "always", levels, memory_for(workload)))
    for tables in (space.guest, space.ept):
        used = int(tables.root[2])
        assert len(set(tables.frame[:used].tolist())) == used
        upper = sum(-(-workload.pages // (1 << 9 * level)) for level in range(2, levels + 1))
        assert upper <= used <= upper + 4  # the EPT maps the guest's tables, too


def test_the_same_seed_gives_the_same_figures():
    assert measured("jvm") == measured("jvm")


def test_a_footprint_that_memory_cannot_hold_is_refused():
    workload = load_workload("gups", 64 * MIB)
    setup = Setup(False, "always", "never", 4, workload.pages)
    with pytest.raises(ScenarioError, match="does not fit in a guest of 64 MiB"):
        build_space(workload, setup)


def test_text_says_what_a_reader_needs():
    found = measured("idle", size=16) | {"slowdown_against_native": 1.25}
    text = as_text(found)
    for part in (
        "idle on cascade-lake, virt",
        "references a walk",
        "walk share",
        "1.250  run time",
    ):
        assert part in text
