"""Everything this project raises on purpose.

::

    HugefleetError
    ├── ScenarioError    a bad input: scenario, trace, op script, snapshot   (exit code 2)
    ├── ResultsError     files of a run that cannot be read or written       (exit code 1)
    ├── WorkerError      Ray cannot be reached, or a worker died             (exit code 1)
    └── InvariantError   our bug: a validator found the state inconsistent   (exit code 1)

Misuse by a caller is ``ValueError``.  Running out of simulated memory is an outcome, never an
error.
"""

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """One mistake in an input: where it stands, what is wrong, and what would help."""

    place: str  # file and path or row: "demo.toml: hosts[0].memory", "vmtable.csv.gz: row 17"
    message: str  # the value and the rule it breaks
    hint: str = ""

    def __str__(self) -> str:
        hint = f"\n    hint: {self.hint}" if self.hint else ""
        return f"{self.place}: {self.message}{hint}"


def near(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest known word, or all of them."""
    words = list(known)
    match = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {match[0]}?" if match else "known: " + ", ".join(words)


class HugefleetError(Exception):
    """Base of all errors below."""


class ScenarioError(HugefleetError):
    """A bad input; carries every problem found, not just the first."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))

    def __reduce__(self) -> tuple[type["ScenarioError"], tuple[list[Problem]]]:
        return type(self), (self.problems,)


class ResultsError(HugefleetError):
    """A file of a run cannot be read or written."""


class WorkerError(HugefleetError):
    """Ray could not be started or reached, or a worker died."""


class InvariantError(HugefleetError):
    """A validator recomputed the state and found it inconsistent."""
