"""`python -m analysis dashboard`: a W&B workspace and a W&B report with the panels this project is about.

Both are made through `wandb-workspaces`. One that has the same name is brought up to date; no other is touched.

Tested: what is sent, through the library's own classes, with a server's answers in the shapes the queries ask for.
Not exercised: a real server.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

NAME = "margincall"  # of the workspace and of the report
GROUPS = ("loss.name", "beta")  # keys of a run's configuration
SETTINGS = ("loss.name", "beta", "optimizer.name", "lr", "seed")
# The last value of a metric, as its summary is written: those of which another is kept too are nested.
FINAL = {"margin": "margin.last", "log_pi/rejected": "log_pi/rejected.last", "log_pi/chosen": "log_pi/chosen.last"}


class DashboardError(Exception):
    """One line: what is wrong, and what to do."""


@dataclass(frozen=True)
class Curves:
    """A plot of metrics against step."""

    title: str
    metrics: tuple[str, ...]
    unit: str = ""
    log_y: bool = False


@dataclass(frozen=True)
class Across:
    """A plot with a point or a line for each run: final values against settings."""

    title: str
    kind: Literal["scatter", "parallel", "comparer"]
    settings: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A section of the workspace, and of the report."""

    title: str
    about: str
    panels: tuple[Curves | Across, ...] = field(default=())


PARTS = (
    Part("Collapse", "Does the margin stop? Where does the probability go? Steps are logarithmic.", (
        Curves("margin h", ("margin",), "nats"),
        Curves("log pi(rejected)", ("log_pi/rejected",), "nats"),
        Curves("log pi(chosen)", ("log_pi/chosen",), "nats"),
        Curves("log-ratios a and b", ("log_ratios/chosen", "log_ratios/rejected"), "nats"),
    )),
    Part("Rewards", "Implicit rewards, beta times the log-ratios.", (
        Curves("rewards", ("rewards/chosen", "rewards/rejected")),
        Curves("reward margin", ("rewards/margins",)),
        Curves("accuracy", ("rewards/accuracies",)),
    )),
    Part("Training", "Whether the optimisation itself is sound.", (
        Curves("loss", ("loss",)),
        Curves("gradient norm before clipping", ("grad_norm",), log_y=True),
        Curves("k3 on the data", ("k3_on_data",), "nats"),
    )),
    Part("Held out", "Pairs and prompts that are not trained on, at every evaluation.", (
        Curves("held-out reward margin", ("eval/rewards/margins",)),
        Curves("held-out accuracy", ("eval/rewards/accuracies",)),
        Curves("held-out log-ratios a and b", ("eval/log_ratios/chosen", "eval/log_ratios/rejected"), "nats"),
        Curves("KL of the policy's own answers", ("eval/kl_k1", "eval/kl_k3"), "nats"),
    )),
    Part("Across runs", "Where runs end, by their settings.", (
        Across("final margin against beta", "scatter", ("beta",), ("margin",)),
        Across("final log pi(rejected) against beta", "scatter", ("beta",), ("log_pi/rejected",)),
        Across("settings and ends", "parallel", SETTINGS, ("margin", "log_pi/rejected", "rewards/accuracies")),
        Across("runs side by side", "comparer"),
    )),
)  # fmt: skip


def metrics() -> list[str]:
    """Every metric that a panel names."""
    return list(dict.fromkeys(metric for part in PARTS for panel in part.panels for metric in panel.metrics))


def main(arguments: Sequence[str] | None = None) -> int:
    """0: made, or written. 1: W&B refused. 2: something is missing here; nothing was sent."""
    options = _parser().parse_args(arguments)
    try:
        if options.dry_run is not None:
            _write(options.dry_run, specification(options.entity, options.project))
            print(options.dry_run)
            return 0
        api = _logged_in()
    except DashboardError as error:
        print(f"analysis dashboard: {error}", file=sys.stderr)
        return 2
    import wandb

    try:
        for url in publish(api, options.entity, options.project):
            print(url)
    except (wandb.Error, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        print(f"analysis dashboard: W&B: {_without_key(text)}", file=sys.stderr)
        return 1
    return 0


def specification(entity: str, project: str) -> dict[str, Any]:
    """What would be sent, as plain JSON. Asks no server; random ids are replaced by numbers, so it is always the same.

    Raises:
        DashboardError: `wandb-workspaces` is not installed.
    """
    found = {
        "workspace": json.loads(_workspace(entity, project)._to_model().spec.model_dump_json(**_AS_SENT)),
        "report": json.loads(_report(entity, project, run_sets_of="")._to_model().spec.model_dump_json(**_AS_SENT)),
    }
    about = {"entity": entity, "project": project, "name": NAME}
    return about | {kind: _numbered(spec) for kind, spec in found.items()}


_AS_SENT: dict[str, Any] = {"by_alias": True, "exclude_none": True}  # as the library's own `save` does


def publish(api: Any, entity: str, project: str) -> Iterator[str]:
    """Create the workspace and the report, or bring those of this name up to date; give the address of each.

    api: a `wandb.Api`.
    """
    workspace, report = _workspace(entity, project), _report(entity, project, run_sets_of=entity)
    for view in _views(api, entity, project, "project-view"):
        if view["displayName"] == NAME:
            workspace._internal_id, workspace._internal_name = view["id"], view["name"]
            break
    for view in _views(api, entity, project, "runs"):
        if view["displayName"] == NAME:
            report.id = view["id"]
            break
    yield str(workspace.save().url)
    yield str(report.save().url)


_VIEWS = """
query Views($entity: String!, $project: String!, $kind: String!, $cursor: String) {
  project(name: $project, entityName: $entity) {
    allViews(viewType: $kind, first: 50, after: $cursor) {
      edges { node { id name displayName } }
      pageInfo { endCursor hasNextPage }
    }
  }
}
"""


def _views(api: Any, entity: str, project: str, kind: str) -> Iterator[dict[str, str]]:
    """Id, name and title of each view the project has."""
    from wandb_workspaces._graphql import execute_graphql

    cursor = None
    while True:
        asked = {"entity": entity, "project": project, "kind": kind, "cursor": cursor}
        found = execute_graphql(api, _VIEWS, asked).get("project")
        if found is None:
            raise ValueError(f"no project {entity}/{project}; upload runs to it first: python -m src.sync SWEEP")
        for edge in found["allViews"]["edges"]:
            yield edge["node"]
        page = found["allViews"]["pageInfo"]
        if not page["hasNextPage"]:
            return
        cursor = page["endCursor"]


def _workspace(entity: str, project: str) -> Any:
    ws, _ = _library()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=part.title, panels=_panels(part), is_open=True) for part in PARTS],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100, tooltip_number_of_runs="single"),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config(key) for key in GROUPS]),
    )


def _report(entity: str, project: str, run_sets_of: str) -> Any:
    """run_sets_of: the entity; empty for run sets of no stated project, which the library then need not look up."""
    _, wr = _library()
    blocks: list[Any] = [wr.H1("Which preference losses collapse, and when"), wr.TableOfContents()]
    for part in PARTS:
        runs = wr.Runset(
            entity=run_sets_of, project=project if run_sets_of else "", groupby=[f"config.{key}" for key in GROUPS]
        )
        blocks += [wr.H2(part.title), wr.P(part.about), wr.PanelGrid(runsets=[runs], panels=_panels(part))]
    return wr.Report(entity=entity, project=project, title=NAME, blocks=blocks, width="fluid")


def _panels(part: Part) -> list[Any]:
    _, wr = _library()
    made = []
    for nth, panel in enumerate(part.panels):
        layout = wr.Layout(x=8 * (nth % 3), y=8 * (nth // 3), w=8, h=8)
        if isinstance(panel, Curves):
            made.append(wr.LinePlot(
                title=panel.title, x="step", y=list(panel.metrics), log_x=True, log_y=panel.log_y or None,
                title_x="step", title_y=panel.unit or None, layout=layout,
            ))  # fmt: skip
            continue
        settings = [wr.Config(key) for key in panel.settings]
        ends = [wr.SummaryMetric(FINAL.get(metric, metric)) for metric in panel.metrics]
        if panel.kind == "scatter":
            (x,), (y,) = settings, ends
            made.append(wr.ScatterPlot(title=panel.title, x=x, y=y, log_x=True, layout=layout))
        elif panel.kind == "parallel":
            columns = [
                wr.ParallelCoordinatesPlotColumn(metric=metric, log=True if metric == wr.Config("lr") else None)
                for metric in (*settings, *ends)
            ]
            made.append(wr.ParallelCoordinatesPlot(title=panel.title, columns=columns, layout=layout))
        else:
            made.append(wr.RunComparer(diff_only="split", layout=layout))
    return made


def _library() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # its own, of its use of pydantic
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise DashboardError(
            f"needs {error.name}, which is not installed: pip install 'margincall[dashboards]'"
        ) from None
    return ws, wr


def _logged_in() -> Any:
    """Raises DashboardError: no library, or no account is known here."""
    _library()
    import wandb

    try:
        return wandb.Api()
    except (wandb.Error, ValueError) as error:
        text = _without_key(" ".join(str(error).split()))
        raise DashboardError(
            f"no W&B account to use ({text}): run `wandb login`, set WANDB_API_KEY, or write the specification with "
            "--dry-run FILE"
        ) from None


def _without_key(text: str) -> str:
    key = os.environ.get("WANDB_API_KEY", "")
    return text.replace(key, "…") if key else text


def _numbered(spec: Any) -> Any:
    """The same with the library's random ids replaced by numbers, in their order."""
    known: dict[str, str] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key: known.setdefault(inner, str(len(known)))
                if key in ("__id__", "id") and isinstance(inner, str) and inner
                else walk(inner)
                for key, inner in value.items()
            }
        return [walk(inner) for inner in value] if isinstance(value, list) else value

    return walk(spec)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise DashboardError(f"--dry-run {file}: cannot be written ({error.strerror})") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis dashboard",
        description="Create a W&B workspace and a W&B report, or bring them up to date: curves of margin, "
        "probabilities, log-ratios, rewards, loss, gradient and k3, of held-out pairs, final margin against beta, "
        f"parallel coordinates, a comparer of runs; grouped by loss and beta. Both are called {NAME}.",
    )
    parser.add_argument("--entity", required=True, metavar="E", help="the W&B user or team")
    parser.add_argument("--project", required=True, metavar="P", help="its project")
    parser.add_argument(
        "--dry-run", type=Path, metavar="FILE", help="write what would be sent as JSON; needs no account and no network"
    )
    return parser
