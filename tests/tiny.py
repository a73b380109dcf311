"""A small scenario, and what makes it cheap on real nodes."""

SMALL = """
[run]
duration = "2h"
tick = "10min"
epoch_ticks = 3
vm_rows = "30min"
hosts_per_part = 2

[[hosts]]
name = "a"
count = 3
vcpus = 16
memory = "32GiB"
reserved = "2GiB"

[[hosts]]
name = "b"
count = 2
vcpus = 8
memory = "16GiB"
reserved = "2GiB"

[hosts.thp]
enabled = "madvise"

[vms]
scale = 0.001

[placement]
reject_oversized = true
"""

# What makes the small scenario cheap on real nodes.
TINY = (
    "run.duration=1h",
    "hosts[0].memory=8GiB",
    "hosts[1].memory=8GiB",
    "hosts.reserved=2GiB",
    "hosts.slab.base=256MiB",
    "vms.scale=0.002",
    "placement.vcpu_overcommit=2.0",
)
