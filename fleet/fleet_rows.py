"""The row that an epoch adds to the table ``fleet``: sums over the hosts as of its end."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleet.pool import Pool
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.stats import FLEET_COLUMNS

_COLUMN: Final = {column.name: index for index, column in enumerate(HOST_COLUMNS)}
_SUMS: Final = (
    "nr_vms",
    "committed_vcpus",
    "committed_pages",
    "managed_pages",
    "pageblocks_holding_unmovable",
    "thp_fault_alloc",
    "thp_fault_fallback",
)
UNMOVABLE: Final = ("nr_page_table_pages", "nr_ept_pages", "nr_kernel_pages")


def fleet_row(hosts: NDArray[np.int64], pool: Pool) -> NDArray[np.int64]:
    """Return the row of an epoch.

    Parameters
    ----------
    hosts
        Its rows of the table ``hosts``.
    pool
        What each host offers; what is left of it is read from the rows.
    """
    t_ns = hosts[:, _COLUMN["t_ns"]]
    last = hosts[t_ns == t_ns.max()]

    def of(name: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = last[:, _COLUMN[name]]
        return column

    vcpus, pages = (total[of("host_id")] for total in (pool.total_vcpus, pool.total_pages))
    busy = of("nr_vms") > 0
    full = of("committed_vcpus") >= vcpus
    unrented = np.maximum(pages - of("committed_pages"), 0)
    values = {
        "t_ns": t_ns.max(),
        "nr_hosts": len(last),
        "empty_hosts": (~busy).sum(),
        "full_hosts": full.sum(),
        "offered_vcpus": vcpus.sum(),
        "occupied_vcpus": vcpus[busy].sum(),
        "offered_pages": pages.sum(),
        "stranded_pages": unrented[full].sum(),
        "hosts_no_free_2m": (of("nr_free_order9") + of("nr_free_order10") == 0).sum(),
        "hosts_no_free_32m": (of("nr_free_32m") == 0).sum(),
        "hosts_no_free_1g": (of("nr_free_1g") == 0).sum(),
        "unmovable_pages": sum(of(name).sum() for name in UNMOVABLE),
    } | {name: of(name).sum() for name in _SUMS}
    return np.array([[values[column.name] for column in FLEET_COLUMNS]], np.int64)
