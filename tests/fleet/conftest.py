"""Fixtures that several test files of fleet share."""

import tomllib

import pytest
from tiny import SMALL, TINY

from fleet import scheduler
from fleet.loading import build

EVENTS = """
[[maintenance]]
start = "1h"
duration = "1h"
first_host = 0
hosts = 1

[failures]
mtbf = "6h"
repair = "30min"
"""
MORE = (
    "run.duration=3h",
    "mmu.accesses=8000",
    "placement.memory_overcommit=2.0",
    "placement.vcpu_overcommit=3.0",
    "hosts.swap.size=1GiB",
)


def run_eventful(place, *overrides):
    overrides = (*TINY, *MORE, *overrides)
    scenario = build(tomllib.loads(SMALL + EVENTS), "eventful", "eventful.toml", overrides)
    scheduler.run(scenario, place, scheduler.Options(inline=True))
    return place


@pytest.fixture(scope="session")
def eventful(tmp_path_factory):
    """Run real nodes on which VMs are rejected, killed and moved, and a host fails."""
    return run_eventful(tmp_path_factory.mktemp("runs") / "eventful")


@pytest.fixture(scope="session")
def small_pages(tmp_path_factory):
    """Run the same without huge pages on the hosts."""
    place = tmp_path_factory.mktemp("runs") / "small-pages"
    return run_eventful(place, "hosts.thp.enabled=never")


@pytest.fixture(scope="session")
def eventless(tmp_path_factory):
    """Run fake nodes on which nothing happens that a report would show."""
    from fakenode import FakeNode

    from fleet.shard import InlineBackend

    class Peaceful(FakeNode):
        kill_every = 0

    place = tmp_path_factory.mktemp("runs") / "eventless"
    scenario = build(
        tomllib.loads(SMALL),
        "eventless",
        "eventless.toml",
        (
            "vms.scale=0.0003",
            "placement.vcpu_overcommit=8.0",
            "placement.memory_overcommit=8.0",
            "hosts[0].vcpus=96",
            "hosts[0].memory=256GiB",
        ),
    )
    scheduler.run(scenario, place, make_backend=lambda resolved: InlineBackend(resolved, Peaceful))
    return place
