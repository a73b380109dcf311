"""A host computed again equals its rows, and its picture equals what it holds."""

import base64
import json
import shutil
import struct
import zlib

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakenode import FakeNode
from pagemap import drawn_memory
from typer.testing import CliRunner

from fleet import map_picture
from fleet.cli import app
from fleet.maps import as_json, maps_of
from fleet.memory_map import CELLS, TYPES, Cell, columns_of, memory_map
from fleet.rerun import hosts_needed, recorded_rows, rerun
from fleet.rundir import open_run, part_path
from fleet.scan import scan
from fleet.schema import arrow_table, rows_of
from hostsim.core.errors import InvariantError, ResultsError, ScenarioError
from hostsim.core.stats import NODE_TABLES
from hostsim.core.units import NS_PER_HOUR
from hostsim.mm.mm_types import MIGRATE_MOVABLE, MIGRATE_UNMOVABLE
from hostsim.mm.pb_packed import repack

SOURCE = 0  # under maintenance after an hour: its VMs move away


@pytest.fixture(scope="module")
def destination(eventful):
    """The host to which most VMs moved."""
    moved = scan(open_run(eventful), "migrations").collect()
    counts = moved.group_by("host_id").len().sort("len", "host_id", descending=True)
    return int(counts["host_id"][0])


@pytest.fixture(scope="module")
def found(eventful, destination):
    return maps_of(str(eventful), destination, every="1h")


def row_at(eventful, host, t_ns):
    rows = scan(open_run(eventful), "hosts").filter(
        (pl.col("host_id") == host) & (pl.col("t_ns") == t_ns)
    )
    return rows.collect().row(0, named=True)


def test_host_that_took_vms_is_computed_with_those_that_sent_them(found, destination, eventful):
    assert found.rerun.host_ids == tuple(sorted((SOURCE, destination)))
    rows = sum(
        len(
            scan(open_run(eventful), table)
            .filter(pl.col("host_id").is_in(found.rerun.host_ids))
            .filter(
                ~pl.col("event").cast(pl.String).is_in(["reject", "host_down", "host_up"])
                if table == "events"
                else pl.lit(True)
            )
            .collect()
        )
        for table in NODE_TABLES
    )
    assert found.rerun.rows == rows


def test_picture_holds_what_the_row_counts(found, destination, eventful):
    assert [one.t_ns for one in found.maps] == [hour * NS_PER_HOUR for hour in (1, 2, 3)]
    for one in found.maps:
        row, counts = row_at(eventful, destination, one.t_ns), one.counts()
        assert counts[Cell.FREE] == row["nr_free_order9"] + 2 * row["nr_free_order10"]
        partial = (Cell.QUARTER, Cell.HALF, Cell.THREE_QUARTERS, Cell.NEARLY)
        assert (
            sum(counts[cell] for cell in (*partial, Cell.UNMOVABLE_PARTIAL))
            == row["pageblocks_partial"]
        )
        unmovable = counts[Cell.UNMOVABLE_PARTIAL] + counts[Cell.UNMOVABLE]
        assert unmovable == row["pageblocks_holding_unmovable"]
        assert counts[Cell.HUGE] == row["nr_anon_transparent_hugepages"]
        types = one.type_counts()
        for name in ("unmovable", "movable", "reclaimable"):
            assert types[name.capitalize()] - (
                counts[Cell.RESERVED] if name == "movable" else 0
            ) == pytest.approx(row[f"pageblocks_{name}"], abs=counts[Cell.RESERVED])
        assert sum(counts.values()) == sum(types.values()) == 8 * 512
    assert found.maps[0].counts() != found.maps[2].counts()


def test_fill_is_told_on_both_sides_of_a_quarter():
    """A share of 32 letters is 16 pages; a page more or less is drawn by freeing one."""
    movable, kernel = MIGRATE_MOVABLE, MIGRATE_UNMOVABLE
    mem = drawn_memory(
        "6.12",
        [
            ("A" + "." * 3, movable),
            ("AA" + "." * 2, movable),
            ("A" * 3 + ".", movable),
            ("A" * 13 + "." * 3, movable),
            ("A", movable),
            ("K.", kernel),
        ],
    )
    one = memory_map(mem, 0)
    assert [Cell(cell) for cell in one.cells] == [
        Cell.QUARTER,
        Cell.HALF,
        Cell.THREE_QUARTERS,
        Cell.NEARLY,
        Cell.SMALL,
        Cell.UNMOVABLE_PARTIAL,
        Cell.SMALL,
        Cell.UNMOVABLE,  # the page tables of drawn_memory
    ]
    assert one.types[:6].tolist() == [movable] * 5 + [kernel]


def test_both_halves_of_a_free_block_of_order_10_are_free():
    mem = drawn_memory("6.12", [(".", MIGRATE_MOVABLE)] * 3)
    assert mem.nr_free[:, MIGRATE_MOVABLE, 9:].sum(axis=0).tolist() == [1, 1]
    counts = memory_map(mem, 0).counts()
    assert counts[Cell.FREE] == 3


def test_pageblock_in_no_known_state_is_not_guessed():
    mem = drawn_memory("6.12", [("A", MIGRATE_MOVABLE), ("A", MIGRATE_MOVABLE)])
    repack(mem.pb, [1], flags=15)
    with pytest.raises(InvariantError, match="pageblock 1 is in no known state"):
        memory_map(mem, 0)


def decoded(png):
    """Read a PNG with a palette and no filters, as the specification says."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, {}
    while place < len(png):
        length = struct.unpack(">I", png[place : place + 4])[0]
        kind, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        crc = struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0]
        assert crc == zlib.crc32(kind + content)
        chunks[kind] = content
        place += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 3)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    return palette[lines[:, 1:]]


def urls(value):
    if isinstance(value, dict):
        if "url" in value and isinstance(value["url"], str):
            yield value["url"]
        for part in value.values():
            yield from urls(part)
    elif isinstance(value, list):
        for part in value:
            yield from urls(part)


def test_pixels_of_the_picture_are_the_counts(found):
    spec = json.loads(map_picture.specification(found.maps, found.title))
    pictures = [
        decoded(base64.b64decode(url.partition(",")[2]))
        for url in urls(spec)
        if url.startswith("data:image/png")
    ]
    assert len(pictures) == 2 * len(found.maps)
    for one, picture in zip(found.maps, pictures[: len(found.maps)], strict=True):
        scale = picture.shape[1] // columns_of(len(one.cells))
        colours, nr = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        names = [f"#{bytes(colour).hex()}" for colour in colours]
        shown = dict(zip(names, (nr // scale**2).tolist(), strict=True))
        assert shown == {CELLS[cell].colour: n for cell, n in one.counts().items() if n}
    for one, picture in zip(found.maps, pictures[len(found.maps) :], strict=True):
        shown = {f"#{bytes(c).hex()}" for c in np.unique(picture.reshape(-1, 3), axis=0)}
        names = {word.text: word.colour for word in TYPES}
        assert shown == {names[name] for name, n in one.type_counts().items() if n}


def test_rows_of_cells_begin_at_their_address():
    cells = map_picture.grid(np.arange(6, dtype=np.uint8), beyond=9)
    assert cells.tolist() == [[0, 1, 2, 3], [4, 5, 9, 9]]
    assert columns_of(256 * 512) == 512


def test_colours_differ_and_are_legends():
    assert len({word.colour for word in CELLS.values()}) == len(Cell)
    assert len({word.colour for word in TYPES}) == len(TYPES)


@pytest.mark.parametrize("table", NODE_TABLES)
def test_rows_survive_arrow(eventful, table):
    rows = recorded_rows(open_run(eventful), 1)[table]
    assert np.array_equal(rows_of(table, arrow_table(table, rows)), rows)


def test_other_rows_are_refused_with_the_first_difference(eventful, destination, tmp_path):
    copy = shutil.copytree(eventful, tmp_path / "copy")
    for group in range(3):  # of two hosts each
        path = copy / part_path("hosts", 2, group)
        part = pq.read_table(path)
        if destination in part["host_id"].to_pylist():
            index = part.schema.get_field_index("pgfault")
            more = pa.array([n + 1 for n in part["pgfault"].to_pylist()], pa.int64())
            changed = part.set_column(index, part.schema.field(index), more)
            pq.write_table(changed, path)
    message = r"it is not the same \(epoch 2, table hosts: host \d, pgfault \d+ instead of \d+\);"
    with pytest.raises(ResultsError, match=message):
        maps_of(str(copy), destination)


def test_rows_of_other_hosts_drive_operators_that_look_at_gauges(small, run_small):
    """With rebalancing, where VMs go depends on the gauges of hosts that are not computed."""
    overrides = ("migration.rebalance_below=0.7", "vms.scale=0.0003", "hosts[0].count=6")
    run = open_run(run_small(overrides=overrides))
    scenario = small(*overrides)
    moved = scan(run, "migrations").collect()
    assert len(moved)
    seen = []
    for host in range(scenario.nr_hosts):
        done = rerun(run, scenario, host, scenario.nr_epochs, lambda t, _: seen.append(t), FakeNode)
        assert done.host_ids == hosts_needed(run, host)
        assert done.rows > 0
    assert len(seen) == scenario.nr_hosts * scenario.nr_epochs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host_id": 5}, "HOST: the run has no host 5\n    hint: 0 to 4"),
        (
            {"at": "45min"},
            "45 min is not the end of an epoch of the run\n    hint: nearest: 30 min",
        ),
        ({"at": "4h"}, "4 h is not the end of an epoch of the run\n.*rows end at 3 h"),
        ({"every": "20min"}, "20 min is not the end of an epoch"),
        ({"every": "9h"}, "9 h is not the end of an epoch"),
        ({"every": "0h"}, "0 ns is not the end of an epoch"),
        ({"at": "1h,soon"}, "--at: 'soon' is not a duration"),
    ],
)
def test_wrong_times_and_hosts_are_explained(eventful, options, message):
    with pytest.raises(ScenarioError, match=message):
        maps_of(str(eventful), **({"host_id": 1} | options))


def test_command_writes_a_picture_and_says_that_rows_are_equal(eventful, tmp_path):
    for kind, begin in (("png", b"\x89PNG"), ("svg", b"<svg"), ("html", b"<!DOCTYPE html>")):
        out = tmp_path / f"map.{kind}"
        done = CliRunner().invoke(
            app, ["map", str(eventful), str(SOURCE), "--at", "30min", "-o", str(out)]
        )
        assert done.exit_code == 0, done.output
        assert "rows of 1 host(s), equal to the recorded ones" in done.stdout
        assert out.read_bytes().startswith(begin)
    page = out.read_text()
    assert "default-src 'none'" in page
    assert "equal to the recorded ones" in page


def test_name_of_the_picture_says_its_format(eventful, tmp_path):
    done = CliRunner().invoke(app, ["map", str(eventful), "1", "-o", str(tmp_path / "map.gif")])
    assert done.exit_code == 2
    assert "must end in .png, .svg or .html" in done.output
    assert list(tmp_path.iterdir()) == []


def test_counts_are_json(found):
    told = as_json(found)
    assert told["equal_rows"] == found.rerun.rows
    assert sum(told["maps"][0]["pageblocks"].values()) == 8 * 512
