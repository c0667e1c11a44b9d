"""The check of the study on a real model, on tables written by hand."""

import pandas as pd
import pytest

from experiments.real_135m import check as study

CONDITIONS = "holds under conditions"
LOSSES = ("dpo", "ipo", "ipo_avg", "dpop")


def frames(*, trained=(6.0, 1.1, 40.0, 3.0), trained_wrong=0, held_right=12, chosen=(-2.0, -2.0, -2.0, 0.0)):
    """Per loss: mean margin of trained pairs in units of 1 / (2 beta), mean log-ratio of held-out chosen answers.

    trained_wrong of 16 trained pairs, and all but held_right of 24 held-out ones, have a negative margin.
    """
    rows = []
    for loss, h, a in zip(LOSSES, trained, chosen, strict=True):
        for beta in (0.1, 0.5):
            for i in range(16):
                margin = -1.0 if i < trained_wrong else h / (2 * beta)
                rows.append((loss, beta, "train", margin, 1.0))
            for i in range(24):
                rows.append((loss, beta, "held_out", 1.0 if i < held_right else -1.0, a + 0.1 * (-1) ** i))
    pairs = pd.DataFrame(rows, columns=["loss", "beta", "set", "h", "a"])
    kl = pd.DataFrame([(loss, beta, 0.1 * i) for loss in LOSSES for beta in (0.1, 0.5) for i in range(4)])
    return {"pairs": pairs, "kl": kl.set_axis(["loss", "beta", "k3"], axis=1)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"real-memory": "holds", "real-displacement": "holds", "real-target": "holds", "real-length": "holds"}),
        ({"trained_wrong": 2}, {"real-memory": CONDITIONS}),
        ({"trained_wrong": 5}, {"real-memory": "refuted"}),
        ({"held_right": 20}, {"real-memory": "refuted"}),
        ({"chosen": (1.0, -2.0, -2.0, 0.0)}, {"real-displacement": "refuted"}),
        ({"chosen": (-2.0, -2.0, -2.0, -1.0)}, {"real-displacement": "refuted"}),
        ({"chosen": (-2.0, 1.0, -2.0, 0.0)}, {"real-displacement": CONDITIONS}),
        ({"trained": (6.0, 2.0, 40.0, 3.0)}, {"real-target": "refuted"}),
        ({"trained": (6.0, 1.1, 1.5, 3.0)}, {"real-length": CONDITIONS}),
        ({"trained": (6.0, 1.1, 1.0, 3.0)}, {"real-length": "refuted"}),
    ],
)
def test_each_claim_can_hold_and_fail(given, expected):
    found = {verdict.claim: verdict.outcome for verdict in study.check(frames(**given))}
    assert found.items() >= expected.items()


def test_a_target_met_at_one_beta_is_a_condition():
    made = frames()
    off = (made["pairs"]["loss"] == "ipo") & (made["pairs"]["beta"] == 0.5)
    made["pairs"].loc[off, "h"] *= 3
    assert {v.claim: v.outcome for v in study.check(made)}["real-target"] == CONDITIONS
