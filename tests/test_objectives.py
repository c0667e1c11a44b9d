"""Reward models, the KL penalty, ranked lists, and runs without a reference."""

import numpy as np
import pytest
import torch

from src import reference as reference_module
from src.errors import BadInput
from src.policy.base import Build
from src.policy.tiny_llama import TinyLlama
from tests.policy.test_tiny_llama import RAGGED, SIZES
from tests.stacks import SMALL_LLAMA, configs, train

TABULAR = "model=tabular data=synthetic data.p_star=1.0 data.comparisons=1 dtype=float64 tracking=none"
LLAMA = f"dtype=float64 tracking=none {' '.join(SMALL_LLAMA)}"


# ---- reward models


def test_a_table_of_rewards_learns_exactly_as_the_implicit_reward_does():
    """With beta = 1 both follow u + e^u = 1 + 2 eta t: softmax's normaliser cancels in the margin."""
    runs = configs(
        *(f"objective={o} loss=dpo beta=1 lr=0.1 steps=50 {TABULAR}" for o in ("preference", "reward_model"))
    )
    (implicit,), _ = train(runs[:1])
    (explicit,), _ = train(runs[1:])
    np.testing.assert_allclose(explicit["rewards/margins"], implicit["rewards/margins"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(explicit["loss"], implicit["loss"], rtol=0, atol=1e-12)


def test_a_reward_model_logs_rewards_and_nothing_it_does_not_have():
    (history,), (outcome,) = train(configs(f"objective=reward_model beta=1 lr=1e-3 steps=30 {LLAMA}"))
    assert outcome.state == "finished"
    assert {"rewards/margins", "rewards/accuracies", "implied_preference"} <= history.keys()
    assert not any(name.startswith(("log_pi", "logps", "log_ratios", "k1", "margin")) for name in history)
    assert history["rewards/margins"][-1] > history["rewards/margins"][0]
    assert history["tokens"].tolist() == list(range(8, 8 * 31, 8))


def test_a_reward_model_is_transformers_sequence_classifier(tmp_path):
    from transformers import LlamaForSequenceClassification

    spec = TinyLlama(**SIZES, seed=1)
    policy = TinyLlama.stack([spec], [RAGGED], Build(torch.device("cpu"), torch.float64, role="reward_model"))
    policy.save(0, tmp_path / "policy")
    theirs = LlamaForSequenceClassification.from_pretrained(tmp_path / "policy", dtype=torch.float64).eval()
    ours = policy.token_logps(torch.arange(len(RAGGED))[None]).values
    for p, (prompt, ranked) in enumerate(zip(RAGGED.prompts, RAGGED.responses, strict=True)):
        for k, response in enumerate(ranked):
            with torch.no_grad():
                expected = theirs(torch.tensor([[*prompt, *response]])).logits.item()
            assert ours[0, p, k, 0].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


# ---- the KL penalty


def test_the_exact_penalty_of_a_table_is_its_exact_kl():
    (history,), _ = train(configs(f"loss=dpo beta=0.5 lr=0.5 steps=40 kl_coef=0.3 kl_form=reverse {TABULAR}"))
    np.testing.assert_allclose(history["kl_penalty"], 0.3 * history["exact/kl"], rtol=1e-10, atol=1e-15)
    assert history["kl_penalty"][-1] > 0.01


@pytest.mark.parametrize("form", ["k1", "k2", "k3"])
def test_a_penalty_on_the_data_is_its_estimator_mean_over_their_tokens(form):
    (history,), _ = train(configs(f"loss=ipo beta=0.5 lr=1e-3 steps=20 kl_coef=0.3 kl_form={form} {LLAMA}"))
    np.testing.assert_allclose(history["kl_penalty"], 0.3 * history[f"{form}_on_data"], rtol=1e-9, atol=1e-14)


def test_the_logged_loss_is_what_was_minimised_penalty_included():
    (history,), _ = train(configs(f"loss=ipo beta=0.5 lr=0.1 steps=20 kl_coef=2.0 kl_form=js {TABULAR}"))
    np.testing.assert_allclose(history["loss"], (history["margin"] - 1) ** 2 + history["kl_penalty"], atol=1e-12)


def test_a_forward_penalty_gives_dpo_a_finite_optimum_and_a_reverse_one_does_not():
    """As pi(rejected) -> 0 the reverse KL pulls like pi log pi, which vanishes; the forward KL like ref(rejected)."""
    run = f"loss=dpo beta=0.5 lr=2 steps=400 {TABULAR}"
    runs = configs(run, f"{run} kl_coef=1 kl_form=forward", f"{run} kl_coef=1 kl_form=reverse")
    free, forward, reverse = (history["margin"] for history in train(runs)[0])
    assert np.diff(free).min() > 0
    assert abs(np.diff(forward)[-50:]).max() < 1e-9 and 0.1 < forward[-1] < free[-1] / 2
    assert np.diff(reverse).min() > 1e-3


def test_penalties_of_every_form_share_a_stack_and_equal_the_same_runs_alone():
    forms = ("reverse", "forward", "js", "k1", "k2", "k3")
    runs = configs(f"loss=dpo lr=1e-3 steps=20 {LLAMA}",
                   *(f"loss=dpo lr=1e-3 steps=20 kl_coef=0.2 kl_form={form} {LLAMA}" for form in forms))  # fmt: skip
    for run, history in zip(runs, train(runs)[0], strict=True):
        (alone,), _ = train([run])
        for name, values in alone.items():
            np.testing.assert_allclose(history[name], values, rtol=1e-9, atol=1e-9, err_msg=f"{run.kl_form} {name}")


# ---- runs without a reference


def test_a_loss_that_needs_no_reference_does_not_make_one_be_computed(monkeypatch):
    run = f"loss=simpo lr=1e-3 steps=10 {LLAMA}"
    (with_reference,), _ = train(configs(run))

    def refuse(*_):
        raise AssertionError("a reference was computed")

    monkeypatch.setattr(reference_module, "logps_of", refuse)
    (without,), _ = train(configs(f"{run} reference=if_needed"))
    assert "margin" in with_reference and "margin" not in without
    for name, values in without.items():
        assert np.array_equal(with_reference[name], values), name
    with pytest.raises(AssertionError, match="a reference was computed"):
        train(configs(f"loss=dpo reference=if_needed lr=1e-3 steps=1 {LLAMA}"))


# ---- ranked lists

RANKED = "model=tabular model.actions=4 data=ranked data.rankings=1000 batch_size=full dtype=float64 tracking=none lr=1"


def true_utilities(run) -> dict[int, float]:
    """Utility of each response, which the data carry as scores."""
    data = run.data.build()
    return {ids[0]: s for ranked, scores in zip(data.responses, data.scores, strict=True)
            for ids, s in zip(ranked, scores, strict=True)}  # fmt: skip


@pytest.mark.parametrize("loss", ["pair_logistic", "pair_hinge", "list_mle", "list_softmax", "lambda_loss"])
def test_listwise_losses_find_the_order_of_known_utilities(loss):
    (run,) = configs(f"loss={loss} beta=1 steps=300 data.spread=2 {RANKED}")
    (history,), _ = train([run])
    learned = [history[f"log_pi/0/{k}"][-1] for k in range(4)]
    utility = true_utilities(run)
    assert np.argmax(learned) == max(utility, key=utility.__getitem__)
    if loss in {"list_mle", "pair_logistic"}:  # consistent for the whole order, given this much data
        assert np.argsort(learned).tolist() == sorted(utility, key=utility.__getitem__)


def test_list_mle_recovers_the_utilities_of_plackett_luce():
    (run,) = configs(
        f"loss=list_mle beta=1 steps=600 data.spread=1 seed=3 {RANKED.replace('rankings=1000', 'rankings=4000')}"
    )
    (history,), _ = train([run])
    learned = np.array([history[f"log_pi/0/{k}"][-1] for k in range(4)])
    true = np.array([true_utilities(run)[k] for k in range(4)])
    np.testing.assert_allclose(learned - learned.mean(), true - true.mean(), atol=0.1)  # 4,000 rankings: s.e. near 0.03


def test_two_ranked_responses_are_a_pair():
    two = RANKED.replace("data.rankings=1000", "data.rankings=5 data.responses=2")
    as_list, as_pair = (train(configs(f"loss={loss} beta=0.5 steps=30 {two}"))[0][0] for loss in ("list_mle", "dpo"))
    for name, values in as_pair.items():
        np.testing.assert_allclose(as_list[name], values, rtol=1e-12, atol=1e-12)


def test_a_pairwise_loss_refuses_rankings_it_would_cut_the_middle_out_of():
    with pytest.raises(BadInput, match=r"loss=dpo takes pairs, and data=ranked ranks 4 responses a prompt"):
        train(configs(f"loss=dpo steps=2 {RANKED}"))
