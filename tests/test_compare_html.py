"""The page of a comparison: what stands in it, and what a real browser makes of it at every width, by day and by night.

The browser is Chromium as Qt brings it along (PySide6-WebEngine, a development dependency on x86-64 Linux). Its wheel
needs some libraries of the system; where one is missing the tests that look at the page say which, and are skipped.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fp8cli.core.comparing.comparison import Comparison, MetricComparison
from fp8cli.render.comparison_html import comparison_to_html
from fp8cli.render.palette import COLORS
from fp8cli.render.plot_axis import lay_axis
from tests import comparisons

BROWSER = Path(__file__).parent / "browser.py"
PHONE, DESK = 375, 1280
PIXEL = 1.0

MEASURE = r"""(() => {
  const box = (node) => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const middle = (node) => (box(node)[0] + box(node)[2]) / 2;
  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const light = (color) => numbers(color).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      const alpha = color.startsWith("rgba") ? numbers(color)[3] : 1;
      if (alpha > 0 && color.startsWith("rgb")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || node.closest("title, desc") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const [one, two] = [light(node.closest("svg") ? style.fill : style.color), light(behind(node))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) faint.push([walker.currentNode.data.trim().slice(0, 40), ratio]);
  }
  const crossing = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, box(text)]);
    texts.forEach(([name, a], at) => texts.slice(at + 1).forEach(([other, b]) => {
      if (a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]) crossing.push([name, other]);
    }));
    for (const [name, a] of texts) if (a[0] < -1 || a[2] > innerWidth + 1) crossing.push([name, "edge"]);
  }
  const panels = [...document.querySelectorAll(".forest")].map((table) => ({
    ticks: [...table.querySelectorAll("thead .label")].map((text) => [text.textContent, middle(text)]),
    rows: [...table.querySelectorAll("tbody tr:not(.group)")].map((row) => {
      const interval = row.querySelector(".interval"), estimate = row.querySelector(".estimate");
      return {
        track: box(row.querySelector(".track")), margin: box(row.querySelector(".margin"))[0],
        interval: interval && [box(interval)[0], box(interval)[2]], estimate: estimate && middle(estimate),
        height: estimate && (box(estimate)[1] + box(estimate)[3]) / 2,
        spilled: [...row.children].some((cell) => cell.scrollWidth > cell.clientWidth + 1),
      };
    }),
  }));
  const shown = () => [...document.querySelectorAll(".flips tbody tr")].filter((row) => row.getClientRects().length);
  const counts = {};
  for (const value of ["all", "lost", "gained", "answer"]) {
    const choice = document.querySelector(`[value=${value}]`);
    if (choice) { choice.click(); counts[value] = shown().length; }
  }
  document.querySelector("[value=all]")?.click();
  return {
    inner: innerWidth, scroll: document.documentElement.scrollWidth, faint, crossing, panels, counts,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    bars: [...document.querySelectorAll(".histogram .bars")].map(box),
    plots: [...document.querySelectorAll(".histogram .plot")].map(box),
    scripts: document.scripts.length,
  };
})()"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the browser measured in one view, and its picture."""

    measured: Mapping[str, Any]
    pixels: np.ndarray
    messages: tuple[str, ...]
    requests: tuple[str, ...]


@cache
def missing() -> str | None:
    """Say what keeps the browser from running here."""
    code = "from PySide6.QtWebEngineWidgets import QWebEngineView"
    tried = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    return None if tried.returncode == 0 else tried.stderr.strip().rsplit("\n", 1)[-1]


def visit(page: Path, widths: tuple[int, ...], *, dark: bool) -> dict[int, Seen]:
    """Open a page in every width."""
    if (why := missing()) is not None:
        pytest.skip(f"no browser here: {why}")
    pictures = {width: page.with_name(f"{page.stem}-{width}-{dark}.png") for width in widths}
    views = [
        {"width": width, "height": 800, "script": MEASURE, "picture": str(picture)}
        for width, picture in pictures.items()
    ]
    plan = page.with_suffix(".json")
    plan.write_text(json.dumps({"page": str(page), "views": views}), "utf-8")
    # A root user, as in a container, has no sandbox; by night is a setting of Chromium's own.
    flags = f"--no-sandbox --disable-gpu --blink-settings=preferredColorScheme={0 if dark else 1}"
    settings = {
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_DISABLE_SANDBOX": "1",
        "QTWEBENGINE_CHROMIUM_FLAGS": flags,
        "QT_QUICK_BACKEND": "software",
        "XDG_RUNTIME_DIR": str(page.parent),
    }
    command = [sys.executable, str(BROWSER), str(plan)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return {
        width: Seen(
            measured=measured,
            pixels=np.asarray(Image.open(pictures[width]).convert("RGB")),
            messages=tuple(answer["messages"]),
            requests=tuple(answer["requests"]),
        )
        for width, measured in zip(widths, answer["results"], strict=True)
    }


MADE = {
    "simple": comparisons.simple(),
    "several": comparisons.several(),
    "open": comparisons.open_question(),
    "perplexity": comparisons.only_perplexity(),
    "hostile": comparisons.hostile(),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, int, bool], Seen]:
    """Every page at both widths by day, and the largest by night too."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, made in MADE.items():
        page = folder / f"{name}.html"
        page.write_text(comparison_to_html(made), "utf-8")
        for dark in (False, True) if name == "several" else (False,):
            for width, view in visit(page, (DESK, PHONE), dark=dark).items():
                found[name, width, dark] = view
    return found


def color(name: str, *, dark: bool = False) -> list[int]:
    text = COLORS[name][dark]
    return [int(text[at : at + 2], 16) for at in (1, 3, 5)]


@pytest.mark.slow
def test_no_page_is_wider_than_its_window(seen: Mapping[tuple[str, int, bool], Seen]) -> None:
    for (name, width, dark), view in seen.items():
        assert view.measured["inner"] == width, (name, width)
        assert view.measured["scroll"] <= width, (name, width)
        assert view.measured["dark"] is dark


@pytest.mark.slow
def test_a_page_asks_for_nothing_but_itself_and_its_console_is_silent(
    seen: Mapping[tuple[str, int, bool], Seen],
) -> None:
    for view in seen.values():
        assert view.messages == ()
        assert view.measured["scripts"] == 0
        assert len(set(view.requests)) == 1
        assert view.requests[0].startswith("file:///")


@pytest.mark.slow
def test_all_text_can_be_read_by_day_and_by_night_and_none_lies_on_another(
    seen: Mapping[tuple[str, int, bool], Seen],
) -> None:
    for key, view in seen.items():
        assert view.measured["faint"] == [], key
        assert view.measured["crossing"] == [], key
        assert not any(row["spilled"] for panel in view.measured["panels"] for row in panel["rows"]), key


def shown_metrics(made: Comparison) -> list[list[MetricComparison]]:
    """The metrics of each panel, in the order of the rows; totals are left out."""
    contests = (*made.contests, *(() if made.noise is None else (made.noise,)))
    metrics = [metric for contest in contests for task in contest.tasks for metric in task.metrics]
    panels = [[metric for metric in metrics if metric.kind == kind] for kind in ("share", "perplexity")]
    return [panel for panel in panels if panel]


def ruler(ticks: list[tuple[str, float]]) -> Mapping[str, float]:
    """Read the axis as a person does: from the labels of its ticks."""
    values = [float(label.replace("−", "-")) for label, _ in ticks]
    slope, start = np.polyfit(values, [place for _, place in ticks], 1)
    residue = max(abs(slope * value + start - place) for value, (_, place) in zip(values, ticks, strict=True))
    assert residue < PIXEL
    return {"slope": float(slope), "start": float(start)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simple", "several", "open", "perplexity"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_mark_lies_where_its_number_is_on_the_axis(
    seen: Mapping[tuple[str, int, bool], Seen], name: str, width: int
) -> None:
    panels = seen[name, width, False].measured["panels"]
    expected = shown_metrics(MADE[name])
    assert len(panels) == len(expected)
    for panel, metrics in zip(panels, expected, strict=True):
        line = ruler(panel["ticks"])
        is_ratio = metrics[0].kind == "perplexity"
        # Less is better for a perplexity, and worse lies left on every axis.
        assert (line["slope"] < 0) is is_ratio
        drawn = [row for row in panel["rows"] if row["interval"] is not None]
        assert len(drawn) >= len(metrics)
        for metric, row in zip(metrics, rows_of_metrics(panel["rows"], metrics, MADE[name]), strict=True):
            assert metric.interval is not None
            scale = 1 if is_ratio else 100
            estimate = metric.ratio if is_ratio else metric.difference
            assert estimate is not None
            places = [
                line["slope"] * scale * x + line["start"] for x in (estimate, metric.interval.low, metric.interval.high)
            ]
            assert row["estimate"] == pytest.approx(places[0], abs=PIXEL)
            assert row["interval"] == pytest.approx(sorted(places[1:]), abs=PIXEL)
            margin = 1.01 if is_ratio else -1
            assert row["margin"] == pytest.approx(line["slope"] * margin + line["start"], abs=PIXEL)
            left, _, right, _ = row["track"]
            assert left <= row["interval"][0] <= row["interval"][1] <= right
            assert left <= row["estimate"] <= right


def rows_of_metrics(rows: list[Any], metrics: list[MetricComparison], made: Comparison) -> list[Any]:
    """Leave out the rows of totals, one at the end of every contest that has one."""
    if metrics[0].kind != "share":
        return rows
    kept, rest = [], iter(rows)
    for contest in (*made.contests, *(() if made.noise is None else (made.noise,))):
        kept += [next(rest) for task in contest.tasks for metric in task.metrics if metric.kind == "share"]
        if contest.total is not None:
            next(rest)
    assert next(rest, None) is None
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_the_picture_has_the_marks_in_the_colours_of_their_verdicts(
    seen: Mapping[tuple[str, int, bool], Seen], dark: bool
) -> None:
    view = seen["several", DESK, dark]
    rows = view.measured["panels"][0]["rows"]

    def painted(x: float, y: float, name: str) -> bool:
        """Whether this colour is there, in one of the pixels that a thin line may fall into."""
        column = view.pixels[int(y) - 1 : int(y) + 2, int(x)]
        return bool((column == color(name, dark=dark)).all(axis=1).any())

    passed, regressed, open_one = rows[0], rows[4], rows[5]
    assert painted(passed["estimate"], passed["height"], "good")
    assert painted(regressed["estimate"], regressed["height"], "alarm")
    # What is open is hollow.
    assert painted(open_one["estimate"], open_one["height"], "paper")
    for row, name in ((passed, "good"), (regressed, "alarm"), (open_one, "doubt")):
        left, right = row["interval"]
        assert painted(left + 2, row["height"], name)
        assert painted(right - 2, row["height"], name)
        assert not painted(left - 3, row["height"], name)
        assert not painted(right + 3, row["height"], name)
    assert painted(3, 3, "paper")


@pytest.mark.slow
def test_the_histogram_is_painted_inside_its_plot(seen: Mapping[tuple[str, int, bool], Seen]) -> None:
    for width in (PHONE, DESK):
        view = seen["several", width, False]
        assert len(view.measured["bars"]) == 2
        for bars, plot in zip(view.measured["bars"], view.measured["plots"], strict=True):
            assert plot[0] - PIXEL <= bars[0] < bars[2] <= plot[2] + PIXEL
            assert plot[1] <= bars[1] < bars[3] <= plot[3]
            area = view.pixels[round(bars[1]) : round(bars[3]), round(bars[0]) : round(bars[2])]
            # Blue at three quarters over paper: more blue than red by far.
            blue = (area[..., 2].astype(int) - area[..., 0] > 60).mean()
            assert 0.15 < blue < 0.7


@pytest.mark.slow
def test_changed_items_filter_without_a_script(seen: Mapping[tuple[str, int, bool], Seen]) -> None:
    assert seen["simple", DESK, False].measured["counts"] == {"all": 3, "lost": 1, "gained": 1, "answer": 1}


class Page(HTMLParser):
    """What a parser sees: elements, attributes, text, and whether all that opens closes."""

    VOID = frozenset({"meta", "input", "line", "circle", "rect", "path", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_whole_names_nothing_outside_and_forbids_all_that_loads(name: str) -> None:
    html = comparison_to_html(MADE[name])
    page = Page(html)
    assert {"script", "link", "img", "iframe", "object", "image", "a", "form"}.isdisjoint(page.tags)
    assert {value for key, value in page.attributes if key in {"href", "src", "xlink:href", "action"}} == set()
    assert {key for key, _ in page.attributes if key.startswith("on") or key == "style"} == set()
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert ("lang", "en") in page.attributes
    assert "url(" not in html
    assert page.tags.count("h1") == 1
    assert html == comparison_to_html(MADE[name])


def test_every_drawing_has_a_title_and_every_table_its_heads() -> None:
    page = Page(comparison_to_html(MADE["several"]))
    # An inner one only scales the bars of its histogram.
    assert page.attributes.count(("role", "img")) == page.tags.count("svg") - page.tags.count("path") + 1 + 1
    assert page.tags.count("title") == 1 + page.attributes.count(("role", "img"))
    assert page.tags.count("table") == page.tags.count("thead")
    assert ("scope", "row") in page.attributes


def test_the_verdict_comes_first_and_every_number_is_there() -> None:
    text = Page(comparison_to_html(MADE["several"])).text
    assert text.index("✓ PASS") < text.index("✗ REGRESSION") < text.index("Change by task")
    for words in (
        "fp8-block : lambada_openai is worse: −4.16 pp, at best −3.31 pp",
        "mean over 3 tasks −1.72 pp",
        "−5.01 to −3.31",
        "noise floor: base~float32",
        "≥ 0.0286",
        "9.08 GB (×0.57)",
        "<0.0001",
        "dtype bfloat16 float16",
        "not checked, for one of the two does not say it: tokenizer, chat template",
        "fp8 compare base fp8-dynamic fp8-block --noise-floor",
        "She opened the door and there stood her old friend",
    ):
        assert words in text, words


def test_hostile_texts_are_only_text_and_bounded() -> None:
    html = comparison_to_html(MADE["hostile"])
    assert len(html) < 1_000_000
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert html.encode("utf-8")
    page = Page(html)
    assert "<script>alert('&')</script>" in page.text
    assert "500 more; fp8 compare --json has them all" in page.text


def test_numbers_that_are_none_draw_no_mark() -> None:
    made = comparisons.comparison(
        comparisons.contest(
            "fp8",
            comparisons.task("t", comparisons.share("acc", float("nan"), 0.5, float("-inf"), float("nan")), flips=None),
        )
    )
    html = comparison_to_html(made)
    assert 'class="estimate' not in html
    assert 'class="interval"' not in html
    assert "nan" not in "".join(re.findall(r'(?:x1|x2|cx|x)="([^"]*)"', html))


def test_a_histogram_without_positions_is_left_out() -> None:
    made = comparisons.contest("fp8", comparisons.LAMBADA)
    assert made.fidelity is not None
    empty = replace(made.fidelity, histogram_counts=(0,) * len(made.fidelity.histogram_counts))
    html = comparison_to_html(comparisons.comparison(replace(made, fidelity=empty)))
    assert "figure" not in Page(html).tags
    assert "0.00143" in Page(html).text


def test_where_the_smallest_are_counted_together_the_page_says_so() -> None:
    made = comparisons.contest("fp8", comparisons.LAMBADA)
    assert made.fidelity is not None
    counts = (7, *made.fidelity.histogram_counts[1:])
    words = "at the left end stands also all that is smaller"
    assert words not in comparison_to_html(comparisons.comparison(made))
    made = replace(made, fidelity=replace(made.fidelity, histogram_counts=counts))
    assert words in comparison_to_html(comparisons.comparison(made))


@pytest.mark.parametrize(
    ("numbers", "labels"),
    [
        ((0.0, -1.0, -5.01, 0.27), ["-5", "-4", "-3", "-2", "-1", "0"]),
        ((1.0, 1.01, 1.0002), ["1.000", "1.002", "1.004", "1.006", "1.008", "1.010"]),
        ((0.0, -1.0, 120.0), ["0", "25", "50", "75", "100", "125"]),
        ((0.0, -0.01), ["-0.010", "-0.008", "-0.006", "-0.004", "-0.002", "0.000"]),
        ((0.0, -0.012), ["-0.0125", "-0.0100", "-0.0075", "-0.0050", "-0.0025", "0.0000"]),
    ],
)
def test_an_axis_has_a_few_round_ticks(numbers: tuple[float, ...], labels: list[str]) -> None:
    axis = lay_axis(numbers, downwards=False)
    assert [f"{tick:z.{axis.decimals}f}" for tick in axis.ticks] == labels
    assert all(0 <= axis.place(number) <= 100 for number in numbers)
    assert lay_axis(numbers, downwards=True).place(numbers[0]) == pytest.approx(100 - axis.place(numbers[0]))


def test_an_axis_of_nothing_or_of_one_number_is_still_one() -> None:
    for numbers in ((), (float("nan"),), (0.0,), (3.0, 3.0)):
        axis = lay_axis(numbers, downwards=False)
        assert axis.low < axis.high
        assert 40 < axis.place((axis.low + axis.high) / 2) < 60
