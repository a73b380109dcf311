"""Text of /proc files: examples are what Linux 6.18 and 6.1 printed."""

import pytest

from fleet.snapshot_text import (
    chosen_word,
    differing_cells,
    parse_buddyinfo,
    parse_counters,
    parse_pagetypeinfo,
    parse_zoneinfo,
)

BUDDYINFO = "Node 1, zone   Normal    124   0   171   0   0   0   0   0   0   1   2 "
TYPES = """Page block order: 9
Pages per block:  512

Free pages count per migrate type at order       0      1      2      3      4
Node    1, zone   Normal, type    Unmovable    123      0    171      0      0
Node    1, zone   Normal, type      Movable      1      0      0      0      0

Number of blocks type     Unmovable      Movable
Node 1, zone   Normal          379         9142
""".splitlines()
ZONEINFO = """Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 5
  pages free     3840
        boost    7
        min      11
        low      14
        high     17
        spanned  4095
        present  3998
        managed  3840
  pagesets
    cpu: 0
              count:    3
              high:     0
    cpu: 1
              count:    4
Node 0, zone  Movable
  pages free     0
        present  0
        managed  0
"""


def test_buddyinfo_is_read_by_node_and_zone():
    counts = parse_buddyinfo([BUDDYINFO])
    assert counts == {(1, "Normal"): [124, 0, 171, 0, 0, 0, 0, 0, 0, 1, 2]}


def test_what_is_no_line_is_named():
    with pytest.raises(ValueError, match="'nonsense' is no line of /proc/buddyinfo"):
        parse_buddyinfo(["nonsense"])
    with pytest.raises(ValueError, match="no lines of /proc/pagetypeinfo"):
        parse_pagetypeinfo([BUDDYINFO])


def test_types_and_pageblocks_are_read_by_place():
    found = parse_pagetypeinfo(TYPES)
    place = (1, "Normal")
    assert found.free[place]["Unmovable"] == [123, 0, 171, 0, 0]
    assert found.pageblocks == {place: {"Unmovable": 379, "Movable": 9142}}


def test_zoneinfo_leaves_out_zones_without_pages_and_adds_up_cpus():
    (zone,) = parse_zoneinfo(ZONEINFO)
    assert (zone.node, zone.name, zone.managed_pages) == (0, "DMA", 3840)
    assert (zone.min_pages, zone.low_pages, zone.high_pages) == (11, 14, 17)
    assert (zone.boost_pages, zone.pcp_pages) == (7, 7)


def test_counters_lose_their_units_and_add_up():
    assert parse_counters("Rss:  8 kB\nRss: 4 kB\nActive(anon): 1 kB\nnr_free_pages 3\n") == {
        "Rss": 12,
        "Active(anon)": 1,
        "nr_free_pages": 3,
    }


@pytest.mark.parametrize(("text", "word"), [("always [madvise] never", "madvise"), ("1\n", "1")])
def test_word_in_brackets_is_the_chosen_one(text, word):
    assert chosen_word(text) == word


@pytest.mark.parametrize(
    ("cell", "differing"),
    [("123", 0), ("122", 1), ("124", 1), (">123", 0), (">10", 0), (">124", 1)],
)
def test_cells_differ_unless_the_types_add_up(cell, differing):
    """A count that is cut off is a lower bound."""
    lines = [line.replace(" 123 ", f" {cell} ") for line in TYPES]
    short = BUDDYINFO.replace("  0   0   0   0   0   0   1   2 ", "  0   0")
    assert differing_cells([short], parse_pagetypeinfo(lines)) == differing
