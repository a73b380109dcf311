"""Kernels made ready before they are needed: compiled, or loaded from the cache."""

import contextlib
from typing import Any

import numpy as np

from fleet.node import START, STOP, Commands, Node
from fleet.placement import Placer
from fleet.scenario import MigrationTerms
from fleet.trace import make_trace
from guestsim.spec import Behaviour, GuestSpec
from hostsim.core.jit import warm_mark
from hostsim.core.units import NS_PER_HOUR
from hostsim.spec import HostSpec, SlabSpec


def is_cold() -> bool:
    """Say whether kernels are still to be compiled on this machine."""
    return not warm_mark(__name__).exists()


def warm_up() -> None:
    """Compile the kernels of hosts, guests and placement, or load them from the cache."""
    _run_a_node()
    vcpus, pages = np.ones(1, np.int32), np.ones(1, np.int64)
    start_ns, end_ns = np.zeros(1, np.int64), np.full(1, NS_PER_HOUR)
    flavour = np.zeros(1, np.int16)
    trace = make_trace(start_ns, end_ns, vcpus, pages, flavour, pages, ("1c",), NS_PER_HOUR)
    placer = Placer(trace, vcpus, pages, "best-fit")
    placer.epoch(0, NS_PER_HOUR)
    placer.restore(placer.state())
    with contextlib.suppress(OSError):  # a cache that cannot be written
        warm_mark(__name__).parent.mkdir(parents=True, exist_ok=True)
        warm_mark(__name__).touch()


def _run_a_node() -> None:
    """Let a host start, run, move and end VMs, so that every kernel of a node is called."""
    slab = SlabSpec(100.0, NS_PER_HOUR, 0.5, NS_PER_HOUR, 64)
    spec = HostSpec(2, 1 << 19, 0, "6.12", "madvise", "madvise", True, slab, mmu_accesses=3000)
    hour = NS_PER_HOUR
    busy = Behaviour(
        "", 1.0, 0.5, "none", 1.0, 1.0, 0.5, 60.0, 0.1, hour, 1.0, 0.5, hour, 1, "gups"
    )
    guests = GuestSpec(
        "6.12", "always", "madvise", True, 1 << 12, 0.8, 10.0, hour, 0.5, 0.5, 512, 0, 1.0, 1.0,
        0.5, (busy,),
    )  # fmt: skip
    node = Node(spec, guests, 0, 0, hour // 12, hour)
    start: dict[str, Any] = {
        "t_ns": np.array([0, 1, hour // 2], np.int64),
        "kind": np.array([START, START, STOP], np.int8),
        "vm_id": np.array([0, 1, 0], np.int64),
        "vcpus": np.ones(3, np.int32),
        "memory_pages": np.array([1 << 16, 1 << 15, 1 << 16], np.int64),
        "age_ns": np.array([hour, 0, 0], np.int64),
    }
    node.advance(Commands(**start), 0, hour)
    terms = MigrationTerms(1e6, NS_PER_HOUR, auto_converge=False, postcopy=True)
    node.immigrate(hour, node.emigrate(hour, [(1, 0)], terms), terms)
