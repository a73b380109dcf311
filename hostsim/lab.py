"""One host to experiment with by hand: sizes and times are text, what it prints is the kernel's.

The engine is that of the fleet (`hostsim.host`); what is added here is convenience.
"""

from collections.abc import Mapping

import numpy as np

from hostsim import host
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_BYTES, PAGE_SHIFT
from hostsim.core.units import parse_duration_ns as duration_ns
from hostsim.core.units import parse_pages as pages_of
from hostsim.mm import memory as proc
from hostsim.mm.check import check_memory
from hostsim.mm.compaction import compact_node
from hostsim.mm.daemons import settle, start_vmstat_worker, wait
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_HUGE,
    MM_SWAP,
    NIL,
    NR_TYPES,
    P_NOW_NS,
    Z_FREE,
    Z_MANAGED,
)
from hostsim.mm.settings import write_setting
from hostsim.mm.vmstat import NAMES
from hostsim.spec import HostSpec, SlabSpec

_KIB_SHIFT = PAGE_SHIFT - 10
_QUIET = SlabSpec(0.0, 1, 0.0, 1, 0)


class Host(host.Host):
    """A KVM host with memory, a kernel and VMs that do what they are told.

    Parameters
    ----------
    memory
        Physical memory, a multiple of 4 MiB.
    kernel
        Profile: ``6.12`` or ``6.1``.
    enabled, defrag
        Files of ``/sys/kernel/mm/transparent_hugepage``.
    settings
        Further files by name, as in ``khugepaged/pages_to_scan``.
    kernel_memory
        Unmovable memory that the kernel takes at boot.
    swap
        Size of the swap area.
    vcpus
        CPUs, for the per-CPU lists.

    Raises
    ------
    ValueError
        A size, the kernel or a setting is not one that exists.

    Examples
    --------
    A balloon takes one page in 16: huge pages are split, and khugepaged makes them anew.

    >>> host = Host("2GiB", settings={"khugepaged/pages_to_scan": 65536})
    >>> vm = host.boot_vm("1GiB")
    >>> vm.touch("512MiB")
    >>> vm.rss_bytes >> 20, vm.huge_bytes >> 20
    (512, 512)
    >>> vm.discard("512MiB", every="64KiB")
    >>> vm.rss_bytes >> 20, vm.huge_bytes >> 20
    (480, 0)
    >>> host.wait("1min")
    >>> vm.rss_bytes >> 20, vm.huge_bytes >> 20
    (512, 512)
    >>> host.vmstat()["thp_collapse_alloc"]
    256
    """

    def __init__(
        self,
        memory: str = "4GiB",
        kernel: str = "6.12",
        enabled: str = "always",
        defrag: str = "madvise",
        settings: Mapping[str, object] | None = None,
        kernel_memory: str = "64MiB",
        swap: str = "0MiB",
        vcpus: int = 4,
    ) -> None:
        spec = HostSpec(
            vcpus=vcpus,
            memory_pages=pages_of(memory),
            reserved_pages=0,
            kernel=kernel,
            thp_enabled=enabled,
            thp_defrag=defrag,
            use_zero_page=True,
            slab=_QUIET._replace(base_pages=pages_of(kernel_memory)),
            settings=tuple((name, str(value)) for name, value in (settings or {}).items()),
            swap_pages=pages_of(swap),
        )
        super().__init__(spec, host_id=0, seed=0)
        start_vmstat_worker(self.mem)
        self._vms: dict[int, Vm] = {}

    def boot_vm(self, memory: str, madvise: bool = False) -> "Vm":
        """Start a VM whose guest RAM is empty, with MADV_HUGEPAGE or not, and return it."""
        pages = pages_of(memory)
        mm, enough = self.start(len(self._vms), pages, 0, madvise)
        vm = self._vms[mm] = Vm(self, mm, pages)
        if not enough:
            self._kill()
        settle(self.mem)
        return vm

    def wait(self, duration: str) -> None:
        """Let time pass: daemons run when they are due."""
        wait(self.mem, duration_ns(duration))

    def write(self, name: str, value: object) -> None:
        """Write a settings file, as ``enabled`` or ``khugepaged/max_ptes_none``.

        Raises
        ------
        ValueError
            There is no such file, or it does not take the value.
        """
        write_setting(self.mem, name, str(value))

    def compact(self) -> None:
        """Compact all memory, as a write to ``/proc/sys/vm/compact_memory`` does."""
        compact_node(self.mem)
        settle(self.mem)

    @property
    def now_ns(self) -> int:
        """Time since boot; what VMs do takes the time that it costs."""
        return int(self.mem.pool[P_NOW_NS])

    def vmstat(self) -> dict[str, int]:
        """Return ``/proc/vmstat``: gauges and counters by the kernel's names, pages or events."""
        free = int(self.mem.zone[:, Z_FREE].sum())
        counted = dict(zip(NAMES, map(int, self.mem.vmstat), strict=True))
        return {"nr_free_pages": free, **counted}

    def meminfo(self) -> dict[str, int]:
        """Return the lines of ``/proc/meminfo`` that the model knows, in kB."""
        stat = self.vmstat()
        pages = {
            "MemTotal": int(self.mem.zone[:, Z_MANAGED].sum()),
            "MemFree": stat["nr_free_pages"],
            "AnonPages": stat["nr_anon_pages"],
            "AnonHugePages": stat["nr_anon_transparent_hugepages"] << HPAGE_PMD_ORDER,
            "PageTables": stat["nr_page_table_pages"],
        }
        return {name: nr << _KIB_SHIFT for name, nr in pages.items()}

    def buddyinfo(self) -> list[str]:
        """Return the lines of ``/proc/buddyinfo``: free blocks by zone and order."""
        return proc.buddyinfo(self.mem)

    def pagetypeinfo(self) -> list[str]:
        """Return the lines of ``/proc/pagetypeinfo``: free blocks and pageblocks by type."""
        return proc.pagetypeinfo(self.mem)

    def free_blocks(self) -> list[int]:
        """Return the free blocks of each order, 0 to 10, over all zones and types."""
        return [int(nr) for nr in self.mem.nr_free[:, :NR_TYPES].sum(axis=(0, 1))]

    def check(self) -> None:
        """Recompute who owns every frame, and compare.

        Raises
        ------
        InvariantError
            Something does not agree.
        """
        check_memory(self.mem)

    def _touch(self, ops: np.ndarray) -> None:
        """Carry out touches; while memory is short, the OOM killer takes VMs."""
        done = self.apply(ops, len(ops))
        while done < len(ops):
            killed = self._kill()
            if killed == NIL:
                break  # nobody is left who could touch anything
            ops[ops[:, host.OP_MM] == killed, host.OP_MM] = NIL
            done = self.apply(ops, len(ops), done)
        settle(self.mem)

    def _kill(self) -> int:
        mm = self.oom_victim()
        if mm != NIL:
            self._vms[mm].stop()
        return mm


class Vm:
    """A VM on a `Host`; made by `Host.boot_vm`.

    Simplified: it has no kernel of its own. `fleet.run` puts one into every VM.

    Examples
    --------
    >>> host = Host("2GiB", enabled="madvise")
    >>> plain, advised = host.boot_vm("512MiB"), host.boot_vm("512MiB", madvise=True)
    >>> plain.touch("100MiB"), advised.touch("100MiB", at="1MiB", every="2MiB")
    (None, None)
    >>> plain.huge_bytes >> 20, advised.huge_bytes >> 20
    (0, 100)
    """

    def __init__(self, on: Host, mm: int, pages: int) -> None:
        self._host, self._mm, self._pages = on, mm, pages

    @property
    def alive(self) -> bool:
        """Whether it still runs: the OOM killer may have taken it."""
        return self._mm != NIL

    def touch(self, size: str, at: str = "0KiB", every: str | None = None) -> None:
        """Write to guest RAM.

        Parameters
        ----------
        size, at
            The range: as much, from there on.
        every
            Touch one page of 4 KiB every so far; None: all pages.
        """
        rows = self._ranges(size, at, every)
        if rows:
            ops = [(self._mm, host.OP_TOUCH, start, nr) for start, nr in rows]
            self._host._touch(np.array(ops, np.int64))

    def discard(self, size: str, at: str = "0KiB", every: str | None = None) -> None:
        """Give guest RAM back (MADV_DONTNEED), as a balloon does; parameters as of `touch`."""
        rows = self._ranges(size, at, every)
        if rows:
            ops = [(self._mm, host.OP_DISCARD, start, nr) for start, nr in rows]
            self._host._touch(np.array(ops, np.int64))

    def stop(self) -> None:
        """End it; all its memory is freed."""
        if self.alive:
            self._host.stop(self._mm)
            del self._host._vms[self._mm]
            self._mm = NIL
            settle(self._host.mem)

    @property
    def rss_bytes(self) -> int:
        """Memory on the host: smaps Rss."""
        return self._of(MM_ANON) * PAGE_BYTES

    @property
    def huge_bytes(self) -> int:
        """Of it, in huge pages: smaps AnonHugePages."""
        return self._of(MM_HUGE) * HPAGE_PMD_NR * PAGE_BYTES

    @property
    def swap_bytes(self) -> int:
        """Memory in swap: smaps Swap."""
        return self._of(MM_SWAP) * PAGE_BYTES

    def _of(self, column: int) -> int:
        return int(self._host.mem.mm[self._mm, column]) if self.alive else 0

    def _ranges(self, size: str, at: str, every: str | None) -> list[tuple[int, int]]:
        start, nr = pages_of(at), pages_of(size)
        if start < 0 or start + nr > self._pages:
            raise ValueError(f"{size} at {at} is not within the VM's {self._pages} pages")
        if not self.alive or nr == 0:
            return []
        if every is None:
            return [(start, nr)]
        step = pages_of(every)
        if step < 1:
            raise ValueError(f"every {every}: at least one page of 4 KiB")
        return [(page, 1) for page in range(start, start + nr, step)]
