"""The study beside TRL: its verdict on hand-made frames. tests/test_trl_parity.py compares on a real model."""

import numpy as np
import pandas as pd
import pytest

from experiments.vs_trl import check as vs_trl


def frames(away=lambda loss, optimizer: 1e-6):
    parts = [
        pd.DataFrame(
            {
                "loss": loss, "optimizer": optimizer, "seed": seed, "quantity": quantity, "update": range(10),
                "trl": np.linspace(0, 2, 10), "ours": np.linspace(0, 2, 10) + 2 * away(loss, optimizer),
            }
        )
        for loss in ("dpo", "ipo_avg") for optimizer in ("sgd", "adamw") for seed in (0, 1)
        for quantity in vs_trl.QUANTITIES
    ]  # fmt: skip
    differences = pd.concat(parts, ignore_index=True)
    seconds = differences[["loss", "optimizer", "seed"]].drop_duplicates().assign(ours=0.01, trl=0.03)
    return {"differences": differences, "seconds": seconds}


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (frames(), "holds"),
        (frames(lambda *_: 0.9e-3), "holds"),
        (frames(lambda loss, optimizer: 2e-3 if optimizer == "adamw" else 0.0), "holds under conditions"),
        (frames(lambda *_: 2e-3), "refuted"),
        (frames(lambda *_: np.nan), "refuted"),
    ],
)
def test_outcomes(made, outcome):
    (verdict,) = vs_trl.check(made)
    assert (verdict.claim, verdict.outcome) == ("C15", outcome)


def test_differences_are_of_the_largest_value_of_each_run():
    assert vs_trl.relative(frames(lambda *_: 5e-4)["differences"]).to_numpy() == pytest.approx(5e-4)


def test_the_ratio_of_times_is_stated_and_no_claim():
    (verdict,) = vs_trl.check(frames())
    ratios = [number for number in verdict.numbers if "no claim" in number.quantity]
    assert [number.measured for number in ratios] == pytest.approx([3.0, 3.0])
