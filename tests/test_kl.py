"""KL estimators and divergences: closed forms, quadrature, exact enumeration, and extremes."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.kl import ESTIMATORS, as_loss, as_reward, forward_kl, grpo_kl, jensen_shannon, k1, k2, k3, reverse_kl

F64 = torch.float64

# x ~ N(0,1), reference N(m,1): m, KL, E and sd of k1, k2, k3, to the digits printed there.
UNIT_GAUSSIANS = [
    (0.1, 0.005, {"k1": (0.005, 0.1), "k2": (0.0050125, 0.00708872), "k3": (0.005, 0.00708287)}),
    (0.5, 0.125, {"k1": (0.125, 0.5), "k2": (0.1328125, 0.1875), "k3": (0.125, 0.1844598)}),
    (1.0, 0.5, {"k1": (0.5, 1.0), "k2": (0.625, 0.8660254), "k3": (0.5, 0.8475150)}),
    (2.0, 2.0, {"k1": (2.0, 2.0), "k2": (4.0, 4.89898), "k3": (2.0, 7.0426)}),
]


def closed_form(m: float) -> dict[str, tuple[float, float]]:
    """Mean and variance. log r = m x - m^2/2, and E r = 1, E r^2 = e^{m^2}, E r log r = m^2/2, E r log^2 r = .. ."""
    return {
        "k1": (m**2 / 2, m**2),
        "k2": (m**2 / 2 + m**4 / 8, m**4 / 2 + m**6 / 4),
        "k3": (m**2 / 2, math.expm1(m**2) - m**2),
    }


def by_quadrature(m: float, reference_sd: float = 1.0) -> dict[str, tuple[float, float]]:
    """Mean and variance under x ~ N(0,1) by 200-point Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    x, w = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    log_ratio = -(x**2) / 2 + ((x - m) / reference_sd) ** 2 / 2 + math.log(reference_sd)
    moments = {}
    for name, k in ESTIMATORS.items():
        mean = (w * k(log_ratio)).sum()
        moments[name] = mean.item(), (w * (k(log_ratio) - mean) ** 2).sum().item()
    return moments


@pytest.mark.parametrize(("m", "kl", "table"), UNIT_GAUSSIANS)
def test_means_and_spreads_between_unit_gaussians(m, kl, table):
    exact, measured = closed_form(m), by_quadrature(m)
    for name, (mean, sd) in table.items():
        assert measured[name] == pytest.approx(exact[name], rel=1e-10), name
        printed = 5e-5 / 7 if m == 2 else 1e-6
        assert (exact[name][0], math.sqrt(exact[name][1])) == pytest.approx((mean, sd), rel=printed), name
    assert exact["k2"][0] / kl - 1 == pytest.approx(m**2 / 4)  # the bias of k2; k1 and k3 have none
    assert math.sqrt(exact["k1"][1]) / kl == pytest.approx(math.sqrt(2 / kl))


def test_at_kl_an_eighth_the_notes_mean_of_k2_is_its_relative_bias():
    """C8: "k1 has a huge spread, k2 averages .062, k3 .126 with the least spread". k2 averages .1328."""
    moments = closed_form(0.5)
    assert moments["k2"][0] == pytest.approx(0.1328125, rel=1e-12)
    assert moments["k2"][0] / 0.125 - 1 == pytest.approx(0.0625, rel=1e-12)
    assert moments["k3"][0] == 0.125
    assert moments["k3"][1] < moments["k2"][1] < moments["k1"][1]


@pytest.mark.parametrize(("rival", "least_until", "m"), [("k1", 0.628, 1.1209), ("k2", 0.726, 1.2047)])
def test_k3_has_the_least_spread_only_for_small_divergences(rival, least_until, m):
    assert m**2 / 2 == pytest.approx(least_until, abs=5e-4)
    below, above = closed_form(m - 1e-3), closed_form(m + 1e-3)
    assert below["k3"][1] < below[rival][1]
    assert above["k3"][1] > above[rival][1]


def test_k3_is_not_the_best_linear_control_variate():
    """-log r + lam (r - 1) has variance m^2 - 2 lam m^2 + lam^2 (e^{m^2} - 1); k3 is lam = 1."""
    for m, best, sd in [(0.1, 0.995, None), (0.5, 0.880, 0.17306), (1.0, 0.582, None)]:
        lam = m**2 / math.expm1(m**2)
        assert lam == pytest.approx(best, abs=5e-4)
        variance = m**2 - lam * m**2
        assert variance < closed_form(m)["k3"][1]
        if sd:
            assert math.sqrt(variance) == pytest.approx(sd, abs=5e-6)


def test_variance_of_k3_is_infinite_for_a_reference_twice_as_wide():
    """E_pi r^2 = 1 / (s sqrt(2 - s^2)) for pi = N(0,1), ref = N(0, s^2), and diverges from s^2 = 2 on."""
    for s in (0.9, 1.1, 1.2):
        c, d = -math.log(s), (1 - s**-2) / 2  # log r = c + d x^2
        log_r, log_r_squared, r_log_r = c + d, c**2 + 2 * c * d + 3 * d**2, (s**2 - 1) / 2 - math.log(s)
        second_moment = 1 / (s * math.sqrt(2 - s**2)) - 1 + log_r_squared - 2 * r_log_r + 2 * log_r
        mean, variance = by_quadrature(0.0, s)["k3"]
        assert mean == pytest.approx(-log_r, rel=1e-10)
        assert variance + mean**2 == pytest.approx(second_moment, rel=1e-8)

    def truncated(s2: float, edge: float) -> float:
        x = torch.linspace(-edge, edge, 200_001, dtype=F64)
        log_pi = -(x**2) / 2 - math.log(2 * math.pi) / 2
        log_ref = -(x**2) / (2 * s2) - math.log(2 * math.pi * s2) / 2
        return torch.trapezoid(log_pi.exp() * k3(log_pi - log_ref) ** 2, x).item()

    assert truncated(1.5, 30) == pytest.approx(truncated(1.5, 15), rel=1e-6)
    # At s^2 = 2, r^2 pi is the constant 1/(2 sqrt(2 pi)): the integral grows with its range for ever.
    assert truncated(2.0, 30) - truncated(2.0, 15) == pytest.approx(30 / (2 * math.sqrt(2 * math.pi)), rel=1e-6)
    assert truncated(2.2, 30) > 100 * truncated(2.2, 15)


@pytest.fixture(params=range(4))
def softmax(request):
    """A policy over 8 outcomes as the leaf of logits to differentiate, and a reference."""
    generator = torch.Generator().manual_seed(request.param)
    logits = torch.randn(8, generator=generator, dtype=F64).requires_grad_()
    return logits, torch.randn(8, generator=generator, dtype=F64).log_softmax(-1)


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


def mean_gradient(surrogate, softmax, *estimators):
    """The mean over x ~ pi, by enumeration, of the gradient of the surrogate at x."""
    logits, log_ref = softmax
    log_pi = logits.log_softmax(-1)
    weights = log_pi.detach().exp()
    return gradient((weights * surrogate(*estimators, log_pi, log_ref)).sum(), logits)


def test_what_each_estimator_descends_exactly(softmax):
    logits, log_ref = softmax
    reverse = gradient(reverse_kl(logits.log_softmax(-1), log_ref), logits)
    forward = gradient(forward_kl(logits.log_softmax(-1), log_ref), logits)
    for surrogate, k, expected in [
        (as_loss, k1, torch.zeros_like(reverse)),
        (as_loss, k2, reverse),
        (as_loss, k3, forward),
        (as_reward, k1, reverse),
        (as_reward, k3, reverse - forward),
    ]:
        torch.testing.assert_close(mean_gradient(surrogate, softmax, k), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(forward, reverse, atol=1e-2)


def test_both_paths_together_descend_the_mean_of_the_estimator(softmax):
    logits, log_ref = softmax
    for k in ESTIMATORS.values():
        log_pi = logits.log_softmax(-1)
        whole = gradient((log_pi.exp() * k(log_pi - log_ref)).sum(), logits)
        parts = mean_gradient(as_loss, softmax, k) + mean_gradient(as_reward, softmax, k)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    for k in (k1, k3):
        parts = mean_gradient(as_loss, softmax, k) + mean_gradient(as_reward, softmax, k)
        reverse = gradient(reverse_kl(logits.log_softmax(-1), log_ref), logits)
        torch.testing.assert_close(parts, reverse, rtol=0, atol=1e-12)


def test_gradients_by_differences_of_the_exact_divergences(softmax):
    logits, log_ref = softmax
    for divergence in (reverse_kl, forward_kl, jensen_shannon):
        assert torch.autograd.gradcheck(lambda z, d=divergence: d(z.log_softmax(-1), log_ref), (logits,))


def test_means_of_the_estimators_are_exact_over_a_categorical(softmax):
    logits, log_ref = softmax
    log_pi = logits.detach().log_softmax(-1)
    kl = reverse_kl(log_pi, log_ref).item()
    assert kl == pytest.approx((log_pi.exp() * (log_pi - log_ref)).sum().item(), rel=1e-14)
    for k in (k1, k3):
        assert (log_pi.exp() * k(log_pi - log_ref)).sum().item() == pytest.approx(kl, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_unbiased_by_monte_carlo(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200_000, generator=generator, dtype=F64)
    log_ratio = 0.125 - 0.5 * x
    for k in (k1, k3):
        sample = k(log_ratio)
        assert abs(sample.mean() - 0.125) < 4 * sample.std() / math.sqrt(len(x))
    assert abs(k2(log_ratio).mean() - 0.125) > 10 * k2(log_ratio).std() / math.sqrt(len(x))  # its bias shows


@given(st.floats(-1e4, 1e4))
def test_k3_is_nonnegative_and_zero_only_where_policies_agree(log_ratio):
    value = k3(torch.tensor(log_ratio, dtype=F64)).item()
    assert value > 0 or abs(log_ratio) < 1e-150  # x^2 underflows below
    assert value >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_is_accurate_to_a_few_ulp_at_every_scale(dtype):
    mpmath = pytest.importorskip("mpmath")
    x = torch.cat([sign * torch.logspace(-9, 1.9, 400) for sign in (-1, 1)] + [torch.linspace(-0.3, 0.3, 301)]).to(
        dtype
    )
    with mpmath.workdps(60):
        for log_ratio, value in zip(x.tolist(), k3(x).tolist(), strict=True):
            exact = mpmath.exp(-mpmath.mpf(log_ratio)) - 1 + mpmath.mpf(log_ratio)
            assert abs(value - exact) <= 5 * torch.finfo(dtype).eps * exact, log_ratio


@given(log_ratio=st.floats(-1e4, 1e4, width=32))
def test_extremes_in_float32_overflow_only_where_the_truth_does_and_never_give_nan(log_ratio):
    x = torch.tensor(log_ratio, dtype=torch.float32, requires_grad=True)
    for name, k in ESTIMATORS.items():
        value = k(x)
        (slope,) = torch.autograd.grad(value, x)
        assert not value.isnan() and not slope.isnan(), name
        if name != "k3" or log_ratio > -88.7:  # log of the largest float32 is 88.72
            assert value.isfinite() and slope.isfinite(), name
        elif log_ratio < -88.8:
            assert value == math.inf and slope == -math.inf


def test_k3_at_infinite_log_ratios_is_infinite():
    x = torch.tensor([-math.inf, math.inf], requires_grad=True)
    assert k3(x).tolist() == [math.inf, math.inf]
    k3(x).sum().backward()
    assert not x.grad.isnan().any()


def test_grpo_form_by_hand():
    """r = ref/pi of 2, 1/2 in the first response, 1 (then padding that must not matter) in the second."""
    logps = torch.tensor([[-2.0, -1.0], [-1.5, math.nan]], dtype=F64, requires_grad=True)
    log_r = torch.tensor([[math.log(2), -math.log(2)], [0.0, 7.0]], dtype=F64)
    mask = torch.tensor([[1, 1], [1, 0]])
    value = grpo_kl(logps, logps.detach() + log_r, mask)
    a, b = 2 - 1 - math.log(2), 0.5 - 1 + math.log(2)
    assert value.tolist() == pytest.approx([(a + b) / 2, 0.0], rel=1e-14)
    value.sum().backward()  # d k3 / d log pi = 1 - r, shared over the response's tokens
    assert logps.grad.tolist() == [pytest.approx([-0.5, 0.25]), [0.0, 0.0]]
    assert grpo_kl(logps, logps.detach() + log_r, mask, estimator=k1)[0].item() == pytest.approx(0.0, abs=1e-15)


def test_padding_that_would_overflow_touches_nothing():
    logps = torch.tensor([[-1.0, -1e4]], requires_grad=True)
    value = grpo_kl(logps, torch.tensor([[-1.5, 0.0]]), torch.tensor([[True, False]]))
    value.sum().backward()
    assert value.isfinite().all() and logps.grad[0, 1] == 0


def test_refusals():
    two, three = torch.zeros(2), torch.zeros(3)
    for surrogate in (as_loss, as_reward):
        with pytest.raises(ValueError, match="differ in shape"):
            surrogate(k1, two, three)
    with pytest.raises(ValueError, match="differ in shape"):
        grpo_kl(two, two, torch.ones(3))
    with pytest.raises(ValueError, match="differ in shape"):
        grpo_kl(torch.zeros(2, 3), torch.zeros(1, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="no tokens"):
        grpo_kl(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    for divergence in (reverse_kl, forward_kl, jensen_shannon):
        with pytest.raises(ValueError, match="outcomes cannot be compared"):
            divergence(two, three)


distributions = st.lists(st.floats(-40, 40), min_size=6, max_size=6).map(lambda z: torch.tensor(z, dtype=F64))


@given(distributions, distributions)
def test_divergences_are_nonnegative_and_jensen_shannon_symmetric_and_bounded(z_pi, z_ref):
    log_pi, log_ref = z_pi.log_softmax(-1), z_ref.log_softmax(-1)
    js = jensen_shannon(log_pi, log_ref).item()
    assert -1e-15 <= js <= math.log(2) + 1e-15
    assert js == pytest.approx(jensen_shannon(log_ref, log_pi).item(), abs=1e-15)
    for divergence in (reverse_kl, forward_kl):
        assert divergence(log_pi, log_ref) >= -1e-14
        assert divergence(log_pi, log_pi) == 0
    # Convexity: JS <= (KL + KL') / 4.
    assert js <= (reverse_kl(log_pi, log_ref) + forward_kl(log_pi, log_ref)) / 4 + 1e-14


def test_outcomes_of_probability_zero():
    log_pi = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=F64).log().requires_grad_()
    log_ref = torch.tensor([0.25, 0.5, 0.25, 0.0], dtype=F64).log()
    assert reverse_kl(log_pi, log_ref).item() == pytest.approx(0.5 * math.log(2))
    assert forward_kl(log_pi, log_ref).item() == math.inf
    js = jensen_shannon(log_pi, log_ref)
    m = [0.375, 0.5, 0.125]
    by_hand = 0.5 * (0.5 * math.log(0.5 / m[0])) + 0.5 * (0.25 * math.log(0.25 / m[0]) + 0.25 * math.log(0.25 / m[2]))
    assert js.item() == pytest.approx(by_hand, rel=1e-14)
    for value in (reverse_kl(log_pi, log_ref), js):
        assert gradient(value, log_pi).isfinite().all()
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64).log()
    assert jensen_shannon(apart[0], apart[1]).item() == pytest.approx(math.log(2), rel=1e-15)


def test_a_stack_of_policies_against_one_reference():
    generator = torch.Generator().manual_seed(0)
    log_pi = torch.randn(3, 5, 7, generator=generator, dtype=F64).log_softmax(-1)
    log_ref = torch.randn(5, 7, generator=generator, dtype=F64).log_softmax(-1)
    for divergence in (reverse_kl, forward_kl, jensen_shannon):
        values = divergence(log_pi, log_ref)
        assert values.shape == (3, 5)
        assert values[2, 4].item() == pytest.approx(divergence(log_pi[2, 4], log_ref[4]).item(), rel=1e-14)


def test_forward_and_reverse_agree_to_first_order_near_the_reference():
    """Their gradients differ by O(delta) relatively, so which k3 descends matters only far from the reference."""
    generator = torch.Generator().manual_seed(0)
    z_ref, noise = torch.randn(2, 8, generator=generator, dtype=F64)
    differences = []
    for delta in (0.1, 0.01, 0.001):
        logits = (z_ref + delta * noise).requires_grad_()
        reverse = gradient(reverse_kl(logits.log_softmax(-1), z_ref.log_softmax(-1)), logits)
        forward = gradient(forward_kl(logits.log_softmax(-1), z_ref.log_softmax(-1)), logits)
        differences.append(((reverse - forward).norm() / reverse.norm()).item())
    assert [a / b for a, b in pairwise(differences)] == pytest.approx([10, 10], rel=0.1)
