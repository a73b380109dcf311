import pytest

from fleet.bench_profile import MECHANISMS, count, mechanism

SCRIPT = """\
    7f6e0a5c92e0 hostsim.mm.fault._touch_table (/tmp/perf-12.map)
    7f6e0a5c92e1 hostsim.mm.fault.touch_range (/tmp/perf-12.map)
    7f6e0a5c92e2 hostsim.mm.buddy.rmqueue_run (/tmp/perf-12.map)
    7f6e0a5c92e3 hostsim.mmu.walker._walk (/tmp/perf-12.map)
        55d0c0de _PyEval_EvalFrameDefault (/usr/lib/libpython3.11.so.1.0)
ffffffff81234567 clear_page_erms ([kernel.kallsyms])
"""


def test_samples_are_counted_by_mechanism():
    assert count(SCRIPT.splitlines()) == {
        "page faults": 2,
        "allocator": 1,
        "samples of translation, kernels": 1,
        "Python and NumPy": 1,
        "Linux: first touch of memory, files": 1,
    }


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("hostsim.ept._map_small", "EPT"),
        ("hostsim.mm.mmu_notifier._set_leaves", "EPT"),
        ("hostsim.mm.mm_slot.khugepaged_enter", "khugepaged"),
        ("hostsim.mm.mmap.mm_alloc", "mappings and page tables"),
        ("hostsim.mm.compaction.compact_zone", "compaction"),
        ("hostsim.mm.swapout.add_to_swap", "reclaim and swap"),
        ("hostsim.mm.ksm_merge.try", "KSM"),
        ("fleet.mmu_state.look_at_process", "samples of translation, kernels"),
        ("guestsim.behaviour.decide", "ticks, turns, behaviour of guests"),
        ("hostsim.mm.daemons.run_daemons", "ticks, turns, behaviour of guests"),
    ],
)
def test_kernels_belong_to_mechanisms(symbol, name):
    assert mechanism(symbol, "perf-1.map") == name
    assert name in dict(MECHANISMS)
