"""How this process compiles kernels; a command chooses before anything imports numba."""

from collections.abc import Callable

processes = 0  # that compile what a call lacks, forked from this one; 0: this one, one by one
announce: Callable[[], None] | None = None  # called before they begin
