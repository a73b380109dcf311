"""Many hosts: scenarios, traces, placement, shards on Ray, results.

``from fleet import load, run, sweep, compare, query`` is the Python interface; each is imported
on first use, so that the command line starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet.comparison import compare
    from fleet.loading import load
    from fleet.scenario import Scenario
    from fleet.scheduler import Options, run
    from fleet.sql import query
    from fleet.summary import summarise
    from fleet.sweeping import sweep

__all__ = ["Options", "Scenario", "compare", "load", "query", "run", "summarise", "sweep"]

_HOME = {
    "Options": "fleet.scheduler",
    "Scenario": "fleet.scenario",
    "compare": "fleet.comparison",
    "load": "fleet.loading",
    "query": "fleet.sql",
    "run": "fleet.scheduler",
    "summarise": "fleet.summary",
    "sweep": "fleet.sweeping",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
