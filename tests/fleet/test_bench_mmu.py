"""The C++ twin counts what the kernels count, for any mix of page sizes."""

import shutil

import numpy as np
import pytest

from fleet import bench_mmu
from fleet.mmu import Setup, build_space, memory_for
from fleet.profiles import load_workload

FOOTPRINT = 256 << 20


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_twin_counts_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_mmu, "ACCESSES", 1 << 17)
    monkeypatch.setattr(bench_mmu, "RUNS", 1)
    twin = bench_mmu._compile_twin(tmp_path)
    workload = load_workload("gups", FOOTPRINT)._replace(huge_ratio=0.5)
    for guest in ("never", "always"):
        for host in ("never", "always"):
            space = build_space(workload, Setup(True, guest, host, 4, memory_for(workload)))
            for name in ("uniform", "zipf", "sequential"):
                pages = bench_mmu.draw(name, workload.pages)
                counted, rates = bench_mmu._measure_kernel(space, pages)
                same, _ = bench_mmu._measure_twin(twin, space, pages)
                assert counted == same
                assert len(rates) == 1
                assert counted[0] == counted[1] + counted[2] + counted[3] == 1 << 17


def test_streams_have_their_shapes(monkeypatch):
    monkeypatch.setattr(bench_mmu, "ACCESSES", 1 << 16)
    uniform, zipf, lines = (bench_mmu.draw(n, 1 << 12) for n in ("uniform", "zipf", "sequential"))
    assert np.array_equal(lines, np.repeat(np.arange(1 << 10), 64))
    counts = np.sort(np.bincount(zipf, minlength=1 << 12))[::-1]
    weights = np.arange(1, (1 << 12) + 1) ** -0.99
    assert counts[0] / (1 << 16) == pytest.approx(weights[0] / weights.sum(), rel=0.05)
    assert np.bincount(uniform).max() < 60  # 16 on average


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        ({}, [True, True, True]),
        ({"rate": 24e6}, [False, True, True]),
        ({"ratio": 0.79}, [True, False, True]),
        ({"twin_counted": {"walks": 2}}, [True, True, False]),
    ],
)
def test_a_case_is_judged(change, verdicts):
    row = {
        "stream": "uniform",
        "guest_thp": "never",
        "host_thp": "never",
        "least_rate": 25e6,
        "least_ratio": 0.8,
        "rate": 25e6,
        "ratio": 0.8,
        "counted": {"walks": 1},
        "twin_counted": {"walks": 1},
    }
    assert [claim.verdict for claim in bench_mmu.judge(row | change)] == verdicts


def test_without_a_compiler_there_is_no_twin(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert bench_mmu._compile_twin(tmp_path) is None
