"""An engine that answers questions about itself and nothing else: what the service makes of such an answer needs no real one."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class StubEngine:
    """Listens on a unix socket in `folder`; `info` is on top of what an ordinary engine says of itself."""

    def __init__(self, folder: Path, **info: Any) -> None:
        self.host = f"unix://{folder}/engine"
        self.asked: list[str] = []
        """What was asked for, method and path, without the version of the interface."""
        usual: dict[str, Any] = {
            "ID": "STUB",
            "CgroupVersion": "2",
            "NCPU": 2,
            "MemTotal": 8 << 30,
            "Runtimes": {"runc": {"path": "runc"}},
            "SecurityOptions": [],
        }
        version = {"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                name = self.path.partition("?")[0].rpartition("/")[2]
                stub.asked.append(f"{self.command} {name}")
                answers = {
                    "info": usual | {"SystemTime": datetime.now(UTC).isoformat()} | info,
                    "version": version,
                    "_ping": "OK",
                    "json": [],
                }
                body = json.dumps(answers.get(name, {"message": "not here"})).encode()
                self.send_response(200 if name in answers else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET  # noqa: N815 - the names are those of the library

            def log_message(self, *_: Any) -> None:
                """Nothing of ours belongs into what a test prints."""

            def address_string(self) -> str:
                return "stub"

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self._server = Server(f"{folder}/engine", Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
