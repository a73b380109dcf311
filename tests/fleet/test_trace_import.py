import gzip
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fleet.trace import NEVER
from fleet.trace_csv import CHUNK_BYTES, ImportOptions, text_lines
from fleet.trace_import import IMPORTERS, import_trace
from hostsim.core.errors import ScenarioError
from hostsim.core.units import NS_PER_DAY, NS_PER_S

GIB = 262144  # base pages


def vmtable(rows):
    """Build vmtable text of (subscription, created, deleted, cores, GB)."""
    return "".join(
        f"vm{n}+/=,{sub},dep,{created},{deleted},9.1,1.2,3.4,Unknown,{cores},{gb}\n"
        for n, (sub, created, deleted, cores, gb) in enumerate(rows)
    )


def gz(path, text):
    path.write_bytes(gzip.compress(text.encode()))
    return path


V1 = [
    ("s1", 600, 900, 1, 1.75),
    ("s1", 600, 600, 1, 0.75),
    ("s2", 0, 2591700, 4, 7.0),
    ("s1", 300, 2591100, 2, 3.5),
    ("s2", 600, 2591400, 2, 3.5),
]


@pytest.mark.parametrize("compressed", [True, False])
def test_vmtable_becomes_a_trace(tmp_path, compressed):
    path = tmp_path / ("vmtable.csv.gz" if compressed else "vmtable.csv")
    gz(path, vmtable(V1)) if compressed else path.write_text(vmtable(V1))
    trace = import_trace("azure-v1", path)
    s = NS_PER_S
    assert trace.start_ns.tolist() == [-1, 300 * s, 600 * s, 600 * s, 600 * s]
    assert trace.end_ns.tolist() == [NEVER, 2591100 * s, 900 * s, 900 * s, NEVER]
    assert trace.vcpus.tolist() == [4, 2, 1, 1, 2]
    assert (trace.memory_pages / GIB).tolist() == [7.0, 3.5, 1.75, 0.75, 3.5]
    assert trace.flavours == ("1c-0.75GiB", "1c-1.75GiB", "2c-3.5GiB", "4c-7GiB")
    assert trace.flavour.tolist() == [3, 2, 1, 0, 2]
    assert trace.batch_id[2] == trace.batch_id[3]
    assert np.unique(trace.batch_id).size == 4
    assert trace.span_ns == 2591700 * s


def test_blank_lines_and_carriage_returns_do_not_shift_row_numbers(tmp_path):
    good = vmtable([V1[0]]).replace("\n", "\r\n")
    path = tmp_path / "v.csv"
    path.write_text(f"{good}\n{good}short,row\n{good}", newline="")
    with pytest.raises(ScenarioError, match="row 4: 2 fields, must be 11"):
        import_trace("azure-v1", path)


def test_every_bad_row_of_a_vmtable_is_reported(tmp_path):
    bad = [
        ("s", 900, 600, 1, 1.75),
        ("s", "x", 600, 1, 1.75),
        ("s", 0, 600, 0, 1.75),
        ("s", 0, 600, 1.5, 1.75),
        ("s", 0, 600, 1, -2),
        ("s", 0, 600, 1, 1.7001),
        ("s", -300, 600, 1, 1),
    ]
    path = gz(tmp_path / "v.csv.gz", vmtable([V1[0], *bad]))
    with pytest.raises(ScenarioError) as caught:
        import_trace("azure-v1", path)
    messages = [(p.place.rpartition("row ")[2], p.message) for p in caught.value.problems]
    assert messages == [
        ("2", "vmdeleted 600 lies before vmcreated 900"),
        ("3", "vmcreated 'x' is not a number"),
        ("4", "vmcorecount 0 must be a positive whole number"),
        ("5", "vmcorecount 1.5 must be a positive whole number"),
        ("6", "vmmemory -2 must be positive"),
        ("7", "vmmemory 1.7001 GB is no whole number of 4096 B"),
        ("8", "vmcreated -300 must not be negative"),
    ]


def test_bad_rows_are_counted_over_the_whole_file(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text(vmtable([("s", 900, 600, 1, 1.75)] * 50))
    with pytest.raises(ScenarioError, match="50 bad values in all, the first 20 shown"):
        import_trace("azure-v1", path)


def test_truncated_gzip_is_a_clear_error(tmp_path):
    path = gz(tmp_path / "v.csv.gz", vmtable(V1 * 100))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ScenarioError, match=r"v\.csv\.gz: gzip data is broken"):
        import_trace("azure-v1", path)


def test_file_that_is_no_gzip_is_a_clear_error(tmp_path):
    (tmp_path / "v.csv.gz").write_text("plain")
    with pytest.raises(ScenarioError, match="gzip data is broken"):
        import_trace("azure-v1", tmp_path / "v.csv.gz")


@pytest.mark.parametrize("name", sorted(IMPORTERS))
def test_missing_file_is_a_clear_error(tmp_path, name):
    with pytest.raises(ScenarioError, match="no such file"):
        import_trace(name, tmp_path / "gone")


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_file_is_a_clear_error(tmp_path, text):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(ScenarioError, match="holds no VMs"):
        import_trace("azure-v1", tmp_path / "v.csv")


def test_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(ScenarioError, match="'azure' is none of azure-v1, azure-v2"):
        import_trace("azure", tmp_path)


def test_lines_cut_at_chunk_borders_stay_whole(tmp_path):
    lines = [f"{n}," + "x" * 997 for n in range(CHUNK_BYTES // 1000 + 50)]
    (tmp_path / "big").write_text("\n".join(lines))
    chunks = list(text_lines(tmp_path / "big"))
    assert len(chunks) > 1
    firsts = 1 + np.cumsum([0, *(len(chunk) for _, chunk in chunks)])[:-1]
    assert [first for first, _ in chunks] == firsts.tolist()
    assert [line for _, chunk in chunks for line in chunk] == lines


def test_v2_buckets_take_their_upper_bound_and_open_ones_maros(tmp_path):
    rows = [("s", 300, 900, "2", "4"), ("s", 300, 900, ">24", ">64"), ("t", 0, 2591400, 24, 64)]
    trace = import_trace("azure-v2", gz(tmp_path / "v.csv.gz", vmtable(rows)))
    assert trace.vcpus.tolist() == [24, 2, 32]
    assert (trace.memory_pages / GIB).tolist() == [64, 4, 128]
    assert trace.end_ns[0] == NEVER


def test_unknown_bucket_is_a_bad_row(tmp_path):
    path = gz(tmp_path / "v.csv.gz", vmtable([("s", 300, 900, "3", "4")]))
    with pytest.raises(ScenarioError, match="row 1: bucket '3' is none of 2, 4, 8, 12, 24, >24"):
        import_trace("azure-v2", path)


def packing(path, vms, types):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE vm (vmId, tenantId, vmTypeId, priority, starttime, endtime)")
        db.execute("CREATE TABLE vmType (id, vmTypeId, machineId, core, memory, hdd, ssd, nic)")
        db.executemany("INSERT INTO vm VALUES (?, ?, ?, 0, ?, ?)", vms)
        db.executemany("INSERT INTO vmType VALUES (?, ?, ?, ?, ?, 0, 0, 0)", types)
    db.close()
    return path


TYPES = [
    (1, 10, 16, 0.25, 0.125),
    (2, 10, 7, 0.5, 0.5),
    (3, 11, 16, 1 / 3, 0.3),
    (4, 12, 7, 1.0, 1.0),
    (5, 10, 16, 0.25, 0.125),
]


def test_packing_takes_one_machine_and_does_not_multiply_vms(tmp_path):
    vms = [(1, "a", 10, -0.5, 0.25), (2, "a", 11, 0.5, None), (3, "b", 10, "0.5", "90")]
    path = packing(tmp_path / "p.sqlite", vms, TYPES)
    options = ImportOptions(vcpus=48, memory_pages=256 * GIB)
    trace = import_trace("azure-packing", path, options)
    assert trace.start_ns.tolist() == [-NS_PER_DAY // 2, NS_PER_DAY // 2, NS_PER_DAY // 2]
    assert trace.end_ns.tolist() == [NS_PER_DAY // 4, NEVER, 90 * NS_PER_DAY]
    assert trace.vcpus.tolist() == [12, 16, 12]
    assert trace.memory_pages.tolist() == [32 * GIB, -(-256 * GIB * 3 // 10), 32 * GIB]
    assert trace.span_ns == 14 * NS_PER_DAY


def test_packing_leaves_out_types_that_the_machine_cannot_host_and_says_so(tmp_path, caplog):
    path = packing(tmp_path / "p", [(1, "a", 10, 0, 1), (2, "a", 12, 0, 1)], TYPES)
    assert import_trace("azure-packing", path).nr_vms == 1
    assert "1 of 2 VMs left out, machine 16 cannot host their types" in caplog.text
    trace = import_trace("azure-packing", path, ImportOptions(machine_id=7))
    assert trace.vcpus.tolist() == [32, 64]


def test_packing_reports_bad_rows_and_unknown_machines(tmp_path):
    path = packing(tmp_path / "p", [(1, "a", 10, 2, 1), (2, "a", 10, "x", 1)], TYPES)
    with pytest.raises(ScenarioError, match="row 1: endtime 1 lies before starttime 2") as caught:
        import_trace("azure-packing", path)
    assert "row 2: starttime is not a number" in str(caught.value)
    with pytest.raises(ScenarioError, match="machineId 3 is none of 7, 16"):
        import_trace("azure-packing", path, ImportOptions(machine_id=3))


def test_packing_refuses_a_file_that_is_no_sqlite(tmp_path):
    (tmp_path / "p").write_text("not a database, but long enough to look like one" * 20)
    with pytest.raises(ScenarioError, match="cannot be queried"):
        import_trace("azure-packing", tmp_path / "p")


def huawei(path, rows):
    path.write_text("vmid,cpu,memory,time,type\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_huawei_pairs_creations_with_deletions(tmp_path):
    rows = ["1,1,2,0,0", "2,4,8,5,0", "1,1,2,9,1", "3,2,4,9,0", "1,1,2,12,0", "3,2,4,9,1"]
    trace = import_trace("huawei", huawei(tmp_path / "h.csv", rows))
    s = NS_PER_S
    assert trace.start_ns.tolist() == [0, 5 * s, 9 * s, 12 * s]
    assert trace.end_ns.tolist() == [9 * s, NEVER, 10 * s, NEVER]  # 3: one second at least
    assert trace.vcpus.tolist() == [1, 4, 2, 1]
    assert (trace.memory_pages // GIB).tolist() == [2, 8, 4, 2]
    assert trace.span_ns == 12 * s + 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1,1,2,0,1"], "row 2: deletes VM 1, which does not run"),
        (["1,1,2,0,0", "1,1,2,5,0"], "row 3: creates VM 1, which runs"),
        (["1,1,2,9,0", "1,1,2,5,1"], "row 3: deletes VM 1 before it is created"),
        (["1,1,2,0,2"], "row 2: type 2 is neither 0"),
        (["1,0,2,0,0"], "row 2: cpu 0 must be a positive whole number"),
        (["1,1,x,0,0"], "row 2: memory 'x' is not a number"),
        (["1,1,2,0"], "row 2: 4 fields, must be 5"),
    ],
)
def test_huawei_reports_rows_that_make_no_sense(tmp_path, rows, message):
    with pytest.raises(ScenarioError, match=message):
        import_trace("huawei", huawei(tmp_path / "h.csv", rows))


def test_huawei_wants_its_header(tmp_path):
    (tmp_path / "h.csv").write_text("1,1,2,0,0\n")
    with pytest.raises(ScenarioError, match="row 1: header is '1,1,2,0,0', must be 'vmid,cpu"):
        import_trace("huawei", tmp_path / "h.csv")


def own(path, rows):
    path.write_text("vm,start_s,end_s,vcpus,memory_gib\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_own_vms_may_run_at_the_beginning_and_stay(tmp_path):
    rows = ["web-2,600,7200.5,4,16", "web-1,-86400,,4,16", "batch,1800,3000,2,0.5"]
    trace = import_trace("csv", own(tmp_path / "vms.csv", rows))
    s = NS_PER_S
    assert trace.start_ns.tolist() == [-86400 * s, 600 * s, 1800 * s]
    assert trace.end_ns.tolist() == [NEVER, 7200 * s + s // 2, 3000 * s]
    assert trace.vcpus.tolist() == [4, 4, 2]
    assert trace.memory_pages.tolist() == [16 * GIB, 16 * GIB, GIB // 2]
    assert [trace.flavours[i] for i in trace.flavour] == ["4c-16GiB", "4c-16GiB", "2c-0.5GiB"]
    assert trace.span_ns == 7200 * s + s // 2 + 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,x,9,1,1", "row 2: start_s 'x' is not a number"),
        ("a,0,y,1,1", "row 2: end_s 'y' is not a number"),
        ("a,5,5,1,1", "row 2: end_s 5 is not behind start_s 5"),
        ("a,-9,-1,1,1", "row 2: end_s -1: the VM is gone before time 0"),
        ("a,0,9,1.5,1", "row 2: vcpus 1.5 must be a positive whole number"),
        ("a,0,9,1,0", "row 2: memory_gib 0 must be positive"),
        ("a,0,9,1,0.0000001", "row 2: memory_gib 1e-07 is no whole number of 4096 B"),
        ("a,0,9,1", "row 2: 4 fields, must be 5"),
    ],
)
def test_own_rows_that_make_no_sense_are_reported(tmp_path, row, message):
    with pytest.raises(ScenarioError, match=message):
        import_trace("csv", own(tmp_path / "vms.csv", [row]))


def test_own_file_wants_its_header_and_a_vm(tmp_path):
    (tmp_path / "vms.csv").write_text("vm,start,end\n")
    with pytest.raises(ScenarioError, match="row 1: header is 'vm,start,end', must be 'vm,start_s"):
        import_trace("csv", tmp_path / "vms.csv")
    with pytest.raises(ScenarioError, match="holds no VMs"):
        import_trace("csv", own(tmp_path / "empty.csv", []))


def arrivals_folder(tmp_path, arrivals, lifetimes):
    (tmp_path / "flav_map.txt").write_text("1,0.75 a\n2,3.5 g\n")
    seconds = [f"{300 * at} {at}" for at in range(13)]
    seconds += [f"{300 * at} 13" for at in range(13, 25)]
    gz(tmp_path / "v1.interval_map.txt.gz", "\n".join(seconds) + "\n")
    gz(tmp_path / "v1.test.txt.gz", arrivals)
    gz(tmp_path / "v1.test.c2591400.txt.gz", lifetimes)
    return tmp_path


ARRIVALS = "2100000 a,g,|,g,|,\n2590800 a,|,g,|,g,|,"
LIFETIMES = "2100000 U0,U13,|,C3,|,\n2590800 U2,|,U12,|,C2,|,"


def test_processed_arrivals_live_to_the_middle_of_their_bin(tmp_path):
    trace = import_trace("azure-v1-arrivals", arrivals_folder(tmp_path, ARRIVALS, LIFETIMES))
    assert (trace.start_ns // NS_PER_S).tolist() == [0, 0, 0, 490800, 490800, 490800]
    # bin 0 lasts 300 s at least, bin 13 the middle of 3,900 and 7,200 s, none beyond the end
    ends = [300, 5550, None, 491400, 491400, None]
    assert [None if e == NEVER else e // NS_PER_S for e in trace.end_ns.tolist()] == ends
    assert trace.batch_id.tolist() == [0, 0, 1, 2, 3, 4]
    assert trace.memory_pages.tolist()[:2] == [GIB * 3 // 4, GIB * 7 // 2]
    assert trace.span_ns == 491400 * NS_PER_S


def test_processed_arrivals_can_keep_the_months_clock(tmp_path):
    folder = arrivals_folder(tmp_path, ARRIVALS, LIFETIMES)
    trace = import_trace("azure-v1-arrivals", folder, ImportOptions(keep_clock=True))
    assert trace.start_ns[0] == 2100000 * NS_PER_S
    assert trace.span_ns == 2591400 * NS_PER_S


def test_part_without_lifetimes_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="--part train: has no lifetimes, only dev and test"):
        import_trace("azure-v1-arrivals", tmp_path, ImportOptions(part="train"))
    with pytest.raises(ScenarioError, match="--part all: is none of dev, test"):
        import_trace("azure-v1-arrivals", tmp_path, ImportOptions(part="all"))


@pytest.mark.parametrize(
    ("arrivals", "lifetimes", "message"),
    [
        ("2100000 a,|,", "2100300 U1,|,", "row 1: seconds '2100000' and '2100300'"),
        ("2100000 a,|,", "2100000 U1,U1,|,", "row 1: arrivals and lifetimes differ"),
        ("2100000 z,|,", "2100000 U1,|,", "row 1: flavour 'z' is not in flav_map"),
        ("2100000 a,|,", "2100000 U14,|,", "row 1: lifetime 'U14' is not U or C and a bin below"),
        ("2100000 a,|,", "2100000 X1,|,", "row 1: lifetime 'X1'"),
        ("2591400 a,|,", "2591400 U1,|,", "row 1: arrivals at 2591400 s, the part ends at"),
        ("2100000 a,|,\n2100300 a,|,", "2100000 U1,|,", "2 lines, its lifetimes 1"),
    ],
)
def test_malformed_arrivals_are_reported(tmp_path, arrivals, lifetimes, message):
    with pytest.raises(ScenarioError, match=message):
        import_trace("azure-v1-arrivals", arrivals_folder(tmp_path, arrivals, lifetimes))


@pytest.mark.skipif("HUGEFLEET_AZURE_V1" not in os.environ, reason="needs the processed arrivals")
@pytest.mark.parametrize(("policy", "host_hours"), [("best-fit", 140_697), ("first-fit", 142_198)])
def test_v1_test_part_packs_as_an_independent_program_packed_it(policy, host_hours):
    from fleet.pack import pack_trace

    trace = import_trace("azure-v1-arrivals", Path(os.environ["HUGEFLEET_AZURE_V1"]))
    result = pack_trace(trace, policy, 48, 256 * GIB)
    assert result.started == 410_276
    assert result.host_hours == pytest.approx(host_hours, abs=1)
    assert result.bound_host_hours == pytest.approx(128_442, abs=1)
    assert result.peak_hosts == 1_341
