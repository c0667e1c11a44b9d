"""Figures that need no sweep, and what they draw: KL estimators, Bradley-Terry scores, gradient weights."""

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import bradley_terry as bt
from analysis import kl_estimators as k
from analysis import load, slopes
from analysis.figures import bradley_terry, gradient_weight, kl_estimators
from analysis.figures import draw as d
from src.bradley_terry.comparisons import Comparisons
from src.bradley_terry.descent import descend
from src.bradley_terry.divergence import divergence
from src.bradley_terry.mle import fit


def note(figure: Figure) -> str:
    return " ".join(figure.texts[-1].get_text().replace("\N{NO-BREAK SPACE}", " ").split())


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def measured(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_linewidth() == d.WIDTH and line.get_linestyle() == "-"]


@pytest.mark.parametrize("m", [0.1, 0.5, 1.0, 2.0])
def test_moments_of_the_estimators_are_their_integrals(m: float) -> None:
    """Gauss-Hermite quadrature over x ~ N(0, 1), exact for all practical purposes with 200 nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    log_r = m * nodes - m * m / 2
    for name, values in (("k1", -log_r), ("k2", log_r**2 / 2), ("k3", np.expm1(log_r) - log_r)):
        mean = float(weights @ values)
        assert k.mean(name, m) == pytest.approx(mean, rel=1e-10)
        assert k.standard_deviation(name, m) == pytest.approx(math.sqrt(weights @ (values - mean) ** 2), rel=1e-9)


def test_k2_is_not_half_its_kl_at_a_shift_of_one_half() -> None:
    """KL = .125: E k2 is .1328, not .062, which is its relative bias."""
    assert float(k.mean("k2", 0.5)) == pytest.approx(0.1328125)
    assert float(k.mean("k2", 0.5) / k.divergence(0.5) - 1) == pytest.approx(0.0625)


def test_the_experiment_agrees_with_the_closed_forms_and_is_the_same_each_time() -> None:
    found = k.experiment((0.5, 1.0))
    assert found.equals(k.experiment((0.5, 1.0))) and not found.equals(k.experiment((0.5, 1.0), seed=1))
    for row in found.itertuples():
        assert abs(row.mean - k.mean(row.name, row.shift)) < 2 * row.mean_half
        assert row.sd == pytest.approx(k.standard_deviation(row.name, row.shift), rel=0.1)


def test_the_estimators_figure_shows_bias_and_spread_of_all_three() -> None:
    figure = kl_estimators.of_theory()
    bias, spread = figure.axes
    assert legend(figure) == ["k1", "k2", "k3"] and len(measured(bias)) == len(measured(spread)) == 3
    k1, k2, k3 = (np.asarray(line.get_ydata()) for line in measured(bias))
    kl = np.asarray(measured(bias)[0].get_xdata())
    assert k1 == pytest.approx(0, abs=1e-12) and k3 == pytest.approx(0, abs=1e-12) and k2 == pytest.approx(kl / 2)


def named(wins: Any) -> Comparisons:
    return Comparisons(tuple(bradley_terry.ITEMS), np.asarray(wins, dtype=float))


def test_descent_is_that_of_the_bradley_terry_module() -> None:
    at = np.array([0, 1, 10, 500])
    for wins in (bradley_terry.SEPARABLE, bradley_terry.OTHERWISE):
        expected = descend(named(wins), epochs=500, lr=1.0, at=at.tolist()).scores
        assert bt.descend(wins, at, lr=1.0) == pytest.approx(expected, abs=1e-12)


def test_scores_of_separable_data_tend_to_the_asymptote_and_others_to_the_estimate() -> None:
    limit = divergence(named(bradley_terry.SEPARABLE)).scores(np.array([1e5]), lr=1.0)
    assert bt.chain_asymptote([1e5], lr=1.0) == pytest.approx(limit)
    assert bt.descend(bradley_terry.SEPARABLE, [20_000], lr=1.0) == pytest.approx(
        bt.chain_asymptote([20_000], lr=1.0), abs=0.02
    )
    estimate = fit(named(bradley_terry.OTHERWISE)).scores
    assert bt.estimate(bradley_terry.OTHERWISE) == pytest.approx(estimate - estimate.mean(), abs=1e-9)


def test_the_bradley_terry_figure_has_scores_that_diverge_and_scores_that_settle() -> None:
    diverging, settling = bradley_terry.of_theory().axes
    top, settled = (np.asarray(measured(ax)[0].get_ydata()) for ax in (diverging, settling))
    assert top[-1] - top[-25] > 2 and abs(settled[-1] - settled[-25]) < 1e-6


def test_without_a_sweep_the_family_has_a_panel_for_each_loss() -> None:
    figure = gradient_weight.of_theory()
    assert [ax.get_title(loc="left") for ax in figure.axes][:2] == ["DPO", "IPO"]
    assert len(figure.axes) == len(gradient_weight.FAMILY)
    for ax in figure.axes:
        assert len(measured(ax)) == 2
    ipo = measured(figure.axes[1])[0]
    h, weight = np.asarray(ipo.get_xdata()), np.asarray(ipo.get_ydata())
    assert h[weight.argmin()] == pytest.approx(5.0, abs=0.03) and weight.min() < 1e-100  # 1/(2 beta), beta = .1


def test_a_sweeps_runs_are_marked_where_they_ended(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo", 0.5, steps=200), make_run("ipo", 0.5), make_run("kto", changes={"loss": {"name": "kto"}})]
    sweep = load(write_sweep(*runs))
    figure = gradient_weight.draw(sweep.runs, sweep.history)
    (ax,) = figure.axes
    dpo, ipo = (line for line in ax.lines if line.get_markeredgecolor() == "black")
    end = runs[0].history()["margin"][-1]
    assert dpo.get_xdata()[0] == pytest.approx(end)
    assert dpo.get_ydata()[0] == pytest.approx(slopes.weight("dpo", end, {"beta": 0.5}))
    assert ipo.get_xdata()[0] == pytest.approx(1.0, abs=0.01)
    assert "3 of 3 runs; 1 without a closed form, not shown. A mark is a run's end, one seed." in note(figure)


def test_a_sweep_without_a_closed_form_says_why(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(make_run(changes={"loss": {"name": "kto", "beta": 0.1}})))
    with pytest.raises(d.NothingToDraw, match="not a function of the margin alone"):
        gradient_weight.draw(sweep.runs, sweep.history)
