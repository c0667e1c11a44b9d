"""GRPO with every form of KL: gradients enumerated exactly, known optima, and a check that can fail."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.kl_regularisers import check, grpo
from src import kl
from src.policy.tiny_llama import TinyLlama
from src.theory.bandit import kl_reward_frontier, softmax

COEF = 0.7
EXPECTED = {  # weights of the gradients of KL(pi, ref), KL(ref, pi) and JS in that of each form
    "k1": (0, 0, 0), "k2": (1, 0, 0), "k3": (0, 1, 0), "reverse": (1, 0, 0), "forward": (0, 1, 0), "js": (0, 0, 4),
    "k1 in reward": (1, 0, 0), "k3 in reward": (1, -1, 0),
}  # fmt: skip


def bandit(actions=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(actions, generator=generator, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("form", grpo.FORMS)
def test_the_mean_gradient_over_all_groups_is_that_of_the_regularised_reward(form):
    logits, ref, reward = bandit()
    logits.requires_grad_(True)
    log_ref, actions = ref.log_softmax(-1), len(ref)
    objective = grpo.Objective([grpo.Setting(1.0, form, COEF)])
    total = torch.zeros(actions, dtype=torch.float64)
    for group in product(range(actions), repeat=3):
        log_pi = logits.log_softmax(-1)
        whole = (1, 3, 1, actions)
        tokens = torch.tensor(group)[None, :, None]
        loss = objective(tokens, reward[list(group)][None], log_pi.expand(whole), log_ref.expand(whole))
        weight = log_pi[list(group)].sum().exp().detach()
        total += weight * torch.autograd.grad(loss.sum(), logits)[0]
    log_pi = logits.log_softmax(-1)
    reverse, forward, js = EXPECTED[form]
    penalty = reverse * kl.reverse_kl(log_pi, log_ref) + forward * kl.forward_kl(log_pi, log_ref)
    exact = COEF * (penalty + js * kl.jensen_shannon(log_pi, log_ref)) - (log_pi.exp() * reward).sum()
    torch.testing.assert_close(total, torch.autograd.grad(exact, logits)[0], rtol=0, atol=1e-12)


def test_advantages_are_those_of_leaving_one_out_and_zero_where_a_group_is_of_one_mind():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    others = torch.tensor([[4.0, 3.5, 1.5], [3.0, 3.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(grpo.advantages(rewards), rewards - others)
    assert (grpo.advantages(rewards)[1] == 0).all()


def test_a_group_of_one_mind_leaves_the_gradient_of_the_kl_alone():
    logits, ref, _ = bandit()
    logits.requires_grad_(True)
    log_pi, log_ref = logits.log_softmax(-1), ref.log_softmax(-1)
    tokens = torch.ones(1, 5, 1, dtype=torch.int64)
    whole = (1, 5, 1, len(ref))
    loss = grpo.Objective([grpo.Setting(1.0, "reverse", COEF)])(
        tokens, torch.full((1, 5), 2.0, dtype=torch.float64), log_pi.expand(whole), log_ref.expand(whole)
    )
    (found,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad(COEF * kl.reverse_kl(log_pi, log_ref), logits)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("form", ["k2", "reverse", "k1 in reward"])
def test_training_finds_the_exact_optimum_under_the_reverse_kl(form):
    log_ref, values = check.bandits(2)
    policy = grpo.Table(log_ref, 1)
    record = grpo.train(
        policy, [grpo.Setting(0.2, form, 1.0)], values, group=64, tokens=1, steps=600, every=50,
        optimizer=torch.optim.SGD,
    )  # fmt: skip
    pi = policy.parameter.detach().log_softmax(-1).exp().numpy()
    optimum = softmax((log_ref + values).numpy())
    assert np.abs(pi - optimum).max() < (5e-3 if form == "k1 in reward" else 0.05)
    frontier = [
        kl_reward_frontier(ref, r, 1.0).kl[0] for ref, r in zip(log_ref.exp().numpy(), values.numpy(), strict=True)
    ]
    np.testing.assert_allclose(record.kl[-1], frontier, atol=0.05)
    assert (record.kl[0] == 0).all()


@pytest.mark.parametrize("kl_coef", [0.1, 1.0, 10.0])
def test_the_optimum_under_the_forward_kl_is_stationary(kl_coef):
    log_ref, values = check.bandits(3)
    for ref, reward in zip(log_ref, values, strict=True):
        pi = check.forward_optimum(ref.exp().numpy(), reward.numpy(), kl_coef)
        assert pi.min() > 0 and pi.sum() == pytest.approx(1, abs=1e-9)
        logits = torch.tensor(pi).log().requires_grad_(True)
        log_pi = logits.log_softmax(-1)
        objective = (log_pi.exp() * reward).sum() - kl_coef * kl.forward_kl(log_pi, ref)
        assert torch.autograd.grad(objective, logits)[0].abs().max() < 1e-9


def test_k1_in_the_reward_has_no_noise_at_the_optimum():
    found = check.gradients(*check.bandits(3)).groupby("form")["sd"].max()
    assert found["k1 in reward"] < 1e-12 < 1e-2 < found.drop("k1 in reward").min()


def test_the_spread_of_a_gradient_is_that_of_single_answers():
    log_ref, values = check.bandits(1)
    found = check.gradients(log_ref, values, COEF).set_index("form")["sd"]
    logits = (log_ref + values / COEF)[0].requires_grad_(True)
    log_pi = logits.log_softmax(-1)
    pi, mean = log_pi.exp().detach(), (log_pi.exp() * values[0]).sum().detach()
    loss = -(values[0] - mean) * log_pi + COEF * kl.k3(log_pi - log_ref[0])
    each = torch.stack([torch.autograd.grad(x, logits, retain_graph=True)[0] for x in loss])
    spread = (pi[:, None] * (each - (pi[:, None] * each).sum(0)) ** 2).sum().sqrt()
    assert found["k3"] == pytest.approx(float(spread), rel=1e-12)


def test_runs_do_not_feel_each_other_and_the_order_of_settings_does_not_matter():
    log_ref, values = check.bandits(2)
    settings = grpo.grid([0.5, 5.0], ["k2", "k3 in reward", "js"], [0.5, 1.0])
    options = {"group": 4, "tokens": 1, "steps": 20, "every": 5, "optimizer": torch.optim.SGD}
    together = grpo.train(grpo.Table(log_ref, len(settings)), settings, values, **options)
    for i in (0, 3, 11):
        alone = grpo.train(grpo.Table(log_ref, 1), [settings[i]], values, **options)
        np.testing.assert_allclose(together.kl[:, 2 * i : 2 * i + 2], alone.kl, rtol=1e-12)
    with pytest.raises(ValueError, match="stand together"):
        grpo.train(grpo.Table(log_ref, 3), [settings[0], settings[6], settings[1]], values, **options)


def llamas(settings=1, seeds=2, tokens=3, vocabulary=4):
    specs = [
        TinyLlama(
            vocab_size=vocabulary, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e4, initializer_range=0.5, init="copy", path=None,
            seed=seed,
        )
        for seed in range(seeds)
    ]  # fmt: skip
    return grpo.Llamas(specs, (1, 2), tokens, settings)


def test_llamas_start_at_the_reference_that_was_computed_for_every_beginning():
    policy = llamas(settings=2)
    every = torch.tensor([*product(range(4), repeat=3)]).expand(4, -1, -1)
    log_pi, ref = policy.log_pi(every)
    torch.testing.assert_close(log_pi.detach(), ref, rtol=0, atol=1e-5)
    whole = log_pi.gather(-1, every[..., None])[..., 0].sum(-1)
    torch.testing.assert_close(grpo.answer_log_probs(policy.reference, 3), whole[:2].detach(), rtol=0, atol=1e-4)
    assert grpo.answer_log_probs(policy.reference.double(), 3).exp().sum(-1).numpy() == pytest.approx(1.0, abs=1e-5)


def test_llamas_draw_answers_as_often_as_they_are_likely():
    policy = llamas(seeds=1, tokens=2)
    uniform = torch.rand(1, 20_000, 2, generator=torch.Generator().manual_seed(0))
    answers = policy.draw(uniform)[0]
    seen = torch.bincount(4 * answers[:, 0] + answers[:, 1], minlength=16) / 20_000
    exact = grpo.answer_log_probs(policy.reference, 2)[0].exp()
    assert (seen - exact).abs().max() < 5 * (exact.max() / 20_000) ** 0.5


def test_llamas_learn_what_is_rewarded():
    values = torch.tensor([[1.0, 0, 0, 0]] * 2)
    record = grpo.train(
        llamas(), [grpo.Setting(1e-2, "k2", 0.2)], values, group=16, tokens=3, steps=60, every=10,
        optimizer=torch.optim.Adam,
    )  # fmt: skip
    assert (record.reward[-1] > record.reward[0] + 1).all() and (record.kl[-1] > 0.1).all()


def frames(unstable, seeds=10):
    """unstable: of (arm, form), is a run unstable?"""
    rows = [
        {"arm": arm, "form": form, "kl_coef": coef, "lr": 0.1, "seed": seed, "unstable": unstable(arm, form, coef),
         "kl": 1.0, "kl_optimum": 1.0, "gain": 0.0}
        for arm in check.ARMS
        for form in (grpo.IN_LOSS if arm == "dpo" else grpo.FORMS)
        for coef in (0.5, 1.0, 2.0)
        for seed in range(seeds)
    ]  # fmt: skip
    gradients = pd.DataFrame([{"form": form, "seed": s, "sd": 1.0} for form in grpo.FORMS for s in range(2)])
    optima = pd.DataFrame({"seed": [0, 1], "kl_coef": 1.0, "beyond": [False, True]})
    return {"runs": pd.DataFrame(rows), "gradients": gradients, "forward_optima": optima}


@pytest.mark.parametrize(
    ("unstable", "expected"),
    [
        (lambda arm, form, coef: form in ("k1", "js"), "holds"),
        (lambda arm, form, coef: form == "k1", "holds under conditions"),
        (lambda arm, form, coef: form in ("k1", "js") and coef == 1, "holds under conditions"),
        (lambda arm, form, coef: form in ("k1", "js") and arm != "dpo", "holds under conditions"),
        (lambda arm, form, coef: False, "refuted"),
        (lambda arm, form, coef: True, "refuted"),
        (lambda arm, form, coef: form == "k3 in reward", "refuted"),
    ],
)
def test_check(unstable, expected):
    (verdict,) = check.check(frames(unstable))
    assert verdict.claim == "C16" and verdict.outcome == expected


def test_too_few_seeds_show_no_difference():
    (verdict,) = check.check(frames(lambda arm, form, coef: form in ("k1", "js"), seeds=3))
    assert verdict.outcome == "refuted"
