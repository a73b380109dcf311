import json
import os
import subprocess
import sys

import pyarrow.fs as pafs
import pytest

from fleet import lock as lock_module
from fleet.lock import LOCK_FILE, Lock, held
from fleet.store import Store
from hostsim.core.errors import ResultsError, ScenarioError

HOLD = """
import sys, time
from fleet.lock import Lock
from fleet.store import Store
lock = Lock(Store(sys.argv[1]))
lock.take(print)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def by_token(tmp_path):
    """Return the same folder as an object store would show it: no file can be locked."""
    parent = pafs.SubTreeFileSystem(str(tmp_path.parent), pafs.LocalFileSystem())
    return Store(tmp_path.name, parent)


@pytest.mark.parametrize("make", [Store, by_token])
def test_second_driver_is_refused_and_told_who_holds_the_lock(tmp_path, other, make):
    before = (tmp_path / LOCK_FILE).read_bytes()
    with pytest.raises(ScenarioError, match=f"is being written by .*, process {other.pid}"):
        Lock(make(tmp_path)).take(print)
    assert json.loads((tmp_path / LOCK_FILE).read_bytes())["token"] in before.decode()


@pytest.mark.parametrize("make", [Store, by_token])
def test_lock_of_a_dead_driver_does_not_block(tmp_path, other, make, capsys):
    other.kill()
    other.wait()
    with held(make(tmp_path), print) as mine:
        mine.check()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / LOCK_FILE).exists()


def test_process_number_that_was_given_to_another_is_not_the_owner(tmp_path):
    store = by_token(tmp_path)
    Lock(store).take(print)
    owner = json.loads((tmp_path / LOCK_FILE).read_bytes())
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner | {"start_ticks": 1}))
    Lock(store).take(print)


def foreign(tmp_path, **changes):
    owner = {"host": "far", "machine": "x", "pid": 1, "start_ticks": 1, "token": "t", "beat": 7}
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner | changes))


@pytest.mark.parametrize("make", [Store, by_token])
def test_owner_on_another_machine_is_dead_when_its_count_stands_still(tmp_path, make):
    foreign(tmp_path)
    said = []
    lock = Lock(make(tmp_path))
    lock.take(said.append, lease_s=0.2)
    assert "locked by far, process 1; waiting 0.2 s for a sign of life" in said[0]
    lock.check()
    lock.release()


@pytest.mark.parametrize("make", [Store, by_token])
def test_owner_on_another_machine_lives_while_it_counts(tmp_path, make, monkeypatch):
    foreign(tmp_path)
    monkeypatch.setattr(lock_module.time, "sleep", lambda _: foreign(tmp_path, beat=8))
    with pytest.raises(ScenarioError, match="is being written by far, process 1"):
        Lock(make(tmp_path)).take(lambda _: None)


@pytest.mark.parametrize("make", [Store, by_token])
def test_driver_whose_lock_was_taken_over_stops(tmp_path, make):
    with held(make(tmp_path), print) as mine:
        foreign(tmp_path)
        with pytest.raises(ResultsError, match=r"taken this run over \(far, process 1 holds"):
            mine.check()
    assert (tmp_path / LOCK_FILE).exists()  # the other's


def test_half_written_lock_is_nobodys(tmp_path):
    (tmp_path / LOCK_FILE).write_text('{"host": "fa')
    with held(Store(tmp_path), print) as mine:
        mine.check()


def test_count_rises_while_the_lock_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "BEAT_S", 0.01)
    with held(Store(tmp_path), print):
        while json.loads((tmp_path / LOCK_FILE).read_bytes())["beat"] < 3:
            os.sched_yield()
