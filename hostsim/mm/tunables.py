"""Kernel profiles and sysfs settings, as numbers that kernels read.

A profile says which alternative of a mechanism an era uses; the settings are the files under
/sys/kernel/mm/transparent_hugepage.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

FALLBACK_6_1: Final = 0  # one loop, largest block first
FALLBACK_6_12: Final = 1  # claim phase, then steal phase

T_ENABLED: Final = 0
T_DEFRAG: Final = 1
T_USE_ZERO_PAGE: Final = 2
T_FALLBACK: Final = 3  # FALLBACK_*
T_PCP_6_12: Final = 4  # 1: self-tuning per-CPU lists
T_REVERSE_ZAP: Final = 5  # 1: a gather batch is freed last page first
NR_TUNABLES: Final = 6

ENABLED: Final = {"always": 0, "madvise": 1, "never": 2}
DEFRAG: Final = {"always": 0, "defer": 1, "defer+madvise": 2, "madvise": 3, "never": 4}

PROFILES: Final[dict[str, dict[int, int]]] = {
    "6.1": {
        T_FALLBACK: FALLBACK_6_1,
        T_PCP_6_12: 0,
        T_REVERSE_ZAP: 1,  # mm/swap.c release_pages builds its list with list_add
    },
    "6.12": {
        T_FALLBACK: FALLBACK_6_12,
        T_PCP_6_12: 1,
        T_REVERSE_ZAP: 0,  # mm/swap.c folios_put_refs frees a batch in order
    },
}


def set_profile(tunables: NDArray[np.int64], kernel: str) -> None:
    """Select the alternatives of a kernel version.

    Raises
    ------
    ValueError
        No profile of that name.
    """
    if kernel not in PROFILES:
        raise ValueError(f"kernel {kernel!r}: expected one of {', '.join(PROFILES)}")
    for index, value in PROFILES[kernel].items():
        tunables[index] = value


def set_tunable(tunables: NDArray[np.int64], name: str, value: str) -> None:
    """Write a sysfs file of transparent_hugepage.

    Raises
    ------
    ValueError
        The file does not exist in the model, or does not take the value.
    """
    words = {"enabled": (T_ENABLED, ENABLED), "defrag": (T_DEFRAG, DEFRAG)}
    if name in words:
        index, known = words[name]
        if value not in known:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")
        tunables[index] = known[value]
    elif name == "use_zero_page":
        if value not in ("0", "1"):
            raise ValueError(f"use_zero_page: {value!r} is not 0 or 1")
        tunables[T_USE_ZERO_PAGE] = int(value)
    else:
        raise ValueError(f"unknown setting {name!r}: expected enabled, defrag or use_zero_page")
