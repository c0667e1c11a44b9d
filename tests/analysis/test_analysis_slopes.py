"""The gradient weights that figures draw, against autograd of the losses themselves."""

import math
from typing import Any

import numpy as np
import pytest

from analysis import slopes
from src.config import Choice
from src.theory import weights
from tests.conftest import CONF


@pytest.fixture(scope="module")
def margin_losses(convert: Any) -> dict[str, Choice]:
    """Those of conf/loss that are functions of the margin, found by probing."""
    found = {file.stem: convert(f"loss={file.stem}", "beta=0.7").loss for file in (CONF / "loss").glob("*.yaml")}
    return {name: loss for name, loss in found.items() if weights.is_margin_loss(loss)}


def test_every_loss_of_the_margin_has_a_weight_and_no_other(margin_losses: dict[str, Choice]) -> None:
    assert margin_losses.keys() == slopes.SLOPES.keys()


def test_weights_are_the_gradients_of_the_losses(margin_losses: dict[str, Choice]) -> None:
    h = np.concatenate([np.linspace(-12, 12, 97) + 1e-3, [-40.0, 40.0]])
    for name, loss in margin_losses.items():
        settings = slopes.settings_of({f"loss.{key}": value for key, value in loss.params.items()})
        expected = np.abs(weights.slope(loss, h))
        np.testing.assert_allclose(slopes.weight(name, h, settings), expected, rtol=1e-12, atol=1e-15, err_msg=name)


def test_slopes_agree_with_the_other_closed_forms() -> None:
    h = np.linspace(-30, 30, 61)
    for name, slope in weights.SLOPES.items():
        settings = {"beta": 0.3, "epsilon": 0.1, "tau": 0.05, "score_gap": 1.0}
        wanted = {"beta", *(key for key in settings if key in slope.__code__.co_varnames)}
        given = {key: value for key, value in settings.items() if key in wanted}
        assert slopes.SLOPES[name](h, **given) == pytest.approx(slope(h, **given), rel=1e-12, abs=1e-15), name


@pytest.mark.parametrize("run, known", [
    ({"loss.name": "dpo", "loss.beta": 0.1}, True),
    ({"loss.name": "cdpo", "loss.beta": 0.1}, False),
    ({"loss.name": "cdpo", "loss.beta": 0.1, "loss.epsilon": 0.1}, True),
    ({"loss.name": "kto"}, False),
    ({"loss.name": "dpo", "loss.beta": 0.1, "objective": "reward_model"}, False),
    ({"loss.name": "list_mle", "loss.beta": 0.1, "data.responses": 4}, False),
    ({"loss.name": "list_mle", "loss.beta": 0.1, "data.responses": math.nan}, True),
    ({"loss.name": "simpo", "loss.beta": 2.0, "loss.gamma": 0.5, "chosen_tokens": 1.0, "rejected_tokens": 1.0}, True),
    ({"loss.name": "list_mle", "loss.beta": 0.1, "data.responses": 4}, False),
    ({"loss.name": "list_mle", "loss.beta": 0.1, "data.responses": math.nan}, True),
    ({"loss.name": "simpo", "loss.beta": 2.0, "loss.gamma": 0.5, "chosen_tokens": 4.0, "rejected_tokens": 4.0}, False),
    ({"loss.name": "distill", "loss.beta": 0.1, "loss.score_gap": 1.0, "data.name": "synthetic"}, False),
])  # fmt: skip
def test_a_run_whose_weight_is_not_known_has_a_reason(run: dict[str, Any], known: bool) -> None:
    assert bool(slopes.why_no_weight(run)) is not known
