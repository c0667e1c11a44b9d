"""What lengths explain of a loss's variance: the estimate, the losses from probes, and a check that can fail."""

import numpy as np
import pandas as pd
import pytest

from experiments.length_norm import check


def frames(by_length, seeds=6):
    """by_length: of (loss, level), the variance that lengths explain; the rest is 1."""
    rows, ends = [], []
    for loss in ("dpo", "sigmoid_norm", "ipo", "ipo_avg"):
        for seed in range(seeds):
            noise = 1 + 0.01 * seed
            for step, mean in enumerate((1.0, *check.LEVELS, 0.3)):
                value = by_length(loss, mean) * noise
                rows.append({"loss": loss, "beta": 0.1, "seed": seed, "step": step, "mean": mean, "variance": value + 1,
                             "by_length": value, "rest": 1.0})  # fmt: skip
            ends.append({"loss": loss, "beta": 0.1, "seed": seed, "slope": 1.0, "margin": 5.0})
    return {"steps": pd.DataFrame(rows), "ends": pd.DataFrame(ends)}


@pytest.mark.parametrize(
    ("by_length", "expected"),
    [
        (lambda loss, level: 0.1 if loss in ("sigmoid_norm", "ipo_avg") else 0.5, "holds"),
        (lambda loss, level: 0.1 if loss == "sigmoid_norm" else 0.5, "holds under conditions"),
        (lambda loss, level: 0.1 if loss in ("sigmoid_norm", "ipo_avg") and level < 0.8 else 0.5,
         "holds under conditions"),
        (lambda loss, level: 0.5, "refuted"),
        (lambda loss, level: 0.5 if loss in ("sigmoid_norm", "ipo_avg") else 0.1, "refuted"),
    ],
)  # fmt: skip
def test_check(by_length, expected):
    (verdict,) = check.check(frames(by_length))
    assert verdict.claim == "C13" and verdict.outcome == expected


def test_a_loss_that_never_falls_so_far_shows_nothing_there():
    found = frames(lambda loss, level: 0.1 if loss in ("sigmoid_norm", "ipo_avg") else 0.5)
    steps = found["steps"]
    found["steps"] = steps[(steps["loss"] != "dpo") | (steps["mean"] > 0.6)]
    assert check.check(found)[0].outcome == "holds under conditions"


def test_levels_are_met_at_the_first_fall_and_between_evaluations():
    steps = pd.DataFrame({
        "loss": "dpo", "seed": 0, "step": range(5), "mean": [1.0, 0.8, 0.95, 0.6, 0.7], "variance": [0, 2, 9, 4, 9.0],
        "by_length": [0, 1, 9, 3, 9.0],
    })  # fmt: skip
    found = check.at_levels(steps, [0.9, 0.8, 0.7, 0.5]).set_index("level")
    assert found["variance"].tolist()[:3] == pytest.approx([1, 2, 3])
    assert found["by_length"].tolist()[:3] == pytest.approx([0.5, 1, 2])
    assert found.loc[0.5].drop(["loss", "seed"]).isna().all()


def test_lengths_explain_what_depends_on_them_and_nothing_of_what_does_not():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 13, size=(4000, 2)).astype(float)
    signal, noise = 0.3 * (lengths[:, 0] - lengths[:, 1]) ** 2 / 10, rng.standard_normal(4000)
    found = check.explained(signal + noise, lengths)
    assert found["by_length"] == pytest.approx(signal.var(), rel=0.1) and found["rest"] == pytest.approx(1, rel=0.1)
    assert found["variance"] == pytest.approx(found["by_length"] + found["rest"])
    small = [check.explained(rng.standard_normal(30), lengths[:30])["by_length"] for _ in range(400)]
    assert abs(np.mean(small)) < 4 * np.std(small) / 20, "no bias where there is nothing to explain"


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo", lambda a, b, m, n: np.log1p(np.exp(-0.5 * (a - b)))),
        ("sigmoid_norm", lambda a, b, m, n: np.log1p(np.exp(-0.5 * (a / m - b / n)))),
        ("r_dpo", lambda a, b, m, n: np.log1p(np.exp(-0.5 * (a - b) - 0.1 * (m - n)))),
        ("ipo", lambda a, b, m, n: (a - b - 1) ** 2),
        ("ipo_avg", lambda a, b, m, n: (a / m - b / n - 1) ** 2),
    ],
)
def test_losses_of_single_pairs(loss, expected):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 9))
    lengths = rng.integers(1, 13, size=(9, 2)).astype(float)
    found = check.of_pairs(loss, a, b, lengths, {"beta": 0.5, "loss.alpha": 0.1})
    np.testing.assert_allclose(found, expected(a, b, *lengths.T), rtol=1e-12)


def test_the_ratio_of_means_and_its_interval():
    above, below = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert check.ratio_of_means(above, below) == pytest.approx((0.5, 0.5, 0.5))
    ratio, low, high = check.ratio_of_means(np.array([1.0, 3.0, 1.0, 3.0]), np.full(4, 2.0))
    assert low < ratio == 1 < high
