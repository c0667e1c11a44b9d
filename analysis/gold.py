"""The true reward of every action, where a run's configuration says it, and what it is worth at each KL. Pure.

X tables (prompts with a distribution of their own), K actions, N betas. Rewards are logits of the Bradley-Terry model
that the data were drawn from: `data=synthetic` prefers response 0 to 1 with probability p_star; `data=ranked` draws
utilities, and so does `data=gold`, of tokens, which are actions where a response has one. Of the other data sets no
true reward is known.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class NoGoldReward(Exception):
    """Why the true reward of a run's responses is not known."""


@dataclass(frozen=True)
class Gold:
    """reward [X, K], NaN for actions that no data compare; log_ref [X, K]: the reference's log-probabilities."""

    reward: Array
    log_ref: Array

    @property
    def compared(self) -> npt.NDArray[np.bool_]:
        """[K]: the actions whose reward is known."""
        return np.asarray(np.isfinite(self.reward).all(0))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for runs with the same problem."""
        return (self.reward.shape, self.reward.tobytes(), self.log_ref.tobytes())


def of_run(run: Mapping[str, Any], tables: int) -> Gold:
    """From a run's row of `Sweep.runs` and the number of tables it records. Raises NoGoldReward."""
    if run.get("model.name") != "tabular":
        raise NoGoldReward("the model is no table over actions")
    actions, data = int(run["model.actions"]), run.get("data.name")
    if data == "synthetic":
        gap = _logit(float(run["data.p_star"]))
        by_prompt = np.array([[gap, 0.0]])
    elif data == "ranked":
        by_prompt = ranked_utilities(
            prompts=int(run["data.prompts"]), responses=int(run["data.responses"]),
            spread=float(run["data.spread"]), seed=int(run["data.seed"]),
        )  # fmt: skip
    elif data == "gold":
        if json.loads(run["data.response_tokens"]) != [1, 1]:
            raise NoGoldReward("responses of several tokens: which of them are actions is not on record")
        by_prompt = token_utilities(
            vocabulary=int(run["data.vocabulary"]), spread=float(run["data.spread"]), seed=int(run["data.seed"])
        )[None]
    else:
        raise NoGoldReward(f"data={data} has no true reward")
    if by_prompt.shape[1] > actions:
        raise NoGoldReward("the model has fewer actions than the data have responses")
    # One table for all prompts answers each of them alike: what counts is the mean of their rewards.
    own = by_prompt if tables == len(by_prompt) else by_prompt.mean(0, keepdims=True)
    reward = np.full((tables, actions), np.nan)
    reward[:, : own.shape[1]] = own
    probs = run.get("model.ref_probs")
    log_ref = np.log(json.loads(probs)) if isinstance(probs, str) else np.full(actions, -math.log(actions))
    return Gold(reward, np.tile(log_ref, (tables, 1)))


def ranked_utilities(*, prompts: int, responses: int, spread: float, seed: int) -> Array:
    """[prompts, responses]: the utilities that `data=ranked` draws first from this seed."""
    return np.asarray(spread * np.random.default_rng(seed).standard_normal((prompts, responses)))


def token_utilities(*, vocabulary: int, spread: float, seed: int) -> Array:
    """[vocabulary]: what each token is worth under `data=gold`, whatever the prompt; drawn first from this seed."""
    return np.asarray(spread * np.random.default_rng(seed).standard_normal(vocabulary))


def reward_and_kl(log_pi: Array, gold: Gold) -> tuple[Array, Array]:
    """[T, X, K] log-probabilities -> [T] mean reward and [T] mean KL(policy, reference) [nats], over tables.

    Both of the policy given that it answers with one of the compared actions: of the others no reward is known.
    """
    known = gold.compared
    logs, log_ref, reward = log_pi[..., known], gold.log_ref[:, known], gold.reward[:, known]
    with np.errstate(invalid="ignore"):
        logs = logs - np.logaddexp.reduce(logs, axis=-1, keepdims=True)
    log_ref = log_ref - np.logaddexp.reduce(log_ref, axis=-1, keepdims=True)
    pi = np.exp(logs)
    kl = np.where(pi > 0, pi * (np.where(pi > 0, logs, 0.0) - log_ref), 0.0)
    return (pi * reward).sum(-1).mean(-1), kl.sum(-1).mean(-1)


def frontier(gold: Gold, betas: npt.ArrayLike) -> tuple[Array, Array]:
    """[N] reward and [N] KL of pi_beta = ref exp(reward/beta)/Z: no policy has more reward at its KL.

    Rafailov et al. 2023 (arXiv 2305.18290), Eq. 4, over the compared actions. Concave, with dR/dKL = beta.
    """
    scale = np.asarray(betas, dtype=np.float64)[:, None, None]
    return reward_and_kl(gold.log_ref + np.where(gold.compared, gold.reward, -np.inf) / scale, gold)


def most_reward(gold: Gold, kl: npt.ArrayLike) -> Array:
    """[N] the frontier's reward at each KL [N] in nats, of one table all of whose actions are compared.

    For any beta, beta (KL + log E_ref exp(reward/beta)) bounds the reward of every policy at that KL from above; it is
    the frontier's where pi_beta has that KL. That beta is interpolated: the error of the bound is of its square, up to
    1e-9 times the largest reward. At a KL below Var(reward)/2e12 the bound is loose by up to Var(reward)/2e6.

    Raises:
        ValueError: there are several tables, or actions without a reward.
    """
    if len(gold.reward) != 1 or not gold.compared.all():
        raise ValueError("the frontier's inverse is of one table, all of whose actions have a reward")
    target = np.maximum(np.asarray(kl, dtype=np.float64), 0.0)
    betas = np.geomspace(1e6, 1e-3, 4000)
    reached = np.maximum.accumulate(frontier(gold, betas)[1])
    nothing = 1e-300  # a KL of 0 has a logarithm then
    beta = np.exp(np.interp(np.log(target + nothing), np.log(reached + nothing), np.log(betas)))
    best = gold.reward[0].max()  # taken out, so that no exponential overflows
    log_mean = np.log(np.exp(gold.log_ref[0] + (gold.reward[0] - best) / beta[:, None]).sum(-1))
    return np.asarray(best + beta * (target + log_mean))


def _logit(p: float) -> float:
    if not 0 < p < 1:
        raise NoGoldReward(f"p_star = {p:g} has no finite reward")
    return math.log(p) - math.log1p(-p)
