"""The row of the fleet: worked by hand from the definitions of its columns."""

import numpy as np

from fleet.fleet_rows import fleet_row
from fleet.pool import make_pool
from fleet.sql import query
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.stats import FLEET_COLUMNS

AT = {column.name: index for index, column in enumerate(HOST_COLUMNS)}
POOL = make_pool(np.array([8, 8, 16, 8]), np.array([1000, 1000, 2000, 1000]))


def host(host_id, t_ns=300, **values):
    row = np.zeros(len(HOST_COLUMNS), np.int64)
    for name, value in (values | {"host_id": host_id, "t_ns": t_ns}).items():
        row[AT[name]] = value
    return row


def row_of(hosts):
    row = fleet_row(np.array(hosts), POOL)
    return dict(zip([column.name for column in FLEET_COLUMNS], row[0].tolist(), strict=True))


FOUR = [
    host(0, 200, nr_vms=9, committed_vcpus=99),  # an earlier tick does not count
    host(0, nr_vms=2, committed_vcpus=8, committed_pages=400),  # full: 600 pages are stranded
    host(1, nr_vms=1, committed_vcpus=4, committed_pages=700, nr_free_order9=1),
    host(2, nr_vms=3, committed_vcpus=16, committed_pages=2000, nr_free_order10=1),
    host(3, nr_free_32m=2, nr_free_1g=1, nr_free_order10=600),
]


def test_packing_counts_hosts_in_use_only():
    """Protean: cores used, of the cores of hosts that are not empty."""
    row = row_of(FOUR)
    assert (row["nr_hosts"], row["empty_hosts"], row["nr_vms"]) == (4, 1, 6)
    assert (row["committed_vcpus"], row["occupied_vcpus"], row["offered_vcpus"]) == (28, 32, 40)


def test_memory_is_stranded_where_no_vcpu_is_left():
    """Pond: memory left over once all cores are rented; host 1 still has cores."""
    row = row_of(FOUR)
    assert (row["full_hosts"], row["stranded_pages"], row["offered_pages"]) == (2, 600, 5000)


def test_memory_oversold_is_not_stranded():
    row = row_of([host(0, nr_vms=1, committed_vcpus=9, committed_pages=1200)])
    assert (row["full_hosts"], row["stranded_pages"]) == (1, 0)


def test_hosts_without_a_free_block():
    row = row_of(FOUR)
    assert [row[f"hosts_no_free_{size}"] for size in ("2m", "32m", "1g")] == [1, 3, 3]


def test_unmovable_memory_is_page_tables_ept_and_kernel():
    values = {"nr_page_table_pages": 1, "nr_ept_pages": 10, "nr_kernel_pages": 100}
    row = row_of([host(0, **values), host(1, **values, pageblocks_holding_unmovable=7)])
    assert (row["unmovable_pages"], row["pageblocks_holding_unmovable"]) == (222, 7)


def test_one_row_an_epoch_that_agrees_with_the_hosts(run_small):
    out = run_small()
    fleet = query(out, "SELECT * FROM fleet ORDER BY t_ns")
    hosts = query(
        out,
        "SELECT t_ns, SUM(nr_vms) AS nr_vms, SUM(committed_pages) AS committed_pages"
        " FROM hosts GROUP BY t_ns ORDER BY t_ns",
    )
    joined = fleet.join(hosts, on="t_ns", suffix="_hosts")
    assert len(joined) == len(fleet) > 1
    for name in ("nr_vms", "committed_pages"):
        assert joined[name].to_list() == joined[f"{name}_hosts"].to_list()
