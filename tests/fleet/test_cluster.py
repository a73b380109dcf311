import socket
import subprocess
import sys

import pytest

from fleet import cluster, handshake
from hostsim.core.errors import ScenarioError, WorkerError

# What Ray 2.60 printed, less the repetitions.
WRONG_TOKEN = (
    "gcs_client.cc:210: Failed to get cluster ID from GCS server: Unauthenticated: RPC error:"
    " InvalidAuthToken: Authentication token is missing or incorrect"
)
OTHER_FILES = (
    "[2026-11-27 08:05:42,465 C 2170 2170] raylet_ipc_client.cc:85: Failed to connect to socket at"
    " address:/tmp/ray/session/sockets/raylet\n*** StackTrace Information ***"
)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("auto", None),
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("head.example:65535", ("head.example", 65535)),
        ("[fd00::1]:6379", ("fd00::1", 6379)),
    ],
)
def test_an_address_is_host_and_port_or_auto(address, place):
    assert cluster.check_address(address) == place


@pytest.mark.parametrize(
    "address", ["", "10.0.0.1", ":6379", "h:0", "h:65536", "h:x", "http://h:8265", "local"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ScenarioError, match="is not HOST:PORT or auto"):
        cluster.check_address(address)


def test_ray_client_is_refused_with_what_to_do_instead():
    with pytest.raises(ScenarioError, match=r"Ray Client(?s:.*)ray job submit"):
        cluster.check_address("ray://head:10001")


def test_nobody_at_the_address_is_told_at_once_and_in_one_sentence():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(WorkerError, match=f"cannot reach Ray at {address}: Connection refused"):
            cluster.reach(address)


def test_something_else_at_the_address_is_told_within_the_time_allowed(monkeypatch):
    monkeypatch.setattr(cluster, "JOIN_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(WorkerError, match="no head node of a Ray cluster answers there"):
            cluster.reach(address)


@pytest.mark.parametrize(
    ("errors", "why"),
    [(WRONG_TOKEN, "RAY_AUTH_TOKEN as on the head node"), (OTHER_FILES, "its files elsewhere")],
)
def test_what_ray_only_logs_is_said(errors, why):
    assert why in cluster._why_not("", errors)


def test_another_version_of_ray_is_said_in_rays_words():
    code = """
import json
from ray._private.utils import check_version_info
try:
    check_version_info({"ray_version": "2.9.3", "python_version": "3.11.7"}, "10.0.0.7")
except Exception as error:
    print(json.dumps({"joined": False, "reason": str(error)}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    why = cluster._why_not(done.stdout, done.stderr)
    assert "Version mismatch" in why
    assert "2.9.3" in why
    assert "\n" not in why


def test_a_child_that_joined_is_no_problem():
    assert cluster._why_not('a line of Ray\n{"joined": true}\n', "a warning") == ""


def test_what_differs_is_named_with_both_sides():
    here = handshake.Machine({"numba": "0.62.1", "numpy": "2.1.0"}, "a")
    there = handshake.Machine({"numba": "0.61.0", "numpy": "2.1.0"}, "b")
    assert handshake.differences(here, there) == "numba 0.61.0, not 0.62.1"
    assert handshake.differences(here, here._replace(cpu="b")) == ""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two sources, the only one that is looked at."""
    root = tmp_path / "apart"
    (root / "sub").mkdir(parents=True)
    for name in ("__init__.py", "sub/__init__.py"):
        (root / name).write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(handshake, "SOURCES", ("apart",))
    return root


@pytest.mark.parametrize("name", ["__init__.py", "sub/__init__.py", "sub/new.toml"])
def test_any_source_that_differs_changes_the_digest(package, name):
    before = handshake.digest_sources()
    (package / name).write_text("x = 2\n")
    assert handshake.digest_sources() != before


def test_what_python_writes_beside_sources_does_not(package):
    before = handshake.digest_sources()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.py").write_text("")
    (package / "sub" / "a.pyc").write_text("")
    assert handshake.digest_sources() == before


def test_description_travels_without_this_project():
    """It runs on machines where the project is missing, so it may need nothing of it."""
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("alone", {handshake.__file__!r})
alone = importlib.util.module_from_spec(spec)
sys.modules["alone"] = alone
spec.loader.exec_module(alone)
print(alone.describe().must_agree["hugefleet"])
print([name for name in sys.modules if name.split(".")[0] in ("fleet", "hostsim")])
"""
    argv = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["not installed", "[]"]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestRoom:
    def test_shards_are_dealt_to_cpus_in_turn_and_share_them(self):
        room = cluster.make_room(nr_hosts=9, workers=None, hosts_per_actor=2)
        try:
            assert (room.nr_shards, room.nr_slots) == (5, 2)
            shares = [room.options(shard)["num_cpus"] for shard in range(5)]
            assert shares == [0.3333, 0.5, 0.3333, 0.5, 0.3333]
        finally:
            room.close()

    def test_an_actor_made_again_waits_for_no_cpu(self):
        room = cluster.make_room(nr_hosts=2, workers=2, hosts_per_actor=None)
        try:
            assert room.options(1, attempt=1)["num_cpus"] == 0
        finally:
            room.close()

    def test_more_workers_than_cpus_share_them(self):
        room = cluster.make_room(nr_hosts=9, workers=4, hosts_per_actor=None)
        try:
            assert (room.nr_shards, room.nr_slots) == (4, 2)
        finally:
            room.close()

    def test_cluster_without_a_free_cpu_is_refused(self, monkeypatch):
        monkeypatch.setattr(cluster, "SETTLE_S", 0.5)
        taken = cluster.make_room(nr_hosts=2, workers=2, hosts_per_actor=None)
        try:
            with pytest.raises(WorkerError, match=r"no free CPU \(2 in all\)"):
                cluster.make_room(nr_hosts=2, workers=None, hosts_per_actor=None)
        finally:
            taken.close()

    def test_room_is_given_back(self):
        for _ in range(2):
            cluster.make_room(nr_hosts=2, workers=2, hosts_per_actor=None).close()
