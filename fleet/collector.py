"""What a process does about memory it needs no more: seldom look for it, often give it back."""

import atexit
import ctypes
import gc
from typing import Final

RARE_COLLECTIONS: Final = 50_000, 20, 20
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


def collect_rarely() -> None:
    """Look through all objects rarely from now on, and not once more when the process ends.

    There are very many of them, and next to no cycles among them.
    """
    gc.set_threshold(*RARE_COLLECTIONS)
    atexit.register(gc.freeze)


def give_back() -> None:
    """Return to the system what `free` has kept, as after an epoch's rows: it takes 0.6 ms."""
    if _trim is not None:
        _trim(0)
