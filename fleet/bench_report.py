"""What a report costs: time, size, and whether a browser opens it without a network."""

import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from fleet.claims import Claim, Found, at_most, number, same
from hostsim.core.errors import WorkerError

SECONDS_BAR: Final = 10.0
BYTES_BAR: Final = 8 << 20
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
_EMPTY_CHARTS: Final = (
    "() => [...document.querySelectorAll('.chart')].filter("
    "c => !c.querySelector('svg .role-mark path, svg .role-mark line')).map(c => c.id)"
)


class Opened(NamedTuple):
    """What a browser without a network made of a page."""

    messages: list[str]  # on its console
    requests: list[str]  # for anything but the page
    charts: int
    empty_charts: list[str]


def open_offline(page: Path) -> Opened | None:
    """Open a page in Chromium without a network; None where there is none, or no playwright."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None or find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    messages: list[str] = []
    requests: list[str] = []
    url = page.resolve().as_uri()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        tab = chromium.new_context(offline=True).new_page()
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(url)
        tab.wait_for_selector("html[data-ready]")
        charts = len(tab.query_selector_all(".chart"))
        empty = list(tab.evaluate(_EMPTY_CHARTS))
        chromium.close()
    return Opened(messages, [other for other in requests if other != url], charts, empty)


def judge(seconds: float, nr_bytes: int, opened: Opened | None) -> list[Claim]:
    """Hold a report against the bars."""
    claims = [
        at_most("time of fleet report, a process of its own", seconds, SECONDS_BAR, "s"),
        at_most("size of the page", nr_bytes, BYTES_BAR, "B"),
    ]
    if opened:
        claims += [
            same("messages on the console of Chromium", len(opened.messages), 0, ""),
            same("requests that leave the page", len(opened.requests), 0, ""),
            same("charts without a mark", len(opened.empty_charts), 0, ""),
        ]
    return claims


def report(
    run: Annotated[str, "A run directory; without one, the churn scenario is run first."] = "",
) -> Found:
    r"""Write the report of the 100-host demo and open it in Chromium without a network.

    \b
    Examples:
      fleet bench report
      fleet bench report --run runs/churn-1
    """
    with tempfile.TemporaryDirectory() as folder:
        place = run or _demo(Path(folder))
        page = Path(folder) / "report.html"
        begin_s = time.perf_counter()
        _fleet("report", place, "-o", str(page))
        seconds, nr_bytes = time.perf_counter() - begin_s, page.stat().st_size
        opened = open_offline(page)
    lines = [f"{place if run else 'churn'}: {number(nr_bytes, 'B')} in {seconds:.1f} s"]
    if opened is None:
        lines.append("not opened: there is no Chromium, or no playwright")
    else:
        lines.append(f"opened in Chromium without a network: {opened.charts} charts")
        lines += [f"  said: {message}" for message in opened.messages]
    return Found(judge(seconds, nr_bytes, opened), opened and opened._asdict(), lines)


def _demo(folder: Path) -> str:
    from fleet.loading import load
    from fleet.scheduler import Options
    from fleet.scheduler import run as run_scenario

    run_scenario(load("churn"), folder / "churn", Options(checkpoint_epochs=0))
    return str(folder / "churn")


def _fleet(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fleet", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WorkerError(f"fleet {arguments[0]} failed: {done.stderr.strip()}")
