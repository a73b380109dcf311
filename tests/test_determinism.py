"""Same scenario, seed and versions: the same bytes, whoever computes them."""

import hashlib

import polars as pl
import pytest
from tiny import TINY

from fleet import scheduler
from fleet.placement import Placer
from fleet.scheduler import Options


@pytest.fixture
def run_tiny(small, tmp_path):
    def run(name, *overrides, **options):
        out = tmp_path / name
        scheduler.run(small(*TINY, *overrides), out, Options(**options))
        return out

    return run


def digest(out):
    found = hashlib.sha256()
    for path in sorted([*out.glob("*/part-*.parquet"), out / "_manifest.json"]):
        found.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def rows(out, table):
    return pl.concat([pl.read_parquet(path) for path in sorted((out / table).iterdir())])


def test_second_run_gives_the_same_bytes(run_tiny):
    assert digest(run_tiny("a", inline=True)) == digest(run_tiny("b", inline=True))


def test_other_seed_gives_other_bytes(run_tiny):
    assert digest(run_tiny("a", inline=True)) != digest(run_tiny("b", "run.seed=2", inline=True))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_gives_the_bytes_of_one_process_for_any_number_of_actors(run_tiny):
    expected = digest(run_tiny("inline", inline=True))
    assert digest(run_tiny("one", workers=1)) == expected
    assert digest(run_tiny("two", workers=2)) == expected
    assert digest(run_tiny("each", hosts_per_actor=1)) == expected


def test_stopped_and_resumed_run_gives_the_same_bytes(run_tiny, tmp_path, monkeypatch):
    expected = digest(run_tiny("whole", inline=True))
    monkeypatch.setattr(Placer, "epoch", stop_at_second(Placer.epoch))
    with pytest.raises(KeyboardInterrupt):
        run_tiny("stopped", inline=True, checkpoint_epochs=1)
    monkeypatch.undo()
    assert digest(run_tiny("stopped", inline=True, resume=True)) == expected


def stop_at_second(epoch):
    def stopping(placer, t0_ns, t1_ns):
        if t0_ns > 0:
            raise KeyboardInterrupt
        return epoch(placer, t0_ns, t1_ns)

    return stopping


def test_hosts_added_at_the_end_change_nothing_on_the_others(run_tiny):
    """First fit offers them only what the others turned away."""
    few = run_tiny("few", "placement.policy=first-fit", inline=True)
    more = run_tiny("more", "placement.policy=first-fit", "hosts[1].count=4", inline=True)
    for table in ("hosts", "vms"):
        before, after = rows(few, table), rows(more, table)
        kept = after.filter(pl.col("host_id") < 5)
        assert before.sort("host_id", maintain_order=True).equals(
            kept.sort("host_id", maintain_order=True)
        )
