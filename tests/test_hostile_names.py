"""Names from strangers' files in every view of `fp8 inspect`: shown, escaped, and never obeyed.

The oracles are a Markdown renderer, Python's csv, and the rule that nothing but printable characters and line ends
reaches a stream.
"""

import csv
import json
import os
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from fp8cli.commands.inspect import InspectRequest, run
from fp8cli.errors import printable
from tests.inspecting import fp8_inspect, printed
from tests.sparse import FP8_DYNAMIC_BLOCK, llama, llama_config, write_checkpoint, write_weights

NAMES = (
    "\x1b[31mred\x1b[0m.weight",
    "\x9b31mred.weight",
    "\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\.weight",
    "[bold red]loud[/bold red].weight",
    "[link=https://evil.example]here[/link].weight",
    "[/]",
    ":skull:.weight",
    "\u202egnp.thgiew",
    "two\nlines.weight",
    "back\rto the start\x08\x00\x7f.weight",
    "separators\u2028\u2029\x85\x0b\x0c.weight",
    "`rm -rf ~`.weight",
    "``` \n# heading\n",
    "a | b || c.weight",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![pixel](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "<https://evil.example>",
    "https://evil.example/autolink",
    "**bold** _italic_ ~~gone~~ &lt;b&gt; &#60;",
    "# title",
    "---",
    'quoted "name", with a comma',
    "=HYPERLINK(1)",
    "trailing backslash \\",
    "\u0645\u0631\u062d\u0628\u0627.\u4e2d\u6587.weight",
    "long." + "x" * 10_000,
    "model.layers.\u0661.weight",
)
TINY = {"layers": 1, "vocabulary": 256, "hidden": 64, "intermediate": 128, "kv": 32}
VIEWS = ((), ("--details",), ("--full",), ("--csv",), ("--markdown", "--full"), ("--markdown", "--details"))
SGR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint all of whose words are hostile: tensors, files, architecture, patterns, its folder."""
    folder = tmp_path_factory.mktemp("hostile") / "\x1b[2J[bold]| `a` <b>\u202e"
    tensors = [(name, "BF16", (2,)) for name in NAMES]
    codes = [(f"{name}\x1b[1mcodes", "F8_E4M3", (2, 2)) for name in NAMES]
    config = {
        "architectures": ["\x1b[31m[bold]<script>"],
        "model_type": "\x1b]0;title\x07",
        "quantization_config": FP8_DYNAMIC_BLOCK | {"ignore": [*NAMES, "re:\x1b[31m("]},
        "num_hidden_layers": "\x1b[31m",
    }
    write_checkpoint(folder, [*tensors, *codes], config)
    write_weights(folder / "\x1b[31mother\n<b>.safetensors", [(NAMES[0], "BF16", (2,))])
    (folder / "\x1b[31mtokenizer\n.json").write_text("")
    return folder


def assert_harmless(text: str) -> None:
    odd = {character for character in text if character != "\n" and not character.isprintable()}
    assert odd == set()


@pytest.mark.parametrize("words", VIEWS, ids=" ".join)
def test_no_control_character_reaches_a_pipe(hostile: Path, words: tuple[str, ...]) -> None:
    run = fp8_inspect(hostile, *words)
    assert run.code == 1
    assert_harmless(run.out)
    assert_harmless(run.err)


def test_no_control_character_stands_in_the_document(hostile: Path) -> None:
    text = fp8_inspect(hostile, "--json", "--full").out
    assert text.isascii()
    assert_harmless(text)
    # JSON has its own escapes: what reads it gets the names as they are.
    assert {*NAMES} <= {row["name"] for row in json.loads(text)["result"]["tensors"]}


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_terminal_is_told_of_colours_alone_and_markup_stays_text(hostile: Path, width: int) -> None:
    report = run(InspectRequest(source=hostile, full=True, gpus=("H100",)))
    assert_harmless(printed(report, width=width, details=True))
    colourful = printed(report, width=200, details=True, color=True)
    assert_harmless(SGR.sub("", colourful))
    for name in ("[bold red]loud[/bold red].weight", ":skull:.weight", "\\x1b[31mred\\x1b[0m.weight"):
        assert name in SGR.sub("", colourful)


def test_an_error_about_a_hostile_path_is_harmless() -> None:
    for name in ("\x1b[31m/gone\n[bold]", "\u202e/x", "./" + "y" * 10_000):
        run = fp8_inspect(name, "--gpu", "\x1b[31mH100")
        assert run.code in {2, 3}
        assert_harmless(run.out)
        assert_harmless(run.err)


def test_a_csv_has_a_line_for_each_tensor_whatever_its_name(hostile: Path) -> None:
    text = fp8_inspect(hostile, "--csv").out
    head, *rows = csv.reader(StringIO(text))
    assert len(text.splitlines()) == len(rows) + 1 == len(NAMES) * 2 + 1
    assert {len(row) for row in rows} == {len(head)}
    assert {printable(name) for name in NAMES} <= {row[0] for row in rows}


class Page(HTMLParser):
    """What a browser would see: which elements there are, with which attributes, and the text of every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "td":
            self.cells.append("")
        self.in_cell = tag == "td" or (self.in_cell and tag == "strong")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell &= tag != "td"

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.cells[-1] += data


def test_markdown_makes_of_names_nothing_but_text(hostile: Path) -> None:
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    page = Page()
    text = fp8_inspect(hostile, "--markdown", "--full").out
    page.feed(renderer.render(text))
    allowed = {"h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "strong"}
    assert page.tags <= allowed
    assert page.attributes <= {"style", "class"}
    shown = {printable(name).replace("`", "").strip() for name in NAMES}
    assert shown <= {cell.strip() for cell in page.cells}
    # GitHub's own renderer makes links of whatever looks like an address.
    assert "://" not in text


def test_a_folder_that_markdown_and_a_shell_could_take_for_more(tmp_path: Path) -> None:
    folder = tmp_path / "my `model` $(touch x); ```"
    write_checkpoint(folder, llama(**TINY), llama_config(**TINY))
    run = fp8_inspect(folder, "--markdown")
    (block,) = re.findall(r"^```bash\n(.*?)\n```$", run.out, re.DOTALL | re.MULTILINE)
    assert block == f"vllm serve '{folder}'"


def test_a_file_system_that_is_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin-\xe9"))
    folder.mkdir()
    write_weights(folder / "model.safetensors", [("a.weight", "BF16", (2, 2))])
    for words in (*VIEWS, ("--json",)):
        run = fp8_inspect(folder, *words)
        assert run.code == 1
        run.out.encode()
        run.err.encode()
