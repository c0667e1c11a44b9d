"""Curves of any metric, what is drawn of very much, and what lies beside the history: probes, answers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import write_stream
from matplotlib.figure import Figure

from analysis import beside_history, load
from analysis.figures import curves, kl_on_data, margin, reward_histograms, samples, style, symlog
from analysis.figures import draw as d


def note(figure: Figure) -> str:
    return " ".join(figure.texts[-1].get_text().replace("\N{NO-BREAK SPACE}", " ").split())


def measured(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_linewidth() == d.WIDTH]


def dashed(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_color() == "black"]


@pytest.mark.parametrize("metric", ["loss", "grad_norm", "implied_preference", "rewards/margins", "margin"])
def test_a_metric_that_follows_from_the_margin_has_its_closed_form(four_runs: Path, metric: str) -> None:
    sweep = load(four_runs)
    (ax,) = curves.draw(sweep.runs, sweep.history, metric).axes
    assert len(measured(ax)) == len(dashed(ax)) == 4
    for line, theory in zip(measured(ax), dashed(ax), strict=True):
        scale = 1 + np.abs(line.get_ydata()).max()
        assert np.asarray(theory.get_ydata()) == pytest.approx(np.asarray(line.get_ydata()), abs=0.01 * scale)


def test_another_metric_has_none_and_one_that_no_run_has_is_refused(four_runs: Path) -> None:
    sweep = load(four_runs)
    (ax,) = curves.draw(sweep.runs, sweep.history, "k3_on_data").axes
    assert len(measured(ax)) == 4 and not dashed(ax) and ax.get_ylabel() == "k3 on the data (nats a token)"
    with pytest.raises(d.NothingToDraw, match="no run has exact/kl in its history"):
        curves.draw(sweep.runs, sweep.history, "exact/kl")


def test_a_metric_that_runs_through_decades_has_an_axis_for_it(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(make_run("dpo"), make_run("ipo", 0.5)))
    sweep.history.loc[sweep.history.index[-3:], "loss"] = [-1e6, 1e7, 1e8]
    figure = curves.draw(sweep.runs, sweep.history, "loss")
    (ax,) = figure.axes
    assert ax.get_yscale() == "symlog" and "linear from −1 to 1, logarithmic beyond" in note(figure)
    figure.draw_without_rendering()
    ticks = [label.get_text() for label in ax.get_yticklabels()]
    assert "$−10^{6}$" in ticks and "0" in ticks


@pytest.mark.parametrize("value, text", [
    (0.0, "0"), (-0.5, "−0.5"), (2000.0, "2000"), (1e4, "$10^{4}$"), (-1e6, "$−10^{6}$"), (420000.0, "420000"),
])  # fmt: skip
def test_ticks_are_plain_up_to_ten_thousand(value: float, text: str) -> None:
    assert symlog.tick(value, 0) == text


def test_k_on_data_is_drawn_beside_the_exact_kl_where_there_is_one(four_runs: Path) -> None:
    sweep = load(four_runs)
    figure = kl_on_data.draw(sweep.runs, sweep.history)
    assert [ax.get_ylabel() for ax in figure.axes] == ["k1 (nats)", "k2 (nats)", "k3 (nats)"]
    assert [len(measured(ax)) for ax in figure.axes] == [4, 4, 4] and not dashed(figure.axes[0])
    exact = load(four_runs)
    exact.history["exact/kl"] = 0.5
    figure = kl_on_data.draw(exact.runs, exact.history)
    assert [len(dashed(ax)) for ax in figure.axes] == [4, 4, 4]
    assert "no estimates of the KL" in note(figure)


def test_thinning_keeps_the_ends_and_every_extreme_in_its_place() -> None:
    rng = np.random.default_rng(0)
    along, values = np.sort(rng.uniform(0, 1, 100_000)), rng.standard_normal((100_000, 2))
    values[777, 0], values[90_001, 1], values[5, 0] = 50.0, -50.0, math.nan
    kept = style.thinned(along, values)
    assert len(kept) <= 6 * style.PIXELS and (np.diff(kept) > 0).all()
    assert {0, 99_999, 777, 90_001} <= {*kept.tolist()}
    columns = ((along - along[0]) / (along[-1] - along[0]) * style.PIXELS).astype(int).clip(max=style.PIXELS - 1)
    for series in values.T:
        whole = pd.Series(series).groupby(columns).agg(["min", "max"])
        assert pd.Series(series[kept]).groupby(columns[kept]).agg(["min", "max"]).equals(whole)


def test_short_records_are_drawn_whole() -> None:
    assert style.thinned(np.arange(1000), np.zeros(1000)).tolist() == [*range(1000)]


def test_a_long_run_is_thinned_after_the_statistics(write_sweep: Any, make_run: Any) -> None:
    """One step of 20,000 stands out; the line still goes through its mean over seeds."""
    runs = [make_run("ipo", seed=s, steps=20_000) for s in (1, 2)]
    sweep = load(write_sweep(*runs))
    spike = sweep.history.index[(sweep.history["step"] == 12_345) & (sweep.history["run"] == runs[0].id)]
    sweep.history.loc[spike, "margin"] += 10.0
    (ax,) = margin.draw(sweep.runs, sweep.history).axes
    (line,) = measured(ax)
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert len(x) < 7 * style.PIXELS and x[-1] == 19_999
    assert y[x == 12_345] == pytest.approx(10.0)  # 5 and 15


def test_of_many_betas_eight_are_drawn_and_the_figure_says_so(write_sweep: Any, make_run: Any) -> None:
    figure = curves.draw(*_frames(write_sweep(*(make_run("dpo", b / 100, steps=5) for b in range(1, 31)))), "loss")
    (ax,) = figure.axes
    assert len(measured(ax)) == d.MOST_BETAS
    assert "30 of 30 runs; 8 of 30 curves drawn, evenly spaced in β." in note(figure)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "DPO β = 0.01" and labels[-1] == "DPO β = 0.3"


def test_of_more_panels_than_a_page_holds_the_first_are_drawn(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run(loss, lr=lr / 1000, steps=5) for lr in range(1, 31) for loss in ("dpo", "ipo")]
    figure = margin.draw(*_frames(write_sweep(*runs)))
    assert len(figure.axes) == d.MOST_PANELS
    assert "45 of 60 pairs of loss and setting drawn" in note(figure)


def test_spread_has_the_ends() -> None:
    assert d.spread(3, 8) == [0, 1, 2]
    assert d.spread(200, 8)[0] == 0 and d.spread(200, 8)[-1] == 199 and len({*d.spread(200, 8)}) == 8


def test_a_point_is_the_mean_over_a_pass_where_batches_differ(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(make_run(pairs=10, steps=35)))
    sweep.history["loss"] = sweep.history["step"] % 10 + sweep.history["step"] // 10
    figure = curves.draw(sweep.runs, sweep.history, "loss")
    (line,) = measured(figure.axes[0])
    assert line.get_xdata().tolist() == [0, 9, 19, 29] and line.get_ydata().tolist() == [0.0, 4.5, 5.5, 6.5]
    assert "A point is the mean over a pass over the data." in note(figure)


# Probes and answers


def write_probes(folder: Path, beta: float, held_out: bool = True) -> None:
    """Two pairs trained on and two held out, at steps 0 and 50: log-ratios from 0 to +-2 and +-1."""
    rows = [
        (step, name, pair, reach * bool(step), -reach * bool(step))
        for step in (0, 50)
        for name, reach in (("train", 2.0), ("held_out", 1.0))[: 1 + held_out]
        for pair in (0, 1)
    ]
    step, name, pair, chosen, rejected = zip(*rows, strict=True)
    write_stream(folder / "probes.arrow", {
        "step": pa.array(step, pa.int64()), "set": pa.array(name), "pair": pa.array(pair, pa.int64()),
        "log_ratio_chosen": chosen, "log_ratio_rejected": rejected,
    })  # fmt: skip


def probed(path: Path, *runs: Any) -> Path:
    for run in runs:
        write_probes(path / run.dir, run.beta)
    return path


def test_the_reward_of_each_pair_is_counted_at_the_first_and_at_the_last_evaluation(
    write_sweep: Any, make_run: Any
) -> None:
    runs = [make_run("dpo", 0.5, seed=1), make_run("dpo", 0.5, seed=2), make_run("ipo", 0.1)]
    sweep = load(probed(write_sweep(*runs), *runs[:2]))
    found = beside_history.probes(sweep)
    assert (
        found.problems == ()
        and len(found.rows) == 16
        and found.rows["set"].tolist()[:3] == ["train"] * 2 + ["held_out"]
    )
    figure = reward_histograms.draw(sweep.runs, found.rows)
    first, last = figure.axes
    assert first.get_title(loc="left") == "DPO β = 0.5"
    shares = [patch.get_data() for patch in last.patches]
    centres = [float((s.edges[:-1] + s.edges[1:])[s.values > 0].sum() / 2) for s in shares]
    assert centres == pytest.approx([1.0, -1.0, 0.5, -0.5], abs=0.06)  # beta times the log-ratio
    assert all(share.values.sum() == pytest.approx(1.0) for share in shares)
    assert "3 of 3 runs; 1 without probes, not shown. Pairs of 2 seeds together" in note(figure)
    assert "First: step 0; last: step 50." in note(figure)


def test_without_probes_and_answers_there_is_nothing_to_draw(four_runs: Path) -> None:
    sweep = load(four_runs)
    with pytest.raises(d.NothingToDraw, match=r"probes\.arrow"):
        reward_histograms.draw(sweep.runs, beside_history.probes(sweep).rows)
    with pytest.raises(d.NothingToDraw, match=r"samples\.jsonl"):
        samples.draw(sweep.runs, beside_history.samples(sweep).rows)


def test_a_file_that_is_no_good_is_named_and_one_that_was_cut_off_is_read_to_its_last_whole_part(
    write_sweep: Any, make_run: Any
) -> None:
    runs = [make_run("dpo", 0.5, seed=s) for s in (1, 2, 3)]
    path = probed(write_sweep(*runs), runs[0])
    (path / runs[1].dir / "probes.arrow").write_bytes(b"no stream at all")
    write_stream(path / runs[2].dir / "probes.arrow", {"step": np.arange(3)})
    found = beside_history.probes(load(path))
    assert {*found.rows["run"]} == {runs[0].id}
    assert any("not an Arrow IPC stream" in line and runs[1].label in line for line in found.problems)
    assert any("lacks the column set, pair" in line for line in found.problems)
    whole = (path / runs[0].dir / "probes.arrow").read_bytes()
    (path / runs[0].dir / "probes.arrow").write_bytes(whole[:-30])
    assert runs[0].label not in " ".join(beside_history.probes(load(path)).problems)


def write_samples(folder: Path, answers: dict[int, str], pairs: int = 2) -> None:
    lines = [
        json.dumps(
            {"step": step, "pair": pair, "prompt": f"What costs ${pair}|?", "answer": text, "k1": 0.1, "k3": 0.2}
        )
        for step, text in answers.items()
        for pair in range(pairs)
    ]
    (folder / "samples.jsonl").write_text("\n".join(lines) + '\n{"step": 99, "pa')  # the last was cut off


def test_answers_of_the_first_and_the_last_evaluation_are_tabled(write_sweep: Any, make_run: Any) -> None:
    run = make_run()
    path = write_sweep(run)
    write_samples(path / run.dir, {0: "A pound of $x$ <b>.", 20: "between", 40: "Nothing\nat all."})
    sweep = load(path)
    found = beside_history.samples(sweep)
    assert found.problems == () and found.rows["step"].tolist() == [0, 0, 20, 20, 40, 40]
    figure = samples.draw(sweep.runs, found.rows)
    texts = [text.get_text() for text in figure.texts]
    assert "A pound of \\$x\\$ <b>." in texts and "Nothing at all." in texts and "between" not in texts
    assert texts.count(run.label) == 4 and "2 of 2 prompts" in note(figure)
    figure.draw_without_rendering()


def test_a_line_that_is_no_answer_is_named(write_sweep: Any, make_run: Any) -> None:
    run = make_run()
    path = write_sweep(run)
    (path / run.dir / "samples.jsonl").write_text('{"step": 0}\n')
    found = beside_history.samples(load(path))
    assert found.rows.empty and "samples.jsonl, line 1: not an object with step, pair" in found.problems[0]


def _frames(path: Path) -> tuple[Any, Any]:
    sweep = load(path)
    return sweep.runs, sweep.history
