"""The folder of a sweep: ``sweep.json``, and the runs ``<arm>/seed-<n>``."""

from typing import Any

from fleet.rundir import read_json
from fleet.store import Store
from hostsim.core.errors import Problem, ScenarioError

SWEEP_FILE = "sweep.json"
SWEEP_FORMAT = "hugefleet sweep"


def is_sweep(store: Store) -> bool:
    """Say whether a folder was written by ``fleet sweep``."""
    return store.exists(SWEEP_FILE)


def read_sweep(store: Store) -> dict[str, Any]:
    """Return what ``sweep.json`` says.

    Raises
    ------
    ScenarioError
        It is not that of a sweep.
    """
    found = read_json(store, SWEEP_FILE)
    if not isinstance(found, dict) or found.get("format") != SWEEP_FORMAT:
        raise ScenarioError([Problem(store.label(SWEEP_FILE), "is not that of a sweep")])
    return found


def run_place(arm: str, seed: int) -> str:
    """Return where a run lies in the folder."""
    return f"{arm}/seed-{seed}"


def run_store(store: Store, arm: str, seed: int) -> Store:
    """Return the run's own folder."""
    return Store(store.label(run_place(arm, seed)))
