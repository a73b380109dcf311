"""Fixtures that several test files share."""

import functools
import re
import tomllib
from pathlib import Path

import pytest
from tiny import SMALL

from fleet.loading import build

ROOT = Path(__file__).resolve().parents[1]
LONG = ("test_whole_manager.py", "test_address_spaces.py", "test_recordings.py")


@functools.cache
def starts_ray(file):
    """Say whether a file of tests starts Ray."""
    return re.search(r"local_ray|mark\.ray", (ROOT / file).read_text()) is not None


def pytest_collection_modifyitems(items):
    """Begin with what starts Ray and with long files: what is short fills up the end."""
    items.sort(key=lambda item: not starts_ray(item.path) and 1 + (item.path.name not in LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let one worker run all of a file, and one all files that start Ray.

    Fixtures are made once, and so is a Ray: it takes seconds, memory and ports of the machine.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "ray" if starts_ray(file) else file

    config.option.loadscopereorder = False  # by length, not by number of tests
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for all tests: starting one takes seconds."""
    import ray

    from fleet import actors
    from fleet.warmup import warm_up

    warm_up()  # once here, not in every actor
    actors.start(workers=2, address=None)
    yield
    ray.shutdown()


@pytest.fixture
def run_small(small, tmp_path):
    """Run the small scenario on fake nodes; returns the run directory."""
    from fakenode import FakeNode

    from fleet import scheduler
    from fleet.shard import InlineBackend

    def run(name="run", overrides=(), make_node=FakeNode, **options):
        scheduler.run(
            small(*overrides),
            tmp_path / name,
            scheduler.Options(**options),
            make_backend=lambda scenario: InlineBackend(scenario, make_node),
        )
        return tmp_path / name

    return run


@pytest.fixture
def small():
    """Build a scenario of five hosts and two groups, with overrides."""

    def build_small(*overrides):
        return build(tomllib.loads(SMALL), "small", "small.toml", overrides)

    return build_small
