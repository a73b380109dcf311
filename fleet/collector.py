"""How seldom a process looks for cycles among its objects: next to none, among very many."""

import atexit
import gc
from typing import Final

RARE_COLLECTIONS: Final = 50_000, 20, 20


def collect_rarely() -> None:
    """Look through all objects rarely from now on, and not once more when the process ends."""
    gc.set_threshold(*RARE_COLLECTIONS)
    atexit.register(gc.freeze)
