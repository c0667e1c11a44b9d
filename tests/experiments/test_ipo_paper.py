"""Three actions: what is measured of a sweep, the closed form, and each check where its claim is true and where not."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from analysis.sweep import Sweep
from experiments import three_actions
from experiments.ipo_paper_fig1 import check as fig1
from experiments.ipo_paper_fig2 import check as fig2
from experiments.three_actions import ACTIONS, DATA, optimum

TAUS = (0.1, 1.0, 10.0)
CONDITIONS = "holds under conditions"
GREEDY = {"a": 0.995, "b": 0.004, "c": 0.001}
EVEN = {"a": 0.333, "b": 0.333, "c": 0.334}


def outcomes(verdicts):
    return {verdict.claim: verdict.outcome for verdict in verdicts}


def frames(of):
    """of(data, loss, tau): what a run has beside its setting."""
    rows = [
        {
            "data": data,
            "loss": loss,
            "tau": tau,
            "seed": seed,
            "largest": 0.5,
            "drift": 0.0,
            "sure_at": np.nan,
            "u": 9.0,
        }
        | of(data, loss, tau)
        for data in DATA
        for loss in ("dpo", "ipo")
        for tau in TAUS
        for seed in (0, 1)
    ]
    return {"runs": pd.DataFrame(rows)}


def as_claimed(data, loss, tau):
    if loss == "ipo":
        return dict(zip(ACTIONS, optimum(data, tau), strict=True))
    return {"D1": GREEDY, "D2": EVEN, "D3": EVEN, "D3'": {"a": 0.4975, "b": 0.4975, "c": 0.005}}[data]


def but(where, values):
    """As claimed, but for these values where `where(data, loss, tau)`."""
    return frames(lambda *setting: as_claimed(*setting) | (values if where(*setting) else {}))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (frames(as_claimed), dict.fromkeys(("ipo-fig1-dpo", "ipo-fig1-ipo", "ipo-fig1-cycle"), "holds")),
        (but(lambda data, loss, tau: (data, loss, tau) == ("D1", "dpo", 10), EVEN), {"ipo-fig1-dpo": CONDITIONS}),
        (but(lambda data, loss, tau: (data, loss, tau) == ("D1", "dpo", 0.1), EVEN), {"ipo-fig1-dpo": "refuted"}),
        (but(lambda data, loss, tau: (data, loss, tau) == ("D1", "ipo", 1), {"a": 0.5}), {"ipo-fig1-ipo": "refuted"}),
        (but(lambda data, loss, _: (data, loss) == ("D1", "ipo"), {"largest": 0.999}), {"ipo-fig1-ipo": "refuted"}),
        (but(lambda data, loss, _: (data, loss) == ("D2", "dpo"), {"largest": 0.999}), {"ipo-fig1-cycle": CONDITIONS}),
        (but(lambda data, *_: data == "D2", GREEDY), {"ipo-fig1-cycle": "refuted"}),
    ],
)
def test_total_order_and_cycle(found, expected):
    assert outcomes(fig1.check(found)).items() >= expected.items()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (frames(as_claimed), {"ipo-fig2-dpo": "holds", "ipo-fig2-ipo": "holds", "ipo-fig2-printed": "refuted"}),
        (but(lambda data, loss, tau: (data, loss, tau) == ("D3'", "dpo", 10), EVEN), {"ipo-fig2-dpo": CONDITIONS}),
        (but(lambda data, loss, tau: (data, loss, tau) == ("D3'", "dpo", 0.1), EVEN), {"ipo-fig2-dpo": "refuted"}),
        (but(lambda data, loss, tau: (data, loss, tau) == ("D3'", "ipo", 1), {"c": 0.1}), {"ipo-fig2-ipo": "refuted"}),
        (but(lambda data, loss, _: (data, loss) == ("D3", "dpo"), {"c": 0.001}), {"ipo-fig2-printed": "holds"}),
        (
            but(lambda data, loss, tau: (data, loss, tau) == ("D3", "dpo", 1), {"c": 0.001}),
            {"ipo-fig2-printed": CONDITIONS},
        ),
    ],
)
def test_an_action_without_a_win(found, expected):
    assert outcomes(fig2.check(found)).items() >= expected.items()


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("tau", [0.2, 2.0])
def test_the_closed_form_is_where_the_empirical_loss_is_least(data, tau):
    def loss(theta):
        return sum((theta[w] - theta[o] - 1 / (2 * tau)) ** 2 for w, o in DATA[data])

    theta = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
    if data == "D3":
        assert theta[2] == 0.0, "no comparison moves c"
    pi = np.exp(theta) / np.exp(theta).sum()
    assert optimum(data, tau) == pytest.approx(pi, abs=1e-7)


def test_closed_forms_that_can_be_written_out():
    values = np.exp([1 / 3, 0.0, -1 / 3])
    assert optimum("D1", 1.0) == pytest.approx(values / values.sum(), abs=1e-12)
    assert optimum("D1", 0.1)[0] == pytest.approx(0.964370, abs=1e-6)
    assert optimum("D2", 0.1) == pytest.approx([1 / 3] * 3, abs=1e-12)
    assert optimum("D3", 0.1) == pytest.approx([1 / 3] * 3, abs=1e-12)
    assert optimum("D3'", 0.5)[2] == pytest.approx(np.exp(-1) / (2 + np.exp(-1)), abs=1e-12)


def test_what_is_measured_of_a_run():
    steps = np.arange(101)
    theta = np.stack([0.1 * steps, np.zeros(101), -0.1 * steps], axis=1)
    log_pi = theta - np.logaddexp.reduce(theta, axis=1)[:, None]
    run = {"id": "x", "loss.name": "dpo", "beta": 0.5, "seed": 3}
    runs = pd.DataFrame([run | {"data.rows": json.dumps([[[0], [w], [o]] for w, o in DATA["D1"]])}])
    columns = {name: log_pi[:, k] for k, name in enumerate(three_actions.LOG_PI)}
    history = pd.DataFrame({"run": "x", "step": steps} | columns)
    found = three_actions.measure(Sweep("", "", runs.set_index("id", drop=False), history, {}))
    (run,) = found["runs"].to_dict("records")
    pi = np.exp(log_pi)
    assert (run["data"], run["loss"], run["tau"], run["seed"]) == ("D1", "dpo", 0.5, 3)
    assert run["a"] == pytest.approx(pi[91:, 0].mean()) and run["largest"] == pi.max()
    assert pi[int(run["sure_at"]), 0] > 0.99 >= pi[int(run["sure_at"]) - 1, 0]
    assert run["drift"] == pytest.approx(0.15 * 100) and run["u"] == pytest.approx(0.5 * 10)
    assert len(found["curves"]) == 101
