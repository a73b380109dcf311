"""Which windows become huge, and when: the promotion policy, chosen by name.

A policy is a file ``policy_<name>.py``; here its functions are put behind the setting
``thp_policy``.  docs/how-to-policy.md adds one step by step.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import Memory
from hostsim.mm.policy_linux import linux_first_fault, linux_max_ptes_none
from hostsim.mm.policy_utilisation import utilisation_first_fault, utilisation_max_ptes_none
from hostsim.mm.promotion_types import FIRST_RESERVE
from hostsim.mm.tunables import T_THP_POLICY, THP_POLICIES

RESERVATION: Final = THP_POLICIES["reservation"]
UTILISATION: Final = THP_POLICIES["utilisation"]


@kernel
def first_fault(mem: Memory) -> int:
    """Return what the first fault of an eligible window asks for (FIRST_*)."""
    policy = mem.tunables[T_THP_POLICY]
    if policy == RESERVATION:
        return FIRST_RESERVE
    if policy == UTILISATION:
        return utilisation_first_fault(mem)
    return linux_first_fault(mem)


@kernel
def max_ptes_none(mem: Memory) -> int:
    """Return how many absent pages a window may have that khugepaged makes huge."""
    if mem.tunables[T_THP_POLICY] == UTILISATION:
        return utilisation_max_ptes_none(mem)
    return linux_max_ptes_none(mem)
