"""W&B's service as its Python client sees it, played back from offline files.

Only the innermost layer is played: what `wandb-core` answers to GraphQL and history requests, in the shapes of
wandb 0.31 (`apis/public/runs.py`, `wandb_api_pb2`). The client's own `Runs`, `Run` and `HistoryScan` do the rest.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.apis.public import Runs
from wandb.proto import wandb_api_pb2 as pb

from analysis.wandb_files import records


@dataclass
class Recorded:
    """One run on the server."""

    node: dict[str, Any]  # as GraphQL's RunFragment gives it
    rows: list[dict[str, str]]  # column -> value as JSON

    @property
    def last_step(self) -> int:
        return max((int(row["_step"]) for row in self.rows), default=-1)


def recorded(file: Path) -> Recorded:
    """What a synchronised offline file becomes: values as they are, but for those that JSON has no number for."""
    config: dict[str, Any] = {"_wandb": {"value": {"cli_version": "0.31.0"}}}
    rows, run, state = [], None, "running"
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= {item.key: {"value": json.loads(item.value_json), "desc": None} for item in run.config.update}
        elif kind == "history":
            rows.append({item.key or item.nested_key[0]: _as_json(item.value_json) for item in record.history.item})
        elif kind == "exit":
            state = "finished" if record.exit.exit_code == 0 else "failed"
    assert run is not None
    started = run.start_time.ToDatetime().isoformat() + "Z"
    node = {
        "id": f"UnVuOnYx-{run.run_id}", "projectId": "7", "name": run.run_id, "displayName": run.display_name,
        "tags": [], "sweepName": None, "state": state, "config": json.dumps(config), "group": run.run_group,
        "jobType": None,
        "commit": None, "readOnly": False, "createdAt": started, "heartbeatAt": started, "description": None,
        "notes": None, "systemMetrics": "{}", "summaryMetrics": "{}", "historyLineCount": len(rows),
        "user": {"name": "A", "username": "a"}, "historyKeys": {"lastStep": len(rows) - 1, "keys": {}},
    }  # fmt: skip
    return Recorded(node, rows)


def _as_json(value: str) -> str:
    return json.dumps(value) if value in ("NaN", "Infinity", "-Infinity") else value


@dataclass
class Server:
    """Stands where `wandb.Api()` and its `ServiceApi` do. `asked` counts history pages, `listed` pages of runs."""

    runs_there: list[Recorded]
    broken: set[str] = field(default_factory=set)  # W&B ids whose history cannot be had
    asked: int = 0
    listed: int = 0
    _scans: list[Recorded] = field(default_factory=list)

    def runs(self, path: str, filters: Any, per_page: int, lazy: bool) -> Runs:
        entity, project = path.split("/")
        return Runs(self, entity, project, filters=filters, per_page=min(per_page, 3), lazy=lazy)  # type: ignore[arg-type]

    def execute_graphql(self, query: str, variables: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        if variables["project"] != "margincall":
            return {"project": None}
        if "query RunHistoryKeys" in query:
            return {"project": {"run": {"historyKeys": {"lastStep": self._named(variables["name"]).last_step}}}}
        assert "query Runs" in query
        self.listed += 1
        group = json.loads(variables["filters"]).get("group")
        those = [run for run in self.runs_there if group in (None, run.node["group"])]
        start = int(variables["cursor"] or 0)
        page = those[start : start + variables["perPage"]]
        end = start + len(page)
        edges = [{"node": dict(run.node), "cursor": str(start + i + 1)} for i, run in enumerate(page)]
        info = {"endCursor": str(end), "hasNextPage": end < len(those)}
        return {"project": {"internalId": "7", "runCount": len(those), "readOnly": False,
                            "runs": {"edges": edges, "pageInfo": info}}}  # fmt: skip

    def send_api_request(self, request: pb.ApiRequest, timeout: float | None = None) -> pb.ApiResponse:
        asked, response = request.read_run_history_request, pb.ApiResponse()
        if asked.HasField("scan_run_history_init"):
            run = self._named(asked.scan_run_history_init.run_id)
            if run.node["name"] in self.broken:
                raise ConnectionResetError("Connection lost")
            self._scans.append(run)
            response.read_run_history_response.scan_run_history_init.request_id = len(self._scans) - 1
            return response
        self.asked += 1
        scan = asked.scan_run_history
        for row in self._scans[scan.request_id].rows:
            if scan.min_step <= int(row["_step"]) < scan.max_step:
                items = response.read_run_history_response.run_history.history_rows.add().history_items
                for key, value in row.items():
                    items.add(key=key, value_json=value)
        return response

    def finalize(self, obj: object, cleanup: pb.ApiRequest) -> None:
        """The client asks for a clean-up when a scan is dropped."""

    def _named(self, wandb_id: str) -> Recorded:
        (run,) = (run for run in self.runs_there if run.node["name"] == wandb_id)
        return run
