"""Recognising virtual machines, from files as various hypervisors show them."""

import pytest

from fleet.virtual import detect, steal_and_all_ticks

BARE = {"proc/cpuinfo": "flags : fpu vmx\n", "sys/class/dmi/id/sys_vendor": "Dell Inc.\n"}


@pytest.fixture
def machine(tmp_path):
    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (BARE, "none"),
        ({}, "none"),
        ({"proc/cpuinfo": "flags : fpu hypervisor sse\n"}, "unknown"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, "qemu"),
        ({"sys/class/dmi/id/product_name": "KVM\n"}, "kvm"),
        ({"sys/hypervisor/type": "xen\n"}, "xen"),
        (
            {
                "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
                "sys/class/dmi/id/product_name": "m5.metal\n",
            },
            "none",
        ),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}, "amazon"),
    ],
)
def test_kind_of_machine(machine, files, kind):
    found = detect(machine(files))
    assert (found.kind, found.virtual) == (kind, kind != "none")


def test_steal_is_the_eighth_column(machine):
    """proc(5): user nice system idle iowait irq softirq steal guest guest_nice."""
    root = machine({"proc/stat": "cpu  1 2 3 4 5 6 7 80 9 9\ncpu0 1 1\n"})
    assert steal_and_all_ticks(root) == (80, 108)
    assert steal_and_all_ticks(root / "none") == (0, 0)
