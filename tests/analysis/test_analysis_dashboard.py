"""`python -m analysis dashboard`, and W&B's own terminal view of our offline runs."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

from analysis import dashboard
from analysis.__main__ import main
from src.tracking import Wandb
from src.tracking.about import SUMMARIES
from tests.analysis.conftest import Run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As the command writes it, where there is no account and every question to a server fails."""

    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("a dry run asked W&B")

    monkeypatch.setattr(wandb, "Api", no_network)
    assert main(["dashboard", "--entity", "lab", "--project", "margins", "--dry-run", str(tmp_path / "spec.json")]) == 0
    return dict(json.loads((tmp_path / "spec.json").read_text()))


def values(spec: Any, key: str) -> Iterator[Any]:
    """Every value under this key, at any depth."""
    if isinstance(spec, Mapping):
        for name, inner in spec.items():
            if name == key:
                yield inner
            yield from values(inner, key)
    elif isinstance(spec, list):
        for inner in spec:
            yield from values(inner, key)


def panels(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel for those in values(spec, "panels") if isinstance(those, list) for panel in those]


@pytest.mark.parametrize("kind", ["workspace", "report"])
def test_the_panels_are_those_a_researcher_wants(specification: dict[str, Any], kind: str) -> None:
    those = panels(specification[kind])
    curves = {
        panel["config"]["chartTitle"]: panel["config"] for panel in those if panel["viewType"].endswith("Line Plot")
    }
    shown = {title: config["metrics"] for title, config in curves.items()}
    assert shown == {
        "margin h": ["margin"], "log pi(rejected)": ["log_pi/rejected"], "log pi(chosen)": ["log_pi/chosen"],
        "log-ratios a and b": ["log_ratios/chosen", "log_ratios/rejected"],
        "rewards": ["rewards/chosen", "rewards/rejected"], "reward margin": ["rewards/margins"],
        "accuracy": ["rewards/accuracies"], "loss": ["loss"], "gradient norm before clipping": ["grad_norm"],
        "k3 on the data": ["k3_on_data"], "held-out reward margin": ["eval/rewards/margins"],
        "held-out accuracy": ["eval/rewards/accuracies"],
        "held-out log-ratios a and b": ["eval/log_ratios/chosen", "eval/log_ratios/rejected"],
        "KL of the policy's own answers": ["eval/kl_k1", "eval/kl_k3"],
    }  # fmt: skip
    assert all(config["xAxis"] == "step" and config["xLogScale"] for config in curves.values())
    others = [panel for panel in those if not panel["viewType"].endswith("Line Plot")]
    assert [panel["viewType"] for panel in others] == [
        "Scatter Plot", "Scatter Plot", "Parallel Coordinates Plot", "Run Comparer"
    ]  # fmt: skip
    assert others[0]["config"]["xAxis"] == "config:beta.value" and others[0]["config"]["yAxis"] == "summary:margin.last"
    assert [column["accessor"] for column in others[2]["config"]["columns"]] == [
        "config:loss.value.name", "config:beta.value", "config:optimizer.value.name", "config:lr.value",
        "config:seed.value", "summary:margin.last", "summary:log_pi/rejected.last", "summary:rewards/accuracies",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["workspace", "report"])
def test_runs_are_grouped_by_loss_and_beta(specification: dict[str, Any], kind: str) -> None:
    groupings = [[key["name"] for key in grouping] for grouping in values(specification[kind], "grouping")]
    assert groupings and all(grouping == ["loss.value.name", "beta.value"] for grouping in groupings)


def test_no_two_panels_of_a_section_lie_on_one_another(specification: dict[str, Any]) -> None:
    for those in values(specification, "panels"):
        if isinstance(those, list):
            places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in those]
            assert len({*places}) == len(places) and all(
                panel["layout"]["x"] + panel["layout"]["w"] <= 24 for panel in those
            )


def test_every_metric_and_setting_is_one_of_the_format_and_every_final_value_is_kept_so() -> None:
    text = (ROOT / "docs" / "run-directory.md").read_text()
    named = {metric: (metric, metric.removeprefix("eval/")) for metric in dashboard.metrics()}
    assert "`eval/<column>`" in text
    assert [metric for metric, names in named.items() if not any(f"`{name}`" in text for name in names)] == []
    for key in {*dashboard.GROUPS, *dashboard.SETTINGS}:
        group, _, name = key.partition(".")
        assert (f'"{group}": {{"{name}":' if name else f'"{group}": ') in text
    finals = {metric for part in dashboard.PARTS for panel in part.panels if isinstance(panel, dashboard.Across)
              for metric in panel.metrics}  # fmt: skip
    for metric in finals:
        assert dashboard.FINAL.get(metric, metric) == (f"{metric}.last" if metric in SUMMARIES else metric)


def test_a_dry_run_is_the_same_in_every_process(specification: dict[str, Any], tmp_path: Path) -> None:
    arguments = ["dashboard", "--entity", "lab", "--project", "margins", "--dry-run", str(tmp_path / "again.json")]
    done = subprocess.run(
        [sys.executable, "-m", "analysis", *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "again.json").read_text()) == specification


class Server:
    """What W&B answers to the queries of `wandb-workspaces` and of ours, in the shapes they ask for."""

    app_url = "https://wandb.ai"

    def __init__(self, views: Mapping[str, list[dict[str, str]]] | None = None) -> None:
        self.views = views
        self.saved: list[dict[str, Any]] = []

    def execute_graphql(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        if "query Views" in query:
            if self.views is None:
                return {"project": None}
            those, start = self.views.get(variables["kind"], []), int(variables["cursor"] or 0)
            page = {"endCursor": str(start + 1), "hasNextPage": start + 1 < len(those)}
            edges = [{"node": node} for node in those[start : start + 1]]  # one a page
            return {"project": {"allViews": {"edges": edges, "pageInfo": page}}}
        if "upsertView" in query:
            self.saved.append(dict(variables))
            id, name = variables.get("id") or f"new-{len(self.saved)}", variables["name"]
            view = {"id": id, "name": name, "displayName": variables["displayName"], "type": variables["type"],
                    "description": "", "project": {"name": "margins", "entityName": "lab"}, "spec": variables["spec"],
                    "createdAt": None, "updatedAt": None, "user": None, "previewUrl": None}  # fmt: skip
            return {"upsertView": {"view": view, "inserted": True}}
        assert "internalId" in query, query
        return {"project": {"internalId": "7"}}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    """served(views) -> the server every `wandb.Api()` then talks to."""

    def begin(views: Any) -> Server:
        server = Server(views)

        class Api:
            def __init__(self) -> None:
                self._service_api = server

            def projects(self, _: str) -> list[Any]:
                return [type("Project", (), {"name": "margins"})()]

        monkeypatch.setattr(wandb, "Api", Api)
        return server

    return begin


def test_a_project_without_them_gets_a_workspace_and_a_report(served: Any, capsys: Any) -> None:
    server = served({"project-view": [{"id": "1", "name": "nw-1-v", "displayName": "mine"}]})
    assert main(["dashboard", "--entity", "lab", "--project", "margins"]) == 0
    workspace, report = server.saved
    assert workspace["type"] == "project-view" and report["type"] == "runs"
    assert not workspace.get("id") and not report.get("id")
    assert workspace["displayName"] == report["displayName"] == dashboard.NAME
    assert len(panels(json.loads(workspace["spec"]))) == len(panels(json.loads(report["spec"]))) == 18
    out = capsys.readouterr().out.split()
    assert len(out) == 2 and all(url.startswith("https://wandb.ai/lab/margins") for url in out)


def test_those_of_this_name_are_brought_up_to_date_and_no_others(served: Any) -> None:
    views = {kind: [{"id": f"{kind}-1", "name": "nw-other-v", "displayName": "mine"},
                    {"id": f"{kind}-2", "name": "nw-ours-v", "displayName": dashboard.NAME}]
             for kind in ("project-view", "runs")}  # fmt: skip
    server = served(views)
    assert main(["dashboard", "--entity", "lab", "--project", "margins"]) == 0
    assert [saved["id"] for saved in server.saved] == ["project-view-2", "runs-2"]
    assert server.saved[0]["name"] == "nw-ours-v"


def test_a_project_that_is_not_there_is_said_so_in_one_line(served: Any, capsys: Any) -> None:
    server = served(None)
    assert main(["dashboard", "--entity", "lab", "--project", "margins"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no project lab/margins" in err and server.saved == []


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["dashboard", "--entity", "lab", "--project", "margins"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install 'margincall[dashboards]'" in err


def test_without_an_account_one_line_says_what_to_do(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "dashboard", "--entity", "lab", "--project", "margins"],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "wandb login" in done.stderr and "--dry-run" in done.stderr


def test_the_key_is_never_printed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)

    def refuse() -> Any:
        raise wandb.errors.CommError(f"the key {KEY} is not known")

    monkeypatch.setattr(wandb, "Api", refuse)
    assert main(["dashboard", "--entity", "lab", "--project", "margins"]) == 2
    out, err = capsys.readouterr()
    assert "is not known" in err and KEY not in out + err


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, capsys: Any) -> None:
    path = str(tmp_path / "no" / "spec.json")
    assert main(["dashboard", "--entity", "lab", "--project", "margins", "--dry-run", path]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_libraries_own_classes_read_the_specification_back(specification: dict[str, Any]) -> None:
    ws, reports = dashboard._library()
    from wandb_workspaces.workspaces import internal

    spec = internal.WorkspaceViewspec.model_validate(specification["workspace"])
    view = internal.View(entity="lab", project="margins", display_name="x", name="nw-x-v", id="", spec=spec)
    read = ws.Workspace._from_model(view)
    assert [section.name for section in read.sections] == [part.title for part in dashboard.PARTS]
    assert read.runset_settings.groupby == [ws.Config(key) for key in dashboard.GROUPS]
    assert isinstance(read.sections[-1].panels[3], reports.RunComparer)


@pytest.mark.slow
def test_leet_opens_our_offline_run_and_shows_its_metrics(tmp_path: Path) -> None:
    """W&B's terminal view, without an account, on the file that `src.tracking` writes."""
    run = Run(steps=100)
    folder = tmp_path / run.dir
    folder.mkdir()
    tracker = Wandb(mode="offline", project="margins", entity=None).start(run.config(), folder)
    tracker.log({name: np.asarray(column) for name, column in run.history().items()})
    tracker.finish(0)
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    seen = _on_a_terminal(["leet", "run", str(file)], until=["grad_norm", "margin", "loss.name"], home=tmp_path)
    for text in (
        "State: Finished",
        "Project: margins",
        run.label,
        "grad_norm",
        "log_ratios",
        "x: step",
        "loss.name",
        "dpo",
    ):
        assert text in seen, text


def _on_a_terminal(arguments: list[str], until: list[str], home: Path) -> str:
    """`wandb …` on a pseudo-terminal of 50 by 200, until all of these texts were written; then q. -> what was written,
    without what moves the cursor and sets colours.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    environment = ENVIRONMENT | {"TERM": "xterm-256color", "HOME": str(home), "WANDB_CONFIG_DIR": str(home)}
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("wandb")), *arguments],
        cwd=home, env=environment, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    written, deadline = b"", time.monotonic() + 60

    def text() -> str:
        return re.sub(
            r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[=>()][0B]?)", "", written.decode(errors="replace")
        )

    try:
        while time.monotonic() < deadline and not all(part in text() for part in until):
            if select.select([leader], [], [], 0.2)[0]:
                new = os.read(leader, 65536)
                written += new
                if b"\x1b]11;?" in new:  # it asks for the colour of the background, as a terminal would be
                    os.write(leader, b"\x1b]11;rgb:0000/0000/0000\x1b\\")
        time.sleep(0.5)
        written += os.read(leader, 65536) if select.select([leader], [], [], 0)[0] else b""
        os.write(leader, b"q")
        process.wait(10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(leader)
    return text()
