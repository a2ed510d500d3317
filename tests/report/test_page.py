"""The page as a reader and a browser get it: what it says, that it is whole and quiet, that no name breaks it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.report.chart_axes import frame_of, make_axes
from megatron_slw.report.chart_svg import draw, spread
from megatron_slw.report.finding import finding
from megatron_slw.report.inputs import read_runs
from megatron_slw.report.page import notes, panels, render, write
from megatron_slw.report.table import Comparison, compare, rows, span_text, summary
from tests.report.run_files import evaluation, falling, stable_step, step, write_run

HOSTILE = '<script>alert(1)</script>"\'&'
VOID = {"meta"}


class Page(HTMLParser):
    """Checks that elements nest, and gathers them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def having(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in attributes.items())]


def comparison(folder: Path, target: float | None = None, **runs: Sequence[Any]) -> Comparison:
    paths = [f"{name}={write_run(folder / name, records)}" for name, records in runs.items()]
    return compare(read_runs(paths), target)


@pytest.fixture
def two(tmp_path: Path) -> Comparison:
    """`slw` is resumed at step 31, and reaches 3.0, the best of `base`, half-way between steps 40 and 60."""
    slower = falling(100, 20, 5.0, 0.5)
    faster = falling(80, 20, 4.0, 0.8)
    next(record for record in faster if record["step"] == 31)["resumed"] = True
    for record in faster:
        record["tokens"] //= 2
    return comparison(tmp_path, base=slower, slw=faster)


def cells(found: Comparison) -> dict[str, tuple[str, ...]]:
    return {row.label: tuple(c.replace("\N{NO-BREAK SPACE}", " ") for c in row.cells) for row in rows(found)}


def test_the_table(two: Comparison) -> None:
    found = cells(two)
    assert found["steps"] == ("100", "80") and found["tokens"] == ("10,000", "4,000")
    assert found["training time"] == ("3.3 min", "2.7 min")
    assert found["best validation loss"] == ("3.000 (step 100)", "1.600 (step 80)")
    assert found["steps to loss 3.000"] == ("100", "45 (0.45×)")  # 40 + 20 x (3.2 - 3.0) / 0.8
    assert found["tokens to loss 3.000"] == ("10,000", "2,250 (0.23×)")
    assert found["training time to loss 3.000"] == ("3.3 min", "90 s (0.45×)")
    assert found["steps with loss ratio above 1.2"] == ("10", "8")
    assert found["largest loss ratio"] == ("1.500", "1.500") and found["spike score"] == ("0.1250", "0.1250")
    assert found["correlation of loss ratio and variance norm"][0].endswith("(p<0.001)")
    assert "correlation of loss ratio and variance max" not in found, "no run has it: the maximum never changes"


def test_the_same_as_json(two: Comparison) -> None:
    found = json.loads(json.dumps(summary(two), allow_nan=False))
    assert found["target_loss"] == 3.0
    base, slw = found["runs"]
    assert (slw["name"], slw["steps"], slw["tokens"], slw["hours"]) == ("slw", 80, 4000, pytest.approx(160 / 3600))
    assert slw["reached"] == {
        "steps": pytest.approx(45),
        "tokens": pytest.approx(2250),
        "flops": pytest.approx(45_000),
        "hours": pytest.approx(90 / 3600),
        "at_first_evaluation": False,
    }
    assert base["pearson"]["variance_sqrt_abs_max"] is None and base["pearson"]["variance_sqrt_l1"]["count"] == 100
    assert (slw["resumes"], slw["loss_ratio_count"], slw["loss_ratio_max"]) == (1, 8, 1.5)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (None, "slw reached base’s best validation loss 3.000 with 78 % fewer tokens and 55 % less time"),
        (2.4, "slw reached validation loss 2.400 after 3,000 tokens and 2.0 min of training"),
        (1.0, "No run reached validation loss 1.000: slw came closest with 1.600"),
    ],
)
def test_the_title_says_the_finding(two: Comparison, target: float | None, sentence: str) -> None:
    found = finding(compare(two.runs, target)).replace("\N{NO-BREAK SPACE}", " ")
    assert found == sentence


def test_the_title_where_the_others_are_worse_or_nothing_was_evaluated(tmp_path: Path) -> None:
    good, bad = falling(40, 20, 5.0, 0.5), falling(40, 20, 6.0, 0.5)
    found = comparison(tmp_path, good=good, bad=bad)
    assert finding(found) == "No other run reached good’s best validation loss 4.500: bad came closest with 5.500"
    assert cells(found)["tokens to loss 4.500"] == ("4,000", "never reached")
    assert finding(comparison(tmp_path, good=good)).startswith("good: validation loss 4.500 after 40 steps")
    found = comparison(tmp_path, a=[step(1)], b=[step(1)])
    assert finding(found) == "a and b: no validation loss to compare"
    assert not any("loss 4" in label for label in cells(found))
    found = comparison(tmp_path, a=[step(1)], b=[step(1), evaluation(1, 2.0)])
    assert finding(found) == "a has no validation loss to compare with"
    assert any("--target-loss" in note for note in notes(found))


def test_a_target_reached_before_the_first_evaluation(tmp_path: Path) -> None:
    found = comparison(tmp_path, 9.0, a=falling(40, 20, 5.0, 0.5))
    assert cells(found)["steps to loss 9.000"] == ("≤ 20",)
    with pytest.raises(ConfigError, match="--target-loss must be a finite number"):
        compare(found.runs, float("nan"))


def test_the_page_is_whole_and_asks_for_nothing(two: Comparison) -> None:
    text = render(two)
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    for tag, attributes in page.elements:
        assert "src" not in attributes and tag not in ("link", "img", "iframe", "object", "base")
        target = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert target.startswith("#"), f"<{tag}> refers to {target}"
    for target in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{target}"' in text
    assert page.having("meta", **{"http-equiv": "Content-Security-Policy"})
    assert page.having("meta", name="viewport")
    assert page.texts["title"][:1] == page.texts["h1"] == [finding(two)]


def test_a_name_is_never_markup(tmp_path: Path) -> None:
    records = falling(20, 10, 5.0, 0.5)
    records[0]["grown_from"] = HOSTILE
    records[-1][HOSTILE] = 0.5
    folder = write_run(tmp_path / "r", records)
    text = render(compare(read_runs([f"{HOSTILE}={folder}"])))
    page = Page(text)
    assert len(page.having("script")) == 2 and HOSTILE not in text
    assert any(HOSTILE in data for data in page.texts["h1"]), "it is shown as it is"


def test_every_chart_has_every_run_apart_without_colour(two: Comparison) -> None:
    page = Page(render(two))
    plots = page.having("svg", **{"class": "plot"})
    assert [plot["data-measure"] for plot in plots] == [
        "loss", "seq_len", "loss_ratio", "grad_norm", "variance_sqrt_l1", "variance_sqrt_abs_max",
    ]  # fmt: skip
    assert "A base" in str(plots[0]["aria-label"]) and "B slw" in str(plots[0]["aria-label"])
    for number in range(2):
        assert len([a for a in page.having("path") if a.get("data-run") == str(number)]) == 6 + 2  # two are also faint
        assert len(page.having("text", **{"class": f"label c{number}"})) == 5
        assert len(page.having("use", href=f"#sign{number}")) > 10
    assert len(page.having("line", **{"class": "mark resumed c1"})) == 6


def test_the_loss_is_drawn_where_it_was(two: Comparison) -> None:
    axes = make_axes(two.runs)
    panel = panels(two)[0]
    svg = draw(panel, two.runs, axes)
    frame = frame_of(panel, two.runs, axes)
    (faint,) = re.findall(r'<path class="faint c1" [^>]*d="M([^"]*)"', svg)
    numbers = [float(part) for part in faint.split()]
    assert len(numbers) == 2 * 80
    for number in (1, 40, 80):
        x, y = numbers[2 * number - 2 : 2 * number]
        assert x == pytest.approx(1000 * 50 * number / 10_000, abs=0.05)
        assert y == pytest.approx(float(frame.y(10 / number)), abs=0.05)
    assert axes.shown == "tokens" and list(axes.scales) == ["step", "tokens", "flops", "time"]
    at_step_20 = r'<use class="c1" href="#sign1" x="10.00%" y="([^"]+)" data-x="20.00 10.00 20.00 20.00"/>'
    (sign,) = re.findall(at_step_20, svg)
    assert float(sign) == pytest.approx(float(frame.y(4.0)), abs=0.05)


def test_the_script_knows_every_place(two: Comparison) -> None:
    (text,) = re.findall(r'id="data">(.*?)</script>', render(two))
    data = json.loads(text)
    assert data["clocks"] == ["step", "tokens", "flops", "time"] and data["ends"]["tokens"] == 10_000
    x, y = data["runs"][1]["x"], data["runs"][1]["y"]
    assert x["step"][-1] == 800 and x["tokens"][-1] == 400 and len(x["time"]) == len(y["loss"][0]) == 80
    assert [len(columns) for columns in y.values()] == [3, 1, 3, 1, 1, 1]


def test_what_no_run_recorded_is_left_out_and_said(tmp_path: Path) -> None:
    found = comparison(tmp_path, new=falling(40, 20, 5.0, 0.5), old=[step(1), step(2)])
    missing = "validation losses, FLOPs, loss ratios, variance norms and variance maxima"
    assert f"old has no record of {missing}." in notes(found)
    page = Page(render(found))
    assert len(page.having("svg", **{"class": "plot"})) == 6
    labels = page.having("text", **{"class": "label c1"})
    assert [str(label["data-x"]).split()[2] for label in labels] == ["-", "-"], "it has no place on the FLOPs axis"
    old = comparison(tmp_path, old=[step(1), step(2)])
    text = render(old)
    assert len(Page(text).having("svg", **{"class": "plot"})) == 3 and ">FLOPs</button>" not in text
    assert any(note.startswith("No run has a record of") for note in notes(old))


def test_a_run_without_tokens_is_on_the_other_axes(tmp_path: Path) -> None:
    found = comparison(tmp_path, a=[step(n, tokens=None) for n in (1, 2, 3)], b=[step(n) for n in (1, 2, 3)])
    assert cells(found)["tokens"] == ("–", "300")
    svg = draw(panels(found)[0], found.runs, make_axes(found.runs))
    assert re.findall(r'<path class="line (c.)"[^>]*style="display:none"/>', svg) == ["c0"]
    alone = comparison(tmp_path, a=[step(n, tokens=None) for n in (1, 2, 3)])
    assert make_axes(alone.runs).shown == "step" and 'data-clock="step"' in render(alone)


def test_one_step_and_gaps_are_drawn(tmp_path: Path) -> None:
    records = [step(n, loss=None if n in (3, 4) else 2.0) for n in range(1, 8)]
    text = render(comparison(tmp_path, a=records, b=[step(1, loss=None)], c=[step(1)]))
    assert "nan" not in text.split("<script")[0] and "inf" not in text.split("<script")[0]
    (path,) = re.findall(r'<path class="faint c0" data-run="0" data-each="1" data-from="0 4" d="([^"]*)"', text)
    assert path.count("M") == 2


def test_a_long_run_stays_small_and_keeps_its_spike(tmp_path: Path) -> None:
    rng = random.Random(1)  # digits that differ: the largest page that so many runs can have
    records = []
    for n in range(1, 1022):
        noisy = {name: rng.random() for name in ("loss", "loss_ratio", "variance_sqrt_l1", "variance_sqrt_abs_max")}
        records.append(stable_step(n, **noisy, grad_norm=50.0 if n == 333 else rng.random()))
        records += [evaluation(n, 3.0)] if n % 20 == 0 else []
    text = render(comparison(tmp_path, **{f"run{n}": records for n in range(5)}))
    assert len(text) < 1_000_000
    (y,) = set(re.findall(r'"grad_norm":\[\[.*?\],\[(.*?)\]', text))
    assert max(map(float, y.split(","))) == 50.0


def test_names_are_moved_apart() -> None:
    assert spread([10, 11, 50], 14, 6, 100) == [10, 24, 50]
    assert spread([90, 95, 99], 14, 6, 100) == [72, 86, 100]
    assert spread([], 14, 6, 100) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (35, "35 s"), (750, "12.5 min"), (53_640, "14.9 h"), (276_480, "3.2 days")],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


def test_a_page_that_cannot_be_written_leaves_the_old_one(two: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder cannot be written"):
        write(two, tmp_path / "folder")
    with pytest.raises(ConfigError, match="none/report.html cannot be written"):
        write(two, tmp_path / "none" / "report.html")
    assert path.read_text() == "old"
    assert write(two, path) == path.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "folder", "report.html", "slw"]
