"""The file of measured costs: what operations of the kernel take on a machine.

JSON with a versioned format: ``costs`` by name in nanoseconds, and how they were measured.
"""

import json
from pathlib import Path
from typing import Any, Final

from fleet.snapshot_file import read_json_file
from hostsim.core.errors import Problem, ResultsError, ScenarioError, near
from hostsim.mm.cost import NAMES

FORMAT: Final = "hugefleet costs"
VERSION: Final = 1
_NOT_ONE: Final = "is no file of costs"
_HINT: Final = "fleet calibrate -o costs.json writes one"


def write_costs(content: dict[str, Any], path: str | Path) -> None:
    """Write a file of costs.

    Parameters
    ----------
    content
        ``costs`` by name, and whatever else is to be kept.

    Raises
    ------
    ResultsError
        The file cannot be written.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, **content}, indent=2) + "\n"
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None


def read_costs(path: str | Path) -> dict[str, int]:
    """Return costs by name, in nanoseconds; those that the file does not name keep their default.

    Raises
    ------
    ScenarioError
        The file is none, of a newer version, or names something that is no cost.
    """
    content = read_json_file(path, FORMAT, VERSION, _NOT_ONE, _HINT)
    costs = content.get("costs")
    if not isinstance(costs, dict):
        raise ScenarioError([Problem(str(path), 'holds no table "costs"', _HINT)])
    problems = []
    for name, value in costs.items():
        place = f"{path}: costs.{name}"
        if name not in NAMES:
            problems.append(Problem(place, "is no cost", near(name, NAMES)))
        elif not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9:
            problems.append(Problem(place, f"{value!r} is not 1 to 1,000,000,000 ns"))
    if problems:
        raise ScenarioError(problems)
    return dict(costs)
