"""The step-0 gate stops a run whose start is not what it must be, and names the likely causes."""

import math

import pytest
import torch

from src.gate import step0_failures
from src.losses import pairwise
from src.losses.base import Facts
from tests.stacks import configs, train

QUICK = "model=tabular dtype=float64 tracking=none steps=2 lr=0.1"


def gate(log_ratio: float, loss: float, overrides: str = "loss=dpo") -> dict[int, str]:
    run = configs(f"{overrides} {QUICK}")
    ratios = torch.full((1, 1, 2), log_ratio, dtype=torch.float64)
    token_logps = torch.full((1, 1, 2, 1), -3.0, dtype=torch.float64)
    return step0_failures(run, ratios, token_logps, torch.tensor([loss], dtype=torch.float64), torch.ones(1, 1))


@pytest.mark.parametrize(("overrides", "start"), [("loss=dpo", math.log(2)), ("loss=ipo beta=0.1", 25.0)])
def test_a_true_start_passes(overrides, start):
    assert gate(0.0, start, overrides) == {}


def test_a_reference_of_something_else_is_caught():
    failures = gate(0.02, math.log(2))
    assert "a log-ratio is 0.02 nats" in failures[0]
    assert "likely causes: reference log-probs of other data" in failures[0]


def test_a_log_ratio_that_is_not_a_number_is_caught():
    assert 0 in gate(float("nan"), math.log(2))


def test_a_loss_that_is_silently_another_is_caught():
    assert "loss=ipo must start at 25 and starts at 0.69" in gate(0.0, math.log(2), "loss=ipo beta=0.1")[0]


def test_independent_policies_have_no_known_start():
    assert gate(3.0, 9.0, "loss=dpo model.init=independent") == {}


def test_a_failing_run_stops_before_its_first_row_and_the_others_go_on(monkeypatch):
    runs = configs(f"loss=dpo {QUICK}", f"loss=ipo {QUICK}")
    monkeypatch.setattr(pairwise.ipo, "facts", Facts(start=lambda beta: 1.0))
    histories, outcomes = train(runs)
    assert [outcome.state for outcome in outcomes] == ["finished", "failed"]
    assert "step-0 gate" in outcomes[1].reason
    assert len(histories[0]["step"]) == 2 and histories[1] == {}
