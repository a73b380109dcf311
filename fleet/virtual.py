"""Whether this machine is a virtual one, and how one can tell.

Source: what systemd-detect-virt looks at, as far as files tell it: the CPU's hypervisor bit,
/sys/hypervisor, DMI strings, the device tree.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

DMI: Final = ("product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version")
VENDORS: Final = (  # what a DMI string begins with
    ("KVM", "kvm"),
    ("OpenStack", "kvm"),
    ("KubeVirt", "kvm"),
    ("Amazon EC2", "amazon"),
    ("QEMU", "qemu"),
    ("VMware", "vmware"),
    ("VMW", "vmware"),
    ("innotek GmbH", "oracle"),
    ("VirtualBox", "oracle"),
    ("Oracle Corporation", "oracle"),
    ("Xen", "xen"),
    ("Bochs", "bochs"),
    ("Parallels", "parallels"),
    ("BHYVE", "bhyve"),
    ("Hyper-V", "microsoft"),
    ("Google", "google"),
    ("Apple Virtualization", "apple"),
)


class Virtual(NamedTuple):
    """What a machine runs in."""

    virtual: bool
    kind: str  # "none" on bare metal, "unknown" if only the CPU says so
    evidence: str


def detect(root: str | Path = "/") -> Virtual:
    """Look whether this is a virtual machine."""
    base = Path(root)
    for name in DMI:
        text = _text(base / "sys/class/dmi/id" / name)
        for prefix, kind in VENDORS:
            if text.startswith(prefix) and not (kind == "amazon" and ".metal" in _product(base)):
                return Virtual(True, kind, f"DMI {name} is {text!r}")
    hypervisor = _text(base / "sys/hypervisor/type")
    if hypervisor:
        return Virtual(True, hypervisor, f"/sys/hypervisor/type is {hypervisor!r}")
    cpuinfo = _text(base / "proc/cpuinfo")
    if re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE):
        return Virtual(True, "unknown", "the CPU has the hypervisor flag")
    if re.search(r"^vendor_id\s*:\s*User Mode Linux", cpuinfo, re.MULTILINE):
        return Virtual(True, "uml", "the CPU is that of User Mode Linux")
    return Virtual(False, "none", "no hypervisor flag, no DMI string, no /sys/hypervisor")


def _product(base: Path) -> str:
    return _text(base / "sys/class/dmi/id/product_name")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def steal_and_all_ticks(root: str | Path = "/") -> tuple[int, int]:
    """Return the ticks that a hypervisor took from this machine since boot, and all ticks."""
    cells = _text(Path(root) / "proc/stat").splitlines()[:1]
    ticks = [int(cell) for cell in cells[0].split()[1:]] if cells else []
    return (ticks[7] if len(ticks) > 7 else 0), sum(ticks[:8])  # guest time is in user time
