"""A reverse proxy on 127.0.0.1 that passes requests on to another server there, and stumbles where it is told to.

It can answer with a status, break a body off, or fall silent in the middle of one; everything else is the real
server's own answer.
"""

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.loopback_hub import Break, Busy, Stall

Stumble = int | Break | Stall | Busy
HOP = frozenset({"connection", "transfer-encoding", "content-length"})


@dataclass
class StumblingProxy:
    """The proxy, running while it is entered. `url` stands for that of the server."""

    target: str
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of every request."""
    _stumbles: list[tuple[Callable[[str, str], bool], Stumble]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stumble(self, where: Callable[[str, str], bool], *how: Stumble) -> None:
        """Let the next GETs for whose path and range `where` is true fail, one failure a request."""
        self._stumbles += [(where, each) for each in how]

    @property
    def left(self) -> int:
        """How many failures nobody has met yet."""
        return len(self._stumbles)

    def recover(self) -> None:
        """Fail no more, and count from zero again."""
        self._stumbles.clear()
        self.requests.clear()

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def meet(self, method: str, path: str, span: str) -> Stumble | None:
        with self._lock:
            self.requests.append((method, path, span))
            for place, (where, how) in enumerate(self._stumbles):
                if method == "GET" and where(path, span):
                    del self._stumbles[place]
                    return how
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    proxy: StumblingProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class calls it so
        """Say nothing."""

    def do_GET(self) -> None:
        try:
            self._pass_on()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 -- the base class looks for these names

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        how = self.proxy.meet(self.command, self.path, self.headers.get("Range", ""))
        if isinstance(how, int | Busy):
            self.send_response(how if isinstance(how, int) else how.status)
            if isinstance(how, Busy):
                self.send_header("Retry-After", how.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(urlsplit(self.proxy.target).netloc, timeout=30)
        try:
            upstream.request(self.command, self.path, body=body, headers=dict(self.headers.items()))
            answer = upstream.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
        finally:
            upstream.close()
        if how is None:
            self.wfile.write(data)
            return
        self.wfile.write(data[: how.after])
        if isinstance(how, Stall):
            self.rfile.read(1)
        self.close_connection = True
