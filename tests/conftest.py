"""Fixtures that several test files share."""

import tomllib

import pytest
from tiny import SMALL

from fleet.loading import build


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
