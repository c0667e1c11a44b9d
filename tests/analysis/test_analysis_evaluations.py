"""Evaluations: read from run directories and taken out of W&B's rows, drawn, offered as curves."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import write_stream
from matplotlib.figure import Figure

from analysis import beside_history, load
from analysis.__main__ import main
from analysis.figures import curves, held_out
from analysis.figures import draw as d
from analysis.report import page, payload
from analysis.sweep import Sweep
from analysis.wandb_runs import WandbRun, history_and_evaluations, to_sweep


def evaluated(path: Path, *runs: Any, every: int = 20, answers: int = 4) -> Path:
    for run in runs:
        write_stream(path / run.dir / "evaluations.arrow", run.evaluations(every, answers), batch=1)
    return path


def note(figure: Figure) -> str:
    return " ".join(figure.texts[-1].get_text().replace("\N{NO-BREAK SPACE}", " ").split())


def lines(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_linewidth() == d.WIDTH]


# Run directories


def test_evaluations_are_rows_by_run_and_step_and_no_part_of_the_history(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo"), make_run("simpo", reference=False), make_run("ipo"), make_run("ipo", 0.5)]
    sweep = load(evaluated(write_sweep(*runs), *runs[2::-1]))
    found = beside_history.evaluations(sweep)
    assert found.problems == () and found.rows["step"].dtype == np.int64
    assert found.rows["run"].tolist() == [run.id for run in runs[:3] for _ in range(4)]
    assert found.rows["step"].tolist() == [0, 20, 40, 60] * 3
    dpo, simpo = (found.rows[found.rows["run"] == run.id] for run in runs[:2])
    history = sweep.history[sweep.history["run"] == runs[0].id].set_index("step")
    assert dpo["eval/margin"].tolist() == history["margin"].loc[[0, 20, 40, 59]].tolist()
    assert simpo["eval/margin"].isna().all() and simpo["eval/loss"].notna().all()
    assert not [name for name in sweep.history if name.startswith("eval/")]


def test_a_run_shown_in_two_places_is_evaluated_in_both_with_the_rewards_of_each(
    write_sweep: Any, make_run: Any
) -> None:
    run = make_run("dpo", 0.5)
    path = evaluated(write_sweep(run), run)
    manifest = json.loads((path / "sweep.json").read_text())
    manifest["runs"][0]["shown_as"] = [{"beta": 2.0}]
    (path / "sweep.json").write_text(json.dumps(manifest))
    rows = beside_history.evaluations(load(path)).rows
    own, copy = (part.set_index("step") for _, part in rows.groupby("run", sort=False))
    assert copy["eval/rewards/margins"].tolist() == pytest.approx((4 * own["eval/rewards/margins"]).tolist())
    assert copy["eval/margin"].equals(own["eval/margin"]) and copy["eval/implied_preference"].isna().all()


def test_of_a_file_that_was_cut_off_its_whole_rows_are_read_and_one_that_is_no_good_is_named(
    write_sweep: Any, make_run: Any
) -> None:
    runs = [make_run("dpo", seed=s) for s in (1, 2, 3, 4)]
    path = evaluated(write_sweep(*runs), *runs)
    file = path / runs[0].dir / "evaluations.arrow"
    file.write_bytes(file.read_bytes()[:-30])
    (path / runs[1].dir / "evaluations.arrow").write_bytes(b"no stream at all")
    write_stream(path / runs[2].dir / "evaluations.arrow", {"eval/loss": np.arange(3.0)})
    (path / runs[3].dir / "evaluations.arrow").write_bytes(b"\xff\xff")
    found = beside_history.evaluations(load(path))
    assert found.rows["run"].unique().tolist() == [runs[0].id] and len(found.rows) == 3
    assert [problem.split(", left out")[0] for problem in found.problems] == [
        f"{runs[1].label}: evaluations.arrow is not an Arrow IPC stream",
        f"{runs[2].label}: evaluations.arrow lacks the column step",
    ]


def test_without_evaluations_there_are_no_rows_and_nothing_to_draw(four_runs: Path) -> None:
    sweep = load(four_runs)
    found = beside_history.evaluations(sweep)
    assert found.rows.empty and found.rows.columns.tolist() == ["run", "step"]
    with pytest.raises(d.NothingToDraw, match=r"evaluations\.arrow"):
        held_out.draw(sweep.runs, found.rows)


# W&B's rows

STEPS = 6


def logged(*rows: dict[str, float]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [(n, row[name]) for n, row in enumerate(rows) if name in row] for name in names}
    return {name: (np.array([n for n, _ in at]), np.array([v for _, v in at])) for name, at in columns.items()}, len(
        rows
    )


def rows_of_a_run(loss: float = 0.5, steps: int = STEPS, every: int = 4) -> list[dict[str, float]]:
    rows = [{"step": t, "loss": loss, "pairs": t + 1} for t in range(steps)]
    for t in range(0, steps, every):
        rows[t] |= {"eval/loss": 10.0 + t}
    return [*rows, {"step": steps, "eval/loss": 10.0 + steps}]


def from_wandb(rows: list[dict[str, float]], **config: Any) -> Sweep:
    history, evaluations = history_and_evaluations(*logged(*rows))
    config = {"id": "a", "label": "a", "sweep": "s", "steps": STEPS, "beta": 0.1} | config
    columns = frozenset(name for row in rows for name in row if not name.startswith("eval/"))
    return to_sweep("w", [WandbRun("w", "w", 0.0, "finished", "", config, columns, history, evaluations)], {}, None)


def test_the_last_evaluation_is_no_row_of_the_history() -> None:
    history, evaluations = history_and_evaluations(*logged(*rows_of_a_run()))
    assert {name: values.tolist() for name, values in history.items()} == {
        "step": [0, 1, 2, 3, 4, 5], "loss": [0.5] * 6, "pairs": [1, 2, 3, 4, 5, 6]
    }  # fmt: skip
    assert {name: values.tolist() for name, values in evaluations.items()} == {
        "step": [0, 4, 6], "eval/loss": [10.0, 14.0, 16.0]
    }  # fmt: skip
    assert history["step"].dtype == history["pairs"].dtype == evaluations["step"].dtype == np.int64


def test_a_row_that_holds_a_table_of_answers_alone_is_neither() -> None:
    rows = rows_of_a_run()
    rows[-1] = {}
    history, evaluations = history_and_evaluations(*logged(*rows))
    assert history["step"].tolist() == [*range(6)] and evaluations["step"].tolist() == [0, 4]


def test_a_loss_that_is_not_a_number_is_a_row_of_the_history_all_the_same() -> None:
    rows = [*rows_of_a_run(steps=4)[:-1], {"step": 4, "loss": math.nan, "pairs": 5, "eval/loss": math.nan}]
    sweep = from_wandb(rows)
    assert sweep.history["step"].tolist() == [0, 1, 2, 3, 4]
    assert sweep.runs.loc["a", ["state", "stopped_at", "rows"]].tolist() == ["diverged", 4, 5]


def test_a_run_that_failed_after_its_first_evaluation_has_no_history() -> None:
    sweep = from_wandb([{"step": 0, "eval/loss": 1.0}])
    assert sweep.history.empty and sweep.runs.loc["a", "rows"] == 0 and not sweep.runs.loc["a", "columns"]
    assert beside_history.evaluations(sweep).rows.empty


def test_a_run_that_made_all_its_updates_is_finished_whether_it_might_have_stopped_or_not() -> None:
    for config in ({}, {"early_stop": {"patience": 2}}):
        sweep = from_wandb(rows_of_a_run(), **config)
        assert sweep.runs.loc["a", ["state", "rows"]].tolist() == ["finished", STEPS]
        assert pd.isna(sweep.runs.loc["a", "stopped_at"])


@pytest.mark.parametrize(
    ("early_stop", "loss", "state", "at"),
    [
        ({"patience": 2}, 0.5, "finished", 4),  # it was to stop, and did
        ({"patience": 2}, math.nan, "diverged", 3),
        ({"patience": 2}, math.inf, "diverged", 3),
        ({"patience": None}, 0.5, "diverged", 3),  # nothing but a divergence ends it before its last update
        (None, 0.5, "diverged", 3),  # written before there was such a rule
    ],
)
def test_a_short_run_stopped_early_where_it_might_and_its_last_loss_is_finite_and_diverged_otherwise(
    early_stop: Any, loss: float, state: str, at: int
) -> None:
    rows = rows_of_a_run(steps=4)
    rows[3]["loss"] = loss
    sweep = from_wandb(rows, early_stop=early_stop)
    assert sweep.runs.loc["a", ["state", "rows", "stopped_at"]].tolist() == [state, 4, at]


# Figures


def test_held_out_shows_what_was_evaluated_to_the_bit(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo"), make_run("ipo", 0.5)]
    sweep = load(evaluated(write_sweep(*runs), *runs))
    rows = beside_history.evaluations(sweep).rows
    figure = held_out.draw(sweep.runs, rows)
    assert figure.get_figwidth() == pytest.approx(85 / 25.4)
    labels = ["reward margin", "accuracy", "log-ratios (nats)", "KL (nats)"]
    assert [ax.get_ylabel() for ax in figure.axes] == labels
    margin, accuracy, ratios, kl = figure.axes
    panels = ((margin, held_out.MARGIN), (accuracy, held_out.ACCURACY), (kl, held_out.KL))
    for ax, column in panels:
        for line, run in zip(lines(ax), runs, strict=True):
            own = rows[rows["run"] == run.id]
            assert line.get_xdata().tolist() == [0, 20, 40, 60]
            assert line.get_ydata().tolist() == own[column].tolist()
    drawn = [line.get_ydata().tolist() for line in lines(ratios)]
    sides = [column for column in (held_out.CHOSEN, held_out.REJECTED) for _ in runs]
    expected = [rows.loc[rows["run"] == run.id, side].tolist() for side, run in zip(sides, runs * 2, strict=True)]
    assert drawn == expected
    assert [line.get_linestyle() for line in lines(ratios)] == ["-", "-", "--", "--"]  # dashes of its own
    assert [text.get_text() for text in figure.legends[1].get_texts()] == ["chosen", "rejected"]
    assert "Held-out pairs. 2 of 2 runs. One seed per curve." in note(figure)
    markers = [line for line in kl.lines if line.get_linewidth() == 0 and len(line.get_xdata()) == 4]
    assert len(markers) == 2  # each evaluation is a point


def test_the_kl_has_bars_of_a_standard_error_of_the_mean_that_is_drawn(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo", seed=s) for s in (1, 2)]
    sweep = load(evaluated(write_sweep(*runs), *runs))
    rows = beside_history.evaluations(sweep).rows
    *_, kl = held_out.draw(sweep.runs, rows).axes
    (bars,) = kl.containers
    ends = np.array(list(bars[2][0].get_segments()))[:, :, 1]
    one, two = (rows.loc[rows["run"] == run.id].set_index("step") for run in runs)
    mean = (one[held_out.KL] + two[held_out.KL]) / 2
    error = np.sqrt(one[held_out.KL_SE] ** 2 + two[held_out.KL_SE] ** 2) / 2
    assert ends == pytest.approx(np.stack([mean - error, mean + error], axis=1))


def test_one_answer_has_no_standard_error_and_no_bar(write_sweep: Any, make_run: Any) -> None:
    run = make_run("dpo")
    sweep = load(evaluated(write_sweep(run), run))
    rows = beside_history.evaluations(sweep).rows.assign(**{held_out.KL_SE: math.nan})
    *_, kl = held_out.draw(sweep.runs, rows).axes
    assert len(lines(kl)) == 1 and not kl.containers


def test_what_was_not_evaluated_has_no_panel(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo", objective="reward_model"), make_run("simpo", reference=False)]
    sweep = load(evaluated(write_sweep(*runs), *runs, answers=0))
    figure = held_out.draw(sweep.runs, beside_history.evaluations(sweep).rows)
    assert [ax.get_ylabel() for ax in figure.axes] == ["reward margin", "accuracy"]
    assert "1 without held-out rewards, not shown" in note(figure) and "KL" not in note(figure)
    with pytest.raises(d.NothingToDraw, match=r"no run has eval/rewards/margins and .* in its evaluations"):
        only = beside_history.evaluations(sweep).rows
        held_out.draw(sweep.runs, only[only["run"] == runs[1].id].dropna(axis=1))


def test_of_many_losses_the_log_ratios_stay(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo", seed=n, changes={"loss": {"name": f"loss{n}", "beta": 0.1}}) for n in range(14)]
    sweep = load(evaluated(write_sweep(*runs), *runs))
    rows = beside_history.evaluations(sweep).rows
    figure = held_out.draw(sweep.runs, rows)
    assert len(figure.axes) == 14 and figure.axes[0].get_ylabel() == "log-ratios (nats)"
    assert "No room for KL, reward margin, accuracy: see curves (--metric)." in note(figure)
    ten = rows[rows["run"].isin([run.id for run in runs[:10]])]
    assert len(held_out.draw(sweep.runs, ten).axes) == 20


def test_a_curve_of_an_evaluation_has_a_point_for_each_and_no_means_over_passes(
    write_sweep: Any, make_run: Any
) -> None:
    run = make_run("dpo", pairs=4)
    sweep = load(evaluated(write_sweep(run), run, every=5))
    rows = beside_history.evaluations(sweep).rows
    figure = curves.draw(sweep.runs, rows, "eval/margin")
    (ax,) = figure.axes
    (line,) = lines(ax)
    assert line.get_xdata().tolist() == [*range(0, 61, 5)] and line.get_ydata().tolist() == rows["eval/margin"].tolist()
    assert ax.get_ylabel() == "held-out margin h (nats)" and "a pass" not in note(figure)
    assert len(ax.lines[-1].get_xdata()) == 13
    (ax,) = curves.draw(sweep.runs, rows, "eval/kl_k3").axes
    assert ax.get_ylabel() == "KL(π, π_ref) of answers, k3 (nats)"


def test_the_command_draws_them_and_names_them_where_another_is_asked_for(
    write_sweep: Any, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run("dpo"), make_run("ipo")]
    path = evaluated(write_sweep(*runs), *runs)
    assert main([str(path), "--figures", "held_out", "--metric", "eval/margin,loss", "--format", "svg"]) == 0
    drawn = sorted(file.name for file in (path / "figures").glob("*.svg"))
    assert drawn == ["curves_eval_margin.svg", "curves_loss.svg", "held_out.svg"]
    capsys.readouterr()
    assert main([str(path), "--metric", "eval/no"]) == 2
    assert "no 'eval/no' in the history of synthetic; there are eval/implied_preference, eval/k1" in (
        capsys.readouterr().err
    )


# The page


def test_the_page_offers_evaluations_after_the_histories_columns(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo", pairs=4), make_run("ipo", pairs=4)]
    sweep = load(evaluated(write_sweep(*runs), *runs[:1]))
    rows = beside_history.evaluations(sweep).rows
    offered = payload.evaluated(rows)
    assert offered["eval/rewards/margins"] == ("held out: reward margin u = βh", "")
    assert "eval/kl_k3" in offered and "eval/kl_k3_se" not in offered
    html, _ = page.build(sweep, data_file="d.csv", out=Path(sweep.source) / "report.html")
    assert html == page.build(sweep, data_file="d.csv", out=Path(sweep.source) / "report.html")[0]
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    names = [name for name, *_ in data["metrics"]]
    assert names[-len(offered) :] == [*offered] and names[0] == "margin" and data["last"] == 60
    first = len(names) - len(offered)
    assert f'id="metric-{first}"' in html and f'id="mean-{first}"' not in html and f'id="mean-{first - 1}"' in html
