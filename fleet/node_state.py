"""What changes of a node between two epochs, as arrays by name: for checkpoints, and read again."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.state import State
from guestsim.behaviour import G_STATE, G_VM, NR_G_FIELDS

_NOTHING: NDArray[np.int64] = np.zeros(0, np.int64)


class NodeState(NamedTuple):
    """The parts of a node's state."""

    guests: NDArray[np.int64]  # the table of guests
    row_of: dict[int, int]  # VM -> row of guests
    host: State
    kernels: dict[int, State]  # row of guests -> its kernel, if it has one


def join(parts: NodeState) -> State:
    """Return the parts of a node's state as one; all but the table of guests are views."""
    guests = parts.guests.copy()
    guests[:, G_STATE] = 0  # addresses of this process
    rows = np.array(list(parts.row_of.items()), np.int64).reshape(len(parts.row_of), 2)
    state = {"guests": guests, "rows": rows}
    state |= {f"host.{name}": part for name, part in parts.host.items()}
    for row, kernel in parts.kernels.items():
        state |= {f"guest.{row}.{name}": part for name, part in kernel.items()}
    return state


def split(state: State) -> NodeState:
    """Return the parts that `join` made one.

    Raises
    ------
    ValueError
        The state is another version's, or not of one piece.
    """
    parts: dict[str, State] = {}
    for name, part in state.items():
        owner, _, field = name.rpartition(".") if name.startswith("guest.") else ("", "", name)
        parts.setdefault(owner, {})[field] = part
    own = parts.pop("", {})
    guests, rows = own.pop("guests", _NOTHING), own.pop("rows", _NOTHING)
    if guests.dtype != np.int64 or guests.ndim != 2 or guests.shape[1] != NR_G_FIELDS:
        raise ValueError(f"guests: {guests.dtype} {guests.shape} is no table of guests")
    known = np.sort(np.flatnonzero(guests[:, G_VM] >= 0))
    if rows.shape != (len(known), 2) or (np.sort(rows[:, 1]) != known).any():
        raise ValueError("rows: are not those of the guests")
    kernels = {int(row): parts.pop(f"guest.{row}", {}) for row in rows[:, 1]}
    if parts:
        raise ValueError(f"{', '.join(parts)}: not a guest of this host")
    host = {name.removeprefix("host."): part for name, part in own.items()}
    return NodeState(guests.copy(), dict(rows.tolist()), host, kernels)
