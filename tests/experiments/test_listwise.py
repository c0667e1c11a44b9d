"""The study of listwise and pairwise losses: its verdict on hand-made frames, and its closed forms."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import gold
from experiments.listwise import check as listwise
from src.data.toy import ranked
from src.losses.base import PairLogRatios
from src.losses.listwise import list_mle, list_softmax, pair_logistic


def frames(regret=None, reward=None, noise=1e-3):
    """What each loss reaches, the same at both lengths of list; a third loss's in no way."""
    regret = dict.fromkeys((*listwise.LISTWISE, *listwise.PAIRWISE), 0.2) | (regret or {})
    reward = {loss: -value for loss, value in regret.items()} | (reward or {})
    generator = np.random.default_rng(0)
    rows = [
        {"loss": loss, "responses": responses, "rankings": 50, "seed": seed, "update": 9, "early": 0.1, "tau": 0.5,
         "regret": regret[loss] + noise * generator.standard_normal(), "reward": reward[loss], "last": 0.3,
         "optimum": 1.0}
        for loss in regret for responses in (4, 8) for seed in range(10)
    ]  # fmt: skip
    return {"runs": pd.DataFrame(rows), "asymptotic": pd.DataFrame()}


BETTER = dict.fromkeys(listwise.LISTWISE, 0.1)


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (frames(BETTER), "holds"),
        (frames({"list_mle": 0.1}), "holds under conditions"),
        (frames({**BETTER, "list_softmax": 0.3}), "holds under conditions"),
        (frames(), "refuted"),
        (frames({"dpo": 0.5}), "refuted"),
        (frames(BETTER, noise=1.0), "refuted"),
        (frames(BETTER, reward={"pair_logistic": 1.0}), "refuted"),
    ],
)
def test_outcomes(made, outcome):
    (verdict,) = listwise.check(made)
    assert (verdict.claim, verdict.outcome) == ("C14", outcome)


def test_it_says_what_beats_what():
    (verdict,) = listwise.check(frames({"list_mle": 0.1}))
    assert "ListMLE beats pair logistic (everywhere)" in verdict.finding
    assert "LambdaLoss beats no pairwise loss" in verdict.finding


@pytest.mark.parametrize(
    ("name", "loss"), [("list_mle", list_mle), ("pair_logistic", pair_logistic), ("list_softmax", list_softmax)]
)
def test_the_asymptotic_regret_is_that_of_the_losses_themselves(name, loss):
    """Gradient and Hessian by autograd, weighted by the probability of each of the 24 rankings, drawn one by one."""
    utility = np.array([0.7, -0.3, 1.1, -1.6])
    theta = torch.tensor(utility, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    J, H = np.zeros((4, 4)), torch.zeros(4, 4, dtype=torch.float64)
    for order in itertools.permutations(range(4)):
        weights, probability = list(np.exp(utility[list(order)])), 1.0
        while weights:
            probability *= weights[0] / sum(weights)
            weights = weights[1:]

        def of(theta, order=order):
            logps = theta[list(order)][None, None]
            scale = 6 if name == "pair_logistic" else 1  # a mean over pairs, here a sum: both are the same estimator
            return scale * loss(PairLogRatios(logps, torch.zeros_like(logps), torch.ones_like(logps)), beta=one).sum()

        (g,) = torch.autograd.grad(of(theta), theta)
        J += probability * np.outer(g, g)
        H += probability * torch.autograd.functional.hessian(of, theta.detach())
    inverse = np.linalg.pinv(H.numpy())
    pi = np.exp(utility) / np.exp(utility).sum()
    expected = np.trace((np.diag(pi) - np.outer(pi, pi)) @ inverse @ J @ inverse) / 2
    assert listwise.asymptotic_regret(utility, name) == pytest.approx(expected, rel=1e-9)


def test_only_the_best_known_costs_one_half_a_degree_of_freedom_and_listmle_is_efficient():
    utility = np.random.default_rng(1).standard_normal(5)
    best_only, mle, pairs = (
        listwise.asymptotic_regret(utility, loss) for loss in ("list_softmax", "list_mle", "pair_logistic")
    )
    assert best_only == pytest.approx(2.0, rel=1e-9)
    assert mle < pairs < best_only


def test_a_path_to_the_optimum_has_no_regret_and_the_frontiers_reward():
    """pi_t = softmax(t u) from t = 0 to 3 runs along the frontier, and t = 1 is the optimum."""
    utility = gold.ranked_utilities(prompts=3, responses=4, spread=1.0, seed=2)
    known = gold.Gold(utility, np.full((3, 4), -np.log(4)))
    logits = np.linspace(0, 3, 601)[:, None, None] * utility
    log_pi = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    found = listwise._quality(log_pi, known)
    assert found["regret"] == pytest.approx(0, abs=1e-12) and found["update"] == 200
    assert found["reward"] == pytest.approx(found["optimum"], abs=1e-3) and found["tau"] == 1.0


def test_lists_of_two_lengths_in_one_sweep_are_each_read_as_they_are():
    """The columns of a history stand in the order in which its runs brought them: those of the longer lists last."""
    runs, histories = [], []
    for name, responses in (("short", 2), ("long", 4)):
        utility = gold.ranked_utilities(prompts=2, responses=responses, spread=1.0, seed=3)
        log_pi = utility - np.logaddexp.reduce(utility, axis=-1, keepdims=True)
        paths = np.stack([np.full_like(log_pi, -np.log(responses)), log_pi])
        cells = {f"log_pi/{x}/{k}": paths[:, x, k] for x in range(2) for k in range(responses)}
        histories.append(pd.DataFrame({"run": name, "step": [0, 1], **cells}))
        runs.append(
            {"id": name, "loss.name": "list_mle", "model.name": "tabular", "model.actions": responses,
             "data.name": "ranked", "data.prompts": 2, "data.responses": responses, "data.rankings": 5,
             "data.spread": 1.0, "data.seed": 3}
        )  # fmt: skip
    sweep = SimpleNamespace(runs=pd.DataFrame(runs), history=pd.concat(histories, ignore_index=True))
    found = listwise.measure({"lists": sweep}, True)["runs"]
    np.testing.assert_allclose(found["regret"], 0, atol=1e-12)


def test_best_and_worst_are_the_ends_of_the_same_rankings():
    given = {"prompts": 3, "responses": 5, "rankings": 4, "spread": 1.0, "seed": 7}
    whole, ends = ranked(**given), ranked(**given, best_worst=True)
    assert ends.ranks == 2 and ends.candidates == whole.candidates
    assert ends.chosen == whole.chosen and ends.rejected == whole.rejected
    assert ends.scores == tuple((scores[0], scores[-1]) for scores in whole.scores)
