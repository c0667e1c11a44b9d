"""The training loop against closed forms, against itself run by run, and under divergence."""

import numpy as np
import pytest
from scipy.special import expit, log1p

from tests.stacks import SMALL_LLAMA, configs, train

TABULAR = "model=tabular data=synthetic data.p_star=1.0 data.comparisons=1 dtype=float64 tracking=none"
LLAMA = f"dtype=float64 tracking=none {' '.join(SMALL_LLAMA)}"


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("eta", [0.01, 0.1, 0.3])
def test_tabular_ipo_under_sgd_is_the_closed_form(tau, eta):
    """h_t = (1 - (1 - 2 K eta)^t) / (2 tau) with K = |grad h|^2 = 2."""
    (history,), _ = train(configs(f"loss=ipo beta={tau} lr={eta} steps=200 {TABULAR}"))
    t = np.arange(200)
    np.testing.assert_allclose(history["margin"], (1 - (1 - 4 * eta) ** t) / (2 * tau), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("beta", "eta", "stated_error"), [(0.1, 0.1, 1.9e-8), (0.1, 1.0, 1.9e-6), (0.5, 0.4, 2.0e-4)])
def test_tabular_dpo_under_sgd_is_the_discrete_corrected_line(beta, eta, stated_error):
    """u + e^u - 1 - (c/2) log((1 + e^u)/2) = c t, with c = K eta beta^2 = .002, .02, .2.

    The stated error is in u. The line gives t for a u; |dt| is turned into |du| with du/dt = c / (1 + e^u).
    """
    c = 2 * eta * beta**2
    (history,), _ = train(configs(f"loss=dpo beta={beta} lr={eta} steps=3000 {TABULAR}"))
    u = beta * history["margin"]
    t = (u + np.exp(u) - 1 - c / 2 * np.log((1 + np.exp(u)) / 2)) / c
    error_in_u = np.abs(t - np.arange(3000)) * c * expit(-u)
    assert error_in_u.max() <= 1.1 * stated_error
    assert u[-1] > 1.5 * c  # it did move


def test_the_margin_of_step_t_is_that_of_the_state_before_update_t():
    (history,), _ = train(configs(f"loss=dpo beta=1.0 lr=0.5 steps=2 {TABULAR}"))
    assert history["margin"].tolist() == pytest.approx([0.0, 2 * 0.5 * 0.5])  # |grad h|^2 eta sigma(0)
    assert history["loss"].tolist() == pytest.approx([np.log(2), log1p(np.exp(-0.5))])


MIXED = [
    "loss=dpo beta=0.1 lr=1e-3 optimizer=sgd seed=0",
    "loss=ipo beta=0.5 lr=1e-3 optimizer=sgd seed=1",
    "loss=dpo beta=0.5 lr=2e-3 optimizer=sgd optimizer.momentum=0.5 seed=2",
    "loss=ipo beta=0.2 lr=1e-3 optimizer=adam seed=0",
    "loss=dpo beta=0.1 lr=3e-3 optimizer=adamw optimizer.weight_decay=0.1 seed=3",
    "loss=ipo beta=1.0 lr=1e-3 optimizer=rmsprop seed=1",
    "loss=dpo beta=0.3 lr=1e-3 optimizer=adam scheduler=linear scheduler.warmup_steps=5 seed=4",
    "loss=dpo beta=0.3 lr=1e-2 optimizer=sgd scheduler=cosine max_grad_norm=0.5 seed=5",
]


@pytest.mark.parametrize(
    ("problem", "tolerance"),
    [
        (f"{LLAMA} steps=40", 1e-9),
        (f"{LLAMA} steps=40 logps=notebook_per_token model.init=independent", 1e-9),
        # float32: products of stacked and single matrices round differently; measured 3e-7, in float64 5e-16
        (f"{LLAMA} steps=40 dtype=float32", 1e-5),
        (f"{TABULAR} steps=200 data.prompts=5 data.comparisons=3 data.p_star=0.7 batch_size=4 model.per_prompt=true",
         1e-9),
    ],
)  # fmt: skip
def test_a_stack_of_mixed_runs_equals_the_same_runs_alone(problem, tolerance):
    runs = configs(*(f"{run} {problem}" for run in MIXED))
    together, outcomes = train(runs)
    assert {outcome.state for outcome in outcomes} == {"finished"}
    for run, history in zip(runs, together, strict=True):
        (alone,), _ = train([run])
        assert alone.keys() == history.keys()
        for name, values in alone.items():
            scale = 1 + np.abs(values)
            assert np.abs((history[name] - values) / scale).max() <= tolerance, (run.loss.name, name)
        assert np.ptp(history["margin"]) > 1e-4  # it learned something, so there was something to compare


def test_data_order_follows_the_runs_own_seed_in_any_company():
    problem = (
        f"{TABULAR} steps=12 data.prompts=6 data.comparisons=1 batch_size=2 model.per_prompt=true data.seed=0 lr=0.1"
    )
    runs = configs(*(f"loss=dpo seed={seed} sampling=replacement {problem}" for seed in (0, 1, 0)))
    a, b, c = train(runs)[0]
    assert np.array_equal(a["margin"], c["margin"])
    assert not np.array_equal(a["margin"], b["margin"])


@pytest.mark.parametrize("breaks", ["loss=ipo lr=1e30", "loss=ipo lr=1e200 optimizer=adam"])
def test_a_run_that_becomes_nan_leaves_the_others_bit_identical(breaks):
    """Compared with the same stack in which that run behaves, so that shapes and kernels are the same."""
    others = [f"{run} lr=1e-3 {LLAMA} steps=30" for run in ("loss=dpo beta=0.1", "loss=ipo beta=0.5 optimizer=adam")]
    broken, outcomes = train(configs(others[0], f"{breaks} {LLAMA} steps=30", others[1]))
    kind = "optimizer=adam" if "adam" in breaks else ""
    sound, _ = train(configs(others[0], f"{breaks.split()[0]} lr=1e-3 {kind} {LLAMA} steps=30", others[1]))
    assert outcomes[1].state == "diverged"
    assert outcomes[1].steps_done == len(broken[1]["step"]) == outcomes[1].step + 1 < 30
    assert "not finite" in outcomes[1].reason
    for run in (0, 2):
        assert outcomes[run].state == "finished"
        for name, values in sound[run].items():
            assert np.array_equal(broken[run][name], values), name


def test_the_row_on_which_a_run_diverged_counts_what_is_not_finite():
    (history,), (outcome,) = train(configs(f"loss=ipo lr=1e30 {LLAMA} steps=30"))
    assert outcome.state == "diverged"
    assert history["nonfinite"][0] == 0
    last = [values[-1] for name, values in history.items() if name != "nonfinite"]
    assert history["nonfinite"][-1] == np.sum(~np.isfinite(last)) > 0


def test_gradient_norm_is_logged_before_clipping_and_each_run_is_clipped_by_itself():
    """One clipped IPO step moves h by sqrt(2) eta; its unclipped neighbour moves by its whole gradient."""
    clipped, free = configs(
        f"loss=ipo beta=0.1 lr=0.01 max_grad_norm=1.0 steps=3 {TABULAR}", f"loss=ipo beta=0.1 lr=0.01 steps=3 {TABULAR}"
    )
    histories, _ = train([clipped, free])
    assert histories[0]["grad_norm"][0] == pytest.approx(10 * np.sqrt(2), rel=1e-12)
    assert histories[0]["margin"][1] == pytest.approx(np.sqrt(2) * 0.01, rel=1e-6)
    assert histories[1]["margin"][1] == pytest.approx(2 * 0.01 * 10, rel=1e-12)


def test_tokens_and_pairs_are_counted():
    problem = f"{TABULAR} steps=4 data.prompts=6 data.comparisons=1 batch_size=3 model.per_prompt=true"
    (history,), _ = train(configs(f"loss=dpo {problem}"))
    assert history["pairs"].tolist() == [3, 6, 9, 12]
    assert history["tokens"].tolist() == [6, 12, 18, 24]


def test_the_default_sweep_shows_dpo_growing_and_ipo_settling():
    runs = configs(*(f"loss={loss} beta={beta} tracking=none" for loss in ("dpo", "ipo") for beta in (0.1, 0.5)))
    histories, _ = train(runs)
    for run, history in zip(runs, histories, strict=True):
        h, target = history["margin"], 1 / (2 * run.beta)
        if run.loss.name == "ipo":
            assert abs(h[-100:] / target - 1).max() < 0.01
        else:
            assert (np.diff(h) > 0).all()
            assert h[-1] > target
