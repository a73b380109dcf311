"""Reclaim: direct reclaim and kswapd.

Source: Linux v6.1 and v6.12 mm/vmscan.c.
"""

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import Memory
from hostsim.mm.vmstat import ALLOCSTALL


@kernel
def wakeup_kswapd(mem: Memory, order: int, can_reclaim: bool) -> None:
    """Ask kswapd to bring the zones back above their high watermarks."""


@kernel
def try_to_free_pages(mem: Memory, order: int) -> int:
    """Reclaim for an allocation; return how many pages were freed."""
    if order == 0:
        mem.vmstat[ALLOCSTALL] += 1
    return 0
