"""Charts as Vega-Lite and as files: axes with units, colours that are safe, little data."""

import json
import re

import polars as pl
import pytest

from fleet import charts, figures, report
from fleet.report_data import Clock, clock_of
from fleet.report_files import write_plots
from hostsim.core.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_MIN

UNITS = ("%", "ms", "MiB", "hours", "minutes", "Memory references", "Events", "Class", "Order")
OKABE_ITO = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"}


@pytest.fixture(scope="module")
def read(eventful):
    return report.read_run(str(eventful))


@pytest.fixture(scope="module")
def drawn(read):
    return figures.figures(read.frames, charts.LIGHT)


def everything(value):
    yield value
    if isinstance(value, dict):
        for part in value.values():
            yield from everything(part)
    if isinstance(value, list):
        for part in value:
            yield from everything(part)


def test_every_axis_has_a_title_with_a_unit(drawn):
    for figure in drawn:
        spec = charts.spec(figure.drawing, charts.LIGHT)
        del spec["datasets"]
        axes = [
            part[axis]["title"]
            for part in everything(spec)
            if isinstance(part, dict)
            for axis in ("x", "y")
            if axis in part and "title" in part[axis]
        ]
        assert axes, figure.name
        for title in axes:
            assert any(unit in title for unit in UNITS), title


def test_colours_of_files_are_safe_and_those_of_pages_are_variables(read):
    for palette, allowed in ((charts.LIGHT, OKABE_ITO), (charts.PAGE, set(charts.PAGE.series))):
        for figure in figures.figures(read.frames, palette):
            spec = charts.spec(figure.drawing, palette)
            ranges = [
                part["scale"]["range"]
                for part in everything(spec)
                if isinstance(part, dict) and "range" in part.get("scale", ())
            ]
            assert {colour for found in ranges for colour in found} <= allowed


def test_no_chart_carries_more_than_its_bins(drawn):
    for figure in drawn:
        assert len(figure.drawing.data) <= 11 * 96


@pytest.mark.parametrize(
    ("duration_ns", "hosts", "unit", "most"),
    [
        (2 * NS_PER_HOUR, 10, "min", 300),
        (NS_PER_DAY, 1000, "h", 300),
        (365 * NS_PER_DAY, 1000, "d", 300),
        (365 * NS_PER_DAY, 10_000, "d", 150),
        (365 * NS_PER_DAY, 100_000, "d", 60),
    ],
)
def test_time_is_cut_into_few_bins_of_whole_ticks(small, duration_ns, hosts, unit, most):
    days = f"run.duration={duration_ns // NS_PER_MIN}min"
    clock = clock_of(small(days, f"hosts[0].count={hosts - 2}", "run.tick=5min"))
    assert clock.unit == unit
    assert clock.bin_ns % (5 * NS_PER_MIN) == 0
    bins = -(-duration_ns // clock.bin_ns)
    assert bins <= most
    assert duration_ns <= 2 * NS_PER_HOUR or bins > most // 3


def test_bin_holds_the_ticks_that_end_in_it():
    clock = Clock("h", NS_PER_HOUR, NS_PER_HOUR, 3 * NS_PER_HOUR)
    ticks = pl.DataFrame({"t_ns": [NS_PER_HOUR, NS_PER_HOUR + 1, 2 * NS_PER_HOUR]})
    found = ticks.select(clock.bins().alias("bin")).with_columns(clock.end(pl.col("bin")))
    assert found["bin"].to_list() == [1.0, 2.0, 2.0]


def test_charts_are_written_as_png_and_svg(read, drawn, tmp_path):
    one = figures.Figure  # names of files are those of the charts
    assert all(isinstance(figure, one) for figure in drawn)
    written = write_plots(read.frames, tmp_path / "plots", ("png", "svg"))
    assert sorted(path.stem for path in written if path.suffix == ".png") == sorted(
        figure.name for figure in drawn
    )
    for path in written:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
        else:
            assert len(re.findall(rb"<path|<rect|<line", content)) > 10
            assert b"var(" not in content


def test_specification_is_json_without_names_of_machines(drawn):
    text = json.dumps(charts.spec(drawn[0].drawing, charts.PAGE))
    assert "http" not in text.replace("https://vega.github.io/schema/vega-lite", "")
