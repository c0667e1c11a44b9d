"""What is on the figures and in the table."""

import math
import shutil
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from conftest import write_stream
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import rgb_to_hsv, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis import beside_history, collapse, load, tables
from analysis.figures import (
    bradley_terry,
    collapse_map,
    curves,
    final_margin,
    gradient_weight,
    held_out,
    kl_estimators,
    kl_on_data,
    looks,
    margin,
    phase,
    rejected_prob,
    rewards,
    sheet,
    style,
    survival,
)
from analysis.figures import draw as d
from analysis.statistics import Curve

ROOT = Path(__file__).parents[2]


def note(figure: Figure) -> str:
    return " ".join(figure.texts[-1].get_text().replace("\N{NO-BREAK SPACE}", " ").split())


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def measured(ax: Axes) -> list[Any]:
    return [line for line in ax.lines if line.get_linewidth() == d.WIDTH]


def dashed(ax: Axes) -> list[Any]:
    return [line for line in ax.lines if line.get_color() == "black"]


def draw(module: Any, path: Path) -> Figure:
    sweep = load(path)
    figure: Figure = module.draw(sweep.runs, sweep.history)
    return figure


def test_rejected_prob_shows_dpo_and_ipo_by_beta_on_one_axis(four_runs: Path) -> None:
    figure = draw(rejected_prob, four_runs)
    (ax,) = figure.axes
    assert len(measured(ax)) == 4
    assert legend(figure) == ["DPO β = 0.1", "DPO β = 0.5", "IPO β = 0.1", "IPO β = 0.5"]
    assert note(figure) == "4 of 4 runs. One seed per curve."
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step (optimiser updates)", "π(rejected)")
    assert figure.get_figwidth() == pytest.approx(85 / 25.4)


def test_where_batches_differ_the_ratio_to_the_reference_takes_the_place_of_the_probability(
    write_sweep: Any, make_run: Any
) -> None:
    runs = [make_run(pairs=64), make_run("simpo", pairs=64, reference=False)]
    figure = draw(rejected_prob, write_sweep(*runs))
    (ax,) = figure.axes
    (line,) = measured(ax)
    assert ax.get_ylabel() == "π(rejected) / π_ref(rejected)"
    assert np.asarray(line.get_ydata()) == pytest.approx(runs[0].history()["log_ratios/rejected"] / math.log(10))
    assert "1 without π(rejected) / π_ref(rejected), not shown." in note(figure)
    assert note(figure).endswith("Batches differ between updates: π itself would show which responses were drawn.")


def test_batches_that_are_all_of_the_data_or_lack_a_reference_leave_the_probability(
    write_sweep: Any, make_run: Any
) -> None:
    for run in (make_run(pairs=64, changes={"batch_size": "full"}), make_run(pairs=64, reference=False)):
        path = write_sweep(run)
        assert draw(rejected_prob, path).axes[0].get_ylabel() == "π(rejected)"
        shutil.rmtree(path)


def test_a_probability_of_minus_2000_nats_is_drawn_where_it_is(write_sweep: Any, make_run: Any) -> None:
    figure = draw(rejected_prob, write_sweep(make_run(log_pi_rejected=-2000.0), make_run("ipo", 0.5)))
    (ax,) = figure.axes
    y = np.asarray(measured(ax)[0].get_ydata())
    assert np.isfinite(y).all() and y[-1] == pytest.approx(-2000 / math.log(10))
    low, _ = ax.get_ylim()
    assert low < -868
    figure.draw_without_rendering()
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert "$10^{-800}$" in labels and "1" in labels


@pytest.mark.parametrize("y, text", [
    (0.0, "1"), (-1.0, "0.1"), (math.log10(0.25), "0.25"), (math.log10(0.005), "0.005"),
    (-12.0, "$10^{-12}$"), (math.log10(2e-12), "2$\\times10^{-12}$"),
])  # fmt: skip
def test_narrow_axes_are_labelled_with_probabilities(y: float, text: str) -> None:
    assert rejected_prob._probability(y) == text


def test_margin_has_a_panel_per_loss_with_theory_over_the_measured_line(four_runs: Path) -> None:
    figure = draw(margin, four_runs)
    dpo, ipo = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["DPO", "IPO"]
    for ax in (dpo, ipo):
        assert len(measured(ax)) == len(dashed(ax)) == 2
        for line, theory in zip(measured(ax), dashed(ax), strict=True):
            assert theory.get_zorder() > line.get_zorder() and theory.get_linewidth() < line.get_linewidth()
            assert np.asarray(theory.get_ydata()) == pytest.approx(np.asarray(line.get_ydata()), abs=0.02)
    targets = [
        np.asarray(line.get_ydata())[0] for line in ipo.lines if line.get_linewidth() == margin.TARGET["linewidth"]
    ]
    assert targets == [5.0, 1.0]
    assert legend(figure)[-2:] == ["theory, K from step 0", "IPO target 1/(2β)"]
    assert "K = |∇h|² as at step 0 (approximate if K drifts)" in note(figure)


def test_many_pairs_leave_only_the_target_and_the_figure_says_so(write_sweep: Any, make_run: Any) -> None:
    figure = draw(margin, write_sweep(make_run("dpo", pairs=64), make_run("ipo", pairs=64)))
    assert not any(dashed(ax) for ax in figure.axes)
    assert legend(figure) == ["DPO β = 0.1", "IPO β = 0.1", "IPO target 1/(2β)"]
    assert "No theory line: DPO β = 0.1, IPO β = 0.1." in note(figure)


def test_an_unknown_loss_is_drawn_without_a_line(write_sweep: Any, make_run: Any) -> None:
    hinge = {"loss": {"name": "hinge", "beta": 0.1}}
    figure = draw(margin, write_sweep(make_run("dpo", changes=hinge)))
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "hinge" and len(measured(ax)) == 1 and not dashed(ax)


def test_seeds_become_a_mean_and_a_band_and_their_number_is_stated(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run(loss, seed=s, noise=0.05) for loss in ("dpo", "ipo") for s in range(5)]
    path = write_sweep(*runs)
    for module, quantity in ((margin, "h"), (rejected_prob, "log π")):
        figure = draw(module, path)
        assert sum(len(measured(ax)) for ax in figure.axes) == sum(len(ax.collections) for ax in figure.axes) == 2
        assert f"10 of 10 runs. Line: mean of {quantity} over 5 seeds; band: its 95 % t interval." in note(figure)


def test_a_diverged_run_is_marked_and_neither_moves_the_axis_nor_the_mean(write_sweep: Any, make_run: Any) -> None:
    blown = make_run("ipo", seed=9, lr=0.01, noise=1e6, state="diverged", stopped_at=12, reason="loss is not finite")
    blown.log_pi_rejected = -1e5
    path = write_sweep(make_run("ipo", seed=1, lr=0.01), make_run("ipo", seed=2, lr=0.01), blown)
    for module, limit in ((margin, 6.0), (rejected_prob, 3.0)):
        figure = draw(module, path)
        (ax,) = figure.axes
        low, high = ax.get_ylim()
        assert max(abs(low), abs(high)) < limit
        (cross,) = [line for line in ax.lines if line.get_marker() == "x"]
        ((x, y),) = np.asarray(cross.get_xydata())
        assert x == 12 and low < y < high
        assert "diverged here" in legend(figure)
        assert "3 of 3 runs; 1 diverged at step 12." in note(figure) and "not in the mean" in note(figure)


def test_other_settings_get_panels_of_their_own(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(*(make_run(loss, lr=lr) for loss in ("dpo", "ipo") for lr in (0.01, 0.1)))
    assert [ax.get_title(loc="left") for ax in draw(rejected_prob, path).axes] == ["lr = 0.01", "lr = 0.1"]
    assert [ax.get_title(loc="left") for ax in draw(margin, path).axes] == [
        "DPO, lr = 0.01", "IPO, lr = 0.01", "DPO, lr = 0.1", "IPO, lr = 0.1"
    ]  # fmt: skip


def test_rewards_of_policy_and_reward_model_share_a_panel_in_one_colour(write_sweep: Any, make_run: Any) -> None:
    figure = draw(rewards, write_sweep(*(make_run(objective=o) for o in ("preference", "reward_model"))))
    margins, accuracies = figure.axes
    for ax, column in ((margins, "rewards/margins"), (accuracies, "rewards/accuracies")):
        policy, model = measured(ax)
        assert policy.get_color() == model.get_color() and policy.get_linestyle() == "-" != model.get_linestyle()
        assert list(policy.get_ydata()) == list(model.get_ydata()) == list(make_run().history()[column])
    assert legend(figure) == ["DPO β = 0.1", "implicit reward", "reward model"]
    assert "Reward: β times the log-ratio, or β times the model's output." in note(figure)
    assert (margins.get_ylabel(), accuracies.get_ylabel()) == ("reward margin (logit)", "accuracy")
    assert [ax.xaxis.label.get_visible() for ax in figure.axes] == [False, True]


def test_rewards_of_policies_alone_need_no_key(four_runs: Path) -> None:
    figure = draw(rewards, four_runs)
    assert legend(figure) == ["DPO β = 0.1", "DPO β = 0.5", "IPO β = 0.1", "IPO β = 0.5"]
    assert all(len(measured(ax)) == 4 for ax in figure.axes) and "model" not in note(figure)


def test_runs_without_the_column_are_counted_in_the_note_and_not_drawn(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo"), make_run("simpo", reference=False), make_run("dpo", objective="reward_model")]
    path = write_sweep(*runs)
    for module, shown, lacking in (
        (margin, 1, "2 without margin"), (rejected_prob, 2, "1 without π(rejected)"), (rewards, 2, "1 without rewards")
    ):  # fmt: skip
        figure = draw(module, path)
        assert len(measured(figure.axes[0])) == shown
        assert f"3 of 3 runs; {lacking}, not shown." in note(figure)


@pytest.mark.parametrize("module", [margin, rejected_prob, rewards, collapse_map, final_margin, phase, survival])
def test_a_figure_without_a_run_to_show_says_so(module: Any, write_sweep: Any, make_run: Any) -> None:
    rewarded = module in (rewards, collapse_map, survival)
    without = make_run(reference=False) if rewarded else make_run(objective="reward_model")
    with pytest.raises(d.NothingToDraw, match=r"no run has .* in its history"):
        draw(module, write_sweep(without, make_run("ipo", state="planned", stopped_at=0)))


def test_reward_models_have_panels_and_survival_curves_of_their_own(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(make_run("dpo"), make_run("dpo", seed=3, objective="reward_model"), make_run("ipo"))
    titles = [ax.get_title(loc="left") for ax in draw(collapse_map, path).axes]
    assert titles == ["DPO", "DPO reward model", "IPO"]
    assert legend(draw(survival, path)) == ["DPO (0 of 1)", "DPO reward model (0 of 1)", "IPO (0 of 1)"]


def test_verdicts_that_are_there_already_give_the_same_figure(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(*collapsing(make_run)))
    verdicts = collapse.verdicts(sweep.runs, sweep.history)
    for module in (collapse_map, survival, final_margin):
        with_them, without = (module.draw(sweep.runs, sweep.history, given) for given in (verdicts, None))
        assert note(with_them) == note(without) and legend(with_them) == legend(without)


def test_a_curve_looks_the_same_in_a_figure_that_lacks_another(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(make_run(beta=0.1, reference=False), make_run(beta=0.5))
    both, one = (measured(draw(module, path).axes[0]) for module in (rejected_prob, margin))
    assert [line.get_color() for line in both][1:] == [line.get_color() for line in one]


def test_many_losses_make_a_page_of_small_panels_with_axes_in_common(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(*every_loss(make_run))
    for module in (margin, rejected_prob, rewards):
        figure = draw(module, path)
        width, height = figure.get_size_inches() * 25.4
        assert width == pytest.approx(178) and height <= 250
        axes = figure.axes[:: 2 if module is rewards else 1]
        assert len(axes) == 43 and [ax.get_title(loc="left") for ax in axes] == [*looks.NAMES.values()]
        limits = [ax.get_ylim() for ax in axes]
        apart = [i for i, those in enumerate(limits) if those != limits[0]]
        assert [axes[i].get_title(loc="left") for i in apart] == ["robust DPO", "EXO"]
        assert "β = 0.5 throughout." in note(figure) and "One y axis for all panels but robust DPO; EXO." in note(
            figure
        )
        figure.draw_without_rendering()
        labelled = [i for i, ax in enumerate(axes) if any(t.label1.get_visible() for t in ax.yaxis.get_major_ticks())]
        assert labelled == sorted({*range(0, 43, 5), *apart})
        assert not any(ax.yaxis.label.get_visible() or ax.xaxis.label.get_visible() for ax in figure.axes)
        assert not [text for text in legend(figure) if "DPO" in text]


def test_many_losses_of_several_betas_need_one_entry_a_beta(write_sweep: Any, make_run: Any) -> None:
    names = [*looks.NAMES][:9]
    runs = [make_run("dpo", b, changes={"loss": {"name": n, "beta": b}}) for n in names for b in (0.1, 0.5)]
    assert legend(draw(rejected_prob, write_sweep(*runs))) == ["β = 0.1", "β = 0.5"]


def test_panels_that_need_far_more_of_an_axis_than_most_are_set_apart() -> None:
    def apart(*reaches: tuple[float, float]) -> list[int]:
        axes = [Figure().add_subplot() for _ in reaches]
        return style.frame_alike(axes, [[reach] for reach in reaches])

    assert apart((0, 1), (0, 10), (0, 9), (0, 11), (-0.2, 0)) == []
    assert apart(*[(0, 9), (0, 11), (0, 35)] * 2, *[(0, 9)] * 3) == [2, 5]
    assert apart((0, 10), (-50, 0), (0, 9), (math.nan, math.inf)) == [1]
    assert apart((0, 10), (0, 35), (0, 9), (0, 11), (0, 36)) == [0, 1, 2, 3, 4]  # too many to be exceptions
    assert apart((math.nan, math.nan)) == []


@pytest.mark.parametrize("text, lines", [
    ("DPO", ["DPO"]),
    ("DPO, lr = 0.01", ["DPO, lr = 0.01"]),
    ("DPO, lr = 0.01, optimizer = adam", ["DPO, lr = 0.01,", "optimizer = adam"]),
    ("optimizer = a_long_name, lr = 1", ["optimizer =", "a_long_name,", "lr = 1"]),
    ("a_very_very_long_name_of_one", ["a_very_very_long", "_name_of_one"]),
])  # fmt: skip
def test_titles_break_after_commas_then_at_spaces_then_anywhere(text: str, lines: list[str]) -> None:
    assert sheet.wrap(text, 16, len).split("\n") == lines


def like_the_default_sweep(make_run: Any) -> list[Any]:
    """Its pi(rejected) needs tick labels such as 5×10^-8."""
    ends = {("dpo", 0.1): -18.52, ("dpo", 0.5): -18.64, ("ipo", 0.1): -17.48, ("ipo", 0.5): -15.36}
    return [
        make_run(loss, beta, steps=300, log_pi_rejected=end, log_pi_start=-14.8) for (loss, beta), end in ends.items()
    ]


def eight_losses(make_run: Any) -> list[Any]:
    names = ["dpo", "ipo", "sigmoid_norm", "distill", "pair_logistic", "aot_unpaired", "kto", "somebody_elses_loss"]
    return [
        make_run("ipo" if name == "ipo" else "dpo", beta, seed=seed, changes={"loss": {"name": name, "beta": beta}})
        for seed, name in enumerate(names)
        for beta in (0.1, 0.5)
    ]


def settings_and_a_divergence(make_run: Any) -> list[Any]:
    runs = [make_run(loss, b, lr=lr, steps=4) for loss in ("dpo", "ipo") for b in (0.1, 0.2, 1) for lr in (0.01, 0.1)]
    return [*runs, make_run("ipo", 0.5, state="diverged", stopped_at=2, reason="x")]


def numbers_of_every_size(make_run: Any) -> list[Any]:
    return [
        make_run(steps=12000, noise=1e8, log_pi_rejected=-2000.0),
        make_run("ipo", 1e-5, lr=1e-6, noise=1e-7, log_pi_rejected=-1e-7, log_pi_start=-2e-7),
    ]


def every_loss(make_run: Any) -> list[Any]:
    """43 small cells, two of which need an axis of their own."""
    big = {"robust": -700.0, "exo": -2000.0}
    return [
        make_run("ipo" if "ipo" in n else "dpo", 0.5, log_pi_rejected=big.get(n, -9.0), noise=3e4 * (n in big),
                 steps=1001, seed=i, changes={"loss": {"name": n, "beta": 0.5}})
        for i, n in enumerate(looks.NAMES)
    ]  # fmt: skip


def long_titles(make_run: Any) -> list[Any]:
    """Nine cells, whose titles have more than one line."""
    adam = {"optimizer": {"name": "a_long_winded_optimizer", "lr": 0.1}, "sampling": "replacement"}
    names = {"loss": {"name": "a_loss_with_a_name_that_nobody_can_remember", "beta": 0.1}}
    runs = [make_run(loss, b, lr=lr, seed=3) for loss in ("dpo", "ipo") for b in (0.1, 1) for lr in (0.01, 0.1)]
    runs += [make_run(loss, lr=lr, seed=3, changes=adam) for loss in ("dpo", "ipo") for lr in (0.01, 0.1)]
    return [*runs, make_run("dpo", seed=3, changes=adam | names)]


def reward_models(make_run: Any) -> list[Any]:
    runs = [make_run(loss, seed=s, noise=0.1, objective=objective)
            for loss in ("dpo", "ipo") for s in range(3) for objective in ("preference", "reward_model")]  # fmt: skip
    return [*runs, make_run("simpo", reference=False)]


def texts(figure: Figure) -> dict[str, Bbox]:
    """Every text that can be seen, and its box in pixels."""
    figure.draw_without_rendering()
    found = [*figure.texts, *(text for box in figure.legends for text in box.get_texts())]
    for ax in figure.axes:
        found += [ax.xaxis.label, ax.yaxis.label, ax.xaxis.get_offset_text(), ax.yaxis.get_offset_text()]
        found += [child for child in ax.get_children() if isinstance(child, Text)]  # its titles
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [
                tick for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if low <= tick.get_loc() <= high
            ]
            found += [label for tick in ticks for label in (tick.label1, tick.label2)]
    shown = [text for text in found if text.get_visible() and text.get_text()]
    return {f"{i} {text.get_text()!r}": text.get_window_extent() for i, text in enumerate(shown)}


@pytest.mark.parametrize("module", [curves, gradient_weight, kl_on_data])
@pytest.mark.parametrize("runs", [like_the_default_sweep, settings_and_a_divergence, every_loss])
def test_nothing_on_a_newer_figure_overlaps(runs: Any, module: Any, write_sweep: Any, make_run: Any) -> None:
    test_nothing_on_a_figure_overlaps(runs, module, write_sweep, make_run)


def policies_and_reward_models(make_run: Any) -> list[Any]:
    runs = [make_run(loss, seed=s, objective=objective)
            for loss in ("dpo", "ipo") for s in range(3) for objective in ("preference", "reward_model")]  # fmt: skip
    return [*runs, make_run("ipo", 0.5, state="diverged", stopped_at=30, reason="x")]


def six_learning_rates(make_run: Any) -> list[Any]:
    return [make_run(loss, b, lr=lr / 100) for loss in ("dpo", "ipo") for b in (0.1, 1.0) for lr in range(1, 7)]


@pytest.mark.parametrize(
    "runs",
    [
        like_the_default_sweep,
        eight_losses,
        settings_and_a_divergence,
        six_learning_rates,
        every_loss,
        policies_and_reward_models,
    ],
)
def test_nothing_on_the_figure_of_held_out_pairs_overlaps(runs: Any, write_sweep: Any, make_run: Any) -> None:
    made = runs(make_run)
    path = write_sweep(*made)
    for run in made:
        write_stream(path / run.dir / "evaluations.arrow", run.evaluations(every=run.rows() // 6 or 1, answers=4))
    sweep = load(path)
    _nothing_overlaps(held_out.draw(sweep.runs, beside_history.evaluations(sweep).rows))


@pytest.mark.parametrize("module", [bradley_terry, gradient_weight, kl_estimators])
def test_nothing_on_a_figure_of_theory_overlaps(module: Any) -> None:
    _nothing_overlaps(module.of_theory())


@pytest.mark.parametrize("module", [margin, rejected_prob, rewards, collapse_map, final_margin, phase, survival])
@pytest.mark.parametrize(
    "runs",
    [
        like_the_default_sweep,
        eight_losses,
        settings_and_a_divergence,
        numbers_of_every_size,
        every_loss,
        long_titles,
        reward_models,
    ],
)
def test_nothing_on_a_figure_overlaps(runs: Any, module: Any, write_sweep: Any, make_run: Any) -> None:
    _nothing_overlaps(draw(module, write_sweep(*runs(make_run))))


@mpl.rc_context(style.RC)  # as it is saved: how many ticks an axis has hangs on the size of their labels
def _nothing_overlaps(figure: Figure) -> None:
    boxes = texts(figure)
    assert len(boxes) >= min(3 * len(figure.axes), 45)
    assert figure.get_figheight() * 25.4 <= 290
    assert [name for name, box in boxes.items() if not inside(box, figure)] == []
    overlapping = [(one, two) for (one, a), (two, b) in combinations(boxes.items(), 2) if a.overlaps(b)]
    assert overlapping == []
    whole = [ax.get_tightbbox() for ax in figure.axes] + [legend.get_window_extent() for legend in figure.legends]
    assert all(box is not None and inside(box, figure) for box in whole)
    assert not any(one.overlaps(two) for one, two in combinations(whole, 2) if one is not None and two is not None)
    assert not plt.get_fignums()  # seaborn brings pyplot, which is to own no figure


def inside(box: Bbox, figure: Figure) -> bool:
    return bool(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1)


def collapsing(make_run: Any) -> list[Any]:
    """DPO at beta = 2: c = K eta beta^2 = .8, u = 4.6 is passed at 103/.8 = 129; at beta = .1 nothing happens. IPO."""
    runs = [make_run(loss, beta, steps=600, seed=s) for loss in ("dpo", "ipo") for beta in (0.1, 2.0) for s in (1, 2)]
    return [*runs, make_run("ipo", 2.0, steps=600, seed=3, state="diverged", stopped_at=30, reason="x")]


def test_the_map_colours_a_cell_by_its_runs_label_and_dates_it(write_sweep: Any, make_run: Any) -> None:
    figure = draw(collapse_map, write_sweep(*collapsing(make_run)))
    dpo, ipo = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["DPO", "IPO"]
    assert legend(figure) == ["none", "margin collapse"]
    assert [patch.get_facecolor() for patch in dpo.patches] == [
        to_rgba(collapse_map.SHADES[label]) for label in ("none", "margin collapse")
    ]
    (text,) = dpo.texts
    assert text.get_position() == (0, 1) and 120 < float(text.get_text()) < 130
    assert [label.get_text() for label in dpo.get_yticklabels()] == ["0.1", "2"]
    assert not ipo.texts and "2 to 3 runs a cell." in note(figure)


def test_the_maps_shades_darken_from_none_to_diverged() -> None:
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in map(to_rgba, collapse_map.SHADES.values())]
    assert [*collapse_map.SHADES] == [*collapse.LABELS]
    assert all(one - two > 0.05 for one, two in pairwise(light))


def test_final_margins_stand_by_beta_with_ipos_target_and_an_arrow_where_there_is_no_bound(
    write_sweep: Any, make_run: Any
) -> None:
    runs = [make_run(loss, beta, steps=600, lr=0.2) for loss in ("dpo", "ipo") for beta in (0.5, 1.0, 2.0)]
    figure = draw(final_margin, write_sweep(*runs))
    (ax,) = figure.axes
    (target,) = dashed(ax)
    assert [tuple(point) for point in np.asarray(target.get_xydata())] == [(0.5, 1.0), (1.0, 0.5), (2.0, 0.25)]
    lines = [line for line in measured(ax) if line.get_linestyle() == "-"]  # the others are the bars' caps
    for line, three in zip(lines, (runs[:3], runs[3:]), strict=True):
        assert list(line.get_ydata()) == pytest.approx([run.history()["margin"][-1] for run in three])
    arrows = [text.xy[0] for text in ax.texts]
    assert arrows == [0.5, 1.0, 2.0]  # DPO's; IPO's margins stand at their target
    assert legend(figure) == ["DPO", "IPO", "1/(2β)", "still growing: no bound in view"]


def test_the_phase_plane_goes_from_the_reference_to_where_training_ended(four_runs: Path) -> None:
    sweep = load(four_runs)
    (ax,) = draw(phase, four_runs).axes
    paths = measured(ax)
    for line, run in zip(paths, sweep.runs.index, strict=True):
        own = sweep.history[sweep.history["run"] == run]
        assert list(line.get_xdata()) == list(own[phase.CHOSEN]) and list(line.get_ydata()) == list(own[phase.REJECTED])
        assert line.get_xdata()[0] == line.get_ydata()[0] == 0.0
    assert ax.get_xscale() == ax.get_yscale() == "symlog"


def test_the_phase_plane_shows_means_over_passes(write_sweep: Any, make_run: Any) -> None:
    (ax,) = draw(phase, write_sweep(make_run(pairs=7))).axes
    (line,) = measured(ax)
    chosen = make_run().history()[phase.CHOSEN]
    assert list(line.get_xdata()) == pytest.approx([0.0, *(chosen[i : i + 7].mean() for i in range(0, 56, 7))])


def test_survival_falls_with_each_collapse_and_counts_them(write_sweep: Any, make_run: Any) -> None:
    figure = draw(survival, write_sweep(*collapsing(make_run)))
    (ax,) = figure.axes
    dpo, ipo = measured(ax)
    assert legend(figure) == ["DPO (2 of 4)", "IPO (1 of 5)"]
    assert dpo.get_ydata()[-1] == 0.5 and ipo.get_ydata()[-1] == pytest.approx(0.8)
    assert ipo.get_xdata()[1] == 30 and dpo.get_xdata()[-1] == ipo.get_xdata()[-1] == 599
    assert "Log-rank test of DPO against IPO, all their runs: p = " in note(figure)


def test_of_several_losses_the_note_says_how_many_pairs_were_compared(write_sweep: Any, make_run: Any) -> None:
    calm = make_run("kto", 0.1, steps=600, changes={"loss": {"name": "kto", "beta": 0.1}})
    said = note(draw(survival, write_sweep(*collapsing(make_run), calm)))
    assert "Log-rank tests of every two losses of which one collapsed, all their runs: 0 of 3 differ" in said


def test_the_margins_steps_are_counted_in_tens_from_0_and_rejected_probs_are_not(four_runs: Path) -> None:
    figure = draw(margin, four_runs)
    dpo, ipo = figure.axes
    assert dpo.get_xscale() == ipo.get_xscale() == "symlog" and dpo.get_xlim() == ipo.get_xlim()
    figure.draw_without_rendering()
    low, high = ipo.get_xlim()
    assert -0.5 < low < 0 and 59 < high < 80
    assert [label.get_text() for label in ipo.get_xticklabels()] == ["0", "1", "10"]
    assert [line.get_xdata()[0] for line in (*measured(dpo), *dashed(dpo))] == [0.0] * 4
    zero, one, ten, hundred = dpo.transData.transform([(step, 0) for step in (0, 1, 10, 100)])[:, 0]
    assert hundred - ten == pytest.approx(ten - one) and 0 < one - zero < ten - one
    (ax,) = draw(rejected_prob, four_runs).axes
    assert ax.get_xscale() == "linear"


def test_the_lines_are_the_histories_to_the_last_bit(four_runs: Path) -> None:
    sweep = load(four_runs)
    lines = [line for ax in margin.draw(sweep.runs, sweep.history).axes for line in measured(ax)]
    for line, run in zip(lines, sweep.runs.index, strict=True):
        own = sweep.history[sweep.history["run"] == run]
        assert list(line.get_xdata()) == list(own["step"]) and list(line.get_ydata()) == list(own["margin"])


def test_a_gap_in_a_curve_stays_a_gap(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(make_run()))
    sweep.history.loc[20:22, "margin"] = math.nan
    (ax,) = margin.draw(sweep.runs, sweep.history).axes
    (line,) = measured(ax)
    drawn = np.asarray(line.get_xdata())[np.isfinite(np.asarray(line.get_ydata(), dtype=float))]
    assert drawn.tolist() == [*range(20), *range(23, 60)]
    sweep.history["margin"] = math.nan
    (ax,) = margin.draw(sweep.runs, sweep.history).axes
    assert measured(ax) == []


def test_markers_are_spread_over_the_axis_and_set_off_from_the_others() -> None:
    first, second = (style.sparse(np.arange(300), turn, 2) for turn in (0, 1))
    assert len(first) == len(second) == 6 and not {*first} & {*second}
    assert np.ptp(np.diff(first)) <= 1
    tens = style.sparse(d.LOG_STEPS.transform(np.arange(1000.0)), 0, 1)
    assert tens == sorted({*tens}) and np.median(tens) < 100 < max(tens)
    assert style.sparse([0.0], 3, 4) == [0] and style.sparse([0.0, 1.0], 0, 1) == [1]


def test_known_losses_look_different_from_each_other_in_every_figure() -> None:
    """A loss that is added need not be named here: it is called by its YAML's name and takes a look no other has."""
    found = looks.of_losses(looks.NAMES)
    assert {*looks.NAMES} <= {file.stem for file in (ROOT / "conf" / "loss").glob("*.yaml")}
    assert len({*found.values()}) == len(looks.NAMES) > 40 and len({*looks.NAMES.values()}) == len(looks.NAMES)
    assert all(looks.of_losses([loss]) == {loss: look} for loss, look in found.items())
    assert len({*looks.LOOKS}) == len(looks.LOOKS) == 63
    for one, two in pairwise(found.values()):
        assert one.colour != two.colour and one.marker != two.marker


def test_unknown_losses_share_a_look_neither_with_known_ones_nor_with_each_other() -> None:
    spare = len(looks.LOOKS) - len(looks.NAMES)
    unknown = [f"loss {i}" for i in range(spare)]
    together = looks.of_losses([*reversed(unknown), *looks.NAMES])
    assert len({*together.values()}) == len(looks.LOOKS)
    assert looks.of_losses(["mine"]) == looks.of_losses(["mine"]) and "mine" not in looks.NAMES
    assert len(looks.of_losses([*unknown, "one too many"])) == spare + 1
    assert looks.loss_name("mine") == "mine" and looks.loss_name("slic_hf") == "SLiC-HF"


def test_greater_betas_are_lighter() -> None:
    found = [Curve("dpo", beta, "", ()) for beta in (0.5, 0.1, 1.0, 0.2)]
    shades = [looks.of_curves(found)["dpo", beta].colour for beta in (0.1, 0.2, 0.5, 1.0)]
    assert shades[0] == looks.COLOURS[0]
    assert all(rgb_to_hsv(a)[1] > rgb_to_hsv(b)[1] for a, b in pairwise(shades))


def test_a_loss_without_beta_is_one_entry_of_the_legend(write_sweep: Any, make_run: Any) -> None:
    changes = {"loss": {"name": "sft"}, "beta": None}
    path = write_sweep(*(make_run(lr=lr, changes=changes) for lr in (0.1, 0.2)), make_run("ipo", lr=0.1))
    for module in (margin, rejected_prob):
        assert legend(draw(module, path))[:2] == ["SFT", "IPO β = 0.1"]


def test_the_table_has_a_row_for_every_run_that_should_be(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(make_run("dpo"), make_run("ipo"), make_run("ipo", 0.5, state="diverged", stopped_at=12))
    (next(path.glob("dpo*")) / "config.json").unlink()
    sweep = load(path)
    table = tables.final(sweep.runs, sweep.history).set_index("label")
    assert list(table["state"]) == ["unreadable", "finished", "diverged"]
    assert table.loc["ipo_beta0.1_seed42", "target margin"] == 5.0
    assert table.loc["ipo_beta0.5_seed42", "stopped at"] == 12
    assert table["margin"].isna().to_list() == [True, False, False]
    assert "config.json is missing" in table["problem"].iloc[0]
    own = sweep.history[sweep.history["run"] == table.loc["ipo_beta0.1_seed42", "id"]]
    assert table.loc["ipo_beta0.1_seed42", "margin"] == own["margin"].iloc[-1]
    assert table.loc["ipo_beta0.1_seed42", "min log_pi/rejected"] == own["log_pi/rejected"].min()
    assert table.loc["ipo_beta0.1_seed42", "max k2_on_data"] == own["k2_on_data"].max()


def test_the_table_leaves_empty_what_has_no_meaning_for_a_run(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("ipo", reference=False), make_run("ipo", 0.2, objective="reward_model")]
    sweep = load(write_sweep(*runs))
    table = tables.final(sweep.runs, sweep.history)
    for column in ("margin", "target margin", "max k3_on_data", "log_ratios/chosen"):
        assert table[column].isna().all(), column
    assert table["rewards/margins"].isna().to_list() == table["rewards/accuracies"].isna().to_list() == [True, False]
    assert table["log_pi/rejected"].isna().to_list() == table["min log_pi/rejected"].isna().to_list() == [False, True]
    assert table["final loss"].notna().all() and list(table["objective"]) == ["preference", "reward_model"]
    assert "nan" not in tables.markdown(table) and "nan" not in tables.csv(table)


def test_csv_restores_every_number_and_markdown_is_rectangular(four_runs: Path, tmp_path: Path) -> None:
    sweep = load(four_runs)
    table = tables.final(sweep.runs, sweep.history)
    (tmp_path / "t.csv").write_text(tables.csv(table))
    assert list(pd.read_csv(tmp_path / "t.csv", float_precision="round_trip")["margin"]) == list(table["margin"])
    lines = tables.markdown(table).splitlines()
    assert len(lines) == 2 + 4 and len({line.count("|") for line in lines}) == 1 and len(set(map(len, lines))) == 1


@pytest.mark.parametrize("log_p, text", [
    (0.0, "1"), (math.log(0.25), "0.25"), (-2000.0, "2.58e-869"), (math.log(9.999e-7), "1.00e-6"), (-math.inf, "0"),
    (math.nan, ""),
])  # fmt: skip
def test_probabilities_are_written_from_their_logarithms(log_p: float, text: str) -> None:
    assert tables.power_of_ten(log_p) == text
