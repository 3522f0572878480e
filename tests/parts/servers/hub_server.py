# SPDX-License-Identifier: Apache-2.0
"""A local server with the parts of the Hugging Face hub's protocol that a download needs.

https://huggingface.co/docs/hub/api, and `HfApi.model_info` and `hf_hub_download` in huggingface_hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`repos` maps OWNER/NAME to file names and contents; the rest says what goes wrong.

    `sent` lists (path, first byte asked for) of each download, `damaged` the files of which other bytes arrive,
    `cut` those whose first transfer breaks off halfway, `failing` the repositories of which it says that it has
    failed itself, `sizes` what is said of files instead of the truth, `stops` after how many bytes the transfer of a
    file stands still; then `stopped` is set.
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    stops: dict[str, int] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    sent: list[tuple[str, int]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self._info(found[1], found[2] or "main")
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(found[1], found[3], body)
            else:
                self._refuse(404, "EntryNotFound")

        def _info(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                self._refuse(404, "RepoNotFound")
            elif repo in hub.failing:
                self._refuse(500, "Oops")
            elif repo in hub.gated:
                self._refuse(403, "GatedRepo")
            elif revision not in ("main", COMMIT):
                self._refuse(404, "RevisionNotFound")
            else:
                files = [self._sibling(name, data) for name, data in hub.repos[repo].items()]
                data = json.dumps({"_id": "1", "id": repo, "sha": COMMIT, "siblings": files}).encode()
                self._send(200, {"Content-Type": "application/json"}, data)

        def _sibling(self, name: str, data: bytes) -> dict[str, object]:
            size = hub.sizes.get(name, len(data))
            large = {"sha256": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 134}
            return {"rfilename": name, "size": size} | ({"lfs": large} if not name.endswith(".json") else {})

        def _file(self, repo: str, name: str, body: bool) -> None:
            data = hub.repos.get(repo, {}).get(name)
            if data is None:
                self._refuse(404, "EntryNotFound")
                return
            tag = hashlib.sha256(data).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
            if not body:
                self._send(200, headers, data, only_head=True)
                return
            begin = int(re.sub(r"\D.*", "", self.headers.get("Range", "bytes=0-").removeprefix("bytes=")) or 0)
            hub.sent.append((name, begin))
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            if name in hub.damaged:
                data = bytes(len(data))
            cut = len(data) // 2 if name in hub.cut else None
            hub.cut.discard(name)
            self._send(206 if begin else 200, headers, data[begin:], cut=cut, stop=hub.stops.get(name))

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}")

        def _send(
            self,
            status: int,
            headers: dict[str, str],
            data: bytes,
            *,
            only_head: bool = False,
            cut: int | None = None,
            stop: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if stop is not None:
                self.wfile.write(data[:stop])
                hub.stopped.set()
                self.rfile.read(1)  # until the client goes away
            elif not only_head:
                self.wfile.write(data[:cut])
            self.close_connection = cut is not None or stop is not None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
