"""One self-contained HTML page about runs: words, charts, worst hosts, and how to run it again.

Nothing is loaded from elsewhere: the page carries the chart library, its style and its data, and
its own rule (Content-Security-Policy) forbids every request.
"""

import base64
import functools
import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import vl_convert

from fleet import charts, figures, report_ab, report_words
from fleet.arms import Arm, open_arms
from fleet.comparison import Comparison, compare
from fleet.figures import Figure
from fleet.loading import build
from fleet.report_data import Frames, frames_of, rounded
from fleet.report_files import GENERATOR, may_write, write_file
from fleet.rundir import RunDirectory, open_run
from fleet.scenario import Scenario, to_toml
from fleet.store import Store
from fleet.summary import summarise
from fleet.sweepdir import is_sweep
from hostsim.core.errors import Problem, ResultsError, ScenarioError
from hostsim.core.units import format_duration

if TYPE_CHECKING:
    from fleet.maps import Maps

MAX_WHOLE_RUNS: Final = 4  # with more, a page shows the comparison alone
_LIBRARY: Final = "window.vegaEmbed = vegaEmbed;"
_HOST_COLUMNS: Final = {
    "host_id": "Host",
    "vms": "VMs (mean)",
    "coverage": "Huge on host (%)",
    "effective": "Huge on both (%)",
    "unusable": "Free memory unusable for 2 MiB (%)",
    "stall_ms": "Stalls (ms)",
    "lost": "Lost to walks and stalls (vCPUs)",
    "killed": "VMs killed for memory",
}
_TEXTS: Final = ("class", "kind")  # columns of words
_VM_COLUMNS: Final = {
    "vm": "VM",
    "class": "Class",
    "vcpus": "vCPUs",
    "memory": "Memory (GiB)",
    "resident": "Resident (GiB)",
    "huge": "Huge on host (%)",
    "effective": "Huge on both (%)",
    "walks": "Time in walks (%)",
    "returned": "Huge pages would return (%)",
}


class Reported(NamedTuple):
    """One run as the page shows it."""

    key: str  # on the page
    run: RunDirectory
    scenario: Scenario
    summary: dict[str, Any]
    frames: Frames

    @property
    def title(self) -> str:
        """What the run is called."""
        return f"{self.run.record['name']}, seed {self.run.record['seed']}"


def read_run(place: str, key: str = "r0") -> Reported:
    """Read all that the page shows of a run.

    Raises
    ------
    ResultsError
        The place is no run, or has no rows yet.
    """
    run = open_run(place)
    if not run.parts["hosts"]:
        raise ResultsError(f"{run.store}: has no rows yet")
    scenario = build(dict(run.record["scenario"]), run.record["name"], str(run.store))
    return Reported(key, run, scenario, summarise(run.store), frames_of(run, scenario))


class Report(NamedTuple):
    """All that a page is about."""

    runs: list[Reported]
    arms: list[Arm]  # where there is more than one run
    comparison: Comparison | None
    memory: "Maps | None" = None  # of the worst host, where there is one run


def with_memory(report: Report) -> Report:
    """Compute the worst host of a run again, for a picture of its memory at the end.

    Raises
    ------
    ScenarioError
        There are several runs.
    ResultsError
        What is computed is not what was recorded.
    """
    from fleet.maps import maps_of  # loads the simulator

    if report.comparison:
        raise ScenarioError(
            [Problem("--map", "takes one run", "fleet map draws any host's memory")]
        )
    (run,) = report.runs
    if not run.frames.details:
        return report
    return report._replace(memory=maps_of(str(run.run.store), next(iter(run.frames.details))))


def read_runs(places: list[str]) -> Report:
    """Read a run, or several (or a sweep) and hold them against each other.

    Raises
    ------
    ScenarioError
        A place is no run, or the runs are not comparable.
    ResultsError
        A run has no rows yet, or a file is damaged.
    """
    if len(places) == 1 and not is_sweep(Store.of(places[0])):
        return Report([read_run(places[0])], [], None)
    arms = open_arms(places)
    members = [member.place for arm in arms for member in arm.members.values()]
    found = compare(places)
    return Report([read_run(p, f"r{i}") for i, p in enumerate(members)], arms, found)


def write_report(report: Report, out: Path, overwrite: bool = False) -> int:
    """Write a page; return its bytes.

    Raises
    ------
    ScenarioError
        The file exists and is not a report.
    ResultsError
        It cannot be written.
    """
    may_write(out, overwrite)
    page = _page(report).encode()
    write_file(out, page)
    return len(page)


def _page(report: Report) -> str:
    """Return the whole page."""
    specs: dict[str, Any] = {}
    many = len(report.runs) > 1
    shown = report.runs if len(report.runs) <= MAX_WHOLE_RUNS else []
    bodies = [_run(one, specs, many, report.memory) for one in shown]
    if report.comparison:
        bodies.insert(0, _comparison(report, report.comparison, specs, bool(shown)))
    first = report.runs[0]
    version = first.run.record["versions"].get("hugefleet", "")
    title = _comparison_title(report.comparison) if report.comparison else first.title
    parts = files("fleet").joinpath("page")
    return Template(parts.joinpath("report.html").read_text(encoding="utf-8")).substitute(
        generator=GENERATOR,
        title=html.escape(f"Fleet report: {title}"),
        subtitle=html.escape(_subtitle(first)),
        style=parts.joinpath("report.css").read_text(encoding="utf-8"),
        body="\n".join(bodies),
        footer=html.escape(f"Made by hugefleet {version}. This page loads nothing from elsewhere."),
        library=_library(),
        charts=_json(specs),
        hosts=_json({one.key: one.frames.details for one in shown}),
        script=parts.joinpath("report.js").read_text(encoding="utf-8"),
    )


def _memory(found: "Maps") -> str:
    """Return the section with the picture of a host's memory."""
    from fleet import map_picture

    picture = base64.b64encode(map_picture.rendered("png", found.maps, found.title, "")).decode()
    counts = html.escape(map_picture.as_text(found.maps, found.title))
    title = f"Memory of host {found.host_id} at the end"
    body = (
        '<p class="caption">Every cell is 2 MiB at its physical address. The host was computed'
        f" again from the scenario; {found.rerun.rows:,} rows are equal to the recorded ones.</p>"
        f'<figure class="scroll"><img alt="{title}" src="data:image/png;base64,{picture}"></figure>'
        f"<details><summary>Counts</summary><pre>{counts}</pre></details>"
    )
    return _section("r0", "memory", title, body)


def _comparison_title(found: Comparison) -> str:
    others = [arm for arm in found.arms if arm != found.baseline]
    what = others[0] if len(others) == 1 else f"{len(others)} arms"
    return f"{what} against {found.baseline}"


def _comparison(report: Report, found: Comparison, specs: dict[str, Any], with_runs: bool) -> str:
    """Return the section that holds runs against each other."""
    runs = iter(report.runs)
    frames = {arm.name: [next(runs).frames for _ in arm.members] for arm in report.arms}
    body = report_ab.comparison_body(found, frames, specs)
    if not with_runs:
        body += (
            f'<p class="caption">{len(report.runs)} runs: too many to show each of them here;'
            " fleet report RUN shows one.</p>"
        )
    return _section("ab", "comparison", "Comparison", body, "long")


def _json(content: object) -> str:
    """Return JSON that may stand inside a script element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


@functools.cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that may stand in a script element."""
    code: str = vl_convert.javascript_bundle(_LIBRARY)
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _subtitle(report: Reported) -> str:
    summary = report.summary
    time = format_duration(summary["duration_ns"])
    state = "" if report.run.complete else f" Unfinished: {report.run.record['status']}."
    return f"{summary['hosts']:,} hosts, {time} of simulated time.{state}"


def _run(report: Reported, specs: dict[str, Any], many: bool, memory: "Maps | None" = None) -> str:
    """Return the sections of one run, and put its charts among the specifications."""
    drawn = figures.figures(report.frames, charts.PAGE)
    said = report_words.sentences(report.summary, report.frames)
    names = [("words", "Summary"), *((figure.name, figure.title) for figure in drawn)]
    names.append(("hosts", "Worst hosts"))
    if memory:
        names.append(("memory", "Memory"))
    names.append(("origin", "How this was made"))
    links = " ".join(
        f'<a href="#{report.key}-{name}">{html.escape(title)}</a>' for name, title in names
    )
    parts = [
        f"<nav>{links}</nav>",
        _section(report.key, "words", "Summary", _words(report.key, said)),
        *(_figure(report.key, figure, specs) for figure in drawn),
        _section(report.key, "hosts", "Worst hosts", _hosts(report, specs)),
        _memory(memory) if memory else "",
        _section(report.key, "origin", "How this was made", _origin(report), "long"),
    ]
    if not many:
        return "\n".join(parts)
    heading = f"<h2>{html.escape(report.title)}</h2>"
    return f'<section class="run long" id="{report.key}">{heading}{"".join(parts)}</section>'


def _section(key: str, name: str, title: str, content: str, classes: str = "") -> str:
    return (
        f'<section id="{key}-{name}" class="{classes}"><h2>{html.escape(title)}</h2>'
        f"{content}</section>"
    )


def _words(key: str, said: list[report_words.Sentence]) -> str:
    """Return the summary in words."""
    items = [
        f'<li><span class="verdict {sentence.verdict}">{sentence.verdict}</span>'
        f'<span>{_unbroken(sentence.text)} <a href="#{key}-{sentence.topic}">show</a></span></li>'
        for sentence in said
    ]
    rules = "".join(f"<li>{html.escape(str(rule))}</li>" for rule in report_words.YARDSTICKS)
    return (
        f'<ul class="words">{"".join(items)}</ul><details class="caption">'
        "<summary>How this is judged: rules of thumb of this report, not of the model</summary>"
        f"<ul>{rules}</ul></details>"
    )


def _unbroken(text: str) -> str:
    """Return text in which a number keeps its percent sign."""
    return html.escape(text).replace(" %", "&nbsp;%")


def _figure(key: str, figure: Figure, specs: dict[str, Any]) -> str:
    """Return the section of a chart."""
    if figure.drawing is None:
        content = f'<p class="empty">{html.escape(figure.empty)}</p>'
    else:
        place = f"{key}-{figure.name}-chart"
        specs[place] = charts.spec(figure.drawing, charts.PAGE)
        label = html.escape(figure.title, quote=True)
        content = (
            f'<p class="caption">{html.escape(figure.caption)}</p>'
            f'<div class="chart" id="{place}" role="img" aria-label="{label}"></div>'
        )
    return _section(key, figure.name, figure.title, content)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"<td>{value:,.4g}</td>"
    return f"<td>{'-' if value is None else html.escape(str(value))}</td>"


def _hosts(report: Reported, specs: dict[str, Any]) -> str:
    """Return the table of the worst hosts, and the place where the chosen one is shown."""
    details = report.frames.details
    if not details:
        return '<p class="empty">No host ran a VM.</p>'
    key = report.key
    worst = rounded(report.frames.worst.head(len(details)))
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in _HOST_COLUMNS.values())
    rows = "".join(
        f'<tr data-host="{row["host_id"]}" tabindex="0" aria-selected="false">'
        + "".join(_cell(row[name]) for name in _HOST_COLUMNS)
        + "</tr>"
        for row in worst.iter_rows(named=True)
    )
    drawn = figures.host_figures(report.frames, charts.PAGE)
    for figure in drawn:
        assert figure.drawing is not None
        specs[f"host-{key}-{figure.name}"] = charts.spec(figure.drawing, charts.PAGE)
    places = "".join(
        f'<div class="chart" id="host-{key}-{figure.name}" role="img"'
        f' aria-label="{html.escape(figure.title)} of the chosen host"></div>'
        for figure in drawn
    )
    unit = report.frames.clock.unit
    events = {"t": f"Time ({unit})", "kind": "What", "vm_id": "VM"}
    return (
        '<p class="caption">Hosts on which memory ran out come first, then those whose guests lose'
        " most: work that huge pages everywhere would return, and stalls. Figures are of the whole"
        " run. Choose a host to look into it.</p>"
        f'<div class="scroll"><table class="worst" id="worst-{key}" data-run="{key}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<div class="chosen long" id="chosen-{key}"><h3></h3>{places}'
        f"<h3>VMs at the end</h3>{_table('vms', _VM_COLUMNS)}"
        '<p class="empty no-vms" hidden>No VM runs there at the end.</p>'
        f"<h3>Kills and moves</h3>{_table('events', events)}"
        '<p class="empty no-events" hidden>No VM was killed there, and none was moved.</p></div>'
    )


def _table(name: str, columns: dict[str, str]) -> str:
    """Return an empty table that the page fills."""
    heads = "".join(
        f"<th{' class=text' if column in _TEXTS else ''}>{html.escape(title)}</th>"
        for column, title in columns.items()
    )
    return (
        f'<div class="scroll"><table class="{name}" data-columns="{",".join(columns)}">'
        f"<thead><tr>{heads}</tr></thead><tbody></tbody></table></div>"
    )


def _origin(report: Reported) -> str:
    """Return where the numbers come from, and how to get them again."""
    record = report.run.record
    toml = to_toml(record["scenario"])
    trace = record["scenario"]["vms"].get("path")
    needs = f" It also needs the trace {trace}." if trace else ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    facts = {
        "Scenario": record["name"],
        "Seed": record["seed"],
        "Status": record["status"],
        "Versions": versions,
        "Commit": record["git_commit"] or "not run from a checkout",
        "Schema of the tables": record["schema_version"],
    }
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    name = html.escape(f"{record['name']}.toml")
    return (
        f"<dl>{listed}</dl><h3>To run it again</h3>"
        f"<p>Save the scenario below as {name}.{html.escape(needs)} The same versions give the same"
        " tables, byte for byte, with any number of workers.</p>"
        f"<pre>fleet run {name} --out again\nfleet report again -o report.html</pre>"
        f'<details class="long"><summary>Scenario, every default filled in</summary>'
        f"<pre>{html.escape(toml)}</pre></details>"
    )
