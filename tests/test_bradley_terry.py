"""Bradley-Terry against published fits, choix, closed forms, and Ford's condition written out."""

import math
import time
import warnings
from itertools import combinations

import choix
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from src.bradley_terry import Comparisons, NoFiniteEstimate, descend, divergence, existence, fit, nll
from src.errors import BadInput

# Citations between statistics journals (BradleyTerry2 `citations`; Turner & Firth 2012).
CITATIONS = Comparisons.from_records(
    [
        *(("Biometrika", "CommStat", 730), ("CommStat", "Biometrika", 33)),
        *(("Biometrika", "JASA", 498), ("JASA", "Biometrika", 320)),
        *(("Biometrika", "JRSS-B", 221), ("JRSS-B", "Biometrika", 284)),
        *(("CommStat", "JASA", 68), ("JASA", "CommStat", 813)),
        *(("CommStat", "JRSS-B", 17), ("JRSS-B", "CommStat", 276)),
        *(("JASA", "JRSS-B", 142), ("JRSS-B", "JASA", 325)),
    ]
)

# American League East 1987 (Agresti 2002, Table 10.10; BradleyTerry2 `baseball`): all wins, and those at home.
TEAMS = ("Baltimore", "Cleveland", "Boston", "New York", "Toronto", "Detroit", "Milwaukee")
BASEBALL = np.array(
    [
        [0, 7, 1, 3, 1, 4, 2],
        [6, 0, 6, 6, 5, 4, 4],
        [12, 7, 0, 7, 6, 2, 6],
        [10, 7, 6, 0, 6, 8, 6],
        [12, 8, 7, 7, 0, 6, 4],
        [9, 9, 11, 5, 7, 0, 6],
        [11, 9, 7, 7, 9, 7, 0],
    ]
)
AT_HOME = np.array(
    [
        [0, 3, 1, 2, 1, 1, 2],
        [2, 0, 4, 4, 3, 3, 2],
        [6, 5, 0, 4, 3, 2, 5],
        [6, 4, 4, 0, 2, 5, 3],
        [6, 4, 4, 2, 0, 4, 2],
        [4, 6, 6, 4, 4, 0, 3],
        [6, 4, 6, 4, 4, 4, 0],
    ]
)

# A beats B 7/10, A beats C 6/10, C beats B 6/10.
B1 = Comparisons.from_records(
    [("A", "B", 7), ("B", "A", 3), ("A", "C", 6), ("C", "A", 4), ("C", "B", 6), ("B", "C", 4)]
)

# Azar et al. 2023, section 5.4 (D3 as printed never compares c; D3_PRIME adds the pair its text describes).
D1 = Comparisons.from_records([("a", "b"), ("b", "c"), ("a", "c")])
D2 = Comparisons.from_records([("a", "b"), ("b", "c"), ("c", "a")])
D3 = Comparisons.from_records([("a", "b"), ("b", "a")], items="abc")
D3_PRIME = Comparisons.from_records([("a", "b"), ("b", "a"), ("b", "c")])


def quiet_fit(data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoFiniteEstimate)
        return fit(data, **options)


# --- published fits ---


def test_citations():
    f = fit(CITATIONS, reference="Biometrika")
    assert f.scores == pytest.approx([0, -2.949072, -0.479570, 0.268954], abs=1e-6)
    assert f.se == pytest.approx([0, 0.102545, 0.060589, 0.070830], abs=1e-6)
    assert (f.deviance, f.df) == (pytest.approx(4.29338, abs=1e-5), 3)
    assert (f.null_deviance, f.null_df) == (pytest.approx(1925.2329, abs=1e-4), 6)
    assert f.nll == pytest.approx(1622.88981, abs=1e-5)


def test_baseball():
    f = fit(Comparisons.from_matrix(BASEBALL, TEAMS), reference="Baltimore")
    assert f.data.total == 273
    assert f.scores == pytest.approx([0, 0.68385, 1.10770, 1.24762, 1.29449, 1.43641, 1.58136], abs=1e-5)
    assert f.se == pytest.approx([0, 0.3319, 0.3339, 0.3359, 0.3367, 0.3396, 0.3433], abs=1e-4)
    assert (f.deviance, f.df) == (pytest.approx(15.7365, abs=1e-4), 15)
    assert (f.null_deviance, f.null_df) == (pytest.approx(49.6985, abs=1e-4), 21)
    assert f.nll == pytest.approx(172.248176, abs=1e-6)


def test_baseball_with_home_advantage():
    fixtures = [
        (home, away, AT_HOME[i, j], (BASEBALL - AT_HOME)[j, i])
        for i, home in enumerate(TEAMS)
        for j, away in enumerate(TEAMS)
        if i != j
    ]
    f = fit(Comparisons.from_fixtures(fixtures, TEAMS), reference="Baltimore")
    assert f.scores == pytest.approx([0, 0.70469, 1.14380, 1.28134, 1.32711, 1.47536, 1.61955], abs=1e-5)
    assert f.home == pytest.approx(0.30226, abs=1e-5)
    assert f.home_se == pytest.approx(0.130944, abs=1e-6)
    shares = np.sort(f.strengths / f.strengths.sum())  # Agresti, Table 10.11
    assert shares.round(3).tolist() == [0.044, 0.088, 0.137, 0.157, 0.164, 0.190, 0.220]
    assert (f.df, f.null_df) == (35, 42)
    without = fit(Comparisons.from_matrix(BASEBALL, TEAMS))
    assert f.nll < without.nll


def test_the_notes_example_is_fitted_to_one_column_of_its_table():
    """B1, C17. The notes' w_B = -.8473, w_C = -.4055 are A's two log-odds; C's games with B are not in them."""
    f = fit(B1, reference="A")
    assert f.scores == pytest.approx([0, -0.8341052, -0.4170526], abs=1e-7)
    assert f.probability("B", "C") == pytest.approx(0.397222, abs=1e-6)
    assert f.probability("C", "B") == pytest.approx(0.602778, abs=1e-6)  # the notes: .609; the games: .6
    notes = np.array([0, -0.8473, -0.4055])
    assert notes[1:] == pytest.approx([-math.log(7 / 3), -math.log(6 / 4)], abs=5e-5)
    assert 1 / (1 + math.exp(notes[2] - notes[1])) == pytest.approx(0.391, abs=5e-4)
    assert nll(B1, notes) - f.nll == pytest.approx(0.001076, abs=1e-6)  # not the maximum, though within any error bar
    without_cb = Comparisons.from_records([("A", "B", 7), ("B", "A", 3), ("A", "C", 6), ("C", "A", 4)])
    assert fit(without_cb, reference="A").scores == pytest.approx(notes, abs=5e-5)


# --- against choix ---


def random_connected(seed: int) -> Comparisons:
    generator = np.random.default_rng(seed)
    while True:
        n = int(generator.integers(2, 10))
        met = generator.random((n, n)) < generator.choice([0.3, 0.6, 1.0])
        wins = generator.poisson(generator.choice([0.5, 3.0]), (n, n)) * met * (1 - np.eye(n, dtype=int))
        if wins.any() and existence(data := Comparisons.from_matrix(wins)).finite:
            return data


@pytest.mark.parametrize("seed", range(25))
def test_equal_to_choix(seed):
    data = random_connected(seed)
    games = [(i, j) for i, j in np.argwhere(data.wins > 0) for _ in range(int(data.wins[i, j]))]
    ours = fit(data).scores
    spectral = choix.ilsr_pairwise(data.n, games, max_iter=10_000, tol=1e-11)
    newton = choix.opt_pairwise(data.n, games, alpha=0.0, tol=1e-10)
    assert ours == pytest.approx(spectral, abs=1e-8)
    assert ours == pytest.approx(newton - newton.mean(), abs=1e-6)


# --- the estimate ---


@given(seed=st.integers(0, 10_000), data=st.data(), link=st.sampled_from(["logistic", "probit"]))
@settings(deadline=None, max_examples=25)
def test_relabelling_items_relabels_the_estimate(seed, data, link):
    games = random_connected(seed)
    order = np.array(data.draw(st.permutations(range(games.n))))
    f, shuffled = fit(games, link=link), fit(Comparisons.from_matrix(games.wins[np.ix_(order, order)]), link=link)
    assert shuffled.scores == pytest.approx(f.scores[order], abs=1e-9)
    assert shuffled.se == pytest.approx(f.se[order], abs=1e-9)


@given(seed=st.integers(0, 10_000), link=st.sampled_from(["logistic", "probit"]))
@settings(deadline=None, max_examples=25)
def test_only_differences_are_identified(seed, link):
    games = random_connected(seed)
    free, pinned = fit(games, link=link), fit(games, link=link, reference=games.items[-1])
    assert free.scores.sum() == pytest.approx(0, abs=1e-9)
    assert pinned.scores[-1] == 0 and pinned.se[-1] == 0
    assert pinned.scores == pytest.approx(free.scores - free.scores[-1], abs=1e-9)
    assert (pinned.nll, pinned.deviance) == pytest.approx((free.nll, free.deviance), abs=1e-10)
    assert nll(games, free.scores + 3.0, link=link) == pytest.approx(free.nll, rel=1e-12)
    contrast = free.covariance[0, 0] + free.covariance[-1, -1] - 2 * free.covariance[0, -1]
    assert pinned.se[0] ** 2 == pytest.approx(contrast, rel=1e-9)


@pytest.mark.parametrize("link", ["logistic", "probit"])
def test_standard_errors_are_those_of_the_information_matrix_without_the_reference(link):
    """By autograd: E[(d log-likelihood)^2] summed over comparisons, for the scores other than the reference."""
    f = fit(CITATIONS, link=link, reference="JASA")
    scores = torch.tensor(f.scores, requires_grad=True)
    cdf = torch.sigmoid if link == "logistic" else torch.special.ndtr
    information = torch.zeros(4, 4, dtype=torch.float64)
    for i, j in combinations(range(4), 2):
        p = cdf(scores[i] - scores[j])
        (d,) = torch.autograd.grad(p, scores)
        games = CITATIONS.wins[i, j] + CITATIONS.wins[j, i]
        information += games * torch.outer(d, d) / (p * (1 - p)).detach()
    keep = [0, 1, 3]
    se = torch.linalg.inv(information[keep][:, keep]).diagonal().sqrt()
    assert f.se[keep] == pytest.approx(se.numpy(), rel=1e-9)


@pytest.mark.parametrize("link", ["logistic", "probit"])
@pytest.mark.parametrize("seed", range(5))
def test_the_estimate_is_the_maximum(seed, link):
    games, generator = random_connected(seed), np.random.default_rng(seed)
    f = fit(games, link=link)
    nearby = f.scores + 10.0 ** generator.uniform(-4, 1, (500, 1)) * generator.normal(size=(500, games.n))
    assert (nll(games, nearby, link=link) >= f.nll - 1e-10).all()


def test_probit_is_logistic_on_a_scale_more_than_half_as_wide_again():
    logistic, probit = (fit(CITATIONS, link=link) for link in ("logistic", "probit"))
    ratio = logistic.scores / probit.scores
    assert ((ratio > 1.6) & (ratio < 2.0)).all()  # sqrt(8/pi) = 1.60 for slight preferences, more for strong ones
    assert np.nanmax(abs(logistic.probabilities - probit.probabilities)) < 0.02
    assert probit.nll > logistic.nll  # on these data, logistic is the better of the two
    pair = fit(Comparisons.from_matrix([[0, 975], [25, 0]]), link="probit", reference=1)
    assert pair.scores[0] == pytest.approx(1.959964, abs=1e-6)  # Phi^-1(.975)


def test_a_saturated_model_has_no_deviance():
    f = fit(Comparisons.from_matrix([[0, 7], [3, 0]], "AB"), reference="B")
    assert f.scores[0] == pytest.approx(math.log(7 / 3), rel=1e-12)
    assert f.se[0] == pytest.approx(math.sqrt(1 / 7 + 1 / 3), rel=1e-12)
    assert (f.deviance, f.df) == (pytest.approx(0, abs=1e-12), 0)


def test_expected_wins_as_weights_give_the_scores_they_came_from():
    """DPO's population problem in a bandit: soft labels s(r_i - r_j) on all pairs have their optimum at r."""
    r = np.random.default_rng(0).normal(size=6)
    soft = 1 / (1 + np.exp(r - r[:, None])) * (1 - np.eye(6))
    f = fit(Comparisons.from_matrix(soft, weighted=True))
    assert f.scores == pytest.approx(r - r.mean(), abs=1e-12)
    assert f.deviance == pytest.approx(0, abs=1e-12)


# --- existence ---


def fords_condition(wins: np.ndarray) -> bool:
    """For every split into two, some item of each part beat one of the other. As he wrote it."""
    items = range(len(wins))
    return all(
        wins[np.ix_(part, rest := [i for i in items if i not in part])].any() and wins[np.ix_(rest, part)].any()
        for size in range(1, len(wins))
        for part in map(list, combinations(items, size))
    )


@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.sampled_from([0, 0, 1, 3]), min_size=n * n, max_size=n * n)))
@settings(deadline=None)
def test_existence_is_fords_condition(entries):
    n = math.isqrt(len(entries))
    wins = np.reshape(entries, (n, n)) * (1 - np.eye(n, dtype=int))
    assume(wins.any())
    data = Comparisons.from_matrix(wins)
    assert existence(data).finite == fords_condition(wins)
    assert np.isfinite(quiet_fit(data).scores).all()


def test_the_four_data_sets():
    assert existence(D2).finite
    assert fit(D2).scores == pytest.approx([0, 0, 0])
    assert existence(D1).problems == ("{a} never lost to {b, c}",)
    assert existence(D3_PRIME).problems == ("{a, b} never lost to {c}",)
    assert existence(D3).problems == ("no comparison joins {a, b} and {c}",)


def test_what_an_infinite_estimate_still_says():
    data = Comparisons.from_records([("a", "b", 3), ("b", "a"), ("b", "c"), ("d", "c"), ("x", "y", 2), ("y", "x", 2)])
    with pytest.warns(NoFiniteEstimate, match=r"\{a, b\} never lost to \{c, d\}; \{d\} never lost .* joins") as caught:
        f = fit(data, reference="b")
    assert len(caught) == 1
    assert f.existence.groups.tolist() == [0, 0, 1, 2, 3, 3]
    assert f.existence.components.tolist() == [0, 0, 0, 0, 1, 1]
    assert f.scores == pytest.approx([math.log(3), 0, 0, 0, 0, 0], abs=1e-12)
    assert f.probability("a", "b") == pytest.approx(0.75)
    assert f.probability("a", "c") == 1 and f.probability("c", "a") == 0  # through b
    assert math.isnan(f.probability("a", "d"))  # both only ever beat c
    assert math.isnan(f.probability("a", "x"))
    assert f.probability("x", "y") == pytest.approx(0.5)
    assert f.nll == pytest.approx(-3 * math.log(0.75) - math.log(0.25) + 4 * math.log(2))  # b-c and d-c cost nothing
    assert f.df == 4 - (6 - 2)


def test_with_a_home_advantage_a_finite_estimate_needs_more():
    def fixtures(*rows):
        return fit(Comparisons.from_fixtures(rows))

    with pytest.raises(BadInput, match="never lost to"):
        fixtures(("A", "B", 3, 0), ("B", "A", 0, 2))
    with pytest.raises(BadInput, match="home advantage cannot be told"):
        fixtures(("A", "B", 3, 1))
    with pytest.raises(BadInput, match="no finite estimate with a home advantage"):
        fixtures(("A", "B", 3, 0), ("B", "A", 2, 0))  # the home side always wins
    even = fixtures(("A", "B", 3, 1), ("B", "A", 3, 1))
    assert even.scores == pytest.approx([0, 0], abs=1e-12)
    assert even.home == pytest.approx(math.log(3), rel=1e-12)


# --- gradient descent ---


@pytest.mark.parametrize("reference", [None, "CommStat"])
@pytest.mark.parametrize("parametrisation", ["scores", "strengths"])
def test_updates_are_those_of_autograd(parametrisation, reference):
    """C1 too: the exp, ratio and sigmoid forms are one function."""
    start = np.array([0.3, 0.0, -0.2, 0.5])
    after = descend(CITATIONS, epochs=3, lr=0.5, parametrisation=parametrisation, reference=reference, start=start)
    theta = torch.tensor(start).exp() if parametrisation == "strengths" else torch.tensor(start)
    wins = torch.tensor(CITATIONS.wins)
    for epoch in range(4):
        s = theta.log() if parametrisation == "strengths" else theta
        expected = s - (s.mean() if reference is None else s[1])
        assert after.scores[epoch] == pytest.approx(expected.numpy(), abs=1e-13)
        theta = theta.detach().requires_grad_()
        alpha = theta if parametrisation == "strengths" else theta.exp()
        p = alpha[:, None] / (alpha[:, None] + alpha)
        loss = -(wins * p.log()).sum() / wins.sum()
        assert after.losses[epoch] == pytest.approx(loss.item(), rel=1e-13)
        (gradient,) = torch.autograd.grad(loss, theta)
        if reference is not None:
            gradient[1] = 0
        theta = (theta - 0.5 * gradient).detach()


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=2))
def test_exp_ratio_and_sigmoid_forms_are_the_same_function(scores):
    a, b = torch.tensor(scores, dtype=torch.float64)
    sigmoid = torch.sigmoid(a - b).item()
    assert (a.exp() / (a.exp() + b.exp())).item() == pytest.approx(sigmoid, rel=1e-12)
    assert (1 / (1 + b.exp() / a.exp())).item() == pytest.approx(sigmoid, rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"parametrisation": "strengths"}, {"link": "probit"}])
@pytest.mark.parametrize("reference", [None, "A"])
def test_training_a_hundred_times_longer_changes_little_where_the_estimate_is_finite(options, reference):
    """C2 is false here: 100 epochs are near the estimate and 10,000 are on it, from where nothing moves."""
    d = descend(B1, epochs=10_000, lr=1.0, reference=reference, at=[100, 9_000, 10_000], **options)
    estimate = fit(B1, reference=reference, link=options.get("link", "logistic"))
    assert d.epochs.tolist() == [100, 9_000, 10_000]
    assert abs(d.scores[0] - estimate.scores).max() < 0.1
    assert d.scores[2] == pytest.approx(estimate.scores, abs=1e-9)
    assert d.scores[1] == pytest.approx(d.scores[2], abs=1e-9)
    assert d.losses[2] * B1.total == pytest.approx(estimate.nll, rel=1e-12)


def test_losses_fall_and_every_epoch_is_kept():
    d = descend(CITATIONS, epochs=500, lr=1.0)
    assert d.scores.shape == (501, 4)
    assert (np.diff(d.losses) < 1e-15).all()
    assert d.losses[0] == pytest.approx(math.log(2))
    assert d.strengths[-1] == pytest.approx(np.exp(d.scores[-1]))


def test_a_hundred_thousand_epochs_on_five_items_take_seconds():
    five = Comparisons.from_matrix(np.random.default_rng(0).poisson(5, (5, 5)) * (1 - np.eye(5)))
    started = time.perf_counter()
    d = descend(five, epochs=100_000, lr=1.0)
    assert time.perf_counter() - started < 10  # about 1 s on one core
    assert d.scores.shape == (100_001, 5)
    assert d.scores[-1] == pytest.approx(fit(five).scores, abs=1e-9)


def test_in_strengths_an_item_that_never_won_reaches_zero_in_finite_time():
    """alpha' = -lr / (1 + alpha), alpha(0) = 1, gives (1 + alpha)^2 = 4 - 2 lr t: zero at t = 3 / (2 lr)."""
    data = Comparisons.from_records([("A", "B")])
    d = descend(data, epochs=10_000, lr=1e-3, parametrisation="strengths", reference="A")
    assert "strength of B" in d.left
    assert d.epochs[-1] == pytest.approx(1500, abs=5)
    t = np.array([0, 500, 1000, 1400])
    assert d.strengths[t, 1] == pytest.approx(np.sqrt(4 - 2e-3 * t) - 1, abs=1e-3)
    assert not descend(data, epochs=10_000, lr=1e-3, reference="A", at=[10_000]).left  # in scores it never ends


# --- divergence ---


def test_max_margin_direction_and_growth_on_d1():
    """u_ab -> log(lr t / 3), slope 1; u_ac slope 2."""
    v = divergence(D1)
    assert v.direction == pytest.approx(np.array([1, 0, -1]) / math.sqrt(2), abs=1e-12)
    assert v.slopes == pytest.approx([1, 0, -1], abs=1e-12)
    # DPO at tau = .5, eta = 3 is lr = eta tau^2 = .75 here; the prediction of u_ab at t = 1e6 is 12.42922.
    assert v.scores(1e6, lr=0.75) @ [1, -1, 0] == pytest.approx(12.42922, abs=5e-6)
    d = descend(D1, epochs=50_000, lr=6.0, at=[5_000, 50_000])
    gaps = d.scores @ np.array([[1, -1, 0], [1, 0, -1]]).T
    assert (gaps[1] - gaps[0]) / math.log(10) == pytest.approx([1, 2], abs=1e-3)
    assert d.scores[-1] == pytest.approx(v.scores(50_000, lr=6.0), abs=1e-3)
    assert d.scores[-1] / np.linalg.norm(d.scores[-1]) == pytest.approx(v.direction, abs=1e-9)


@pytest.mark.parametrize(
    ("records", "reference", "slopes"),
    [
        ([("a", "b"), ("b", "a"), ("b", "c")], None, [1 / 3, 1 / 3, -2 / 3]),
        ([("a", "b", 3), ("b", "a"), ("b", "c"), ("d", "c"), ("a", "c", 2)], None, [0.25, 0.25, -0.75, 0.25]),
        ([("a", "b", 3), ("b", "a"), ("b", "c"), ("d", "c"), ("a", "c", 2)], "c", [1, 1, 0, 1]),
        ([("a", "b", 3), ("b", "a"), ("b", "c")], "b", [0, 0, -1]),
        ([("a", "b"), ("b", "c"), ("a", "c"), ("x", "y", 3), ("y", "x")], None, [1, 0, -1, 0, 0]),
    ],
)
def test_gradient_descent_follows_the_prediction(records, reference, slopes):
    """Pairs that are decided grow as log t; pairs that are not converge meanwhile."""
    data = Comparisons.from_records(records)
    v = divergence(data, reference=reference)
    assert v.slopes == pytest.approx(slopes, abs=1e-9)
    d = descend(data, epochs=30_000, lr=2.0, reference=reference, at=[1_000, 30_000])
    measured = (d.scores[1] - d.scores[0]) / math.log(30)
    assert measured == pytest.approx(v.slopes, abs=0.02)
    assert d.scores[1] == pytest.approx(v.scores(30_000, lr=2.0), abs=0.02)


def test_a_finite_estimate_is_its_own_limit():
    for reference in (None, "B"):
        v = divergence(B1, reference=reference)
        assert v.slopes.tolist() == v.direction.tolist() == [0, 0, 0]
        assert v.scores(100, lr=1.0) == pytest.approx(fit(B1, reference=reference).scores, abs=1e-12)


def test_where_the_limit_depends_on_the_path_it_is_not_predicted():
    """a > b, c > d, a > d: the last win is tight with multiplier 0, and its gap grows by log log t besides."""
    v = divergence(Comparisons.from_records([("a", "b"), ("c", "d"), ("a", "d")]))
    assert v.slopes == pytest.approx([0.5, -0.5, 0.5, -0.5], abs=1e-9)
    assert np.isnan(v.offsets).all()


@given(
    st.integers(2, 6).flatmap(lambda n: st.lists(st.sampled_from([0, 0, 1]), min_size=n * n, max_size=n * n)),
    st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_direction_is_the_least_norm_vector_with_unit_margins(entries, pin):
    """Against SLSQP on the problem as stated, one constraint a win."""
    n = math.isqrt(len(entries))
    wins = np.reshape(entries, (n, n)) * (1 - np.eye(n, dtype=int))
    assume(wins.any())
    data = Comparisons.from_matrix(wins)
    v, groups = divergence(data, reference=0 if pin else None), existence(data).groups
    rows = [(np.eye(n)[i] - np.eye(n)[j], groups[i] != groups[j]) for i, j in np.argwhere(wins > 0)]
    equal = [row for row, apart in rows if not apart] + ([np.eye(n)[0]] if pin else [])
    constraints = [{"type": "ineq", "fun": lambda w, r=row: r @ w - 1} for row, apart in rows if apart]
    constraints += [{"type": "eq", "fun": lambda w, r=row: r @ w} for row in _independent(equal)]
    oracle = minimize(
        lambda w: w @ w,
        np.zeros(n),
        jac=lambda w: 2 * w,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert all(row @ v.slopes >= 1 - 1e-9 for row, apart in rows if apart)
    assert all(abs(row @ v.slopes) < 1e-9 for row in equal)
    assert v.slopes @ v.slopes <= oracle.fun + 1e-6
    assert v.slopes == pytest.approx(oracle.x, abs=1e-4)


def _independent(rows):
    kept = []
    for row in rows:
        if np.linalg.matrix_rank(np.array([*kept, row])) > len(kept):
            kept.append(row)
    return kept


# --- refusals ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Comparisons.from_matrix([[0]]), "at least 2 items, got 1"),
        (lambda: Comparisons.from_matrix(3.0), "at least 2 items, got 0"),
        (lambda: Comparisons.from_records([]), "at least 2 items, got 0"),
        (lambda: Comparisons.from_records([], items="AB"), "no comparisons"),
        (lambda: Comparisons.from_matrix([[0, 1, 2], [0, 0, 1]]), "must be a 2 x 2 matrix"),
        (lambda: Comparisons.from_matrix([[0, "x"], [1, 0]]), "must be a matrix of numbers"),
        (lambda: Comparisons.from_matrix([[0, 1], [1, 0]], ["A", "A"]), "items must differ"),
        (lambda: Comparisons.from_matrix([[0, -1], [2, 0]], "AB"), "wins of A over B must be a count >= 0, got -1"),
        (lambda: Comparisons.from_matrix([[0, math.nan], [2, 0]]), "must be a count >= 0, got nan"),
        (lambda: Comparisons.from_matrix([[1, 1], [2, 0]], "AB"), "A cannot beat itself .* no ties"),
        (lambda: Comparisons.from_matrix([[0, 0.5], [2, 0]], "AB"), "whole number, got 0.5 .* halves .* no ties"),
        (lambda: Comparisons.from_records([("A", None), ("A", "B")]), "record 0 has no winner or no loser.* no ties"),
        (lambda: Comparisons.from_records([("A", "A")]), "record 0: A cannot beat itself; if it is a tie"),
        (lambda: Comparisons.from_records([("A", "B", "tie")]), "record 0: a count .* got 'tie'; .* no ties"),
        (lambda: Comparisons.from_records([("A", "B", -2)]), "number >= 0, got -2"),
        (lambda: Comparisons.from_records([("A",)]), "record 0 must have 2 or 3 fields"),
        (lambda: Comparisons.from_records([("A", "B")], items="AC"), r"items \['B'\] are compared but not among"),
        (lambda: Comparisons.from_fixtures([("A", "B", 1)]), "record 0 must have 4 fields"),
        (
            lambda: Comparisons(("A", "B"), np.array([[0, 1], [1, 0]]), np.array([[0, 2], [0, 0]])),
            "A beat B 2 times at home but only 1 times",
        ),
        (lambda: fit(B1, link="cauchit"), "unknown link 'cauchit': one of logistic, probit"),
        (lambda: fit(B1, reference="Z"), "unknown item 'Z': known are"),
        (lambda: descend(B1, epochs=-1, lr=1.0), "epochs must be >= 0"),
        (lambda: descend(B1, epochs=1, lr=0.0), "lr must be > 0"),
        (lambda: descend(B1, epochs=1, lr=1.0, parametrisation="odds"), "one of scores, strengths"),
        (lambda: descend(B1, epochs=1, lr=1.0, parametrisation="strengths", link="probit"), "logistic link"),
        (lambda: descend(B1, epochs=1, lr=1.0, start=[0.0]), "start must be 3 finite scores"),
        (lambda: descend(B1, epochs=1, lr=1.0, at=[2]), "between 0 and 1, got 2 to 2"),
    ],
)
def test_refusals_name_what_is_wrong(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_refusals_of_home_sides_where_they_mean_nothing():
    data = Comparisons.from_fixtures([("A", "B", 3, 1), ("B", "A", 3, 1)])
    with pytest.raises(BadInput, match="no home advantage"):
        descend(data, epochs=1, lr=1.0)
    with pytest.raises(BadInput, match="without home sides"):
        divergence(data)


def test_records_and_matrix_say_the_same():
    records = [(1, 0), (1, 0, 2), (0, 1), (2, 1, np.int64(4))]
    data = Comparisons.from_records(records, items=range(3))
    assert data.wins.tolist() == [[0, 1, 0], [3, 0, 0], [0, 4, 0]]
    assert Comparisons.from_matrix(data.wins).items == data.items
    assert Comparisons.from_records(records).items == (1, 0, 2)
