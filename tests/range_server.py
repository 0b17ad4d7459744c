"""A web server on loopback that gives ranges of files."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves files of a folder, and ranges of bytes of them; counts what it sends."""

    folder: Path
    sent: dict[str, int]

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.folder / self.path.partition("?")[0].strip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start, stop, status = 0, len(content), 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked:
            status = 206
            if asked[1]:
                start, stop = int(asked[1]), min(int(asked[2] or stop) + 1, stop)
            else:
                start = max(0, stop - int(asked[2]))
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self.sent[path.name] = self.sent.get(path.name, 0) + stop - start
            self.wfile.write(content[start:stop])


@contextmanager
def range_server(folder: Path) -> Iterator[tuple[str, int]]:
    """Host and port of a server for the files of a folder."""
    handler = type("Handler", (RangeHandler,), {"folder": folder, "sent": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield "127.0.0.1", server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()
