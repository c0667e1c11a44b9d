"""The study of who collapses and when: its checks on tables written by hand, its closed forms, its map."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from scipy.integrate import solve_ivp

from analysis.figures import collapse_map as figure
from experiments.collapse_map import check, draw
from experiments.study import read
from src.losses import pairwise, sided
from src.theory.growth import dpo_u
from tests.conftest import REPO

CONDITIONS = "holds under conditions"


def runs_frame(infinite=1.0, finite=0.0, runs=20):
    """So many runs of DPO and of IPO, of which these shares collapse, over two seeds."""
    rows = []
    for loss, group, share in (("dpo", check.FAST, infinite), ("ipo", check.FINITE, finite)):
        for i in range(runs):
            collapsed = i < share * runs
            rows.append(
                {"group": group, "loss": loss, "optimizer": "sgd", "seed": i % 2, "beta": 0.1, "lr": 0.1,
                 "collapsed": collapsed, "beyond": False, "label": "margin collapse" if collapsed else "none",
                 "onset": 5.0 if collapsed else np.nan}
            )  # fmt: skip
    return pd.DataFrame(rows)


def times_frame(*ratios, never=0):
    """Crossings at 100 times these; `never`: predicted within the record, and not seen."""
    crossed = [100.0 * ratio for ratio in ratios] + [np.nan] * never
    count = len(crossed)
    return pd.DataFrame(
        {"loss": "dpo", "beta": 0.1, "lr": [0.1, 0.2] * (count // 2) + [0.1] * (count % 2), "seed": 1,
         "crossed": crossed, "predicted": 100.0, "steps": 600}
    )  # fmt: skip


def steps_frame(adam=0.5, rmsprop=0.5, rmsprop_small_beta=None):
    rows = [
        {"loss": "dpo", "beta": beta, "seed": seed, "optimizer": optimizer, "lr": 0.1, "first": 0.3, "ideal": 0.4,
         "ratio": ratio * (1 + 0.01 * seed)}
        for beta in (0.1, 1.0)
        for seed in (0, 1)
        for optimizer, ratio in (
            ("adam", adam),
            ("rmsprop", rmsprop_small_beta if rmsprop_small_beta and beta < 1 else rmsprop),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


def outcome(claim, runs=None, times=None, steps=None):
    frames = {
        "runs": runs_frame() if runs is None else runs,
        "times": times_frame(1.0) if times is None else times,
        "steps": steps_frame() if steps is None else steps,
    }
    return {verdict.claim: verdict for verdict in check.check(frames)}[claim].outcome


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (runs_frame(), "holds"),
        (runs_frame(0.95, 0.05), "holds"),
        (runs_frame(0.9, 0.0), CONDITIONS),
        (runs_frame(1.0, 0.1), CONDITIONS),
        (runs_frame(0.5, 0.1), "refuted"),
        (runs_frame(1.0, 1.0), "refuted"),
    ],
)
def test_the_family_is_judged_by_both_shares(frame, expected):
    assert outcome("collapse-family", runs=frame) == expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (times_frame(1.0, 1.9, 0.6), "holds"),
        (times_frame(1.0, 1.9, 3.0), CONDITIONS),
        (times_frame(1.0, 1.0, never=1), CONDITIONS),
        (times_frame(1.0, 2.5, 0.4), "refuted"),
        (times_frame(1.0, never=2), "refuted"),
    ],
)
def test_crossings_are_judged_by_a_factor_of_two_and_one_that_never_comes_is_a_miss(frame, expected):
    assert outcome("collapse-time", times=frame) == expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (steps_frame(), "holds"),
        (steps_frame(rmsprop_small_beta=5.0), CONDITIONS),
        (steps_frame(rmsprop=5.0), "refuted"),
        (steps_frame(adam=1.0), "refuted"),
        (steps_frame(adam=0.995, rmsprop=0.5), "refuted"),
    ],
)
def test_an_optimiser_is_earlier_if_its_whole_interval_is_below_one(frame, expected):
    assert outcome("collapse-optimiser", steps=frame) == expected


def test_the_groups_of_losses_are_those_of_the_table_of_losses():
    """docs/losses.md has the growth law of each from the theory; ours are groups of that column."""
    laws = {}
    for line in (REPO / "docs" / "losses.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 13:
            laws[cells[0]] = cells[5]
    for group, losses in check.GROUPS.items():
        for loss in losses:
            said = laws[loss]
            kind = check.FINITE if said.startswith("settles") else check.SLOW if "slower" in said else check.FAST
            assert kind == group, loss
    swept = {word for word in read("collapse_map").sweeps["map_sgd"].split() if word.startswith("loss=")}
    assert set(swept.pop().removeprefix("loss=").split(",")) == {
        loss for those in check.GROUPS.values() for loss in those
    }


def test_crossing_times_are_those_of_the_closed_forms():
    """DPO: u + e^u = 1 + c t. IPO: h = (1 - e^{-2 lr K t})/(2 beta). exp: u = log(1 + c t), c = lr K beta^2."""
    K, lr = 900.0, 1e-3
    for beta in (0.1, 0.5, 1.0):
        h, c = check.crossing_margin(beta), lr * K * beta**2
        t = check.crossing_time("dpo", beta, lr, K)
        assert dpo_u(np.array([t]), c)[0] == pytest.approx(beta * h, rel=1e-9)
        assert check.crossing_time("exp", beta, lr, K) == pytest.approx(math.expm1(beta * h) / c, rel=1e-9)
        assert check.crossing_time("ipo", beta, lr, K) == math.inf, "its optimum is nearer"
    near = -math.log(1 - 2 * 0.05 * check.crossing_margin(0.05)) / (2 * lr * K)
    assert check.crossing_time("ipo", 0.05, lr, K) == pytest.approx(near, rel=1e-9)
    # A margin a token, on responses of four: DPO with a quarter of beta.
    whole = lr * K * 0.125**2
    u = 0.125 * check.crossing_margin(0.5)
    assert check.crossing_time("sigmoid_norm", 0.5, lr, K) == pytest.approx((u + math.expm1(u)) / whole, rel=1e-9)


@pytest.mark.parametrize("loss", ["probit", "cdpo", "robust"])
def test_crossing_times_are_those_of_the_integrated_flow(loss):
    beta, lr, K = 0.5, 1e-3, 900.0
    t = check.crossing_time(loss, beta, lr, K)
    if loss == "cdpo":  # its optimum, 2 log 9, is nearer
        assert t == math.inf
        return
    flow = solve_ivp(lambda _, h: [-lr * K * check.slope(loss, h[0], beta)], (0, t), [0.0], rtol=1e-10, atol=1e-12)
    assert flow.y[0, -1] == pytest.approx(check.crossing_margin(beta), rel=1e-6)


def test_optima_are_those_stated_beside_the_losses():
    found = check._optimum({"name": "cal_dpo", "beta": 0.5})
    assert found == pytest.approx(sided.cal_dpo.facts.optimum(0.5)) == pytest.approx(2.19958, abs=1e-5)
    assert check._optimum({"name": "exo", "beta": 0.1, "epsilon": 1e-3}) == pairwise.exo.facts.optimum(0.1, 1e-3)
    assert check._optimum({"name": "ipo_avg", "beta": 0.1}) == 20
    assert math.isnan(check._optimum({"name": "discopop", "beta": 0.1, "tau": 0.05}))
    row = {"group": check.FINITE, "optimum": 20.0, "beta": 0.1}
    assert check._beyond(row) and not check._beyond(row | {"optimum": 5.0})
    assert not check._beyond(row | {"group": check.FAST}) and not check._beyond(row | {"optimum": math.nan})


def test_optimisers_at_one_first_step_step_by_step():
    """The idealised ratio against descent of one margin by the optimisers' own rules, with |grad h| = 1."""
    beta, first = 1.0, 0.02
    h, sgd = 0.0, 0
    while beta * h < 4.6:
        h += 2 * first / (1 + math.exp(beta * h))
        sgd += 1
    ratio = check.idealised_ratio("adam", beta, first)
    assert ratio == pytest.approx(4.6 / first / sgd, rel=0.02)
    h, v, updates = 0.0, 0.0, 0
    lr = first * math.sqrt(0.01)
    while h < 4.6:  # a gradient that never changes, for which the rule is the same as for its sign
        v = 0.99 * v + 0.01
        h += lr / math.sqrt(v)
        updates += 1
    assert check.idealised_ratio("rmsprop", beta, first) * sgd == pytest.approx(updates, rel=0.02)


def test_partners_lie_between_the_rates_of_sgd():
    """SGD crosses at 100/h(1); Adam at 20, with h(1) = 0.2: SGD would at 500."""
    sgd = pd.DataFrame({"first": [0.1, 0.4], "crossed": [1000.0, 250.0], "optimizer": "sgd"})
    adam = pd.DataFrame({"first": [0.2, 0.01, 2.0, 0.3], "crossed": [20.0, 20.0, 20.0, np.nan], "optimizer": "adam"})
    runs = pd.concat([sgd, adam], ignore_index=True).assign(loss="dpo", beta=1.0, seed=1, lr=0.1, steps=600)
    found = check._partners(runs)
    assert found["sgd"].tolist() == pytest.approx([500.0, 1000 / 3])
    assert found["crossed"].tolist() == [20.0, 600.0], "one that never crosses counts with its whole record"


def map_cells():
    """Two seeds of DPO, one of which has another label; IPO with its optimum beyond; ORPO without a beta."""
    rows = []
    for optimizer, lr in (("sgd", 1e-3), ("adam", 1e-4)):
        for seed in (0, 1):
            for beta in (0.1, 1.0):
                label = "margin collapse" if beta == 1 or seed else "displacement"
                onset = 100.0 * (seed + 1)
                rows.append({"loss": "dpo", "beta": beta, "label": label, "onset": onset, "beyond": False,
                             "optimizer": optimizer, "lr": lr})  # fmt: skip
                rows.append({"loss": "ipo", "beta": beta, "label": "none", "onset": np.nan, "beyond": beta < 1,
                             "optimizer": optimizer, "lr": lr})  # fmt: skip
            rows.append({"loss": "orpo", "beta": np.nan, "label": "rejected collapse", "onset": 7.0, "beyond": False,
                         "optimizer": optimizer, "lr": lr})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_map_shows_label_onset_disagreement_and_a_loss_without_a_beta():
    drawn = figure.by_loss(map_cells(), {"one": ["dpo", "orpo", "kto"], "other": ["ipo"]})
    (ax,) = drawn.axes
    cells = [patch for patch in ax.patches if hasattr(patch, "get_width")]
    corners = [patch for patch in ax.patches if not hasattr(patch, "get_width")]
    assert len(cells) == 2 * (2 + 1 + 2) and sorted({cell.get_width() for cell in cells}) == [1, 2]
    colours = [to_rgba(figure.SHADES[label]) for label in ("displacement", "margin collapse")]
    assert [cell.get_facecolor() for cell in cells[:2]] == colours, "of two labels the worse"
    assert len(corners) == 2 and len([line for line in ax.lines if line.get_marker() == "o"]) == 2
    words = [text.get_text() for text in ax.texts]
    assert words.count("150") == 2 and words.count("7") == 2 and words.count("100") == 2
    assert {"one", "other", "DPO", "ORPO", "IPO", "SGD, lr 0.001", "Adam, lr 1e-4"} <= set(words) and "KTO" not in words
    assert drawn.get_figwidth() * 25.4 == pytest.approx(178)


def test_nothing_on_the_figures_overlaps():
    cells = pd.concat([map_cells().assign(loss=loss) for loss in ("dpo", "sigmoid_norm", "f_dpo_alpha")])
    drawn = figure.by_loss(cells, {"no finite optimum": ["dpo", "sigmoid_norm"], "finite optimum": ["f_dpo_alpha"]})
    drawn.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (*drawn.axes[0].texts, *drawn.texts, *drawn.legends[0].get_texts())]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= drawn.bbox.x1 and box.y1 <= drawn.bbox.y1 for box in boxes)
    for other in (draw.times(times_frame(1.0, 1.5)), draw.same_first_step(steps_frame())):
        other.draw_without_rendering()
        assert all(ax.get_tightbbox().x0 >= 0 for ax in other.axes)
