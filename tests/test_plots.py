"""Drawings of a report: what stands in them, read back by other libraries, and files that are whole or absent."""

import math
import os
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from fp8cli.commands.inspect import Against, InspectReport, InspectRequest, run
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.depth_axis import lay_out, locate
from fp8cli.core.inspection.fidelity import WeightFidelity
from fp8cli.core.inspection.roles import RoleRow
from fp8cli.core.inspection.scale_values import ScaleStats
from fp8cli.errors import CannotRun, UsageError
from fp8cli.render.canvas import WIDTH
from fp8cli.render.names import shorten, tail
from fp8cli.render.palette import ALARM, BLUE, GREY
from fp8cli.render.plots import check_plot_path, draw
from fp8cli.render.ticks import layer_ticks, scale_limits, scale_ticks, spread
from fp8cli.render.units import number, size
from tests.planting import STORIES, quantize_stories

LINES = "band: smallest to largest, line: middle of the typical tensor"
SVG = "{http://www.w3.org/2000/svg}"
RIGHT_TO_LEFT = "\u05e9\u05dc\u05d5\u05dd"
HOSTILE = f"$x_1$ <script>alert('&')</script> \x1b[31m[bold]\n\u202e{RIGHT_TO_LEFT}\u2066 日本 \ud800 \"'"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> InspectReport:
    """A real FP8 checkpoint beside its source."""
    out = quantize_stories(tmp_path_factory.mktemp("plots") / "stories-FP8")
    return run(InspectRequest(source=out, against=str(STORIES)))


@pytest.fixture
def known(real: InspectReport) -> InspectReport:
    """The same with figures that are easy to follow: four layers, a bad scale, a poor and a lost weight."""
    names = tuple(f"model.layers.{n}.{module}" for n in range(4) for module in ("self_attn.o_proj", "mlp.up_proj"))
    return replace(
        real,
        name="Known-FP8",
        verdict="damaged",
        roles=(
            RoleRow(
                role="quantized weights",
                dtype="torch.float8_e4m3fn",
                tensors=8,
                parameters=6 * 10**9,
                bytes=6 * 10**9,
                share=0.75,
                bits_per_weight=8.0,
            ),
            RoleRow(
                role="scales",
                dtype="torch.bfloat16",
                tensors=8,
                parameters=0,
                bytes=2 * 10**9,
                share=0.25,
                bits_per_weight=None,
            ),
        ),
        scales=(weight_scales(names),),
        findings=(
            Finding(
                check="scale.nan",
                status="failed",
                subject="model.layers.2.mlp.up_proj.weight_scale",
                found="1 of 2 values is NaN",
                consequence="its outputs are NaN",
                remedy="quantize again",
            ),
            Finding(check="index.total_size", status="passed", subject=None, found="it adds up"),
        ),
        against=against(*((f"{name}.weight", 31.5) for name in names[:6]), (names[6], 25.0), (names[7], -math.inf)),
    )


def weight_scales(names: tuple[str, ...]) -> ScaleStats:
    return ScaleStats(
        label="weight_scale",
        dtypes=("BF16",),
        tensors=len(names),
        values=2 * len(names),
        minimum=0.001,
        median=0.002,
        maximum=0.004,
        bad={"scale.nan": 1},
        names=tuple(f"{name}.weight_scale" for name in names),
        ranges=((0.001, 0.004),) * len(names),
    )


def against(*weights: tuple[str, float]) -> Against:
    measured = [WeightFidelity(name=name, sqnr_db=ratio, largest_error=0.1, at=(0, 0)) for name, ratio in weights]
    ordered = tuple(sorted(measured, key=lambda weight: weight.sqnr_db))
    return Against(base="Known", tensors={"quantized": len(weights)}, bytes_read=10, sqnr_db=24.0, weights=ordered)


def drawn(report: InspectReport, path: Path) -> ET.Element:
    """Draw an SVG and read it back."""
    draw(report, path)
    return ET.fromstring(path.read_bytes())  # noqa: S314 - our own file


def texts(svg: ET.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def bars(svg: ET.Element) -> list[float]:
    """Lengths of the bars of bytes."""
    found = []
    for path in svg.iter(f"{SVG}path"):
        if path.get("style") in {f"fill: {BLUE}", f"fill: {GREY}"}:
            places = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d") or "")]
            found.append(max(places) - min(places))
    return found


def crosses(svg: ET.Element) -> list[float]:
    """Places, from the left, of the red crosses."""
    return [float(use.get("x") or 0) for use in svg.iter(f"{SVG}use") if f"fill: {ALARM}" in (use.get("style") or "")]


def test_every_word_of_a_drawing(known: InspectReport, tmp_path: Path) -> None:
    found = texts(drawn(known, tmp_path / "known.svg"))
    assert sorted(found) == sorted(
        [
            "Known-FP8",
            "FP8_DYNAMIC: E4M3 weights per channel, activations per token at run time",
            "1.16 MB · 51 tensors · 820,096 parameters",
            "damaged: 1 failed, 1 passed",
            "Bytes by role",
            *("quantized weights · float8_e4m3fn", "6.00 GB · 75.0 % · 8.00 bits/weight"),
            *("scales · bfloat16", "2.00 GB · 25.0 %"),
            "Scales of weights: weight_scale",
            f"16 values in 8 tensors · 0.001 to 0.004, median 0.002 · {LINES}",
            "✗ NaN in 1 tensor: layer 2",
            *("0.001", "0.002", "0.003"),
            "Signal to noise (SQNR) over depth",
            "8 weights against Known · 24.00 dB all together",
            "✗ 1 weight has nothing in common with its source",
            "SQNR (dB)",
            *("20", "22", "24", "26", "28", "30", "32"),
            *("wrong below 20 dB", "poor below 28 dB", "expected 31.5 dB"),
            *("1,2", "3"),
            "1   nothing alike   model.layers.3.mlp.up_proj",
            "2   25.00 dB   model.layers.3.self_attn.o_proj",
            "3   31.50 dB   model.layers.0.mlp.up_proj.weight",
            # Both panels over depth:
            *("0", "1", "2", "3", "layer", "attention", "mlp") * 2,
        ]
    )


def test_bars_are_as_long_as_their_bytes(known: InspectReport, tmp_path: Path) -> None:
    first, second = bars(drawn(known, tmp_path / "known.svg"))
    assert first == pytest.approx(3 * second)


def test_bad_scales_and_lost_weights_are_crossed_out_where_they_are(known: InspectReport, tmp_path: Path) -> None:
    svg = drawn(known, tmp_path / "known.svg")
    layers = {}
    for text in svg.iter(f"{SVG}text"):
        if text.text in {"0", "1", "2", "3"}:
            layers.setdefault(text.text, float(text.get("x") or 0))
    assert crosses(svg) == pytest.approx([layers["2"], layers["3"]])


def test_a_healthy_comparison_has_no_line_of_wrong_ones(real: InspectReport, tmp_path: Path) -> None:
    found = texts(drawn(real, tmp_path / "real.svg"))
    assert "expected 31.5 dB" in found
    assert "poor below 28 dB" in found
    assert "wrong below 20 dB" not in found
    assert crosses(drawn(real, tmp_path / "real.svg")) == []


def test_a_png_opens_and_shows_the_bars(known: InspectReport, tmp_path: Path) -> None:
    path = tmp_path / "known.PNG"
    draw(known, path)
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.width) == ("PNG", WIDTH * 150)
        assert image.height > image.width
        pixels = np.asarray(image.convert("RGB"))
    blue, grey = ((pixels == [int(color[at : at + 2], 16) for at in (1, 3, 5)]).all(axis=2) for color in (BLUE, GREY))
    longest = [int(mask.sum(axis=1).max()) for mask in (blue, grey)]
    assert longest[0] == pytest.approx(3 * longest[1], abs=4)


def test_the_same_report_gives_the_same_bytes_whatever_matplotlibrc_says(known: InspectReport, tmp_path: Path) -> None:
    for ending in (".png", ".svg", ".html"):
        one, two = tmp_path / f"one{ending}", tmp_path / f"two{ending}"
        draw(known, one)
        with mpl.rc_context({"text.usetex": True, "font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
            draw(known, two)
            assert mpl.rcParams["text.usetex"]
        assert one.read_bytes() == two.read_bytes()
    assert b"<dc:date>" not in (tmp_path / "one.svg").read_bytes()


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page(report: InspectReport, path: Path) -> tuple[str, Page]:
    draw(report, path)
    html = path.read_text("utf-8")
    return html, Page(html)


def test_a_page_has_the_verdict_the_drawing_and_the_checks(known: InspectReport, tmp_path: Path) -> None:
    _, seen = page(known, tmp_path / "known.html")
    assert "Known-FP8 · fp8 inspect" in seen.text
    assert "damaged: 1 failed, 1 passed" in seen.text
    assert seen.tags.count("svg") == 1
    assert seen.tags.count("h1") == 1
    assert "Scales of weights: weight_scale" in seen.text
    assert (
        "✗ failed scale.nan model.layers.2.mlp.up_proj.weight_scale : 1 of 2 values is NaN so: its outputs are NaN "
        "fix: quantize again 1 passed"
    ) in seen.text


def test_a_page_loads_nothing_and_its_colours_follow_the_theme(known: InspectReport, tmp_path: Path) -> None:
    html, seen = page(known, tmp_path / "known.html")
    assert {"script", "link", "img", "iframe", "object", "image"}.isdisjoint(seen.tags)
    links = [value for name, value in seen.attributes if name in {"href", "src", "xlink:href"}]
    assert all(value.startswith("#") for value in links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    used = set(re.findall(r"var\(--(\w+)\)", html))
    by_day, by_night = (set(re.findall(r"--(\w+):", block)) for block in re.findall(r":root \{(.*?)\}", html))
    assert used <= by_day
    assert by_day == by_night


@pytest.fixture
def hostile(known: InspectReport) -> InspectReport:
    """Names of strangers wherever a name can stand."""
    name = f"{HOSTILE}.layers.1.{HOSTILE}{'é' * 10_000}"
    finding = Finding(
        check="scale.nan", status="failed", subject=f"{name}.weight_scale", found=HOSTILE * 100, remedy=HOSTILE
    )
    assert known.against is not None
    return replace(
        known,
        name=HOSTILE * 300,
        quantization=replace(known.quantization, words=HOSTILE, kv_cache=HOSTILE, scheme=None, dialect=HOSTILE),
        scales=(weight_scales((name, "model.layers.0.mlp", "lm_head")),),
        findings=(finding,) * 300,
        against=replace(against((f"{name}.weight", 14.0), ("model.layers.0.mlp.weight", 31.0)), base=HOSTILE),
    )


def test_hostile_names_are_only_text_in_an_svg(hostile: InspectReport, tmp_path: Path) -> None:
    svg = drawn(hostile, tmp_path / "hostile.svg")
    assert svg.find(f".//{SVG}script") is None
    found = texts(svg)
    assert all(text.isprintable() and len(text) <= 200 for text in found)
    assert any(text.startswith("$x_1$ <script>alert('&')</script> \\x1b[31m") for text in found)
    assert any(f"\\u202e{RIGHT_TO_LEFT}" in text for text in found)
    assert crosses(svg) != []


def test_hostile_names_are_only_text_in_a_page(hostile: InspectReport, tmp_path: Path) -> None:
    html, seen = page(hostile, tmp_path / "hostile.html")
    assert "script" not in seen.tags
    assert {name for name, _ in seen.attributes if name.startswith("on")} == set()
    assert len(html) < 1_000_000
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "100 more; fp8 inspect --json has them all" in seen.text


def test_a_colour_in_a_name_stays_a_name(known: InspectReport, tmp_path: Path) -> None:
    weights = against((f'h.0.style="fill: {BLUE}"', 14.0))
    _, seen = page(replace(known, against=weights), tmp_path / "known.html")
    assert f'h.0.style="fill: {BLUE}"' in seen.text


def test_hostile_names_make_a_png_without_a_warning(hostile: InspectReport, tmp_path: Path) -> None:
    draw(hostile, tmp_path / "hostile.png")
    with Image.open(tmp_path / "hostile.png") as image:
        image.load()


def test_panels_without_data_say_why(known: InspectReport, tmp_path: Path) -> None:
    nothing = replace(known, roles=(), scales=(), findings=(), against=None)
    found = texts(drawn(nothing, tmp_path / "nothing.svg"))
    assert found[-6:] == [
        "Bytes by role",
        "no tensor could be read",
        "Scales over depth",
        "no scales found, though 21 weights are FP8",
        "Signal to noise (SQNR) over depth",
        "not compared with a source: fp8 inspect CKPT --against BASE --plot FILE",
    ]


def test_an_unquantized_checkpoint_and_unreadable_scales_have_their_own_reasons(
    known: InspectReport, tmp_path: Path
) -> None:
    words = "nothing is quantized"
    plain = replace(known, scales=(), quantization=replace(known.quantization, words=words, fp8_weights=0))
    assert "no scales: nothing is quantized" in texts(drawn(plain, tmp_path / "plain.svg"))
    unread = Finding(check="scale.values", status="not checked", subject=None, found="8 scale tensors cannot be read")
    report = replace(known, scales=(), findings=(unread,), against=against())
    found = texts(drawn(report, tmp_path / "unread.svg"))
    assert "not drawn: 8 scale tensors cannot be read" in found
    assert "no quantized weight could be compared with Known" in found


@pytest.mark.parametrize(
    "names",
    [
        ("lm_head", "score"),
        ("model.layers.5.mlp.up_proj",),
        ("model.layers.0.mlp.up_proj", "lm_head"),
        ("a.999999.w", "b.0.w", "c.1.w", "d.2.w", "e.3.w", "f.4.w"),
    ],
)
def test_models_without_layers_with_one_or_with_odd_ones_are_drawn(
    known: InspectReport, tmp_path: Path, names: tuple[str, ...]
) -> None:
    weights = against(*((name, 31.0) for name in names))
    found = texts(drawn(replace(known, scales=(weight_scales(names),), against=weights), tmp_path / "few.svg"))
    assert sum(text.startswith("Scales of weights") for text in found) == 1
    assert ("no layer" in found) == (len(names) != 1)


@pytest.mark.parametrize(("low", "high"), [(5e-324, 1.7e308), (5e-324, 5e-324), (1.7e308, 1.7e308), (1.0, 1.0)])
def test_scales_of_any_size_are_drawn(known: InspectReport, tmp_path: Path, low: float, high: float) -> None:
    stats = replace(weight_scales(("h.0.mlp", "h.1.mlp")), minimum=low, maximum=high, ranges=((low, low), (high, high)))
    draw(replace(known, scales=(stats,)), tmp_path / "extreme.png")
    none = replace(stats, minimum=None, median=None, maximum=None, ranges=(None, None))
    assert any(
        "none of them finite and positive" in text
        for text in texts(drawn(replace(known, scales=(none,)), tmp_path / "none.svg"))
    )


def test_fifty_thousand_scales_are_drawn_as_few_lines(known: InspectReport, tmp_path: Path) -> None:
    names = tuple(f"model.layers.{n // 1000}.mlp.experts.{n % 1000}.up_proj" for n in range(50_000))
    report = replace(known, scales=(weight_scales(names),), against=against(*((name, 31.0) for name in names)))
    draw(report, tmp_path / "many.svg")
    assert (tmp_path / "many.svg").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.png.gz", ".svg"])
def test_another_ending_is_refused(known: InspectReport, tmp_path: Path, name: str) -> None:
    for refuse in (check_plot_path, lambda path: draw(known, path)):
        with pytest.raises(UsageError, match=r"a drawing is one of \.png, \.svg, \.html"):
            refuse(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_and_a_folder_of_that_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"there is no folder `{tmp_path}/nowhere`"):
        check_plot_path(tmp_path / "nowhere" / "plot.png")
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(UsageError, match="is a folder, and the drawing is a file"):
        check_plot_path(tmp_path / "plot.png")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that even root cannot write")
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(known: InspectReport) -> None:
    for refuse in (check_plot_path, lambda path: draw(known, path)):
        with pytest.raises(CannotRun, match=r"`/proc/plot\.svg` cannot be written"):
            refuse(Path("/proc/plot.svg"))


def test_a_path_that_will_do_passes_and_leaves_nothing(tmp_path: Path) -> None:
    check_plot_path(tmp_path / "Plot.HTML")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file grow beyond 1,000 bytes: the system refuses the rest of a write, as a full disk does.

    For a few lines only: what pytest writes may be a file too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_leaves_what_was_there(known: InspectReport, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_bytes(b"yesterday's")
    with pytest.raises(CannotRun, match="cannot be written: File too large") as refused, small_files():
        draw(known, path)
    assert refused.value.hint == "make room or choose another place with --plot"
    assert path.read_bytes() == b"yesterday's"
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]


def test_without_matplotlib_the_command_to_install_it_is_named(
    known: InspectReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for refuse in (check_plot_path, lambda path: draw(known, path)):
        with pytest.raises(CannotRun, match="a drawing needs matplotlib, which is not installed") as refused:
            refuse(tmp_path / "plot.png")
        assert refused.value.hint == "pip install 'fp8cli[plot]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_may_read_the_file(known: InspectReport, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        draw(known, tmp_path / "plot.svg")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "plot.svg").stat().st_mode) == mode


def test_a_link_stays_a_link(known: InspectReport, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "plot.svg"
    link.symlink_to(tmp_path / "there" / "real.svg")
    check_plot_path(link)
    draw(known, link)
    assert link.is_symlink()
    assert (tmp_path / "there" / "real.svg").is_file()


def test_importing_the_drawing_loads_neither_matplotlib_nor_numpy() -> None:
    program = (
        "import sys, fp8cli.render.plots; print([m for m in ('matplotlib', 'numpy', 'torch') if m in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert finished.stdout == "[]\n"


def test_layers_are_numbered_in_round_steps() -> None:
    axis = lay_out(locate(f"h.{n}.mlp") for n in range(3, 64))
    assert [(place, label) for place, label in layer_ticks(axis) if label in {"5", "10", "60"}] == [
        (2.0, "5"),
        (7.0, "10"),
        (57.0, "60"),
    ]
    assert [label for _, label in layer_ticks(lay_out([locate("h.7.mlp"), locate("head")]))] == ["7", ""]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1e-5, 1e-1, ["1e-5", "0.0001", "0.001", "0.01", "0.1"]),
        (2e-4, 4e-3, ["0.0003", "0.001", "0.003"]),
        (1.2, 8.0, ["2", "3", "5", "7"]),
        (1e-30, 1e30, ["1e-27", "1e-18", "1e-9", "1", "1e9", "1e18", "1e27"]),
    ],
)
def test_scales_are_marked_with_round_numbers(low: float, high: float, labels: list[str]) -> None:
    ticks = scale_ticks(math.log10(low) - 1e-9, math.log10(high) + 1e-9)
    assert [label for _, label in ticks] == labels
    assert [10**mark for mark, _ in ticks] == pytest.approx([float(label) for label in labels])


def test_an_axis_of_scales_has_room_around_the_values_and_never_no_height() -> None:
    assert scale_limits(0.01, 1.0) == pytest.approx((-2.16, 0.16))
    for value in (5e-324, 1e-3, 1.7e308):
        low, high = scale_limits(value, value)
        assert high > low


def test_labels_keep_their_distance() -> None:
    assert spread([0.0, 0.1, 0.9], 0.2) == pytest.approx((0.0, 0.2, 0.9))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0012345, "0.00123"), (4.5e-5, "4.5e-5"), (1.0, "1"), (1.5e12, "1.5e12"), (448.0, "448")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_sizes_have_the_unit_that_fits_and_long_names_lose_their_middle() -> None:
    assert [size(n) for n in (96, 327_680, 9_083_953_152)] == ["96 bytes", "0.33 MB", "9.08 GB"]
    assert shorten("a" * 50 + "b" * 50, 11) == "aaaaa…bbbbb"
    assert shorten("\x1b" * 100, 11) == "\\x1b\\…b\\x1b"
    assert tail("a" * 50 + "b" * 5, 11) == "…aaaaabbbbb"
    assert tail("\x1b" * 100, 11) == "…1b\\x1b\\x1b"
    assert tail("short", 11) == "short"
