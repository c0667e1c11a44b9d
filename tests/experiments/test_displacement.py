"""The study of likelihood displacement: its checks on tables written by hand, its models against other computations."""

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.displacement import check, features, llama
from src.losses import pairwise
from tests.policy.llama_oracle import hidden

CONDITIONS = "holds under conditions"


def features_frame(ends=(), frozen_end=0.5):
    """pi(chosen) from 1/3 to 0.02, to `frozen_end` with frozen features; `ends` gives some settings another end."""
    rows = []
    for loss, beta, lr in check.FEATURES:
        for frozen in (False, True):
            if frozen and (loss, beta) == check.LATER:
                continue
            end = frozen_end if frozen else dict(ends).get((loss, beta), 0.02)
            for step, (chosen, value) in enumerate(((1 / 3, 0.7), (end, 0.1))):
                rows.append({"loss": loss, "beta": beta, "lr": lr, "frozen": frozen, "step": step, "chosen": chosen,
                             "rejected": 0.1, "value": value})  # fmt: skip
    return pd.DataFrame(rows)


def llama_frame(ends=(), value=0.1):
    """log pi(chosen) rises by a nat on every pair with every loss, but for the ends given, by kind and loss."""
    rows = []
    for kind in check.KINDS:
        for loss in check.LOSSES:
            for seed in (1, 2):
                end = dict(ends).get((kind, loss), 1.0)
                for step, (a, v) in enumerate(((0.0, 0.7), (end + 0.01 * seed, value))):
                    rows.append({"kind": kind, "seed": seed, "loss": loss, "step": step, "a": a, "b": a - 1,
                                 "log_chosen": a, "value": v})  # fmt: skip
    return pd.DataFrame(rows)


def pairs_frame(all_pairs=-1.0, equal=-1.0):
    """Two models of 40 pairs; the sign of these says how `a` follows CHES, 0: not at all. Lengths differ in half."""
    generator, rows = np.random.default_rng(0), []
    for seed in (1, 2):
        for i in range(40):
            same = i % 2
            score = generator.normal()
            follows = equal if same else all_pairs
            a = follows * score + 0.05 * generator.normal()
            rows.append({"seed": seed, "chosen": 8, "rejected": 8 if same else 4, "shared": 0.0, "ches": score, "a": a})
    return pd.DataFrame(rows)


LOST = {(kind, loss): -2.0 for kind in check.OVERLAPPING for loss in ("dpo", "ipo")}


def outcome(claim, features=None, llama=None, pairs=None):
    frames = {
        "features": features_frame() if features is None else features,
        "llama": llama_frame(LOST) if llama is None else llama,
        "pairs": pairs_frame() if pairs is None else pairs,
    }
    return {verdict.claim: verdict for verdict in check.check(frames)}[claim].outcome


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (features_frame(), "holds"),
        (features_frame({("ipo", 1.0): 0.4}), CONDITIONS),
        (features_frame({key[:2]: 0.4 for key in check.FEATURES}), "refuted"),
        (features_frame(frozen_end=0.2), "refuted"),
    ],
)
def test_the_smallest_model(frame, expected):
    assert outcome("displacement-features", features=frame) == expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (llama_frame(LOST), "holds"),
        (llama_frame(LOST | {("apart", "dpo"): -1.0}), CONDITIONS),
        (llama_frame({("goes on", "ipo"): -1.0}), CONDITIONS),
        (llama_frame({("longer", "ipo"): -1.0}), "refuted"),
        (llama_frame(), "refuted"),
        (llama_frame(LOST, value=0.8), "refuted"),
    ],
)
def test_overlap_matters_only_if_the_loss_falls_and_other_pairs_are_not_lost(frame, expected):
    assert outcome("displacement-overlap", llama=frame) == expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (pairs_frame(), "holds"),
        (pairs_frame(equal=0.0), CONDITIONS),
        (pairs_frame(0.0, 0.0), "refuted"),
        (pairs_frame(1.0, 1.0), "refuted"),
    ],
)
def test_ches_is_judged_among_all_pairs_and_among_equal_lengths(frame, expected):
    assert outcome("displacement-ches", pairs=frame) == expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (llama_frame(LOST), "holds"),
        (llama_frame(LOST | {("apart", "dpo"): -1.0, ("one", "rpo"): -1.0}), CONDITIONS),
        (llama_frame({("one", "dpo"): -1.0, ("one", "dpop"): -1.0}), "refuted"),
        (llama_frame(), "refuted"),
    ],
)
def test_remedies_are_asked_where_dpo_or_ipo_lose_a_pair(frame, expected):
    assert outcome("displacement-remedies", llama=frame) == expected


@pytest.mark.parametrize(("loss", "beta", "lr"), [("dpo", 1.0, 0.01), ("ipo", 0.1, 0.001)])
def test_the_smallest_model_against_its_gradient_by_hand(loss, beta, lr):
    """The same descent in numpy, its gradients written out."""
    pi, values = features.descend(getattr(pairwise, loss), beta, lr, 1000)
    W, h = np.array(features.W0), np.array(features.H0)
    expected = [softmax(W @ h)]
    for _ in range(1000):
        # The normaliser cancels in h = log pi(0) - log pi(1), less its value under the reference, which is 0.
        margin = (W[0] - W[1]) @ h
        slope = -beta / (1 + np.exp(beta * margin)) if loss == "dpo" else 2 * (margin - 1 / (2 * beta))
        gradient_W = slope * np.outer([1.0, -1.0, 0.0], h)
        gradient_h = slope * (W[0] - W[1])
        W, h = W - lr * gradient_W, h - lr * gradient_h
        expected.append(softmax(W @ h))
    assert pi == pytest.approx(np.array(expected), abs=1e-12)
    assert values[0] == pytest.approx(np.log(2) if loss == "dpo" else 1 / (4 * beta**2))


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize(("setting", "ends"), list(check.FEATURES.items()))
def test_the_smallest_model_ends_where_it_is_said_to(setting, ends):
    loss, beta, lr = setting
    for frozen, end in zip((False, True), ends, strict=True):
        if end is not None:
            pi, _ = features.descend(getattr(pairwise, loss), beta, lr, 1000, frozen=frozen)
            assert pi[-1, 0] == pytest.approx(end, abs=6e-4)


def test_hidden_states_are_those_of_a_plain_llama():
    """S by transformers against one sequence at a time in plain torch; CHES by hand."""
    run = llama.with_seed(llama.configured("loss=dpo beta=0.1 lr=1e-3 steps=3"), 7)
    pair = llama.random_pair(np.random.default_rng(0), 3, 5, 0.5)
    ((plus, minus),) = llama.hidden_sums(run, [pair])
    spec = run.model.build()
    weights = {name: tensor.double() for name, tensor in spec._weights("reference").items()}
    for sums, response in ((plus, pair.chosen[0]), (minus, pair.rejected[0])):
        states = hidden(weights, spec, (*pair.prompts[0], *response))
        expected = states[len(pair.prompts[0]) - 1 : -1].sum(0)
        assert sums == pytest.approx(expected.numpy(), abs=1e-4)
    assert llama.ches(plus, minus) == pytest.approx(sum(p * m for p, m in zip(plus, minus, strict=True)) - sum(plus**2))
    assert llama.ches(plus, plus) == 0


def test_a_single_token_pair_has_no_ches():
    run = llama.configured("loss=dpo beta=0.1 lr=1e-3 steps=3")
    ((plus, minus),) = llama.hidden_sums(run, [llama.random_pair(np.random.default_rng(0), 1, 1, 0.0)])
    assert llama.ches(plus, minus) == 0


def test_models_learn_both_responses_before_they_are_given_the_pair():
    seeds = [1, 2]
    pairs = [check.written("goes on", seed) for seed in seeds]
    sft = llama.configured("objective=sft loss=sft optimizer=adam lr=1e-3 steps=40 batch_size=full")
    losses = [llama.configured(f"loss={loss} beta=0.1 lr=1e-3 steps=3") for loss in ("dpo", "ipo")]
    found = llama.after_likelihood(sft, losses, pairs, seeds)
    assert len(found) == 2 and all(len(of) == 2 for of in found)
    starts = [[history["log_pi/chosen"][0] for history in of] for of in found]
    assert all(of[0] == of[1] for of in starts) and starts[0][0] != starts[1][0], "both losses start at the same model"
    assert min(map(min, starts)) > np.log(0.05), "an untrained one gives four tokens a probability of 1e-6"
    assert all(history["log_ratios/chosen"][0] == 0 for of in found for history in of)


def test_written_pairs_are_what_their_kind_says():
    for seed in range(20):
        for kind in check.KINDS:
            pair = check.written(kind, seed)
            prompt, chosen, rejected = pair.prompts[0], pair.chosen[0], pair.rejected[0]
            assert len(prompt) == 6 and len(chosen) == 4 and not {*prompt} & {*chosen, *rejected}
            common = sum(one == other for one, other in zip(chosen, rejected, strict=False))
            assert (common, len(rejected)) == {"one": (3, 4), "goes on": (4, 8), "apart": (0, 4), "longer": (0, 8)}[
                kind
            ]


def test_random_pairs_share_as_many_tokens_as_asked():
    generator = np.random.default_rng(0)
    pairs = [llama.random_pair(generator, 8, 8, 0.5) for _ in range(400)]
    same = np.mean([np.mean(np.array(p.chosen[0]) == np.array(p.rejected[0])) for p in pairs])
    assert same == pytest.approx(0.5 + 0.5 / 32, abs=0.03)
    assert all(p.chosen != p.rejected for p in pairs)
    assert torch.tensor([len(p.prompts[0]) for p in pairs]).unique().tolist() == [4]


def test_figures_are_drawn_of_written_tables():
    frames = {"features": features_frame(), "llama": llama_frame(LOST), "pairs": pairs_frame()}
    for drawing in check.figures({}, frames).values():
        figure = drawing()
        figure.draw_without_rendering()
        assert all(ax.get_tightbbox().x0 >= 0 for ax in figure.axes)
