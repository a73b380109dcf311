"""Queues of guests' operations."""

import numpy as np

from fleet.backing import NR_T_FIELDS, T_NR, begin_turns
from guestsim.behaviour import NR_O_FIELDS, O_NR, O_ROW

GUARD = -7


def test_a_row_that_another_guest_took_over_is_one_queue():
    """Of a guest that ended before it acted nothing is left but its operations, all done."""
    ops = np.zeros((5, NR_O_FIELDS), np.int64)
    ops[:, O_ROW] = 1, 1, 0, 1, 1
    ops[:, O_NR] = 0, 0, 9, 9, 9
    turns = np.full((3, 2), GUARD)
    progress = np.zeros(NR_T_FIELDS, np.int64)
    begin_turns(ops, len(ops), turns[:2], progress)
    assert progress[T_NR] == 2
    assert turns.tolist() == [[2, 3], [3, 5], [GUARD, GUARD]]
