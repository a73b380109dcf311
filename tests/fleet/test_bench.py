from fleet.bench import PARTS, digest_tables, measure_memory
from fleet.loading import load

SMALL = ["hosts.count=2", "hosts.memory=64GiB", "run.duration=1h", "vms.scale=0.0002"]


def test_memory_counts_every_array_once_and_sums_the_allocator():
    found = measure_memory(load("churn", SMALL))
    means = {row["part"]: row["mean_kib"] for row in found["parts"]}
    allocator = sum(means[part.name] for part in PARTS if part.allocator)
    assert found["allocator"]["mean_kib"] == allocator
    # 10 B for each of the 512 pageblocks of a GiB
    assert 4.0 <= means["pageblocks, orders 9 and 10"] < 4.2
    names = [name for part in PARTS for name in part.arrays]
    assert len(names) == len(set(names))


def test_digest_notices_a_changed_byte_and_a_renamed_part(tmp_path):
    for table in ("hosts", "vms", "events"):
        (tmp_path / table).mkdir()
    part = tmp_path / "hosts" / "part-e00000-g0000.parquet"
    part.write_bytes(b"abc")
    first = digest_tables(tmp_path)
    part.write_bytes(b"abd")
    second = digest_tables(tmp_path)
    part.write_bytes(b"abc")
    part.rename(part.with_name("part-e00001-g0000.parquet"))
    third = digest_tables(tmp_path)
    assert len({d["hosts"] for d in (first, second, third)}) == 3
    assert first["vms"] == second["vms"] == third["vms"]
