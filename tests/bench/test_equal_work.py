"""The benchmark compares equal work: baselines train what our stack trains, and only what is all there counts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from src.policy.base import Build
from tests.bench import commands, notes, trl_loop
from tests.bench.timing import Spread, by_turns, ratios
from tests.conftest import TOY
from tests.stacks import configs, train

STEPS = 5


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default toy model's first weights, as transformers reads them."""
    (run,) = configs("")
    spec = run.model.build()
    folder = tmp_path_factory.mktemp("models") / "toy"
    type(spec).stack([spec], [run.data.build()], Build(torch.device("cpu"), torch.float32)).save(0, folder)
    return folder


def ours(loss: str, optimizer: str) -> dict[str, np.ndarray]:
    (history,), _ = train(configs(f"loss={loss} optimizer={optimizer} steps={STEPS} tracking=none"))
    return history


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_notes_loop_of_the_benchmark_trains_what_our_stack_trains(model_folder, loss, optimizer):
    model = LlamaForCausalLM.from_pretrained(model_folder)
    rows = list(notes.train(model, STEPS, optimizer, loss))
    history = ours(loss, optimizer)
    np.testing.assert_allclose([row["loss"] for row in rows], history["loss"], rtol=1e-4, atol=1e-5)
    last_token = np.log([row["pi_rejected"] for row in rows])
    np.testing.assert_allclose(last_token, history["log_pi/rejected_last_token"], rtol=1e-4)
    np.testing.assert_allclose([row["preference"] for row in rows], history["implied_preference"], rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_trl_trainer_of_the_benchmark_trains_what_our_stack_trains(model_folder, optimizer):
    ended, losses = trl_loop.train(LlamaForCausalLM.from_pretrained(model_folder), STEPS, optimizer, log=True)
    assert len(ended) == STEPS
    np.testing.assert_allclose(losses, ours("dpo", optimizer)["loss"], rtol=1e-4)


def test_the_losses_compared_are_not_constant():
    losses = ours("dpo", "sgd")["loss"]
    assert losses[0] == pytest.approx(np.log(2))
    assert np.all(np.diff(losses) < -1e-3)


def test_a_sweep_that_did_not_do_all_its_work_is_no_measurement(sweep, tmp_path):
    sweep(f"{' '.join(TOY)} loss=dpo", f"{' '.join(TOY)} loss=ipo")
    done = commands.check(tmp_path / "s", seconds=1.0, runs=2, steps=5, tracked=False)
    assert (done.run_steps, done.stacks) == (10, [2, 2])
    for wrong in ({"runs": 3}, {"steps": 6}, {"tracked": True}):
        with pytest.raises(commands.NotMeasured):
            commands.check(tmp_path / "s", **{"seconds": 1.0, "runs": 2, "steps": 5, "tracked": False} | wrong)


def test_ratios_are_formed_within_a_round_and_rounds_run_to_and_fro():
    order = []
    contenders = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    samples = by_turns(contenders, 3)
    assert "".join(order) == "abbaab"
    assert samples == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert ratios(samples["a"], samples["b"]) == Spread(5 / 6, 1 / 2, 4 / 3)
