"""Supervised fine-tuning on the chosen responses, and preference training from what it makes."""

import json
import math

import numpy as np
import pytest
import torch

from src.launching.loading import load_data
from src.store import read_history
from tests.held_out import texts
from tests.stacks import SMALL_LLAMA, configs, train

LLAMA = f"data._target_=tests.held_out.texts tracking=none dtype=float64 {' '.join(SMALL_LLAMA)}"
SFT = f"objective=sft loss=sft {LLAMA}"


def test_only_chosen_responses_are_computed_and_measured():
    runs = configs(f"{SFT} steps=4 batch_size=2")
    (pairs,) = load_data(runs)
    assert pairs.responses == tuple((chosen,) for chosen, _ in texts().responses)
    assert pairs.held_out is not None and pairs.held_out.ranks == 1
    (history,), _ = train(runs)
    assert set(history) == {
        "step", "loss", "kl_penalty", "logps/chosen", "log_pi/chosen", "log_pi/chosen_last_token",
        "log_pi/chosen_per_token", "perplexity", "grad_norm", "lr", "tokens", "pairs", "nonfinite",
    }  # fmt: skip
    whole, _ = train(configs(f"{LLAMA} loss=dpo steps=4 batch_size=2"))
    assert (history["tokens"] < whole[0]["tokens"]).all()


def test_it_is_what_the_sft_loss_gives_on_pairs():
    problem = f"{LLAMA} loss=sft steps=20 lr=1e-2 batch_size=2"
    (alone,), _ = train(configs(f"{problem} objective=sft"))
    (pairs,), _ = train(configs(f"{problem} reference=if_needed"))
    for name in ("loss", "logps/chosen", "log_pi/chosen_last_token", "grad_norm"):
        np.testing.assert_allclose(alone[name], pairs[name], rtol=1e-9, err_msg=name)
    assert alone["loss"][-1] < alone["loss"][0]


def test_perplexity_is_that_of_a_token():
    (history,), _ = train(configs(f"{SFT} steps=5 batch_size=full lr=1e-2"))
    tokens = sum(len(chosen) for chosen in texts().chosen)
    np.testing.assert_allclose(history["perplexity"], np.exp(-5 * history["logps/chosen"] / tokens), rtol=1e-12)
    np.testing.assert_allclose(history["perplexity"], np.exp(history["loss"]), rtol=1e-12)
    assert history["perplexity"][0] == pytest.approx(32, rel=0.05)  # of 32 tokens, before it has learned anything


def test_it_shares_no_stack_with_preference_training_and_shares_the_data(sweep, tmp_path):
    assert sweep(f"{SFT} steps=3", f"{LLAMA} loss=dpo steps=3") == 0
    found = list(tmp_path.glob("s/*/status.json"))
    assert len(found) == 2
    for file in found:
        config, status = (json.loads(path.read_text()) for path in (file.with_name("config.json"), file))
        assert (status["state"], status["stack"]) == ("finished", 1), config["objective"]


def test_a_table_is_fitted_to_the_chosen_responses():
    tabular = (
        "model=tabular data=synthetic data.p_star=0.8 data.comparisons=1000 data.seed=1 tracking=none dtype=float64"
    )
    (history,), _ = train(configs(f"objective=sft loss=sft {tabular} batch_size=full lr=5 steps=2000"))
    shares = np.bincount([ids[0] for ids in load_data(configs(tabular))[0].chosen]) / 1000
    entropy = -sum(p * math.log(p) for p in shares)
    assert history["loss"][-1] == pytest.approx(entropy, abs=1e-3)


def test_two_commands_make_a_reference_and_train_from_it(cli, tmp_path):
    """The step-0 gate passes, and the margins are measured from the weights of the first run."""
    small = (*SMALL_LLAMA, "tracking=none", "lr=0.1")
    first = cli("objective=sft", "loss=sft", "save=true", "steps=40", "sweep=sft", *small, cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    (made,) = (tmp_path / "outputs" / "sft").glob("*/policy")
    second = cli("loss=dpo", f"model.path={made}", "steps=3", "sweep=dpo", *small, cwd=tmp_path)
    assert (second.returncode, second.stderr) == (0, ""), second.stdout
    sft, dpo = (read_history(next(tmp_path.glob(f"outputs/{name}/*/status.json")).parent) for name in ("sft", "dpo"))
    assert dpo["margin"][0].as_py() == 0
    reference = dpo["logps/chosen"][0].as_py() - dpo["log_ratios/chosen"][0].as_py()
    assert reference > sft["logps/chosen"][-1].as_py() > sft["logps/chosen"][0].as_py() + 1
    assert torch.tensor(dpo["loss"][0].as_py()).isclose(torch.tensor(math.log(2)))


@pytest.mark.parametrize("command", ["objective=sft", "objective=sft loss=sft kl_coef=0.1"])
def test_another_loss_or_a_penalty_is_refused_in_one_line(cli, tmp_path, command):
    done = cli(*command.split(), "tracking=none", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "objective=sft" in line and "loss=sft" in line
    assert list(tmp_path.iterdir()) == []
