"""The page's script in a real browser; skipped where Chromium is not installed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.report.chart_axes import make_axes
from megatron_slw.report.chart_svg import draw
from megatron_slw.report.inputs import read_runs
from megatron_slw.report.page import panels, render
from megatron_slw.report.table import Comparison, compare
from tests.report.run_files import falling, step, write_run

Browser = Callable[[str, str], Any]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """`browser(page, script)`: what the expression `script` gives in the page, 360 pixels wide."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium to open the page in")

    def run(page: str, script: str) -> Any:
        send = f"<script>parent.postMessage(JSON.stringify({script}), '*')</script></body>"
        (tmp_path / "inner.html").write_text(page.replace("</body>", send), encoding="utf-8")
        (tmp_path / "outer.html").write_text(
            "<body><pre></pre><script>onmessage = e => document.querySelector('pre').textContent = e.data</script>"
            '<iframe src="inner.html" style="width:360px;height:3000px;border:0"></iframe></body>'
        )
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [program, *flags, "--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path}/outer.html"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode and not done.stdout:
            pytest.skip(f"{program} does not start here: {done.stderr[-300:]}")
        (answer,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, flags=re.S)
        assert answer, f"no answer from the page:\n{done.stderr[-2000:]}"
        return json.loads(html.unescape(answer))

    return run


@pytest.fixture
def runs(tmp_path: Path) -> Comparison:
    """Two runs with a gap and a resume, one of more steps than intervals, and one without FLOPs."""
    short = falling(60, 20, 5.0, 0.5)
    long = falling(1100, 100, 4.0, 0.05)
    for record in short:
        record["tokens"] //= 2
        if record["step"] in (7, 8):
            record["grad_norm"] = None
        if record["step"] == 31:
            record["resumed"] = True
    records = {"short": short, "long": long, "old": [step(n) for n in range(1, 30)]}
    return compare(read_runs([f"{name}={write_run(tmp_path / name, r)}" for name, r in records.items()]))


def drawn(comparison: Comparison, clock: str) -> list[list[str]]:
    """Class, x and path of everything with a place, as Python draws it with that clock first."""
    axes = replace(make_axes(comparison.runs), shown=clock)
    found = []
    for panel in panels(comparison):
        for tag, attributes in re.findall(r"<(path|use|line|text) ([^>]*)>", draw(panel, comparison.runs, axes)):
            value = dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))
            hidden = value.get("style", "") == "display:none"
            if tag == "path":
                found.append([value["class"], "-" if hidden else value["d"]])
            elif "data-x" in value:
                found.append([value["class"], "-" if hidden else value.get("x", value.get("x1", ""))])
    return found


DRAWN_IN_PAGE = """(() => { document.querySelector('.switch button[value=CLOCK]').click();
  return [...document.querySelectorAll('.plot')].flatMap(plot =>
    [...plot.querySelectorAll('path[data-run], [data-x]')].map(item => [item.getAttribute('class'),
      item.style.display === 'none' ? '-' : item.tagName === 'path' ? item.getAttribute('d') :
      item.getAttribute(item.tagName === 'line' ? 'x1' : 'x')])); })()"""


@pytest.mark.parametrize("clock", ["step", "flops", "time"])
def test_the_switch_draws_what_python_draws(browser: Browser, runs: Comparison, clock: str) -> None:
    found = browser(render(runs), DRAWN_IN_PAGE.replace("CLOCK", clock))
    assert [[kind, places(text)] for kind, text in found] == [[kind, places(text)] for kind, text in drawn(runs, clock)]


def places(text: str) -> list[list[float]] | str:
    """The x of every point of every piece of a path, or the one x; - for what is hidden."""
    if text == "-":
        return text
    pieces = text.replace("%", "").split("M")
    return [[float(x) for x in piece.split()[::2]] for piece in pieces if piece.strip()]


def test_values_are_read_off_where_the_pointer_is(browser: Browser, runs: Comparison) -> None:
    text = browser(
        render(runs),
        """(() => { document.querySelector('.switch button[value=step]').click();
        const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect();
        const place = {clientX: box.left + box.width * 20 / 1100, clientY: box.top + 20, bubbles: true};
        plot.dispatchEvent(new PointerEvent('pointermove', place));
        return [...document.querySelectorAll('.readout')].slice(0, 2).map(text => text.textContent); })()""",
    )
    loss, length = text
    assert loss.startswith("step 20A 0.5") and "B 0." in loss and "C 0.5" in loss
    assert length == "step 20A 100B 100C 100"


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, runs: Comparison) -> None:
    needed, width = browser(render(runs), "[document.documentElement.scrollWidth, innerWidth]")
    assert needed <= width == 360
