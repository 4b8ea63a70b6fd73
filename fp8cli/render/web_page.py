"""What every HTML report is: one file that loads nothing, runs nothing, and follows light and dark.

A reader's browser is told so by a content security policy: what strangers' names might smuggle in could not run.
"""

from collections.abc import Iterable
from html import escape
from typing import Final

from fp8cli import __version__
from fp8cli.render.names import shorten
from fp8cli.render.palette import COLORS

_LONGEST: Final = 1_000

_STYLE: Final = """
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid var(--grid); padding: .4rem .6rem; vertical-align: top; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
"""


def document(title: str, body: Iterable[str], *, style: str) -> str:
    """Return a page. title: safe to stand in HTML, and so is every line of `body`; style: CSS beside what all share."""
    lines = (
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{_variables()}{_STYLE}{style}</style>",
        "</head>",
        "<body>",
        "<main>",
        *body,
        f'<p class="soft">fp8 {__version__}</p>',
        "</main>",
        "</body>",
        "</html>",
    )
    return "".join(f"{line}\n" for line in lines)


def safe(words: str, longest: int = _LONGEST) -> str:
    """Return a text that may stand between tags and in attributes: escaped, and of so many characters at most."""
    return escape(shorten(words, longest))


def _variables() -> str:
    by_day, by_night = (
        " ".join(f"--{name}: {colors[theme]};" for name, colors in COLORS.items()) for theme in range(2)
    )
    night = f"@media (prefers-color-scheme: dark) {{ :root {{ {by_night} }} }}"
    return f"\n:root {{ color-scheme: light dark; {by_day} }}\n{night}"
