"""The page that a report writes, opened in a real browser from a file, without a network."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from fleet import charts, report, report_events, report_words
from fleet.arms import Arm
from fleet.cli import app
from fleet.effects import BY_NAME
from fleet.report_events import KINDS
from fleet.rundir import open_run
from fleet.scan import scan
from hostsim.core.errors import ResultsError, ScenarioError
from hostsim.core.stats import EVENT_NAMES, REASON_NAMES

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    " --disable-sync --no-first-run"
)
CHARTS = (
    *("load", "coverage", "orders", "fragmentation", "translation", "walks", "stalls"),
    *("daemons", "events"),
)
MARKS = "path, rect, line, text"  # that a chart may be drawn with
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def eventful_report(eventful):
    return report.read_run(str(eventful))


@pytest.fixture(scope="module")
def page(eventful_report, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write_report(alone(eventful_report), path)
    return path


def alone(run):
    return report.Report([run], [], None)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield opened
        opened.close()


class Tab:
    """A page opened without a network, with all that it says and asks for."""

    def __init__(self, browser, path, width=1000, scheme="light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        self.page = self.context.new_page()
        self.said, self.requests = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = path.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector("html[data-ready]")

    def count(self, selector):
        return self.page.evaluate("s => document.querySelectorAll(s).length", selector)

    def evaluate(self, code, argument=None):
        return self.page.evaluate(code, argument)


@pytest.fixture(scope="module")
def desk(browser, page):
    tab = Tab(browser, page)
    yield tab
    tab.context.close()


def embedded(path, name):
    pattern = rf'<script type="application/json" id="{name}">(.*?)</script>'
    return json.loads(re.search(pattern, path.read_text(), re.DOTALL)[1])


def rows_of(path, chart):
    return pl.DataFrame(embedded(path, "charts")[f"r0-{chart}-chart"]["datasets"]["rows"])


def table(run, name):
    return scan(open_run(run), name).collect()


@needs_chromium
def test_page_says_nothing_to_the_console_and_asks_for_nothing(desk):
    assert desk.said == []
    assert desk.requests == [desk.url]


@needs_chromium
@pytest.mark.parametrize("chart", CHARTS)
def test_every_chart_has_marks(desk, chart):
    marks = f"#r0-{chart}-chart svg .role-mark:not(.role-axis)"
    drawn = ", ".join(f"{marks} {mark}" for mark in MARKS.split(", "))
    assert desk.count(drawn) > 0


@needs_chromium
def test_charts_of_the_page_are_those_that_are_tested(desk):
    places = desk.evaluate("() => [...document.querySelectorAll('.chart')].map(c => c.id)")
    hosts = [f"host-r0-{name}" for name in ("coverage", "free", "stalls")]
    assert places == [f"r0-{chart}-chart" for chart in CHARTS] + hosts


@needs_chromium
def test_bars_are_as_long_as_what_they_count(desk, page):
    """The stacked bars of walks, in pixels, share their length as the references do."""
    rows = rows_of(page, "walks")
    boxes = desk.evaluate(
        "() => [...document.querySelectorAll('#r0-walks-chart .mark-rect path')]"
        ".map(p => p.getBoundingClientRect().width)"
    )
    assert len(boxes) == len(rows)
    scale = sum(boxes) / rows["reads"].sum()
    assert sorted(boxes) == pytest.approx(sorted(rows["reads"] * scale), rel=0.02)


@needs_chromium
def test_choosing_a_host_changes_what_is_shown(desk):
    def shown():
        return desk.evaluate(
            "() => ({title: document.querySelector('#chosen-r0 h3').textContent,"
            " line: document.querySelector('#host-r0-free .mark-line path').getAttribute('d'),"
            " vms: document.querySelector('#chosen-r0 table.vms').tBodies[0].textContent})"
        )

    rows = desk.evaluate(
        "() => [...document.querySelectorAll('#worst-r0 tr[data-host]')].map(r => r.dataset.host)"
    )
    first = shown()
    assert first["title"] == f"Host {rows[0]}"
    desk.page.click(f"#worst-r0 tr[data-host='{rows[1]}']")
    desk.page.wait_for_function(
        "d => document.querySelector('#host-r0-free .mark-line path').getAttribute('d') !== d",
        arg=first["line"],
    )
    second = shown()
    assert second["title"] == f"Host {rows[1]}"
    assert second["vms"] != first["vms"]
    desk.page.focus(f"#worst-r0 tr[data-host='{rows[0]}']")
    desk.page.keyboard.press("Enter")
    assert shown()["vms"] == first["vms"]


@needs_chromium
def test_page_is_light_or_dark_as_the_system_or_the_reader_wants(browser, page):
    def back(tab):
        return tab.evaluate("() => getComputedStyle(document.body).backgroundColor")

    def line(tab):
        return tab.evaluate(
            "() => getComputedStyle(document.querySelector('#r0-coverage-chart .mark-line path'))"
            ".stroke"
        )

    light, dark = Tab(browser, page), Tab(browser, page, scheme="dark")
    assert back(light) == "rgb(255, 255, 255)"
    assert back(dark) == "rgb(15, 20, 25)"
    assert line(light) != line(dark)
    for _ in range(2):  # system, light, dark
        light.page.click("#theme")
    assert back(light) == back(dark)
    assert line(light) == line(dark)
    assert dark.said == []
    for tab in (light, dark):
        tab.context.close()


@needs_chromium
def test_page_fits_a_phone(browser, page):
    phone = Tab(browser, page, width=390)
    assert phone.evaluate("() => document.documentElement.scrollWidth") == 390
    wide = phone.evaluate(
        "() => [...document.querySelectorAll('.chart svg')].map(s => s.getBoundingClientRect())"
        ".filter(box => box.right > 390.5 || box.width < 200).length"
    )
    assert wide == 0
    assert phone.said == []
    phone.context.close()


@needs_chromium
def test_page_prints_in_light_colours(browser, page):
    dark = Tab(browser, page, scheme="dark")
    dark.page.emulate_media(media="print", color_scheme="dark")
    assert dark.evaluate("() => getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert dark.page.pdf(format="A4").startswith(b"%PDF-")
    dark.context.close()


@needs_chromium
def test_run_without_events_says_so_in_words(browser, eventless, tmp_path):
    path = tmp_path / "r.html"
    report.write_report(report.read_runs([str(eventless)]), path)
    tab = Tab(browser, path)
    text = tab.evaluate("() => document.body.innerText")
    for words in (
        "No VM was killed.",
        "There was a host for every VM.",
        "No VM was moved to another host.",
        "No VM was rejected, killed, moved or started again, and no host failed.",
        "No program ran whose translation was sampled.",
    ):
        assert words in text
    assert tab.said == []
    tab.context.close()


def test_coverage_is_that_of_the_rows(page, eventful):
    hosts = table(eventful, "hosts")
    shown = rows_of(page, "coverage").sort("t")
    for t_h, column in ((1.5, "huge on the host"), (3.0, "huge on the host")):
        at = hosts.filter(pl.col("t_ns") == int(t_h * 3600e9))
        huge = at["nr_anon_transparent_hugepages"].sum() * 512
        expected = 100 * huge / at["nr_guest_pages"].sum()
        found = shown.filter((pl.col("t") - t_h).abs() < 1e-3)[column].item()
        assert found == pytest.approx(expected, rel=1e-3)
    end = hosts.filter(pl.col("t_ns") == hosts["t_ns"].max())
    both = 100 * end["effective_huge_pages"].sum() * 512 / end["guest_used_pages"].sum()
    assert shown["huge in guest and host"][-1] == pytest.approx(both, rel=1e-3)


def test_effective_coverage_begins_with_the_first_rows_of_vms(page):
    shown = rows_of(page, "coverage").sort("t")
    known = shown.filter(pl.col("huge in guest and host").is_not_null())
    assert known["t"].min() == pytest.approx(40 / 60, rel=1e-3)  # the tick behind 30 min


def test_bands_are_over_hosts(page, eventful):
    end = table(eventful, "hosts").filter(pl.col("t_ns") == pl.col("t_ns").max())
    index = sorted(end["unusable_index_order9"] / 10)
    last = rows_of(page, "fragmentation").sort("t").row(-1, named=True)
    assert len(index) == 5  # so that nearest ranks are the ends and the middle
    assert (last["p5"], last["median host"], last["p95"]) == pytest.approx(
        (index[0], index[2], index[4]), abs=1e-3
    )


def test_orders_add_up_to_the_free_memory(page, eventful):
    hosts = table(eventful, "hosts")
    shown = rows_of(page, "orders")
    last = shown.filter(pl.col("end") == pl.col("end").max())
    at = hosts.filter(pl.col("t_ns") == hosts["t_ns"].max())
    assert last["mib"].sum() == pytest.approx(at["nr_free_pages"].mean() * 4 / 1024, rel=1e-3)
    ten = last.filter(pl.col("order") == 10)["mib"].item()
    assert ten == pytest.approx(at["nr_free_order10"].mean() * 4, rel=1e-3)


def test_stalls_and_daemons_add_up_to_the_counters(page, eventful):
    end = table(eventful, "hosts").filter(pl.col("t_ns") == pl.col("t_ns").max())
    tick_h, hosts = 1 / 6, 5
    stalls = rows_of(page, "stalls")["mean of hosts"].sum() * tick_h * hosts
    assert stalls == pytest.approx(end["stall_ns"].sum() / 1e6, rel=1e-2)
    daemons = rows_of(page, "daemons")["mean of hosts"].sum() / 100 * 600 * hosts
    assert daemons == pytest.approx(end["daemon_ns"].sum() / 1e9, rel=1e-2)


def test_events_are_counted_by_kind(page, eventful):
    shown = dict(rows_of(page, "events").group_by("kind").agg(pl.col("count").sum()).iter_rows())
    events = table(eventful, "events").with_columns(
        pl.col("event").cast(pl.String), pl.col("reason").cast(pl.String)
    )

    def count(event, reason=None):
        same = events.filter(pl.col("event") == event)
        return len(same if reason is None else same.filter(pl.col("reason") == reason))

    assert shown == {
        "rejected": count("reject"),
        "killed: memory ran out": count("kill", "oom"),
        "killed: host failed": count("kill", "failure"),
        "moved": count("migrate"),
        "host down": count("host_down"),
        "host back": count("host_up"),
    }


def test_every_kind_of_event_has_a_colour_of_its_own():
    assert sorted(charts._EVENT_COLOURS) == list(range(len(charts.LIGHT.series)))
    assert len(KINDS) == len(charts._EVENT_COLOURS)


def test_every_event_is_shown_but_what_happens_to_every_vm():
    told = {event for event, _ in report_events._EVENT_WORDS}
    assert told == set(EVENT_NAMES) - {"start", "end"}
    reasons = {reason for _, reason in report_events._EVENT_WORDS}
    assert reasons == set(REASON_NAMES)


def test_worst_host_is_the_one_with_most_kills(page, eventful):
    kills = table(eventful, "events").filter(
        (pl.col("event").cast(pl.String) == "kill") & (pl.col("reason").cast(pl.String) == "oom")
    )
    most = kills.group_by("host_id").len().sort("len", "host_id", descending=[True, False])
    hosts = list(embedded(page, "hosts")["r0"])
    assert hosts[0] == str(most["host_id"][0])
    assert len(hosts) <= 5


def test_drill_down_lists_the_vms_of_the_last_row(page, eventful):
    vms = table(eventful, "vms").filter(
        (pl.col("t_ns") == pl.col("t_ns").max()) & (pl.col("ended") == 0)
    )
    for host, details in embedded(page, "hosts")["r0"].items():
        own = vms.filter(pl.col("host_id") == int(host))
        assert sorted(details["vms"]["vm"]) == sorted(own["vm_id"])
        resident = own["rss_pages"].sum() * 4096 / (1 << 30)
        assert sum(details["vms"]["resident"]) == pytest.approx(resident, rel=1e-3, abs=1e-9)


def test_sentences_tell_the_figures(eventful_report, eventful):
    said = {s.topic: s for s in report_words.sentences(*eventful_report[3:5])}
    counts = eventful_report.summary["vms"]
    assert f"{counts['arrived']} VMs arrived and {counts['started']} started" in said["load"].text
    share = 100 * eventful_report.summary["at_end"]["huge_coverage_ratio"]
    assert f"At the end {share:.1f} % of" in said["coverage"].text
    assert said["coverage"].verdict == report_words.COVERAGE.judge(share)
    words = " ".join(s.text for s in report_words.sentences(*eventful_report[3:5]))
    assert f"{counts['migrated']} VMs moved to another host" in words
    killed = eventful_report.summary["counters"]["oom_kill"]
    assert f"{killed} VMs because memory ran out" in words
    assert f"{counts['killed'] - killed} VMs because a host failed" in words


@pytest.mark.parametrize(
    ("rule", "value", "verdict"),
    [
        (report_words.COVERAGE, 90.0, "good"),
        (report_words.COVERAGE, 89.9, "fair"),
        (report_words.COVERAGE, 69.9, "poor"),
        (report_words.RETURNED, 0.5, "good"),
        (report_words.RETURNED, 0.51, "fair"),
        (report_words.RETURNED, 2.1, "poor"),
        (report_words.REJECTED, 0.0, "good"),
        (report_words.REJECTED, None, ""),
    ],
)
def test_yardsticks_judge_on_both_sides(rule, value, verdict):
    assert rule.judge(value) == verdict


def test_numbers_are_for_people():
    texts = [report_words.number(v, d) for v, d in ((12345.6, 0), (0.004, 2), (0.0, 1), (None, 1))]
    assert texts == ["12,346", "less than 0.01", "0.0", "-"]


def test_page_forbids_requests_and_tells_how_to_run_again(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    assert "fleet run eventful.toml --out again" in text
    assert "mtbf = &quot;6h&quot;" in text
    assert str(page.parent) not in text


def test_names_of_a_run_cannot_break_out_of_the_page(eventful_report, tmp_path):
    record = dict(eventful_report.run.record, name="</script><b>x</b>")
    run = eventful_report.run._replace(record=record)
    path = tmp_path / "r.html"
    report.write_report(alone(eventful_report._replace(run=run)), path)
    assert "</script><b>" not in path.read_text()


def test_data_cannot_end_its_script_element():
    packed = report._json({"</script><script>": "<!--"})
    assert "<" not in packed
    assert json.loads(packed) == {"</script><script>": "<!--"}


def test_only_a_report_is_written_over(eventful_report, tmp_path):
    path = tmp_path / "notes.html"
    path.write_text("my notes")
    with pytest.raises(ScenarioError, match="exists and is not a report; it stays untouched"):
        report.write_report(alone(eventful_report), path)
    assert path.read_text() == "my notes"
    report.write_report(alone(eventful_report), path, overwrite=True)
    report.write_report(alone(eventful_report), path)
    assert "hugefleet report" in path.read_text()[:200]


def test_page_appears_whole_or_not_at_all(eventful_report, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResultsError, match=r"r\.html: cannot write: No space left"):
        report.write_report(alone(eventful_report), tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_unfinished_run_is_reported_with_a_warning(eventful, tmp_path):
    copy = shutil.copytree(eventful, tmp_path / "copy")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    done = CliRunner().invoke(app, ["report", str(copy), "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    assert 'is "interrupted"; its tables end early' in done.stderr
    assert "Unfinished: interrupted." in (tmp_path / "r.html").read_text()


def test_run_without_rows_is_refused(eventful, tmp_path):
    (tmp_path / "run.json").write_text((eventful / "run.json").read_text())
    with pytest.raises(ResultsError, match="has no rows yet"):
        report.read_run(str(tmp_path))


def test_place_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="is not a run directory"):
        report.read_run(str(tmp_path))


@pytest.fixture(scope="module")
def both(eventful, small_pages, tmp_path_factory):
    """A page about two runs, and the comparison that it shows."""
    path = tmp_path_factory.mktemp("both") / "both.html"
    read = report.read_runs([str(eventful), str(small_pages)])
    report.write_report(read, path)
    return path, read.comparison


@needs_chromium
def test_two_runs_are_drawn_beside_each_other(browser, both):
    tab = Tab(browser, both[0], width=390)
    assert tab.said == []
    assert tab.requests == [tab.url]
    empty = tab.evaluate(
        "() => [...document.querySelectorAll('.chart')].filter("
        "c => !c.querySelector('svg .role-mark path, svg .role-mark line')).map(c => c.id)"
    )
    assert empty == []
    assert tab.count(".chart[id^=ab-]") == 5  # differences, four curves
    assert tab.count("section.run") == 2
    assert tab.evaluate("() => document.documentElement.scrollWidth") == 390
    tab.context.close()


@needs_chromium
def test_table_of_differences_is_that_of_compare(browser, both):
    tab = Tab(browser, both[0])
    rows = tab.evaluate(
        "() => [...document.querySelectorAll('table.differences tbody tr')]"
        ".map(r => [...r.cells].map(c => c.textContent))"
    )
    found = both[1].differences
    assert [row[0] for row in rows] == [f"{BY_NAME[d.effect].title}, {d.unit}" for d in found]
    coverage = rows[0]
    assert coverage[1] == f"{found[0].baseline_mean:.3g}"
    assert coverage[2] == "0"
    assert (found[0].verdict, coverage[-1]) == ("worse", "worse")
    tab.context.close()


def test_differences_are_drawn_in_margins_with_better_to_the_right(both):
    rows = embedded(both[0], "charts")["ab-differences-1"]["datasets"]["rows"]
    drawn = {row["figure"]: row for row in rows}
    by_effect = {d.effect: d for d in both[1].differences}
    coverage, lost = by_effect["huge_coverage"], by_effect["cycles_lost"]
    shown = drawn["huge coverage"]["difference"]
    assert shown == pytest.approx(coverage.difference / coverage.margin, rel=1e-3)
    assert drawn["run time lost"]["difference"] == pytest.approx(
        -lost.difference / lost.margin, rel=1e-3
    )
    assert shown < 0
    assert drawn["run time lost"]["difference"] < 0
    for row in rows:
        if row["low"] is not None:
            assert row["low"] <= row["difference"] <= row["high"]


def test_runs_that_are_not_comparable_are_refused_before_anything_is_written(
    eventful, eventless, tmp_path
):
    out = tmp_path / "r.html"
    with pytest.raises(ScenarioError, match=r"eventless: lasts 2h, .*eventful 3h"):
        report.read_runs([str(eventful), str(eventless)])
    done = CliRunner().invoke(app, ["report", str(eventful), str(eventless), "-o", str(out)])
    assert done.exit_code != 0
    assert not out.exists()


def test_page_about_many_runs_shows_the_comparison_alone(both, eventful_report, tmp_path):
    comparison = both[1]
    run = eventful_report
    runs = [run._replace(key=f"r{i}") for i in range(report.MAX_WHOLE_RUNS + 1)]
    arms = [
        Arm(name, dict.fromkeys(seeds))
        for name, seeds in zip(comparison.arms, ((1, 2), (3, 4, 5)), strict=True)
    ]
    path = tmp_path / "r.html"
    report.write_report(report.Report(runs, arms, comparison), path)
    assert 'class="run' not in path.read_text()
    assert "5 runs: too many to show each of them here" in path.read_text()
    assert embedded(path, "hosts") == {}


@needs_chromium
def test_worst_hosts_memory_is_a_picture_if_asked_for(browser, eventful, tmp_path):
    out = tmp_path / "r.html"
    done = CliRunner().invoke(app, ["report", str(eventful), "--map", "-o", str(out)])
    assert done.exit_code == 0, done.output
    tab = Tab(browser, out)
    width, text = tab.evaluate(
        "() => [document.querySelector('#r0-memory img').naturalWidth,"
        " document.querySelector('#r0-memory').innerText]"
    )
    assert width > 400
    assert "rows are equal to the recorded ones" in text
    assert (tab.said, tab.requests) == ([], [tab.url])
    tab.context.close()


def test_memory_of_several_runs_is_refused(both):
    read = report.Report([], [], both[1])
    with pytest.raises(ScenarioError, match="--map: takes one run"):
        report.with_memory(read)
