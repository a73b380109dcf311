"""Importers of VM traces, the public ones and your own, found by name.

Everywhere: 1 GB counts as 1 GiB, times become nanoseconds, and every bad row is reported with
its line.
"""

from collections.abc import Callable
from pathlib import Path

from fleet.trace import Trace
from fleet.trace_arrivals import import_azure_v1_arrivals
from fleet.trace_azure import import_azure_v1, import_azure_v2
from fleet.trace_csv import ImportOptions
from fleet.trace_huawei import import_huawei
from fleet.trace_own import import_own
from fleet.trace_packing import import_azure_packing
from hostsim.core.errors import Problem, ScenarioError

Importer = Callable[[Path, ImportOptions], Trace]

IMPORTERS: dict[str, Importer] = {
    "azure-v1": import_azure_v1,
    "azure-v2": import_azure_v2,
    "azure-packing": import_azure_packing,
    "azure-v1-arrivals": import_azure_v1_arrivals,
    "huawei": import_huawei,
    "csv": import_own,
}


def import_trace(name: str, path: Path | str, options: ImportOptions | None = None) -> Trace:
    """Import a trace by the name of its format.

    Raises
    ------
    ScenarioError
        Unknown format, missing or broken file, bad rows.
    """
    if name not in IMPORTERS:
        message = f"{name!r} is none of {', '.join(IMPORTERS)}"
        raise ScenarioError([Problem("trace format", message)])
    return IMPORTERS[name](Path(path), options or ImportOptions())
