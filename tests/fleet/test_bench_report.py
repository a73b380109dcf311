"""A report is judged by its time, its size, and what a browser makes of it."""

import shutil

import pytest

from fleet.bench_report import BYTES_BAR, SECONDS_BAR, Opened, judge, open_offline

GOOD = Opened([], [], 12, [])


@pytest.mark.parametrize(
    ("seconds", "nr_bytes", "opened", "failed"),
    [
        (SECONDS_BAR, BYTES_BAR, GOOD, 0),
        (SECONDS_BAR + 0.1, BYTES_BAR, GOOD, 1),
        (SECONDS_BAR, BYTES_BAR + 1, GOOD, 1),
        (1.0, 1, Opened(["oops"], [], 12, []), 1),
        (1.0, 1, Opened([], ["https://example.org/"], 12, []), 1),
        (1.0, 1, Opened([], [], 12, ["r0-load-chart"]), 1),
    ],
)
def test_each_bar_is_judged(seconds, nr_bytes, opened, failed):
    claims = judge(seconds, nr_bytes, opened)
    assert sum(not claim.verdict for claim in claims) == failed


def test_without_a_browser_nothing_is_claimed_of_one():
    assert len(judge(1.0, 1, None)) == 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_browser_notices_messages_requests_and_empty_charts(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<html><div class=chart id=a></div><div class=chart id=b><svg><g class=role-mark>"
        "<path d='M0,0'></path></g></svg></div><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.log('hello'); document.documentElement.dataset.ready = 'yes'</script>"
    )
    found = open_offline(page)
    assert "hello" in found.messages
    assert found.requests == ["http://127.0.0.1:9/x.png"]
    assert (found.charts, found.empty_charts) == (2, ["a"])
