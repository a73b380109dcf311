"""One KVM hypervisor host: Linux memory manager, EPT and MMU.

``from hostsim import Host`` is a host to experiment with by hand (`hostsim.lab`).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostsim.lab import Host, Vm

__all__ = ["Host", "Vm"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hostsim import lab

    return getattr(lab, name)
