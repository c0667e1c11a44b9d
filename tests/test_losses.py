"""Losses against numbers worked out by hand, and against TRL."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.losses.base import PairLogRatios
from src.losses.pairwise import dpo, ipo
from tests.trl_oracle import trl_loss


def pairs(a: float, b: float) -> tuple[PairLogRatios, torch.Tensor]:
    """One run, one pair with log-ratios a and b; the logps are returned as the leaf to differentiate."""
    logps = torch.tensor([[[a - 3.0, b - 4.0]]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[[-3.0, -4.0]]], dtype=torch.float64)
    return PairLogRatios(logps, ref, torch.ones(1, 1, 2, dtype=torch.int64)), logps


def value_and_gradient(loss, a: float, b: float, **hyper: float) -> tuple[float, list[float]]:
    batch, logps = pairs(a, b)
    value = loss(batch, **{k: torch.tensor([[v]], dtype=torch.float64) for k, v in hyper.items()})
    value.sum().backward()
    return value.item(), logps.grad[0, 0].tolist()


# Derived by hand. DPO: u = beta h; L = log(1 + e^-u); dL/da = -beta / (1 + e^u) = -dL/db.
# IPO: L = (h - 1/(2 beta))^2; dL/da = 2 (h - 1/(2 beta)) = -dL/db.
BY_HAND = [
    (dpo, 0.0, 0.0, 0.1, math.log(2), -0.05),
    (dpo, math.log(3), 0.0, 1.0, math.log(4 / 3), -0.25),  # sigma(-log 3) = 1/4
    (dpo, 1.0, -3.0, 0.5, math.log(1 + math.exp(-2)), -0.5 / (1 + math.exp(2))),
    (dpo, 0.0, 2.0, 0.5, math.log(1 + math.e), -0.5 / (1 + math.exp(-1))),
    (ipo, 0.0, 0.0, 0.1, 25.0, -10.0),
    (ipo, 2.0, -3.0, 0.1, 0.0, 0.0),  # h = 5 = 1/(2 beta): the optimum
    (ipo, 3.0, 0.0, 0.25, 1.0, 2.0),  # beyond it: chosen is pushed down again
]


@pytest.mark.parametrize(("loss", "a", "b", "beta", "expected", "slope"), BY_HAND)
def test_value_and_gradient_are_those_derived_by_hand(loss, a, b, beta, expected, slope):
    value, gradient = value_and_gradient(loss, a, b, beta=beta)
    assert value == pytest.approx(expected, rel=1e-14, abs=1e-15)
    assert gradient == pytest.approx([slope, -slope], rel=1e-14, abs=1e-15)


@given(h=st.floats(-1e4, 1e4), beta=st.floats(1e-3, 10))
def test_gradients_are_finite_and_opposite_for_any_margin(h, beta):
    for loss in (dpo, ipo):
        value, (chosen, rejected) = value_and_gradient(loss, h, 0.0, beta=beta)
        assert math.isfinite(value)
        assert chosen == -rejected


@given(h=st.floats(-50, 50), beta=st.floats(0.01, 2))
def test_dpo_always_pushes_the_margin_up_and_ipo_towards_its_target(h, beta):
    assert value_and_gradient(dpo, h, 0.0, beta=beta)[1][0] < 0
    gap = h - 1 / (2 * beta)
    assert math.copysign(1, value_and_gradient(ipo, h, 0.0, beta=beta)[1][0]) == math.copysign(1, gap) or gap == 0


def test_each_row_of_a_stack_uses_its_own_beta():
    logps = torch.zeros(2, 3, 2, dtype=torch.float64)
    logps[..., 0] = 1.0
    batch = PairLogRatios(logps, torch.zeros_like(logps), torch.ones(2, 3, 2))
    values = dpo(batch, beta=torch.tensor([[0.1], [2.0]], dtype=torch.float64))
    assert values.shape == (2, 3)
    assert values[:, 0].tolist() == pytest.approx([math.log1p(math.exp(-0.1)), math.log1p(math.exp(-2.0))], rel=1e-14)


def random_batch(seed: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token log-probs [B, 2, T] that differ in length, summed reference log-probs, mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (5, 2, 1), generator=generator)
    mask = torch.arange(width) < lengths
    token_logps = -3 * torch.rand(5, 2, width, generator=generator, dtype=torch.float64) * mask
    ref = token_logps.sum(-1) + 4 * torch.randn(5, 2, generator=generator, dtype=torch.float64)
    return token_logps, ref, mask


@pytest.mark.parametrize("beta", [0.05, 0.5, 2.0])
@pytest.mark.parametrize(("loss", "trl_name", "width"), [(dpo, "sigmoid", 7), (ipo, "ipo", 1)])
def test_equal_to_trl_in_value_and_gradient(loss, trl_name, width, beta):
    for seed in range(50):
        token_logps, ref, mask = random_batch(seed, width)
        theirs_at, ours_at = (token_logps.clone().requires_grad_() for _ in range(2))
        theirs, _ = trl_loss(theirs_at, ref, mask, trl_name, beta)
        batch = PairLogRatios(ours_at.sum(-1)[None], ref[None], mask.sum(-1)[None])
        ours = loss(batch, beta=torch.tensor([[beta]], dtype=torch.float64)).mean()
        theirs.backward()
        ours.backward()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        # TRL leaves gradients on padding to its model's mask; ours never sees padding.
        torch.testing.assert_close(ours_at.grad * mask, theirs_at.grad * mask, rtol=1e-6, atol=1e-9)


def test_ipo_differs_from_trl_on_purpose_where_responses_have_several_tokens():
    """TRL divides each log-ratio by its response's length. The paper's Eq. 17 does not, and nor does `loss=ipo`."""
    token_logps = torch.tensor([[[-1.0, -1.0], [-2.0, -2.0]]], dtype=torch.float64)
    ref, mask = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, 2, dtype=torch.bool)
    theirs, _ = trl_loss(token_logps, ref, mask, "ipo", 0.1)
    batch = PairLogRatios(token_logps.sum(-1)[None], ref[None], mask.sum(-1)[None])
    assert theirs.item() == pytest.approx((1.0 - 5.0) ** 2)  # margin 1 a token
    assert ipo(batch, beta=torch.tensor([[0.1]])).item() == pytest.approx((2.0 - 5.0) ** 2)
