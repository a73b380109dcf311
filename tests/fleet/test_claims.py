"""Claims are judged, merged over repeats, printed and written in one way."""

import json

import pytest

from fleet import claims
from fleet.claims import Claim, Found, Group, at_least, at_most, number, over_repeats, same


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3_327_097, "events/s", "3.327 M events/s"),
        (25e9, "/s", "25 G /s"),
        (3 << 29, "B", "1.5 GiB"),
        (0.0278, "", "0.0278"),
        (79_000, "/s", "79,000 /s"),
    ],
)
def test_numbers_are_short(value, unit, text):
    assert number(value, unit) == text


def test_a_bar_is_met_exactly_and_missed_just_beyond():
    assert at_least("a", 10.0, 10.0).verdict
    assert not at_least("a", 9.999, 10.0).verdict
    assert at_most("a", 10.0, 10.0).verdict
    assert not at_most("a", 10.001, 10.0).verdict
    assert at_least("a", 25.0, 10.0).ratio == 2.5
    assert same("a", 3, 3, "s").ratio is None


def test_the_median_stands_for_repeats_and_one_miss_for_what_has_no_number():
    runs = [at_least("a", value, 10.0, "s") for value in (12.0, 9.0, 11.0)]
    assert over_repeats(runs).value == 11.0
    assert over_repeats(runs).verdict
    assert over_repeats([*runs[:2], at_least("a", 8.0, 10.0)]).verdict is False
    assert over_repeats([same("b", 1, 1, ""), same("b", 2, 1, "")]).verdict is False


def test_claims_of_one_name_are_all_kept():
    group = Group("g", [Found([same("a", 1, 1, ""), same("a", 2, 1, "")])] * 2)
    assert [claim.verdict for claim in group.claims] == [True, False]
    assert group.failed == 1


def test_a_document_keeps_every_sample_and_is_read_back():
    runs = [Found([at_least("a", v, 1.0, "/s")], {"n": v}, (), v, 5) for v in (3.0, 1.0, 2.0)]
    made = json.loads(json.dumps(claims.document([Group("g", runs)], "s")))
    (row,) = made["claims"]
    assert row["samples"] == [3.0, 1.0, 2.0]
    assert (row["value"], row["bar"], row["bound"]) == (2.0, 1.0, "at least")
    assert made["groups"]["g"]["cpu_s"] == [3.0, 1.0, 2.0]
    assert made["session"] == "s"
    assert made["machine"]["memory_bytes"] > 1 << 30
    assert made["versions"]["hugefleet"]
    (back,) = claims.groups_of(made)
    assert back.claims[0].value == 2.0


def test_the_table_fits_its_columns_and_failing_rows_say_so(capsys):
    long = "a claim whose name is so long that it takes more than one line of the table " * 2
    group = Group(
        "g", [Found([at_least(long, 1.0, 2.0, "/s"), Claim("b", "[x]", "", "[y]", True)])]
    )
    for costs in (False, True):
        claims.console().print(claims.table([group], costs))
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= claims.NARROW_COLUMNS
        assert "FAIL" in printed
        assert "[x]" in printed  # no markup
