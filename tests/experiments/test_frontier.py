"""The frontier of reward and KL: its closed forms, and each check where its claim is true and where not."""

import numpy as np
import pandas as pd
import pytest

from analysis import gold
from experiments.frontier import check as frontier

CONDITIONS = "holds under conditions"


def outcomes(verdicts):
    return {verdict.claim: verdict.outcome for verdict in verdicts}


def frames(
    least=0.0, regret=1.0, falls=True, regret_at_1=1.0, drop=0.1, drop_at_1=0.1, drop_of_seed_1=0.1, ipo=0.0, kto=0.0
):
    runs = [
        {"sweep": "family", "labels": labels, "loss": loss, "beta": beta, "seed": seed, "least_gap": least, "kl": 2.0,
         "drop": min(drop_at_1 if beta == 1 else drop, drop_of_seed_1 if seed else 1.0) if loss == "dpo" else 0.0,
         "gap": 0.5, "gap_at_peak": 0.3, "kl_change": ipo if loss == "ipo" else 0.1}
        for labels in ("sampled", "certain")
        for loss in ("dpo", "ipo", "kto")
        for beta in (0.1, 1.0)
        for seed in (0, 1)
    ]  # fmt: skip
    regrets = [
        {"beta": beta, "n": n, "seed": seed, "expected": 1 / n,
         "regret": (regret_at_1 if beta == 1 else regret) * (1 / n if falls else 1 / 4000)}
        for beta in (0.5, 1.0)
        for n in (1000, 4000)
        for seed in (0, 1)
    ]  # fmt: skip
    areas = [
        {"labels": labels, "loss": loss, "seed": seed, "area": 0.6 + 0.1 * seed + (kto if loss == "kto" else 0.0)}
        for labels in ("sampled", "certain")
        for loss in ("dpo", "ipo", "kto")
        for seed in (0, 1)
    ]
    return {"runs": pd.DataFrame(runs), "regret": pd.DataFrame(regrets), "areas": pd.DataFrame(areas)}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (frames(), dict.fromkeys(("bound", "recovered", "certain", "area"), "holds")),
        (frames(least=-1e-8), {"bound": "refuted"}),
        (frames(regret_at_1=3.0), {"recovered": CONDITIONS}),
        (frames(regret_at_1=3.0, regret=0.3), {"recovered": "refuted"}),
        (frames(falls=False), {"recovered": "refuted"}),
        (frames(drop_at_1=0.001), {"certain": CONDITIONS}),
        (frames(drop_of_seed_1=0.0), {"certain": CONDITIONS}),
        (frames(drop_at_1=0.001, drop=0.0), {"certain": "refuted"}),
        (frames(ipo=0.01), {"certain": "refuted"}),
        (frames(kto=0.02), {"area": "refuted"}),
        (frames(kto=-0.3), {"area": "holds"}),
    ],
)
def test_frontier(found, expected):
    assert outcomes(frontier.check(found)).items() >= {f"frontier-{name}": it for name, it in expected.items()}.items()


def test_the_regret_of_two_answers_can_be_written_out():
    beta, gap = 0.5, 0.8
    won, chosen = 1 / (1 + np.exp(-gap)), 1 / (1 + np.exp(-gap / beta))
    expected = chosen * (1 - chosen) / (won * (1 - won)) / (2 * beta)
    assert frontier.regret_constant(np.array([gap, 0.0]), beta) == pytest.approx(expected, rel=1e-12)


def test_the_regret_is_that_of_maximum_likelihood_simulated():
    """Newton's method on drawn labels of five answers, against the closed form: seeds' noise is 5 %."""
    rng, n, beta = np.random.default_rng(0), 20_000, 0.7
    reward = rng.standard_normal(5)
    problem = gold.Gold(reward[None], np.full((1, 5), -np.log(5.0)))
    (best,), (far,) = gold.frontier(problem, [beta])
    lost = []
    for _ in range(400):
        i, j = np.triu_indices(5, 1)
        seen = rng.multinomial(n, np.full(len(i), 1 / len(i)))
        wins = rng.binomial(seen, 1 / (1 + np.exp(reward[j] - reward[i])))
        estimate = np.zeros(5)
        for _ in range(20):
            p = 1 / (1 + np.exp(estimate[j] - estimate[i]))
            gradient, hessian = np.zeros(5), np.zeros((5, 5))
            np.add.at(gradient, i, wins - seen * p)
            np.add.at(gradient, j, seen * p - wins)
            for a, b, w in zip(i, j, seen * p * (1 - p), strict=True):
                hessian[[a, b, a, b], [a, b, b, a]] += [w, w, -w, -w]
            estimate = estimate + np.linalg.pinv(hessian, hermitian=True) @ gradient
        log_pi = estimate / beta - np.logaddexp.reduce(estimate / beta)
        (at,), (kl,) = gold.reward_and_kl(log_pi[None, None], problem)
        lost.append(best - beta * far - (at - beta * kl))
    assert n * np.mean(lost) == pytest.approx(frontier.regret_constant(reward, beta), rel=0.15)


def test_up_to_each_kl_the_best_point_so_far_counts():
    kl, reward = np.array([0.0, 0.5, 1.5, 1.0, 3.0]), np.array([0.0, 1.0, 0.4, 1.2, 9.0])
    best = frontier._up_to(reward, kl)
    at = {kl: best[np.searchsorted(frontier.GRID, kl - 1e-9)] for kl in (0.0, 0.49, 0.5, 0.99, 1.0, 2.0)}
    assert at == {0.0: 0.0, 0.49: 0.0, 0.5: 1.0, 0.99: 1.0, 1.0: 1.2, 2.0: 1.2}
