"""Serves a dashboard, and encodes typed texts where an encoder is given. Python's own HTTP server: for one person.

Only files inside the folder are given out. Requests have to name this machine as their host: a page of another site
whose name was pointed to this address (DNS rebinding) is refused, and so is a request from another site's page.
"""

import ipaddress
import json
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lightsae.parsing import parse_json

MAX_CHARACTERS = 20_000
_MAX_BYTES = 6 * MAX_CHARACTERS + 100
_SECONDS = 30
# Each connection has a thread: at most so many at once, and so many more that wait.
_THREADS, _WAITING = 32, 128
_HEADERS = {
    # As index.html has it for those who open it from the disk, which needs file:. Plotly needs eval and inline styles.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    # The folder may be built anew while it is served.
    "Cache-Control": "no-cache",
}
Encode = Callable[[str], dict[str, Any]]


class DashboardServer(ThreadingHTTPServer):
    """The server; `serve_forever` runs it, `server_port` says where.

    Args:
        folder: The dashboard's folder.
        host: Name or address to listen on.
        port: 0 takes a free one.
        encode: Answers `POST /api/encode`; None: there is no live page.
        model: What encodes, for people.
    """

    daemon_threads = True
    # An answered port in another process is an error, not something to share.
    allow_reuse_port = False
    request_queue_size = _WAITING

    def __init__(
        self, folder: Path, host: str = "127.0.0.1", port: int = 8080, encode: Encode | None = None, model: str = ""
    ) -> None:
        self.folder, self.encode, self.model = folder.resolve(), encode, model
        self.host = host
        self._free = threading.BoundedSemaphore(_THREADS)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), partial(_Handler, directory=str(self.folder)))

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in a line what failed; that somebody hung up is no failure."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"lightsae: error: a request failed: {_line(error)}", file=sys.stderr)

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this machine: by an address, as localhost, or as it was asked to listen."""
        try:
            name = urlsplit(f"//{host}").hostname
            port = urlsplit(f"//{host}").port or 80
        except ValueError:
            return False
        if name is None or port != self.server_port:
            return False
        if name in ("localhost", self.host.lower(), socket.gethostname().lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        # An address cannot be pointed elsewhere, as a name can.
        return True


class _Handler(SimpleHTTPRequestHandler):
    server: DashboardServer
    server_version, sys_version = "lightsae", ""
    timeout = _SECONDS
    extensions_map = {  # noqa: RUF012  # as the base class has it
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".json": "application/json",
        ".md": "text/plain; charset=utf-8",
        ".png": "image/png",
        "": "application/octet-stream",
    }

    def do_GET(self) -> None:
        if not self._is_from_here():
            return
        if urlsplit(self.path).path == "/api/status":
            live = self.server.encode is not None
            self._answer({"live": live, "model": self.server.model, "max_characters": MAX_CHARACTERS})
        elif self._is_inside():
            super().do_GET()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_HEAD(self) -> None:
        if not self._is_from_here():
            return
        if self._is_inside():
            super().do_HEAD()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        # Whatever of a body is left unread would be taken for the next request.
        self.close_connection = True
        if not self._is_from_here():
            return
        if urlsplit(self.path).path != "/api/encode" or self.server.encode is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page here.")
            return
        # A page of another site can send this type only after asking, which is never granted.
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send JSON: Content-Type application/json.")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Say Content-Length.")
            return
        if int(length) > _MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {MAX_CHARACTERS} characters.")
            return
        text = self._text(int(length))
        if text is None:
            self._refuse(HTTPStatus.BAD_REQUEST, 'Send {"text": "..."}, a text in JSON.')
        elif len(text) > MAX_CHARACTERS:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {MAX_CHARACTERS} characters.")
        else:
            self._encode(self.server.encode, text)

    def _encode(self, encode: Encode, text: str) -> None:
        try:
            body = json.dumps(encode(text), allow_nan=False).encode()
        except Exception as error:  # whatever a tokenizer, a model or an SAE raises
            why = f"The text could not be encoded: {_line(error)}"
            print(f"lightsae: error: {why}", file=sys.stderr)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, why)
        else:
            self._send(body, HTTPStatus.OK)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: what somebody looks at is nobody's business."""

    def _text(self, length: int) -> str | None:
        try:
            request = parse_json(self.rfile.read(length))
            text = request["text"]
            # Half a surrogate pair can stand in JSON, and in no text.
            text.encode("utf-8")
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return text if isinstance(text, str) else None

    def _is_from_here(self) -> bool:
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if not self.server.knows_host(host):
            self._refuse(HTTPStatus.FORBIDDEN, f"Open http://{self.server.host}:{self.server.server_port} instead.")
        elif origin is not None and origin.lower() != f"http://{host}".lower():
            self._refuse(HTTPStatus.FORBIDDEN, "Requests of other sites' pages are refused.")
        elif site not in ("none", "same-origin") and self.path.startswith("/api"):
            self._refuse(HTTPStatus.FORBIDDEN, "Requests of other sites' pages are refused.")
        else:
            return True
        return False

    def _is_inside(self) -> bool:
        """Whether the file that is asked for lies in the folder, links followed; hidden files do not count."""
        if any(part.startswith(".") for part in unquote(urlsplit(self.path).path).split("/")):
            return False
        try:
            path = Path(self.translate_path(self.path)).resolve()
        except (OSError, ValueError):
            return False
        return path.is_relative_to(self.server.folder)

    def _answer(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), status)

    def _send(self, body: bytes, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True
        self._answer({"error": why}, status)


def _line(error: BaseException | None) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
