"""Claims about the memory manager beside recordings of two real kernels."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Final

from fleet.claims import Claim
from fleet.recordings import FAMILIES, KERNELS, replayed

BAR: Final = {"vm": 97.0, "counters": 95.0, "buddy": 93.0}  # means over all scripts
BELOW_SELF: Final = 10.0  # points that a script may stay under the kernel's own agreement


def scores(kernel: str) -> Iterator[Claim]:
    """Yield the mean share of cells by family, and which scripts are far from the kernel's own."""
    begin_s = time.process_time()
    found = list(replayed(kernel))
    spent_s = time.process_time() - begin_s
    source = f"recordings of Linux {kernel}, scenarios/groundtruth"
    for family in FAMILIES:
        shares = [scored.shares[family] for scored in found if family in scored.shares]
        own = [scored.own[family] for scored in found if family in scored.own]
        mean = sum(shares) / len(shares)
        yield Claim(
            f"{len(found)} scripts replayed, {kernel}: mean of {family}",
            f">= {BAR[family]:g} % (the kernel against itself {sum(own) / len(own):.1f} %)",
            source,
            f"{mean:.1f} %",
            mean >= BAR[family],
        )
    far = [
        f"{scored.script} {family} {share:.1f} against {scored.own[family]:.1f}"
        for scored in found
        for family, share in scored.shares.items()
        if share < scored.own[family] - BELOW_SELF
    ]
    yield Claim(
        f"scripts more than {BELOW_SELF:g} points under the kernel's own agreement, {kernel}",
        "none",
        source,
        "; ".join(far) or "none",
        not far,
    )
    yield Claim(
        f"CPU time of all replays, {kernel}, scoring included",
        "<= 30 s",
        "the recorded kernels took ten minutes",
        f"{spent_s:.1f} s",
        spent_s <= 30.0,
    )


CHECKS: Final[dict[str, Callable[[], Iterator[Claim]]]] = {
    f"recordings of {kernel}": functools.partial(scores, kernel) for kernel in KERNELS
}
