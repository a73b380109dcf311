import polars as pl
import pytest

from fleet.text_table import as_text, cell_text


def test_numbers_stand_right_and_words_left():
    frame = pl.DataFrame({"host_id": [1, 20], "name": ["a", "bc"]})
    assert as_text(frame).splitlines() == [
        "| host_id | name |",
        "|---------|------|",
        "|       1 | a    |",
        "|      20 | bc   |",
    ]


def test_names_are_broken_where_the_table_is_too_wide():
    frame = pl.DataFrame({"huge_coverage_ratio": [0.5], "effective_coverage_ratio": [0.25]})
    assert max(map(len, as_text(frame).splitlines())) == 50
    assert as_text(frame, 30).splitlines() == [
        "|      huge | effective |",
        "| _coverage | _coverage |",
        "|    _ratio |    _ratio |",
        "|-----------|-----------|",
        "|       0.5 |      0.25 |",
    ]


def test_few_rows_of_many_columns_are_printed_as_columns():
    frame = pl.DataFrame({f"c{i}": [i, -i] for i in range(40)})
    lines = as_text(frame, 60).splitlines()
    assert lines[0].split() == ["|", "column", "|", "1", "|", "2", "|"]
    assert lines[5].split() == ["|", "c3", "|", "3", "|", "-3", "|"]
    assert len(lines) == 42


def test_columns_that_do_not_fit_are_counted():
    frame = pl.DataFrame({f"c{i}": range(10) for i in range(40)})
    *table, note = as_text(frame, 60).splitlines()
    assert max(map(len, table)) <= 60
    shown = table[0].count("|") - 1
    assert note.startswith(f"{shown} of 40 columns fit")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0.0, "0"),
        (0.123456, "0.1235"),
        (12345.678, "12346"),
        (0.00001234, "1.2e-05"),
        (1234567, "1234567"),
        ("kill", "kill"),
    ],
)
def test_values_are_printed_with_the_digits_that_people_read(value, text):
    assert cell_text(value) == text
