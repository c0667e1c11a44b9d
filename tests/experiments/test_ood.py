"""The study of what collapse costs: its verdicts on hand-made frames, and its closed forms."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.ood import check as ood
from experiments.ood import force, unseen
from src.data.pairs import PairData
from src.data.toy import gold
from tests.stacks import configs, train

CONDITIONS = "holds under conditions"


def table(**h):
    """Margins at the end; the rest as the closed forms have them."""
    rows = []
    for sweep in ("certain", "uncertain"):
        for loss in ("dpo", "ipo"):
            for beta in (0.1, 0.5, 1.0):
                for ref in (0.5, 0.2):
                    end = force.expected(sweep, loss, beta, ref, 0.2, 3000)
                    margin = h.get(f"{sweep}_{loss}", lambda beta, ref, end=end: end)(beta, ref)
                    rows.append(
                        {"sweep": sweep, "loss": loss, "beta": beta, "ref": ref, "form": "", "h": margin,
                         "chosen": float(force.chosen(margin, ref)), "expected": end, "pull": 1e-3}
                    )  # fmt: skip
    for form in ("reverse", "forward"):
        end = force.equilibrium(1.0, 1.0, 0.5, form)
        rows.append({"sweep": "penalty", "loss": "dpo", "beta": 1.0, "ref": 0.5, "form": form, "h": end,
                     "chosen": 0.9, "expected": end, "pull": 1.0})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (table(), "holds"),
        (table(certain_dpo=lambda beta, ref: 1.0 if beta == 1 else 20.0), CONDITIONS),
        (table(certain_dpo=lambda beta, ref: 1.0), "refuted"),
        # Two references, one policy that is far from deterministic.
        (table(uncertain_ipo=lambda beta, ref: 0.4 - math.log(ref / (1 - ref))), "refuted"),
    ],
)
def test_c6(made, outcome):
    verdict = force.verdict(made)
    assert (verdict.claim, verdict.outcome) == ("C6", outcome)


PAIRS = pd.DataFrame({"loss": ["dpo", "kto", "bco"], "difference": [1.0, 1e-12, 1e-12], "moved": [2.0, 2.0, 2.0]})


def runs(gap=lambda labels, beta, test: 0.1, u=5.0, noise=0.01):
    """gap: by how much DPO is worse."""
    generator = np.random.default_rng(0)
    rows = [
        {"run": "x", "loss": loss, "beta": beta, "labels": labels, "seed": seed, "u": u,
         "early": 0.8, "early_u": 0.5, "reward": 1.0, "kl": 2.0, "chosen": -5.0,
         "mass_chosen": 0.5, "mass_rejected": 0.0}
        | {test: 0.8 - (loss == "dpo") * gap(labels, beta, test) + noise * generator.standard_normal()
           for test in ("accuracy", "longer")}
        for labels in ("certain", "sampled") for beta in (0.1, 0.5) for seed in range(8) for loss in ("dpo", "ipo")
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("made", "pairs", "outcome"),
    [
        (runs(), PAIRS, "holds"),
        (runs(u=4.0), PAIRS, CONDITIONS),
        (runs(lambda labels, beta, test: 0.1 * (labels == "sampled")), PAIRS, CONDITIONS),
        (runs(lambda labels, beta, test: 0.1 * (test == "longer")), PAIRS, CONDITIONS),
        (runs(lambda *_: 0.0), PAIRS, "refuted"),
        (runs(lambda *_: -0.1), PAIRS, "refuted"),
        (runs(noise=1.0), PAIRS, "refuted"),
        (runs(), PAIRS.assign(difference=1e-12), "refuted"),
        (runs(), PAIRS.assign(difference=1.0), "refuted"),
    ],
)
def test_c19(made, pairs, outcome):
    verdict = unseen.verdict(made, pairs)
    assert (verdict.claim, verdict.outcome) == ("C19", outcome)


def test_one_verdict_for_each_claim():
    made = {"table": table(), "runs": runs(), "evaluations": pd.DataFrame(), "pairing": PAIRS}
    assert [verdict.claim for verdict in ood.check(made)] == ["C6", "C19"]


@pytest.mark.parametrize("form", ["reverse", "forward"])
@pytest.mark.parametrize("ref", [0.5, 0.2])
def test_the_pull_is_the_slope_of_the_kl(form, ref):
    h, step = np.array([0.3, 1.5, 6.0]), 1e-6

    def kl(at):
        pi = np.stack([force.chosen(at, ref), 1 - force.chosen(at, ref)])
        p = np.array([[ref], [1 - ref]])
        return (pi * np.log(pi / p)).sum(0) if form == "reverse" else (p * np.log(p / pi)).sum(0)

    slope = (kl(h + step) - kl(h - step)) / (2 * step)
    np.testing.assert_allclose(force.pull(h, ref, form), slope, rtol=1e-6, atol=1e-9)


CERTAIN = "model=tabular model.actions=2 data=synthetic data.p_star=1.0 data.comparisons=1 dtype=float64 tracking=none"
UNCERTAIN = (
    "model=tabular model.actions=2 data=token_ids batch_size=full dtype=float64 tracking=none "
    "data.rows=[[[0],[1],[2]],[[0],[1],[2]],[[0],[1],[2]],[[0],[1],[2]],[[0],[2],[1]]]"
)


@pytest.mark.parametrize(
    ("sweep", "run", "form"),
    [
        ("certain", f"loss=dpo beta=0.5 {CERTAIN}", ""),
        ("certain", f"loss=ipo beta=0.5 {CERTAIN}", ""),
        ("uncertain", f"loss=dpo beta=0.5 {UNCERTAIN}", ""),
        ("uncertain", f"loss=ipo beta=0.5 {UNCERTAIN}", ""),
        ("penalty", f"loss=dpo beta=1.0 kl_coef=1.0 kl_form=reverse {CERTAIN}", "reverse"),
        ("penalty", f"loss=dpo beta=0.5 kl_coef=0.5 kl_form=forward {CERTAIN}", "forward"),
    ],
)
def test_training_ends_at_the_closed_form(sweep, run, form):
    (config,) = configs(f"{run} lr=0.2 steps=1001 model.ref_probs=[0.2,0.8]")
    (history,), _ = train([config])
    h = history["log_pi/0/0"] - history["log_pi/0/1"] - math.log(0.25)
    expected = force.expected(sweep, config.loss.name, config.beta, 0.2, 0.2, 1000, form)
    assert h[-1] == pytest.approx(expected, abs=2e-3)


def test_a_reverse_kl_of_weight_beta_stops_nothing_at_small_beta():
    assert math.isinf(force.equilibrium(0.1, 0.1, 0.5, "reverse"))
    assert force.equilibrium(1.0, 1.0, 0.5, "reverse") == pytest.approx(1.278, abs=1e-3)  # h sigma(h) = 1
    assert all(force.equilibrium(beta, beta, 0.5, "forward") < 5 for beta in (0.1, 0.5, 1.0))


def test_other_pairs_of_the_same_responses():
    data = gold(
        prompts=3, held_out=0, comparisons=4, vocabulary=16, prompt_tokens=2, response_tokens=[3, 3], spread=1.0,
        labels="certain", seed=0,
    )  # fmt: skip
    other = unseen.repaired(data)

    def sides(pairs: PairData, side):
        return sorted(zip(pairs.prompts, getattr(pairs, side), strict=True))

    assert sides(other, "chosen") == sides(data, "chosen") and sides(other, "rejected") == sides(data, "rejected")
    assert all(one != two for one, two in zip(data.responses, other.responses, strict=True))


def test_the_pairing_matters_to_dpo_and_not_to_kto():
    found = unseen.pairing(("dpo", "kto")).set_index("loss")
    assert found.loc["dpo", "difference"] > 1e-3 and found.loc["kto", "difference"] < unseen.SAME
    assert (found["moved"] > 0.1).all()
