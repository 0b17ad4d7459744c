"""A proxy in front of an HTTP server that fails on purpose: faults are data."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFUSALS = {
    "503": ("SlowDown", "Please reduce your request rate."),
    "403": ("AccessDenied", "Access Denied"),
}
"""Status -> code and message of S3's answer."""


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose path has ``match`` in it."""

    kind: str
    """``503``, ``403``, ``reset``, ``truncate``, or ``delay`` (the answer is right, but late)."""
    match: str = ""
    times: int = 1_000_000
    delay_s: float = 0.0


@dataclass
class Proxy:
    """A running proxy, and what it saw."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request, in order of arrival."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.match in path:
                    fault.times -= 1
                    return fault
        return None

    def count(self, match: str) -> int:
        """Requests whose path has ``match`` in it."""
        with self.lock:
            return sum(match in path for _, path in self.requests)

    def forget(self) -> None:
        """No faults and no requests from here on."""
        with self.lock:
            self.faults.clear()
            self.requests.clear()


@contextmanager
def fault_proxy(host: str, port: int) -> Iterator[Proxy]:
    """A proxy on a free loopback port in front of ``host:port``."""
    proxy = Proxy("")
    forwarding = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with proxy.lock:
                proxy.requests.append((self.command, self.path))
            fault = proxy.next_fault(self.path)
            if fault is not None and not self._survives(fault):
                return
            answer, content = self._forward(body)
            cut = len(content) // 2 if fault and fault.kind == "truncate" else None
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

        def _survives(self, fault: Fault) -> bool:
            """Whether the request is answered after all."""
            time.sleep(fault.delay_s)
            if fault.kind == "reset":
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
                self.close_connection = True
                return False
            if not fault.kind.isdigit():
                return True
            self.send_response(int(fault.kind))
            code, message = REFUSALS[fault.kind]
            told = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            content = b"" if self.command == "HEAD" else told.encode()
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return False

        def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
            # One at a time: test servers are not made for many, and now and then lose one.
            with forwarding:
                return self._ask(body)

        def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
            connection = http.client.HTTPConnection(host, port, timeout=5)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                return answer, answer.read()
            finally:
                connection.close()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Connections are broken on purpose."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
