"""Logged quantities mean what docs/run-directory.md says, and what TRL means where the name is TRL's."""

import math

import pytest
import torch

from src.metrics import batch_metrics, reward_metrics, step_metrics
from src.policy.base import TokenLogps
from tests.test_losses import random_batch
from tests.trl_oracle import trl_loss


def one_run(token_logps, ref_token_logps, mask, beta=0.3):
    logps = TokenLogps(token_logps[None], mask[None])
    return {
        name: value.item()
        for name, value in batch_metrics(
            logps, TokenLogps(ref_token_logps[None], mask[None]), torch.tensor([beta])
        ).items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_names_shared_with_trl_have_trl_values(seed):
    token_logps, _, mask = random_batch(seed, 6)
    ref_tokens = (token_logps - 0.4 * torch.randn(token_logps.shape, dtype=torch.float64)) * mask
    ours = one_run(token_logps, ref_tokens, mask)
    _, theirs = trl_loss(token_logps, ref_tokens.sum(-1), mask, "sigmoid", 0.3)
    shared = ours.keys() & theirs.keys()
    assert shared == {
        *(f"logps/{side}" for side in ("chosen", "rejected")),
        *(f"rewards/{what}" for what in ("chosen", "rejected", "margins", "accuracies")),
    }
    for name in shared:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_probabilities_of_whole_response_last_token_and_per_token():
    # chosen: 1/2 * 1/8, one padded token; rejected: 1/4 * 1/4 * 1/16
    token_logps = torch.tensor([[[0.5, 0.125, 1.0], [0.25, 0.25, 0.0625]]], dtype=torch.float64).log()
    mask = torch.tensor([[[True, True, False], [True, True, True]]])
    m = one_run(token_logps, token_logps, mask)
    assert math.exp(m["log_pi/chosen"]) == pytest.approx(1 / 16)
    assert math.exp(m["log_pi/chosen_last_token"]) == pytest.approx(1 / 8)
    assert math.exp(m["log_pi/chosen_per_token"]) == pytest.approx(1 / 4)  # geometric mean of 1/2 and 1/8
    assert math.exp(m["log_pi/rejected"]) == pytest.approx(1 / 256)
    assert math.exp(m["log_pi/rejected_last_token"]) == pytest.approx(1 / 16)
    assert math.exp(m["log_pi/rejected_per_token"]) == pytest.approx(2 ** (-8 / 3))


def test_probability_of_a_batch_is_the_mean_of_probabilities_kept_in_log_space():
    token_logps = torch.tensor([[[-1000.0], [-2000.0]], [[-1001.0], [-2000.0]]], dtype=torch.float64)
    m = one_run(token_logps, token_logps, torch.ones(2, 2, 1, dtype=torch.bool))
    assert m["log_pi/chosen"] == pytest.approx(-1000 + math.log((1 + math.exp(-1)) / 2), rel=1e-14)
    assert m["log_pi/rejected"] == -2000.0  # exp would be 0


def test_schulman_estimators_on_the_data_by_hand():
    """Token ratios r = ref/pi of 2 (chosen) and 1/2, 1/2 (rejected)."""
    mask = torch.tensor([[[True, False], [True, True]]])
    token_logps = torch.zeros(1, 2, 2, dtype=torch.float64)
    ref = torch.tensor([[[2.0, 1.0], [0.5, 0.5]]], dtype=torch.float64).log()
    m = one_run(token_logps, ref, mask)
    log2 = math.log(2)
    assert m["k1_on_data"] == pytest.approx((-log2 + log2 + log2) / 3)
    assert m["k2_on_data"] == pytest.approx(log2**2 / 2)
    assert m["k3_on_data"] == pytest.approx(((2 - 1 - log2) + 2 * (0.5 - 1 + log2)) / 3)


def test_margin_is_raw_and_the_reward_margin_is_scaled():
    token_logps = torch.tensor([[[-1.0], [-4.0]], [[-3.0], [-2.0]]], dtype=torch.float64)
    ref = torch.tensor([[[-2.0], [-2.0]], [[-2.0], [-2.0]]], dtype=torch.float64)
    m = one_run(token_logps, ref, torch.ones(2, 2, 1, dtype=torch.bool), beta=0.5)
    assert m["margin"] == pytest.approx((3.0 - 1.0) / 2)
    assert m["rewards/margins"] == pytest.approx(0.5)
    assert m["rewards/accuracies"] == 0.5
    sigma = [1 / (1 + math.exp(-0.5 * h)) for h in (3.0, -1.0)]
    assert m["implied_preference"] == pytest.approx(sum(sigma) / 2)


@pytest.mark.parametrize("objective", ["preference", "reward_model"])
def test_metrics_of_several_steps_at_once_are_those_of_each_step(objective):
    generator = torch.Generator().manual_seed(0)
    steps, runs, batch, tokens = 5, 3, 4, 1 if objective == "reward_model" else 6
    beta = torch.tensor([0.1, 0.5, 2.0])
    lengths = torch.randint(1, tokens + 1, (steps, runs, batch, 2, 1), generator=generator)
    mask = torch.arange(tokens) < lengths
    policy, ref = (-3 * torch.rand(mask.shape, generator=generator) * mask for _ in range(2))
    numbers = {name: torch.randn(steps, runs, generator=generator)
               for name in ("loss", "kl_penalty", "grad_norm", "lr", "tokens", "pairs", "own")}  # fmt: skip
    block = {**numbers, "token_logps": policy, "mask": mask, "ref_token_logps": ref}
    found = step_metrics(block, beta, objective, lambda block: {"exact/own": block["own"]})
    assert list(found)[:2] == ["loss", "kl_penalty"] and list(found)[-1] == "exact/own"
    for step in range(steps):
        logps = TokenLogps(policy[step], mask[step])
        one = (reward_metrics(logps, beta) if objective == "reward_model"
               else batch_metrics(logps, TokenLogps(ref[step], mask[step]), beta))  # fmt: skip
        assert found.keys() == one.keys() | {name for name in numbers if name != "own"} | {"exact/own"}
        for name, values in one.items():
            torch.testing.assert_close(found[name][step], values, rtol=1e-14, atol=0)
    del block["ref_token_logps"]
    assert "margin" not in step_metrics(block, beta, objective, lambda block: {})
