"""A web server that serves what is in its table, and nothing else from the disk.

Every address is a key of a dictionary, so there is no path to climb out of and no folder to list. A server that the
network can reach puts a random token in front of every address.
"""

from __future__ import annotations

import hmac
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from typing import Any
from urllib.parse import urlsplit

__all__ = ["HEADERS", "LARGEST_REQUEST", "LOOPBACK", "POLICY", "TYPES", "GuardedServer", "Handler", "Resource"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST_REQUEST = 2**31
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "wasm": "application/wasm",
    "bin": "application/octet-stream",
}
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    # Isolated from other origins, a page gets a finer clock: 5 microseconds, not 100, in Chromium.
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Resource:
    """What an address answers.

    Args:
        content: the bytes.
        kind: a key of `TYPES`.
    """

    content: bytes
    kind: str


Handler = Callable[[bytes], bytes | None]
"""Takes the body of a POST, returns the body of the answer; None: nothing yet (204)."""


class GuardedServer(ThreadingHTTPServer):
    """Serves a table of resources and handlers, in threads of its own between `start` and `stop`.

    Args:
        resources: by path, without a slash in front; "" is the page at the root. Answered to GET and HEAD.
        handlers: by path; answered to POST.
        host: the address to bind to.
        port: 0 takes a free one.
        token: what every path must begin with; "" for none. Without one, the Host header must name this
            machine's loopback, so that no page of another site can reach it under a name of its own (DNS
            rebinding).
        largest_request: bytes of the body of a POST, at most.
    """

    daemon_threads = True
    request_queue_size = 1024
    """Connections that may wait to be taken up; the system's own limit may be lower."""

    def __init__(
        self,
        resources: Mapping[str, Resource],
        handlers: Mapping[str, Handler] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        largest_request: int = LARGEST_REQUEST,
    ) -> None:
        if not token and host not in LOOPBACK:
            raise ValueError(f"a server that the network can reach needs a token. Received: host {host!r}, no token.")
        self.resources = dict(resources)
        self.handlers = dict(handlers or {})
        self.token = token
        self.largest_request = largest_request
        self.host = host
        if ":" in host:
            self.address_family = AF_INET6
        super().__init__((host, port), _Answer)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def url(self, host: str | None = None) -> str:
        """Return the address of the root, with the token."""
        name = host or self.host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{self.server_port}/" + (f"{self.token}/" if self.token else "")

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more, and free the port."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that has gone away or reads no more; report mistakes of ours."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def allows_host(self, header: str | None) -> bool:
        """Return whether a request with this Host header is admitted."""
        if self.token and self.host not in LOOPBACK:
            return True  # any name by which the network knows this machine; the token keeps others out
        names = {f"[{name}]" if ":" in name else name for name in LOOPBACK}
        return header in {f"{name}:{self.server_port}" for name in names}

    def path_of(self, target: str) -> str | None:
        """Return the key of a request's target, or None where its token is wrong."""
        path = urlsplit(target).path
        if not path.startswith("/"):
            return None
        if not self.token:
            return path[1:]
        given, _, rest = path[1:].partition("/")
        return rest if hmac.compare_digest(given.encode(), self.token.encode()) else None


class _Answer(BaseHTTPRequestHandler):
    server: GuardedServer
    raw_requestline: bytes
    protocol_version = "HTTP/1.1"
    timeout = 120
    """Seconds that a connection may be silent."""
    # An answer leaves in one piece and at once. In two, the second waits for the acknowledgement of the first, which
    # the other side holds back for 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True
    # The version of a request that names none, or a wrong one. With 0.9, Python's own, it would get no status.
    default_request_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        """Read the head of a request; answer a malformed one."""
        if self.raw_requestline.strip():
            return super().parse_request()
        self.command, self.requestline, self.request_version = "", "", self.default_request_version
        self.send_error(HTTPStatus.BAD_REQUEST)
        return False

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what Python's server refuses by itself, as this one answers all: without any text of the request."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._send(status, f"{status.phrase.lower()}\n".encode(), "text/plain", {"Connection": "close"})

    def do_GET(self) -> None:
        path = self._admitted()
        if path is not None:
            self._serve(path, body=True)

    def do_HEAD(self) -> None:
        path = self._admitted()
        if path is not None:
            self._serve(path, body=False)

    def do_POST(self) -> None:
        path = self._admitted()
        if path is None:
            return
        handler = self.server.handlers.get(path)
        if handler is None:
            self._refuse(path)
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 10 or int(length) > self.server.largest_request:
            self._send(HTTPStatus.LENGTH_REQUIRED, b"a length is needed\n", "text/plain")
            self.close_connection = True
            return
        answer = handler(self.rfile.read(int(length)))
        if answer is None:
            self._send(HTTPStatus.NO_CONTENT, b"", None)
        else:
            self._send(HTTPStatus.OK, answer, TYPES["bin"])

    def _other_method(self) -> None:
        path = self._admitted()
        if path is not None:
            self._refuse(path)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _other_method

    def _admitted(self) -> str | None:
        """Return the path of a request that is admitted; answer the others."""
        if not self.server.allows_host(self.headers.get("Host")):
            self._send(HTTPStatus.FORBIDDEN, b"this name is not served\n", "text/plain")
            return None
        path = self.server.path_of(self.path)
        if path is None:
            self._send(HTTPStatus.FORBIDDEN, b"the address lacks its token\n", "text/plain")
        return path

    def _serve(self, path: str, *, body: bool) -> None:
        resource = self.server.resources.get(path)
        if resource is None:
            self._refuse(path)
        else:
            self._send(HTTPStatus.OK, resource.content, TYPES[resource.kind], body=body)

    def _refuse(self, path: str) -> None:
        """Answer a path that is unknown, or a method that it does not take."""
        allowed = ["GET, HEAD"] * (path in self.server.resources) + ["POST"] * (path in self.server.handlers)
        self.close_connection = True  # a body may follow that nobody will read
        if allowed:
            self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"not by this method\n", "text/plain", {"Allow": allowed[0]})
        else:
            self._send(HTTPStatus.NOT_FOUND, b"nothing here\n", "text/plain")

    def _send(
        self,
        status: HTTPStatus,
        content: bytes,
        kind: str | None,
        extra: Mapping[str, str] | None = None,
        *,
        body: bool = True,
    ) -> None:
        self.request_version = self.default_request_version  # to every client with a status and headers
        self.send_response(status)
        for name, value in {**HEADERS, **(extra or {})}.items():
            self.send_header(name, value)
        if kind is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        return "tflite-export"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the address holds the token, which does not belong on a shared terminal."""
