"""Loops over memory that `fleet calibrate` times."""

from typing import Any

from numpy.typing import NDArray

from hostsim.core.jit import kernel


@kernel
def touch(memory: NDArray[Any], step: int, nr: int) -> None:
    """Write a byte at ``nr`` places ``step`` bytes apart."""
    for i in range(nr):
        memory[i * step] = 1


@kernel
def fill(memory: NDArray[Any], value: int) -> None:
    """Write every word."""
    for i in range(memory.size):
        memory[i] = value


@kernel
def copy(into: NDArray[Any], memory: NDArray[Any]) -> None:
    """Copy every word."""
    for i in range(memory.size):
        into[i] = memory[i]


@kernel
def link(memory: NDArray[Any], step: int, nr: int) -> None:
    """Make a ring of ``nr`` (a power of two) words ``step`` words apart, in scattered order."""
    at = 0
    for _ in range(nr):
        after = (at * 1664525 + 1013904223) & (nr - 1)  # a full period for a power of two
        memory[at * step + (at & 7) * 8] = after
        at = after


@kernel
def chase(memory: NDArray[Any], step: int, nr: int) -> int:
    """Follow a ring that `link` made for ``nr`` words."""
    at = 0
    for _ in range(nr):
        at = memory[at * step + (at & 7) * 8]
    return at
