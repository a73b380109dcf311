"""Claims about starting from a real host: what was captured is what the simulated host has."""

import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, Final

from fleet.claims import Claim
from fleet.recordings import FOLDER, KERNELS
from fleet.snapshot_apply import Compared, applied
from fleet.snapshot_capture import capture
from fleet.snapshot_file import HostSnapshot
from hostsim.core.errors import ScenarioError

_CLAIM: Final = "applied state reproduces buddyinfo and pagetypeinfo"


def recorded_snapshots(kernel: str) -> Iterator[tuple[str, HostSnapshot]]:
    """Yield the first state of every recording of a kernel, with its script's name."""
    with tarfile.open(FOLDER / f"{kernel}.tar.gz") as archive:
        for name in sorted(archive.getnames()):
            file = archive.extractfile(name) if f"{kernel}/start/" in name else None
            if file is not None:
                yield name.rpartition("/")[2], snapshot_of(json.loads(file.readline()), kernel)


def snapshot_of(recorded: dict[str, Any], kernel: str) -> HostSnapshot:
    """Return the snapshot that a line of a recording stands for."""
    return HostSnapshot(
        captured_at="",
        kernel_release=kernel,
        cpu_model="qemu64",
        nr_cpus=1,
        virtualised=True,
        uptime_s=recorded["t_ms"] / 1000,
        consistent=True,
        nodes=(),
        zones=(),
        buddyinfo=tuple(recorded["buddyinfo"]),
        pagetypeinfo=tuple(recorded["pagetypeinfo"]),
        vmstat=recorded["vmstat"],
        meminfo_kb=recorded["meminfo_kb"],
        thp={},
        khugepaged={},
        hugetlb={},
        ksm={},
        vm={},
    )


def _claim(name: str, source: str, rows: list[Compared], what: str) -> Claim:
    differing = sum(row.differing for row in rows)
    cells = sum(row.cells for row in rows)
    measured = f"{differing} of {cells:,} counts differ{what}"
    return Claim(name, "every count equal", source, measured, differing == 0 and cells > 0)


def recordings() -> Iterator[Claim]:
    """Yield whether the first states of all recordings are reproduced."""
    for kernel in KERNELS:
        rows: list[Compared] = []
        nr = 0
        for name, snapshot in recorded_snapshots(kernel):
            rows += applied(snapshot, name)
            nr += 1
        source = f"recordings of Linux {kernel}, scenarios/groundtruth"
        yield _claim(f"{_CLAIM} of {nr} recordings, {kernel}", source, rows, "")


def this_machine() -> Iterator[Claim]:
    """Yield whether the state of the machine that this runs on is reproduced."""
    name = f"{_CLAIM} of this machine"
    try:
        snapshot = capture()
        rows = applied(snapshot, "this machine")
    except ScenarioError as error:
        yield Claim(name, "every count equal", "/proc", f"refused: {error}", False)
        return
    what = "" if snapshot.pagetypeinfo else " (buddyinfo alone: pagetypeinfo is root's)"
    yield _claim(name, f"/proc of Linux {snapshot.kernel_release}", rows, what)


CHECKS: Final[dict[str, Callable[[], Iterator[Claim]]]] = {
    "recordings applied": recordings,
    "this machine applied": this_machine,
}
