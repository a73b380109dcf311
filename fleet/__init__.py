"""Many hosts: scenarios, traces, placement, shards on Ray, results.

``from fleet import load, run`` is the Python interface; both are imported on first use, so that
the command line starts at once.
"""

from importlib import import_module

_EXPORTS = {
    "Options": "fleet.scheduler",
    "Scenario": "fleet.scenario",
    "load": "fleet.loading",
    "run": "fleet.scheduler",
    "summarise": "fleet.summary",
}


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
