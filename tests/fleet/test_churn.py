import gzip
import json
import os
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from fleet.azure_v1 import azure_v1
from fleet.churn import LARGE_BATCH_VMS, generate_azure_v1
from fleet.trace import write_trace
from fleet.trace_stats import trace_stats
from fleet.trace_targets import compare
from hostsim.core.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_S


@pytest.fixture(scope="module")
def month():
    return generate_azure_v1(seed=1, duration_ns=30 * NS_PER_DAY)


@pytest.fixture(scope="module")
def verdicts(month):
    return {verdict.target.key: verdict for verdict in compare([trace_stats(month)])}


def test_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_trace(generate_azure_v1(5, NS_PER_DAY, 0.05), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_seed_gives_another_trace():
    one, other = (generate_azure_v1(seed, NS_PER_DAY, 0.05) for seed in (1, 2))
    assert one.nr_vms != other.nr_vms


@pytest.mark.parametrize("duration_ns", [NS_PER_DAY, 7 * NS_PER_HOUR])
def test_a_short_trace_is_the_beginning_of_a_long_one(duration_ns):
    short = generate_azure_v1(3, duration_ns, 0.05)
    long = generate_azure_v1(3, 3 * NS_PER_DAY, 0.05)
    n = short.nr_vms
    assert (long.start_ns[n:] >= duration_ns).all()
    for column in range(7):
        np.testing.assert_array_equal(short[column], long[column][:n])


def test_every_vm_starts_in_the_span_and_lives_five_minutes_at_least():
    trace = generate_azure_v1(1, NS_PER_DAY, 0.2)
    assert trace.start_ns.max() < NS_PER_DAY
    new = trace.start_ns >= 0
    assert (trace.end_ns - trace.start_ns)[new].min() == 300 * NS_PER_S
    assert (np.diff(trace.start_ns) >= 0).all()


def test_standing_vms_started_before_and_still_run():
    trace = generate_azure_v1(1, NS_PER_HOUR, 0.1)
    standing = trace.start_ns < 0
    assert standing.sum() == round(144_977 * 0.1)
    assert (trace.end_ns[standing] > 0).all()
    # met at an instant, a lifetime is length-biased: as much behind as ahead
    ahead = trace.end_ns[standing].mean()
    assert -trace.start_ns[standing].mean() == pytest.approx(ahead, rel=0.03)


def test_without_standing_population_the_arrivals_are_the_same():
    alone = generate_azure_v1(1, NS_PER_DAY, 0.05, standing=False)
    both = generate_azure_v1(1, NS_PER_DAY, 0.05)
    new = both.start_ns >= 0
    assert (alone.start_ns >= 0).all()
    np.testing.assert_array_equal(alone.start_ns, both.start_ns[new])
    np.testing.assert_array_equal(alone.end_ns, both.end_ns[new])


def test_scale_thins_batches_and_leaves_their_sizes():
    full, tenth = (generate_azure_v1(1, 10 * NS_PER_DAY, scale) for scale in (1.0, 0.1))
    stats, thin = trace_stats(full), trace_stats(tenth)
    assert thin["batches"] == pytest.approx(stats["batches"] / 10, rel=0.03)
    assert thin["batch_size_mean"] == pytest.approx(stats["batch_size_mean"], rel=0.03)
    assert thin["vms_var_over_mean"] == pytest.approx(stats["vms_var_over_mean"], rel=0.15)


@pytest.mark.parametrize(("duration_ns", "scale"), [(0, 1.0), (-1, 1.0), (NS_PER_DAY, 0.0)])
def test_duration_and_scale_must_be_positive(duration_ns, scale):
    with pytest.raises(ValueError, match="must be positive"):
        generate_azure_v1(1, duration_ns, scale)


def test_tiny_scale_without_any_batch_still_gives_a_trace():
    assert generate_azure_v1(1, NS_PER_DAY, 1e-9).nr_vms == 0


def test_tables_close_the_balance_of_vm_hours():
    model = azure_v1()
    mean_s = model.share_ratio @ model.mean_lifetime_s
    mean_size = model.size_vms @ np.diff(model.size_cdf, prepend=0)
    running = model.batches_per_hour / 3600 * mean_size * mean_s
    assert running == pytest.approx(model.concurrent_vms, rel=1e-6)
    vcpus = model.vcpus @ (model.share_ratio * model.mean_lifetime_s) / mean_s
    assert vcpus == pytest.approx(237_815_105 / 104_371_713, rel=1e-4)  # AzurePublicDataset V1
    # on average about 68 days close the balance beyond 144 h
    reach = model.share_ratio * model.lifetime_pmf[:, -1]
    assert reach @ model.tail_s / reach.sum() / 86400 == pytest.approx(68, rel=0.05)


def test_memory_sizes_are_exact_pages():
    model = azure_v1()
    pages = dict(zip(model.names, model.memory_pages.tolist(), strict=True))
    assert pages["1c-0.75GiB"] == 196_608
    assert pages["1c-1.75GiB"] == 458_752
    assert pages["16c-112GiB"] == 112 * 262_144


def test_lifetime_tables_are_distributions():
    pmf = azure_v1().lifetime_pmf
    assert (pmf >= 0).all()
    np.testing.assert_allclose(pmf.sum(axis=1), 1, rtol=1e-9)


def test_batches_of_a_class_have_shares_that_sum_to_one():
    for size_class in azure_v1().classes:
        assert size_class.single_cdf[-1] == pytest.approx(1, abs=1e-6)
        assert size_class.pair_cdf[-1] == pytest.approx(1, abs=1e-3)
        assert (size_class.pair[:, 0] != size_class.pair[:, 1]).all()


NOT_EVERY_SEED = {
    "little_ratio",  # the mean lifetime hangs on the few batches that live for months
    "concurrent_vms_band",  # one batch of a thousand VMs is 0.7 % of all
}


def test_a_month_shows_the_published_statistics(verdicts):
    judged = [v for key, v in verdicts.items() if key not in NOT_EVERY_SEED]
    assert len(judged) > 35
    missed = [(v.target.label, v.mean, v.target.low, v.target.high) for v in judged if not v.passes]
    assert missed == []


def test_a_month_keeps_its_population_and_little_holds(verdicts):
    # V2 stays within -1.6 and +3.0 % for a month; one seed may stray half a point from 5 %
    assert verdicts["concurrent_vms_band"].mean < 0.055
    # standard error of one month's mean lifetime: 1.4 %
    assert verdicts["little_ratio"].mean == pytest.approx(1, abs=0.04)


def test_large_batches_follow_the_hour_less_than_small_ones(month):
    new = month.start_ns >= 0
    _, first, size = np.unique(month.batch_id[new], return_index=True, return_counts=True)
    hour = month.start_ns[new][first] // NS_PER_HOUR % 24
    swing = []
    for part in (size < LARGE_BATCH_VMS, size >= LARGE_BATCH_VMS):
        count = np.bincount(hour[part], minlength=24)
        swing.append(count.max() / count.min())
    # by hour, batches of 1-9 VMs swing by 2.4, of 10-19 VMs by 1.6 (AzurePublicDataset V1)
    assert swing[0] == pytest.approx(2.4, abs=0.2)
    assert swing[1] == pytest.approx(1.5, abs=0.2)


@pytest.mark.skipif("HUGEFLEET_AZURE_V1" not in os.environ, reason="needs the processed arrivals")
def test_tables_are_those_of_the_processed_arrivals():
    folder = Path(os.environ["HUGEFLEET_AZURE_V1"])
    batches = []
    for part in ("train", "dev", "test"):
        with gzip.open(folder / f"v1.{part}.txt.gz", "rt") as file:
            for line in file:
                split = [batch.strip(",").split(",") for batch in line.split()[1].split("|")]
                batches += [batch for batch in split if batch != [""]]
    data = json.loads(files("scenarios").joinpath("azure_v1.json").read_text("utf-8"))
    sizes = Counter(len(batch) for batch in batches)
    assert sorted(sizes.items()) == [tuple(row) for row in data["batch_sizes"]]
    letters = Counter(letter for batch in batches for letter in batch)
    shares = [letters[letter] / letters.total() for letter in sorted(letters)]
    np.testing.assert_allclose(shares, [row[3] for row in data["flavours"]], atol=1e-6)
    lowest = [row["min_vms"] for row in data["size_classes"]]
    for row, low, high in zip(data["size_classes"], lowest, [*lowest[1:], 10**9], strict=True):
        mine = [batch for batch in batches if low <= len(batch) < high]
        vms = sum(map(len, mine)) if low >= 50 else len(mine)  # large classes are by VMs
        mixed = sum(len(b) if low >= 50 else 1 for b in mine if len(set(b)) > 1)
        assert row["mixed_ratio"] == pytest.approx(mixed / vms, abs=1e-5)
