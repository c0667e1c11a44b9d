"""Theory by autograd, by root finding, and by training the tabular model to it. In float64."""

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from analysis import theory as lines
from src.config import Choice
from src.data.pairs import PairData
from src.errors import BadInput
from src.losses.base import facts_of
from src.theory import bandit, growth, weights
from tests.stacks import configs, train

LOSSES = sorted(path.stem for path in (Path(__file__).parent.parent / "conf/loss").glob("*.yaml"))
ONE_PAIR = "model=tabular data=synthetic data.p_star=1.0 data.comparisons=1 dtype=float64 tracking=none"
THREE = "model=tabular model.actions=3 batch_size=full dtype=float64 tracking=none"


@functools.cache
def loss(name: str, *settings: str) -> Choice:
    """`loss=name`, with hyper-parameters such as loss("cpo", "beta=0.1")."""
    (config,) = configs(f"loss={name} {' '.join(settings)}")
    return config.loss


def with_beta(name: str, beta: float) -> Choice:
    """Composing is slow: change the parameter of the one already composed."""
    made = loss(name)
    return replace(made, params={**made.params, "beta": beta} if "beta" in made.params else made.params)


def action_pairs(*pairs: tuple[int, int]) -> PairData:
    """One prompt; responses are single tokens, the actions 0, 1, 2, …"""
    actions = range(1 + max(max(pair) for pair in pairs))
    rows = tuple(((w,), (low,)) for w, low in pairs)
    return PairData(((9,),) * len(pairs), rows, candidates=tuple((k,) for k in actions))


def final_logits(history, actions: int) -> np.ndarray:
    """Centred logits of the last row."""
    log_pi = np.array([history[f"log_pi/0/{k}"][-1] for k in range(actions)])
    return log_pi - log_pi.mean()


# --- gradient weights


@pytest.mark.parametrize("name", sorted(weights.SLOPES))
def test_closed_slopes_are_autograds(name):
    h = np.concatenate([np.linspace(-12, 12, 97) + 1e-3, [-40.0, 40.0]])
    choice = with_beta(name, 0.7)
    np.testing.assert_allclose(
        weights.slope(choice, h), weights.SLOPES[name](h, **choice.params), rtol=1e-12, atol=1e-15
    )


def test_a_closed_slope_belongs_to_a_loss_and_every_margin_loss_has_one_or_a_reason():
    margin = {name for name in LOSSES if weights.is_margin_loss(loss(name))}
    assert weights.SLOPES.keys() <= margin
    # beta_dpo: beta follows h; lambda_loss: DPO times a constant; simpo: DPO of h - gamma/beta if the reference is
    # uniform; tdpo1: DPO, since one-token responses share their only context.
    assert margin - weights.SLOPES.keys() == {"beta_dpo", "lambda_loss", "simpo", "tdpo1"}


@pytest.mark.parametrize("name", LOSSES)
def test_side_weights_are_finite_and_push_the_margin_up_from_the_reference(name):
    chosen, rejected = weights.side_weights(loss(name), [0.0], [0.0])
    assert np.isfinite([chosen, rejected]).all()
    if name == "discopop":  # its descent starts the other way
        assert chosen > 0
    else:
        assert rejected - chosen > 0


def test_sided_weights_are_those_of_the_table():
    """NCA, BCO, APO-zero, SPPO, per side."""
    a, b, beta = np.array([0.3, -1.0]), np.array([-0.4, 2.0]), 0.5
    A, B = beta * a, beta * b
    expected = {
        "nca": (-beta * (expit(-A) - 0.5 * expit(A)), 0.5 * beta * expit(B)),
        "bco": (-beta * expit(-A), beta * expit(B)),
        "apo_zero": (-beta * expit(A) * expit(-A), beta * expit(B) * expit(-B)),
        "sppo_hard": (2 * (a - 1 / (2 * beta)), 2 * (b + 1 / (2 * beta))),
    }
    for name, sides in expected.items():
        np.testing.assert_allclose(weights.side_weights(with_beta(name, beta), a, b), sides, rtol=1e-13)


# --- optima


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_stated_optimum_is_found_by_root_finding(beta):
    stated, found = {}, {}
    for name in LOSSES:
        choice = with_beta(name, beta)
        optimum = facts_of(choice).optimum
        if optimum is not None:
            stated[name] = optimum(**choice.params)
            found[name] = weights.descent_target(choice, 20 / beta)
    assert found == pytest.approx(stated, abs=1e-9)
    assert len([h for h in found.values() if math.isfinite(h)]) >= 8


def test_discopop_has_the_two_stationary_points_of_the_table():
    points = weights.stationary_points(with_beta("discopop", 0.05), np.linspace(-20, 20, 401))
    assert [p.minimum for p in points] == [True, False]
    assert [p.h for p in points] == pytest.approx([-2.37140, 1.44012], abs=5e-6)


# --- gradient descent

T = np.concatenate([np.arange(0, 50, 5), np.geomspace(50, 1e6, 30)])


def test_the_flow_of_any_slope_reproduces_the_closed_forms():
    def slope(name):
        return functools.partial(weights.SLOPES[name], beta=0.5)

    flow = functools.partial(growth.margin_flow, t=T, eta=0.25)
    c = 2 * 0.25 * 0.5**2
    assert np.abs(flow(slope("dpo")) - growth.dpo_u(T, c) / 0.5).max() < 5e-9
    assert np.abs(flow(slope("dpo"), h0=3.0) - growth.dpo_u(T, c, 1.5) / 0.5).max() < 5e-9
    assert np.abs(flow(slope("exp")) - growth.exp_u(T, c) / 0.5).max() < 5e-9
    assert np.abs(flow(slope("ipo")) - (1 - np.exp(-2 * 2 * 0.25 * T))).max() < 5e-9
    assert np.abs(flow(slope("hinge")) - np.minimum(2 * 0.25 * 0.5 * T, 2)).max() < 5e-9


def test_closed_forms_equal_those_that_analysis_draws():
    np.testing.assert_allclose(
        growth.dpo_u(T, 0.02, 0.3) / 0.1, lines.dpo_sgd_margin(T, h0=3.0, beta=0.1, eta=1.0, K=2.0), rtol=1e-13
    )
    steps = np.arange(50)
    np.testing.assert_allclose(
        growth.ipo_h(steps, tau=0.2, eta=0.1, K=3.0, h0=1.0),
        lines.ipo_sgd_margin(steps, h0=1.0, beta=0.2, eta=0.1, K=3.0),
        rtol=1e-13,
    )


def recursion(slope, steps: int, eta: float, h0: float = 0.0, momentum: float = 0.0) -> np.ndarray:
    """Gradient descent on one pair of a tabular softmax, h only: K = 2."""
    h, velocity, history = h0, 0.0, np.empty(steps)
    for t in range(steps):
        history[t] = h
        velocity = momentum * velocity + slope(h)
        h -= 2 * eta * velocity
    return history


@pytest.mark.parametrize(
    ("c", "stated", "corrected"), [(0.002, 1.84e-4, 1.9e-8), (0.02, 1.84e-3, 1.9e-6), (0.2, 1.87e-2, 2.0e-4)]
)
def test_the_distance_of_descent_from_the_flow(c, stated, corrected):
    """beta = 1, so h = u. From u0 in general the lead is at most c/(2 e (1 + e^u0)) to first order."""
    steps = np.arange(int(60 / c))
    u = recursion(lambda h: -expit(-h), len(steps), c / 2)
    lead = u - growth.dpo_u(steps, c)
    assert lead.max() == pytest.approx(stated, rel=0.01)
    assert lead.min() >= 0
    few = steps[:: len(steps) // 300]
    assert np.abs(u[few] - growth.dpo_u_discrete(few, c)).max() <= 1.05 * corrected
    for u0 in (-2.0, 1.0):
        lead = recursion(lambda h: -expit(-h), len(steps), c / 2, u0) - growth.dpo_u(steps, c, u0)
        assert lead.max() == pytest.approx(c / (2 * math.e * (1 + math.exp(u0))), rel=0.12 * max(1, 10 * c))


def test_momentum_lags_and_then_leads_the_flow():
    """mu = .9, C = c/(1 - mu) = .02: 9 updates behind at first, ahead for good later; the corrected line has both."""
    c, mu = 0.002, 0.9
    steps = np.arange(30_000)
    u = recursion(lambda h: -expit(-h), len(steps), c / 2, momentum=mu)
    lead = u - growth.dpo_u(steps, c / (1 - mu))
    assert lead.min() == pytest.approx(-0.0723, abs=5e-4)
    assert lead.max() == pytest.approx(0.0139, abs=5e-4) and lead[-1] > 0
    few = steps[::100]
    off = np.abs(u[few] - growth.dpo_u_discrete(few, c, momentum=mu))
    assert off.max() < 5.5e-3 and off[-1] < off.max() / 10


def test_time_to_a_margin():
    """beta .1, eta 1: u = 4.6 after 5154 updates of the flow, measured 5153."""
    assert float(growth.dpo_time(4.6, 0.02)) == pytest.approx(5154, abs=1)
    u = 0.1 * recursion(lambda h: -0.1 * expit(-0.1 * h), 5200, 1.0)
    assert np.argmax(u >= 4.6) == pytest.approx(5153, abs=1)


def test_training_follows_the_closed_forms():
    """One stack of SGD runs; the tolerances are errors measured before."""
    beta, eta = 0.5, 0.1
    c = 2 * eta * beta**2
    overrides = {
        "dpo": "",
        "exp": "",
        "hinge": "",
        "ipo": "",
        "robust": "",
        "cdpo": "",
        "dpo ": "optimizer.momentum=0.9 lr=0.01",
    }
    steps = 1200
    runs = configs(*(f"loss={k} beta={beta} lr={eta} {v} steps={steps} {ONE_PAIR}" for k, v in overrides.items()))
    histories = dict(zip(overrides, train(runs)[0], strict=True))
    t = np.arange(steps)
    u = {name: beta * history["margin"] for name, history in histories.items()}
    assert np.abs(u["dpo"] - growth.dpo_u(t, c)).max() < 0.1 * c
    assert np.abs(u["exp"] - growth.exp_u(t, c)).max() < 0.2 * c
    assert np.abs(u["hinge"] / beta - growth.hinge_h(t, beta=beta, eta=eta)).max() < 1e-12
    assert np.abs(u["ipo"] / beta - growth.ipo_h(t, tau=beta, eta=eta)).max() < 1e-12
    few = t[::20]
    heavy = u["dpo "][few] - growth.dpo_u_discrete(few, c / 10, momentum=0.9)  # a tenth of the others' step size
    assert np.abs(heavy).max() < 0.03 and abs(heavy[-1]) < 1e-3
    # dh/dt falls to its limit like beta sigma(-u): beyond the stated limit by 1e-4 of it at the end
    limit = growth.robust_h_slope(beta=beta, epsilon=0.1, eta=eta)
    assert np.diff(u["robust"])[-1] / beta == pytest.approx(limit + 2 * eta * beta * expit(-u["robust"][-1]), rel=1e-4)
    gap = math.log(9) - u["cdpo"]
    rate = -np.diff(np.log(gap[900:1100])).mean()
    assert rate == pytest.approx(growth.cdpo_rate(beta=beta, epsilon=0.1, eta=eta), rel=0.01)


def test_training_probit_follows_its_late_law():
    """at c t = 2e3 the law is .010 above descent."""
    steps, c = 1001, 2.0  # beta = 1, eta = 1
    (history,), _ = train(configs(f"loss=probit beta=1.0 lr=1.0 steps={steps} {ONE_PAIR}"))
    law = growth.probit_u([steps - 1], c)[0]
    assert 0 < law - history["margin"][-1] < 0.02


def test_training_with_weight_decay_stops_where_it_must():
    """lambda h = 2 beta s(-beta h): 21.280345 at beta .1, lambda .001."""
    predicted = growth.decay_h(beta=0.1, weight_decay=1e-3)
    assert predicted == pytest.approx(21.280345, abs=5e-7)
    problem = f"loss=dpo beta=0.1 lr=100 optimizer.weight_decay=1e-3 steps=120 {ONE_PAIR}"
    (history,), _ = train(configs(problem))
    assert history["margin"][-1] == pytest.approx(predicted, abs=1e-9)


def test_one_step_is_predicted_from_the_logged_gradient_norm():
    runs = configs(*(f"loss={name} beta=0.3 lr=0.05 steps=30 {ONE_PAIR}" for name in ("dpo", "ipo", "exp")))
    for run, history in zip(runs, train(runs)[0], strict=True):
        h = history["margin"]
        predicted = growth.one_step(
            eta=run.lr, grad_norm=history["grad_norm"][:-1], slope=weights.slope(run.loss, h[:-1])
        )
        np.testing.assert_allclose(np.diff(h), predicted, rtol=1e-9)


# --- Adam and RMSprop


def adaptive(slope, steps: int, lr: float, betas=(0.9, 0.999), eps: float = 1e-8, corrected: bool = True) -> np.ndarray:
    """torch's Adam (corrected) or RMSprop (betas = (0, alpha)) on one pair of a tabular softmax, h only."""
    h = m = v = 0.0
    history = np.empty(steps)
    for t in range(1, steps + 1):
        history[t - 1] = h
        g = slope(h)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        scale = (1 - betas[0] ** t, 1 - betas[1] ** t) if corrected else (1 - betas[0], 1.0)
        h -= 2 * lr * (m / scale[0]) / (math.sqrt(v / scale[1]) + eps)
    return history


def dpo_slope(beta: float):
    return lambda h: -beta / (1 + math.exp(beta * h))


@pytest.mark.parametrize(
    ("beta", "lr", "measured", "window"),
    [
        (0.1, 1e-3, 1.641e-4, (30_000, 40_000)),
        (0.1, 1e-2, 4.712e-4, (15_000, 18_000)),
        (0.5, 1e-2, 5.003e-4, (15_000, 18_000)),
        (1.0, 1e-2, 5.03e-4, (15_000, 18_000)),
    ],
)
def test_adam_slopes(beta, lr, measured, window):
    """The recursion is the training loop's (next test); u gains kappa an update."""
    kappa = growth.adam_kappa(beta, lr)
    u = beta * adaptive(dpo_slope(beta), window[1] + 1, lr)
    assert (u[window[1]] - u[window[0]]) / (window[1] - window[0]) == pytest.approx(kappa, rel=0.003)
    assert kappa == pytest.approx(measured, rel=0.01)
    assert kappa < growth.adam_cap(0.999)
    assert u[10] == pytest.approx(2 * lr * 10 * beta, rel=0.01)  # the first updates: 2 lr each, whatever beta
    if lr == 1e-2:
        assert u[18_000] == pytest.approx({0.1: 10.71, 0.5: 13.77, 1.0: 14.87}[beta], abs=0.005)


def test_training_with_adam_and_rmsprop_is_the_recursion_and_reaches_the_predicted_slope():
    """beta2 = .99: a tenth of the memory, so a tenth of the updates. Slopes against the quasi-steady curve."""
    steps, beta = 2500, 0.1
    common = f"loss=dpo beta={beta} steps={steps} {ONE_PAIR}"
    runs = configs(f"optimizer=adam optimizer.betas=[0.9,0.99] lr=1e-2 {common}", f"optimizer=rmsprop lr=1e-2 {common}")
    adam, rmsprop = (beta * history["margin"] for history in train(runs)[0])
    recursions = [
        adaptive(dpo_slope(beta), steps, 1e-2, (0.9, 0.99)),
        adaptive(dpo_slope(beta), steps, 1e-2, (0.0, 0.99), corrected=False),
    ]
    for trained, h in zip((adam, rmsprop), recursions, strict=True):
        np.testing.assert_allclose(trained, beta * h, atol=1e-9)

    t = np.arange(steps, dtype=float)
    for trained, betas in ((adam, (0.9, 0.99)), (rmsprop, (0.0, 0.99))):
        predicted = beta * growth.adam_margin(dpo_slope(beta), t, lr=1e-2, betas=betas)
        late = slice(2000, steps)
        assert np.ptp(trained[late]) == pytest.approx(np.ptp(predicted[late]), rel=0.005)
        assert np.ptp(trained[late]) / (steps - 2001) == pytest.approx(growth.adam_kappa(beta, 1e-2, betas), rel=0.01)
    predicted = beta * growth.adam_margin(dpo_slope(beta), t, lr=1e-2, betas=(0.9, 0.99))
    assert np.abs(adam - predicted).max() < 0.05
    # torch's RMSprop does not correct v for its start: ten times lr at alpha = .99
    assert rmsprop[1] / beta == pytest.approx(growth.rmsprop_first_step(1e-2), rel=1e-5)
    assert growth.rmsprop_first_step(1e-3) == pytest.approx(20e-3)


def test_rmsprop_slope_and_cap():
    """(.1, 1e-3): 1.963e-4 measured, 1.961e-4 predicted; cap 5.03e-3."""
    kappa = growth.adam_kappa(0.1, 1e-3, (0.0, 0.99))
    assert kappa == pytest.approx(1.961e-4, abs=5e-8)
    assert growth.adam_cap(0.99) == pytest.approx(5.03e-3, abs=5e-6)
    u = 0.1 * adaptive(dpo_slope(0.1), 30_001, 1e-3, (0.0, 0.99), corrected=False)
    assert (u[30_000] - u[25_000]) / 5000 == pytest.approx(kappa, rel=0.003)


def test_linear_growth_under_adam_ends_where_the_gradient_meets_eps():
    beta, lr = 0.1, 1e-2
    u = beta * adaptive(dpo_slope(beta), 60_000, lr)
    rate = np.diff(u[::1000]) / 1000
    floor = growth.adam_floor_u(beta)
    kappa = growth.adam_kappa(beta, lr)
    before, after = rate[(u[:-1000:1000] > 7) & (u[1000::1000] < floor - 4)], rate[u[:-1000:1000] > floor + 3]
    assert np.abs(before / kappa - 1).max() < 0.01
    assert after.max() < 0.5 * kappa


def test_adam_keeps_a_constant_slope_at_full_step():
    """Robust DPO: its slope tends to a constant, so h gains span lr an update."""
    robust = functools.partial(weights.SLOPES["robust"], beta=0.5, epsilon=0.1)
    h = adaptive(lambda x: float(robust(x)), 12_000, 1e-2)
    assert (h[-1] - h[-1001]) / 1000 == pytest.approx(2e-2, rel=1e-3)


# --- the bandit

ZOO_REF = (0.3, 0.2, 0.25, 0.25)
D1, D2, D3_PRIME = ((0, 1), (1, 2), (0, 2)), ((0, 1), (1, 2), (2, 0)), ((0, 1), (1, 0), (1, 2))
TABLE = {  # tau: D1's (pi_a, pi_b, pi_c), D3's (pi_a = pi_b, pi_c)
    0.05: ((0.998727, 0.001271, 0.000002), (0.499989, 0.000023)),
    0.1: ((0.964370, 0.034403, 0.001227), (0.498321, 0.003358)),
    0.2: ((0.816627, 0.154241, 0.029132), (0.480288, 0.039424)),
    0.5: ((0.562742, 0.288921, 0.148337), (0.422319, 0.155362)),
    1.0: ((0.448441, 0.321322, 0.230237), (0.383652, 0.232697)),
    2.0: ((0.390166, 0.330268, 0.279566), (0.359867, 0.280265)),
    5.0: ((0.355786, 0.332840, 0.311374), (0.344253, 0.311493)),
    10.0: ((0.344504, 0.333210, 0.322286), (0.338842, 0.322316)),
}


@pytest.mark.parametrize("tau", TABLE)
def test_ipo_optimum_is_the_papers_table(tau):
    def pi(pairs):
        return bandit.softmax(bandit.ipo_optimum(bandit.wins_matrix(pairs, 3), np.zeros(3), tau))

    d1, (tied, least) = TABLE[tau]
    np.testing.assert_allclose(pi(D1), d1, atol=6e-7)
    np.testing.assert_allclose(pi(D2), 1 / 3, atol=1e-12)
    np.testing.assert_allclose(pi(D3_PRIME), (tied, tied, least), atol=6e-7)


@pytest.mark.parametrize(("pairs", "taus"), [(D1, (0.1, 0.5, 2.0)), (D2, (0.1,)), (D3_PRIME, (0.1, 1.0))])
def test_training_ipo_reaches_its_optimum_on_any_graph(pairs, taus):
    data = action_pairs(*pairs)
    probabilities = [0.5, 0.3, 0.2]
    reference = np.log(probabilities)
    problem = f"{THREE} model.ref_probs=[0.5,0.3,0.2] lr=0.4 steps=120"
    runs = configs(*(f"loss=ipo beta={tau} {problem}" for tau in taus))
    for tau, history in zip(taus, train(runs, [data] * len(runs))[0], strict=True):
        optimum = bandit.ipo_optimum(bandit.wins_matrix(pairs, 3), reference, tau)
        np.testing.assert_allclose(final_logits(history, 3), optimum - optimum.mean(), atol=1e-9)


def test_ipo_optimum_leaves_what_is_never_compared_where_it_was():
    """D3 as the paper prints it, and a graph of two components: each keeps its own sum of logits."""
    reference = np.array([0.3, -0.2, 1.0, 0.5, -1.0])
    alone = bandit.ipo_optimum(bandit.wins_matrix([(0, 1), (1, 0)], 3), reference[:3], 0.1)
    np.testing.assert_allclose(alone, reference[:3], atol=1e-12)
    moved = bandit.ipo_optimum(bandit.wins_matrix([(0, 1), (2, 3), (2, 4)], 5), reference, 0.5) - reference
    np.testing.assert_allclose(moved, [0.5, -0.5, 2 / 3, -1 / 3, -1 / 3], atol=1e-12)
    with pytest.raises(BadInput, match="wins must be"):
        bandit.ipo_optimum(np.eye(3), np.zeros(3), 0.1)


def test_the_frontier_is_concave_with_slope_beta():
    generator = np.random.default_rng(0)
    ref, reward = generator.dirichlet(np.ones(32)), generator.standard_normal(32)
    betas = np.geomspace(0.05, 5, 400)
    steps = 1e-4 * betas
    above, below = (bandit.kl_reward_frontier(ref, reward, betas + sign * steps) for sign in (1, -1))
    slopes = (above.reward - below.reward) / (above.kl - below.kl)
    assert np.abs(slopes / betas - 1).max() < 1e-6
    exact = bandit.kl_reward_frontier(ref, reward, [0.1, 0.5, 1.0])
    np.testing.assert_allclose(exact.reward, [1.771058, 1.373010, 1.096305], atol=5e-7)
    np.testing.assert_allclose(exact.kl, [2.358095, 0.644363, 0.244512], atol=5e-7)
    assert (exact.objective > 0).all()
    # No policy has more reward at its KL, so none a larger objective.
    others = generator.dirichlet(np.ones(32), size=500)
    for beta, best in zip(exact.betas, exact.objective, strict=True):
        assert (bandit.objective(others, ref, reward, beta) < best).all()


def test_training_dpo_on_bradley_terry_data_reaches_the_frontier():
    """Wins in the exact proportions of strengths 4 : 2 : 1, so that the finite data are their own population."""
    wins = [((0, 1), 2), ((1, 0), 1), ((0, 2), 4), ((2, 0), 1), ((1, 2), 2), ((2, 1), 1)]
    data = action_pairs(*(pair for pair, count in wins for _ in range(count)))
    ref, reward, betas = [0.2, 0.3, 0.5], np.log([4.0, 2.0, 1.0]), (0.5, 1.0, 2.0)
    problem = f"{THREE} model.ref_probs={str(ref).replace(' ', '')} steps=400"
    runs = configs(*(f"loss=dpo beta={beta} lr={4 / beta**2} {problem}" for beta in betas))
    frontier = bandit.kl_reward_frontier(ref, reward, betas)
    for k, history in enumerate(train(runs, [data] * len(runs))[0]):
        pi = np.exp([history[f"log_pi/0/{action}"][-1] for action in range(3)])
        np.testing.assert_allclose(pi, frontier.pi[k], atol=1e-9)
        assert history["exact/kl"][-1] == pytest.approx(frontier.kl[k], abs=1e-9)
        # On the way it is never above: the frontier's reward at the trajectory's own KL.
        path = np.exp([history[f"log_pi/0/{action}"] for action in range(3)]).T
        best = np.array([np.max(frontier.objective[j] + beta * history["exact/kl"]) for j, beta in enumerate(betas)])
        assert np.isfinite(best).all()
        for beta, bound in zip(betas, frontier.objective, strict=True):
            assert (bandit.objective(path, ref, reward, beta) <= bound + 1e-9).all()


def test_probabilities_of_a_margin_are_the_softmax_of_half_of_it_up_and_half_down():
    (history,), _ = train(configs(f"loss=dpo beta=0.5 lr=0.25 steps=300 model.ref_probs=[.3,.2,.25,.25] {ONE_PAIR}"))
    chosen, rejected = bandit.pair_probabilities(history["margin"], 0.3, 0.2)
    np.testing.assert_allclose(chosen, np.exp(history["logps/chosen"]), rtol=1e-12)
    np.testing.assert_allclose(rejected, np.exp(history["logps/rejected"]), rtol=1e-12)
    assert bandit.pair_probabilities(1e5, 0.3, 0.2)[1] == 0.0


@pytest.mark.parametrize(
    ("name", "law", "slope"),
    [  # slopes for beta = .5
        ("dpo", "log t", 2.0),
        ("wpo", "log t", 1 / 1.5),
        ("sft", "log t", 1.0),
        ("nca", "log t", 2.0),
        ("ipo", "settles", 0.0),
        ("probit", "slower than log t", None),
        ("f_dpo", "slower than log t", None),
        ("robust", "linear in t", None),
    ],
)
def test_growth_laws(name, law, slope):
    found = bandit.growth_law(with_beta(name, 0.5), ZOO_REF, eta=0.25)
    assert found.law == law
    assert found.collapses == (law != "settles")
    if slope is not None:
        assert found.slope == pytest.approx(slope, abs=0.01)


def test_a_strong_sequential_kl_stops_tdpo():
    """with single tokens TDPO2 is stationary where pi_w - ref_w = 1/alpha."""
    found = bandit.growth_law(loss("tdpo2", "beta=0.5", "loss.alpha=6"), ZOO_REF, eta=0.25)
    assert found.law == "settles"
    assert found.pi[0] == pytest.approx(0.3 + 1 / 6, abs=1e-6)
    assert found.h == pytest.approx(2.234, abs=5e-4)
