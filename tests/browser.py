"""A real browser without a display: Chromium, as Qt brings it along. A program: it gets a plan and prints what it saw.

    python browser.py PLAN.json        PLAN: {"page": FILE, "views": [{"width", "height", "script", "picture"}]}

Every view loads the page anew at its width, runs its script and keeps the JSON it returns, and
takes a picture of the whole page. The answer has a result for every view, and every message of the console and every
address that was asked for over the whole visit.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from PySide6.QtCore import QTimer, QUrl
from PySide6.QtGui import QImage
from PySide6.QtWebEngineCore import (
    QWebEnginePage,
    QWebEngineSettings,
    QWebEngineUrlRequestInfo,
    QWebEngineUrlRequestInterceptor,
)
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

LOOKS, PAUSE_MILLISECONDS = 200, 25
"""How often, and how long apart, the window is looked at until it shows what the page is by now."""
TALLEST = 12_000
"""Pixels of a window; of a longer page the picture has the beginning."""
MARK = "#ff00fe"
"""A colour that no page has; put into a corner for a moment, it tells that the window was painted anew."""


class Page(QWebEnginePage):
    """A page that remembers what its console says."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def javaScriptConsoleMessage(self, level: object, message: str, line: int, source: str) -> None:  # noqa: ARG002, N802
        self.messages.append(message)


class Requests(QWebEngineUrlRequestInterceptor):
    """Remembers every address that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def interceptRequest(self, info: QWebEngineUrlRequestInfo) -> None:  # noqa: N802
        self.addresses.append(info.requestUrl().toString())


class Visit:
    """One page in all views of a plan."""

    def __init__(self, app: QApplication, plan: dict[str, Any]) -> None:
        self.app, self.plan = app, plan
        self.messages: list[str] = []
        self.results: list[object] = []
        self.requests = Requests()
        self.page = Page(self.messages)
        self.page.profile().setUrlRequestInterceptor(self.requests)
        self.window = QWebEngineView()
        self.window.setPage(self.page)
        self.page.settings().setAttribute(QWebEngineSettings.WebAttribute.ShowScrollBars, False)
        self.picture = QImage()
        self.page.loadFinished.connect(self.loaded)

    @property
    def view(self) -> dict[str, Any]:
        return self.plan["views"][len(self.results)]

    def begin(self) -> None:
        self.window.resize(self.view["width"], self.view["height"])
        self.window.show()
        self.page.load(QUrl.fromLocalFile(self.plan["page"]))

    def loaded(self, done: bool) -> None:
        if not done:
            self.fail("the page does not load")
            return
        self.page.runJavaScript("document.documentElement.scrollHeight", self.grow)

    def grow(self, height: float) -> None:
        """Make the window as high as the page, so that the picture has all of it."""
        self.window.resize(self.view["width"], min(max(int(height), self.view["height"]), TALLEST))
        style = f"position:fixed;right:0;bottom:0;width:9px;height:9px;z-index:9;background:{MARK}"
        script = "document.body.append(Object.assign(document.createElement('i'), {id: 'mark'}))"
        self.page.runJavaScript(f"{script}; document.getElementById('mark').style.cssText = '{style}'")
        self.wait(LOOKS, marked=True)

    def wait(self, looks: int, *, marked: bool) -> None:
        """Wait until the mark is seen, and then until it is gone again."""
        now = self.window.grab().toImage()
        if (now.pixelColor(now.width() - 4, now.height() - 4).name() == MARK) != marked:
            if not looks:
                self.fail("the page is not painted")
            QTimer.singleShot(PAUSE_MILLISECONDS, lambda: self.wait(looks - 1, marked=marked))
        elif marked:
            self.page.runJavaScript("document.getElementById('mark').remove()")
            self.wait(LOOKS, marked=False)
        else:
            self.picture = now
            self.page.runJavaScript(f"JSON.stringify({self.view['script']})", self.seen)

    def seen(self, found: str) -> None:
        picture = self.view["picture"]
        if picture is not None and not self.picture.save(picture):
            self.fail(f"the picture cannot be written: {picture}")
        self.results.append(json.loads(found) if found else None)
        if len(self.results) < len(self.plan["views"]):
            self.begin()
            return
        answer = {"results": self.results, "messages": self.messages, "requests": self.requests.addresses}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
        # Qt takes its time to end the processes of the browser; they go with this one.
        os._exit(0)

    @staticmethod
    def fail(why: str) -> None:
        sys.stderr.write(f"{why}\n")
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    app = QApplication(sys.argv[:1])
    visit = Visit(app, plan)
    QTimer.singleShot(0, visit.begin)
    sys.exit(app.exec())


if __name__ == "__main__":
    main()
