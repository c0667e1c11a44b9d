"""The closed forms, against the recursions they solve."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analysis import theory

Slope = Callable[[float, float], float]


def descend(slope: Slope, *, h0: float, beta: float, eta: float, K: float, steps: int, mu: float = 0.0) -> np.ndarray:
    """The margin under gradient descent when K is constant: h <- h + v, v <- mu v - eta K L1(h)."""
    h, v = np.full(steps, h0), 0.0
    for t in range(1, steps):
        v = mu * v - eta * K * slope(h[t - 1], beta)
        h[t] = h[t - 1] + v
    return h


@pytest.mark.parametrize("slope, loss", [
    (theory.dpo_slope, lambda h, beta: math.log1p(math.exp(-beta * h))),
    (theory.ipo_slope, lambda h, beta: (h - 1 / (2 * beta)) ** 2),
])  # fmt: skip
def test_slopes_are_derivatives_of_the_losses(slope: Slope, loss: Slope) -> None:
    for h in (-3.0, 0.0, 0.7, 12.0):
        numeric = (loss(h + 1e-5, 0.3) - loss(h - 1e-5, 0.3)) / 2e-5
        assert slope(h, 0.3) == pytest.approx(numeric, rel=1e-6, abs=1e-9)


def test_ipo_slope_vanishes_at_the_target() -> None:
    assert theory.ipo_target(0.1) == 5.0
    assert theory.ipo_slope(theory.ipo_target(0.1), 0.1) == 0.0


@pytest.mark.parametrize("w", [-1e6, -800.0, -745.2, -1.0, 0.0, 1.0, 37.0, 709.0, 1e4, 1e300])
def test_u_plus_exp_u_is_solved_at_every_scale(w: float) -> None:
    u = float(theory.solve_u_plus_exp_u(w))
    assert u + math.exp(u) == pytest.approx(w, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("c", [0.002, 0.02, 0.2])
@pytest.mark.parametrize("u0", [0.0, -2.0, 1.5])
def test_dpo_gradient_descent_leads_the_flow_by_no_more_than_theory_says(c: float, u0: float) -> None:
    """c / (2e (1 + e^u0)), which is .092 c from u0 = 0; 2 % more at c = .2, where c^2 begins to count."""
    beta, K = 0.5, 2.0
    eta = c / (K * beta**2)
    measured = descend(theory.dpo_slope, h0=u0 / beta, beta=beta, eta=eta, K=K, steps=5000)
    line = theory.dpo_sgd_margin(np.arange(5000), h0=u0 / beta, beta=beta, eta=eta, K=K)
    error = beta * (measured - line)
    assert error.min() >= -1e-12
    assert error.max() == pytest.approx(c / (2 * math.e * (1 + math.exp(u0))), rel=0.1 * c + 0.002)


def test_dpo_with_heavy_ball_momentum_follows_the_flow_at_c_over_1_minus_mu() -> None:
    beta, K, eta, mu, c = 0.5, 2.0, 0.004, 0.9, 0.02
    measured = descend(theory.dpo_slope, h0=0.0, beta=beta, eta=eta, K=K, steps=20000, mu=mu)
    line = theory.dpo_sgd_margin(np.arange(20000), h0=0.0, beta=beta, eta=eta, K=K, momentum=mu)
    lag = beta * (line - measured)
    assert 0.06 <= lag.max() <= 0.5 * c * mu / (1 - mu)  # mu/(1 - mu) = 9 updates at the speed of the start, c/2
    assert abs(lag[-1]) <= 3e-3


def test_dpo_reaches_u_4_6_when_theory_says() -> None:
    """beta = .1, eta = 1, K = 2: t = (u + e^u - 1)/c = 5154."""
    line = theory.dpo_sgd_margin([5153, 5155], h0=0.0, beta=0.1, eta=1.0, K=2.0) * 0.1
    assert line[0] < 4.6 < line[1]


def test_dpo_line_neither_overflows_nor_flattens_at_a_million_steps() -> None:
    with np.errstate(all="raise"):
        line = theory.dpo_sgd_margin(np.geomspace(1, 1e6, 200), h0=0.0, beta=0.01, eta=1e5, K=1e3)
        far = theory.dpo_sgd_margin([0, 10**6], h0=1e5, beta=0.01, eta=1.0, K=2.0)
        behind = theory.dpo_sgd_margin([0, 10**6], h0=-1e6, beta=0.01, eta=1.0, K=2.0)
    assert np.isfinite(line).all() and (np.diff(line) > 0).all()
    assert far == pytest.approx([1e5, 1e5])  # nothing left to gain
    assert behind == pytest.approx([-1e6, -1e6 + 2.0 * 0.01 * 1e6])  # the slope is -beta there


@pytest.mark.parametrize("eta", [1e-4, 0.01, 0.2, 0.25, 0.4, 0.49])  # past .25 it overshoots and oscillates
@pytest.mark.parametrize("h0", [0.0, 3.0])
def test_ipo_line_is_gradient_descent_exactly(eta: float, h0: float) -> None:
    measured = descend(theory.ipo_slope, h0=h0, beta=0.1, eta=eta, K=2.0, steps=300)
    assert theory.ipo_sgd_margin(np.arange(300), h0=h0, beta=0.1, eta=eta, K=2.0) == pytest.approx(measured, abs=1e-12)


def sgd(loss: str = "dpo", **changes: Any) -> dict[str, Any]:
    run = {"loss.name": loss, "loss.beta": 0.1, "loss._target_": "src.losses.pairwise.x", "beta": 0.1, "lr": 0.1,
           "optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0, "logps": "sequence",
           "scheduler.name": "constant", "max_grad_norm": None, "pairs": 1}  # fmt: skip
    return run | changes


@pytest.mark.parametrize("loss, gradient", [("dpo", math.sqrt(2) * 0.05), ("ipo", math.sqrt(2) * 10)])
def test_k_follows_from_row_0(loss: str, gradient: float) -> None:
    line = theory.margin_line(sgd(loss), {"margin": 0.0, "grad_norm": gradient}, np.arange(3))
    assert pytest.approx(2.0) == line.K
    assert line.margin is not None and line.margin[0] == 0.0 and line.why_not == ""


@pytest.mark.parametrize("loss, changes", [
    ("hinge", {}),
    ("dpo", {"optimizer.name": "adam"}),
    ("dpo", {"scheduler.name": "cosine"}),
    ("dpo", {"max_grad_norm": 1.0}),
    ("dpo", {"optimizer.weight_decay": 0.01}),
    ("dpo", {"optimizer.nesterov": True}),
    ("dpo", {"pairs": 64}),
    ("dpo", {"pairs": None}),
    ("dpo", {"logps": "notebook_per_token"}),
    ("dpo", {"loss.label_smoothing": 0.1}),
    ("dpo", {"kl_coef": 0.1}),
    ("dpo", {"objective": "reward_model"}),
    ("ipo", {"optimizer.momentum": 0.9}),
])  # fmt: skip
def test_a_run_the_closed_forms_do_not_describe_has_no_line_and_a_reason(loss: str, changes: dict[str, Any]) -> None:
    line = theory.margin_line(sgd(loss, **changes), {"margin": 0.0, "grad_norm": 1.0}, np.arange(3))
    assert line.margin is None and line.why_not


def test_settings_that_are_off_do_not_take_the_line_away() -> None:
    run = sgd("dpo", **{"loss.label_smoothing": 0.0, "loss.margin": math.nan, "optimizer.momentum": 0.9})
    assert theory.why_no_line(run) == ""


def test_unstable_ipo_has_no_line() -> None:
    line = theory.margin_line(sgd("ipo", lr=0.51), {"margin": 0.0, "grad_norm": math.sqrt(2) * 10}, np.arange(3))
    assert line.margin is None and "unstable" in line.why_not


@pytest.mark.parametrize("start", [{"margin": 5.0, "grad_norm": 0.0}, {"margin": 0.0, "grad_norm": math.nan}])
def test_no_line_where_row_0_does_not_give_k(start: dict[str, float]) -> None:
    assert theory.margin_line(sgd("ipo"), start, np.arange(3)).margin is None


def test_only_ipo_on_whole_sequences_has_a_target() -> None:
    assert theory.target_line(sgd("ipo")) == 5.0
    assert math.isnan(theory.target_line(sgd("ipo", logps="notebook_per_token")))
    assert math.isnan(theory.target_line(sgd("dpo")))
    assert math.isnan(theory.target_line(sgd("ipo", kl_coef=0.1)))
    assert math.isnan(theory.target_line(sgd("ipo", objective="reward_model")))
