"""The budget of 0.05 nats: a check that can fail, and the closed form beside the exact optimum."""

import numpy as np
import pandas as pd
import pytest

from experiments.kl_budget import check
from src.data.toy import gold
from src.theory.bandit import kl_reward_frontier


def frames(kl, label="displacement", state=True):
    """kl: of (model, loss, beta, spread)."""
    rows = [
        {"model": model, "loss": loss, "beta": beta, "spread": spread, "comparisons": 300, "seed": seed, "label": label,
         "healthy": state, "tokens": 1.0 if model == "table" else 4.0, "kl": kl(model, loss, beta, spread),
         "kl_most": kl(model, loss, beta, spread), "optimum": 0.1}
        for model in ("table", "llama")
        for loss in ("dpo", "ipo")
        for beta in (0.1, 0.5)
        for spread in (0.03, 1.0)
        for seed in range(3)
    ]  # fmt: skip
    return {"runs": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (lambda model, loss, beta, spread: 0.04, "holds"),
        (lambda model, loss, beta, spread: 0.04 if beta == 0.1 else 1.0, "holds"),
        (lambda model, loss, beta, spread: 0.04 if spread == 0.03 else 1.0, "holds under conditions"),
        (lambda model, loss, beta, spread: 0.04 if model == "table" else 0.1, "holds under conditions"),
        (lambda model, loss, beta, spread: 0.04 if beta == 0.5 else 1.0, "refuted"),
        (lambda model, loss, beta, spread: 1.0, "refuted"),
    ],
)
def test_check(kl, expected):
    (verdict,) = check.check(frames(kl))
    assert verdict.claim == "C18" and verdict.outcome == expected


def test_one_run_beyond_the_budget_at_any_time_is_enough():
    found = frames(lambda *_: 0.04)
    found["runs"].loc[found["runs"]["beta"] == 0.1, "kl_most"] = 0.06
    assert check.check(found)[0].outcome == "refuted"


def test_collapsed_runs_do_not_count():
    found = frames(lambda *_: 0.04)
    extra = found["runs"].assign(healthy=False, label="margin collapse", kl=2.0, kl_most=2.0)
    (verdict,) = check.check({"runs": pd.concat([found["runs"], extra], ignore_index=True)})
    assert verdict.outcome == "holds"


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_spread_that_fits_the_budget_is_that_of_the_exact_optimum(beta):
    rewards = np.random.default_rng(0).standard_normal(1000)
    rewards *= check.largest_spread(beta) / rewards.std()
    exact = kl_reward_frontier(np.full(1000, 1e-3), rewards, beta).kl[0]
    assert exact == pytest.approx(check.BUDGET, rel=0.1)


def test_the_optimum_is_that_of_the_rewards_of_the_data():
    data = gold(
        prompts=1, held_out=0, comparisons=500, vocabulary=8, prompt_tokens=4, response_tokens=[1, 1], spread=0.5,
        labels="sampled", seed=3,
    )  # fmt: skip
    worth = {}
    for (first, second), scores in zip(data.responses, data.scores, strict=True):
        worth |= {first[0]: scores[0], second[0]: scores[1]}
    exact = kl_reward_frontier(np.full(8, 1 / 8), [worth[k] for k in range(8)], 0.5).kl[0]
    row = {"model": "table", "spread": 0.5, "seed": 3, "beta": 0.5}
    assert check._optimum(row) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("spread", [0.03, 0.3, 1.0])
def test_the_exact_optimum_at_beta_0_1_shows_displacement(spread):
    reward = spread * np.random.default_rng(2).standard_normal(8)
    log_ratio = np.log(8 * kl_reward_frontier(np.full(8, 1 / 8), reward, 0.1).pi[0])  # of policy and reference
    wins = 1 / (1 + np.exp(reward[None] - reward[:, None]))  # [i, j]: i is chosen, of two different ones
    apart = ~np.eye(8, dtype=bool)
    chosen, rejected = (np.broadcast_to(x, (8, 8))[apart] for x in (log_ratio[:, None], log_ratio[None]))
    a, h = ((wins[apart] * x).sum() / wins[apart].sum() for x in (chosen, chosen - rejected))
    assert a == pytest.approx(h / 2 + log_ratio.mean(), rel=1e-9)  # KL(ref, pi) = - mean log-ratio under the reference
    assert a < 0
