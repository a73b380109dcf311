"""Writing settings files, with what a write sets off.

Source: Linux v6.1 mm/huge_memory.c enabled_store; mm/khugepaged.c start_stop_khugepaged,
scan_sleep_millisecs_store, alloc_sleep_millisecs_store, set_recommended_min_free_kbytes.
"""

from typing import Final

from hostsim.mm.ksm import wake_ksmd
from hostsim.mm.memory import setup_watermarks
from hostsim.mm.mm_slot import start_stop_khugepaged, wake_khugepaged
from hostsim.mm.mm_types import Memory
from hostsim.mm.shrinker import queue_all_huge
from hostsim.mm.tunables import T_DEFER_UNDERUSED, set_tunable

_WAKING: Final = ("khugepaged/scan_sleep_millisecs", "khugepaged/alloc_sleep_millisecs")


def write_setting(mem: Memory, name: str, value: str) -> None:
    """Write a settings file by its name below its folder.

    `enabled` starts and stops khugepaged and moves the watermarks; the sleep times of khugepaged
    end its sleep.

    Raises
    ------
    ValueError
        The file does not exist in the model, or does not take the value.
    """
    deferred = mem.tunables[T_DEFER_UNDERUSED]
    set_tunable(mem.tunables, name, value)
    if mem.tunables[T_DEFER_UNDERUSED] > deferred:
        queue_all_huge(mem)
    if name == "enabled":
        start_stop_khugepaged(mem)
        setup_watermarks(mem)
    elif name in _WAKING:
        wake_khugepaged(mem)
    elif name == "ksm/run":
        wake_ksmd(mem)
