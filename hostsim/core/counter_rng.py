"""Counter-based draws inside kernels: pure functions of a key and two counters.

A draw needs no state, so that what one consumer draws cannot shift what another gets.

Source: splitmix64's output function (Steele, Lea, Flood, OOPSLA 2014), applied twice.
"""

import numpy as np

from hostsim.core.jit import kernel


@kernel
def hash64(key: int, a: int, b: int) -> int:
    """Return 62 well-mixed bits of a key and two counters (splitmix64)."""
    z = np.uint64(key) + np.uint64(a) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = z + np.uint64(b) * np.uint64(0xD1342543DE82EF95)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    z = (z ^ (z >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return int(np.int64((z ^ (z >> np.uint64(32))) >> np.uint64(2)))


@kernel
def uniform(key: int, a: int, b: int) -> float:
    """Return a number in (0, 1) that is a pure function of a key and two counters."""
    return (float(hash64(key, a, b) >> 10) + 0.5) / float(1 << 52)
