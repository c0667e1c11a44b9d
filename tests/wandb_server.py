"""As much of W&B's server as `wandb sync` and an online run need: it takes what is uploaded, and keeps it."""

import gzip
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "k" * 40


@dataclass
class Uploaded:
    """One run, as the server has it."""

    about: dict[str, Any] = field(default_factory=dict)  # of the first upsert: names, group, configuration
    config: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line of the history, as W&B addresses them
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    complaints: list[str] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        assert sorted(self.rows) == list(range(len(self.rows)))
        return [self.rows[line] for line in sorted(self.rows)]


@dataclass
class Server:
    url: str
    runs: dict[str, Uploaded] = field(default_factory=lambda: defaultdict(Uploaded))
    delay: float = 0.0  # seconds before a run's rows are taken
    complaints: list[str] = field(default_factory=list)  # errors that W&B's process reports home

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}


@contextmanager
def serving() -> Iterator[Server]:
    with _Quiet(("127.0.0.1", 0), _Handler) as http:
        http.kept = Server(f"http://127.0.0.1:{http.server_address[1]}")
        thread = Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield http.kept
        finally:
            http.shutdown()
            thread.join()


class _Quiet(ThreadingHTTPServer):
    kept: Server
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """W&B closes connections as it likes."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Quiet

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        *_, run, name = self.path.split("/")
        self.server.kept.runs[run].files[name] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        kept = self.server.kept
        if self.path == "/graphql":
            asked = json.loads(body)
            self._answer({"data": self._graphql(asked["query"], asked.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            time.sleep(kept.delay)
            self._stream(kept.runs[self.path.split("/")[-2]], json.loads(body))
            self._answer({})
        else:
            if self.path.endswith("/logs") and b"error.message" in body:
                kept.complaints.append(body.decode(errors="replace"))
            self._answer({})

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "mutation UpsertBucket" in query:
            run = self.server.kept.runs[given["name"]]
            run.about = run.about or given
            run.config = json.loads(given["config"]) if given.get("config") else run.config
            project = {"id": "1", "name": given["project"], "entity": {"id": "1", "name": given["entity"] or "someone"}}
            bucket = {
                "id": given["name"], "name": given["name"], "displayName": given["displayName"], "config": "{}",
                "description": "", "sweepName": None, "historyLineCount": 0, "project": project,
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "mutation CreateRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.server.kept.url}/{given['run']}/{name}"} for name in given["files"]
            ]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {
                "viewer": {"id": "1", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}}
            }
        return {}

    def _stream(self, run: Uploaded, sent: dict[str, Any]) -> None:
        files = sent.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            run.rows |= {history["offset"] + n: json.loads(row) for n, row in enumerate(history["content"])}
        if summary := files.get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
