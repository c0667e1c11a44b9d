"""The softmax policy, where everything is known."""

import math

import pytest
import torch

from src.data.pairs import keep_usable
from src.data.toy import synthetic
from src.errors import BadInput
from src.policy.base import Build
from src.policy.tabular import MAX_LOGGED_CELLS, Tabular

DEFAULTS = {"actions": 4, "ref_probs": [0.3, 0.2, 0.25, 0.25], "per_prompt": False, "init": "copy", "init_std": 1.0}
DATA = keep_usable([((0,), (0,), (1,)), ((1,), (2,), (0,))], "test", candidates=((0,), (1,), (2,)))


def stack(*specs: Tabular, data=DATA, dtype=torch.float64, shifted=True, reference=False):
    build = Build(torch.device("cpu"), dtype, shifted, "reference" if reference else "policy")
    return Tabular.stack(specs, [data] * len(specs), build)


def test_responses_are_actions_and_start_at_the_reference():
    policy = stack(Tabular(**DEFAULTS, seed=0))
    values = policy.token_logps(torch.tensor([[0, 1]])).values
    assert values.exp().flatten().tolist() == pytest.approx([0.3, 0.2, 0.25, 0.3], rel=1e-14)
    assert values.shape == (1, 2, 2, 1)


def test_exact_kl_and_entropy_by_hand():
    policy = stack(Tabular(**(DEFAULTS | {"actions": 3, "ref_probs": [0.5, 0.25, 0.25]}), seed=0))
    with torch.no_grad():
        policy.parameters()[0].copy_(torch.tensor([[[0.25, 0.25, 0.5]]]).log())
    exact = policy.exact_metrics(policy.watched())
    assert exact["exact/kl"].item() == pytest.approx(0.25 * math.log(0.5) + 0.5 * math.log(2))
    assert exact["exact/entropy"].item() == pytest.approx(1.5 * math.log(2))
    assert [exact[f"log_pi/0/{k}"].exp().item() for k in range(3)] == pytest.approx([0.25, 0.25, 0.5])


def test_a_table_of_its_own_for_every_prompt():
    policy = stack(Tabular(**(DEFAULTS | {"per_prompt": True}), seed=0))
    assert policy.parameters()[0].shape == (1, 2, 4)
    policy.token_logps(torch.tensor([[1]])).values.sum().backward()
    assert policy.parameters()[0].grad[0, 0].abs().sum() == 0  # prompt 0 was not in the batch


def test_independent_logits_come_from_the_seed_and_the_reference_does_not():
    specs = [Tabular(**(DEFAULTS | {"init": "independent"}), seed=seed) for seed in (0, 1, 0)]
    policy, reference = stack(*specs), stack(*specs, reference=True)
    start = policy.parameters()[0]
    assert torch.equal(start[0], start[2]) and not torch.equal(start[0], start[1])
    assert reference.parameters()[0].softmax(-1)[0, 0].tolist() == pytest.approx(DEFAULTS["ref_probs"])


def test_a_large_table_is_summarised():
    data = synthetic(prompts=MAX_LOGGED_CELLS, p_star=0.5, comparisons=1, seed=0)
    policy = stack(Tabular(**(DEFAULTS | {"per_prompt": True}), seed=0), data=data)
    assert set(policy.exact_metrics(policy.watched())) == {"exact/kl", "exact/entropy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": 2, "ref_probs": None}, "model.actions=2 is too few: the data have 3 distinct responses"),
        ({"ref_probs": [0.5, 0.5]}, "must be model.actions=4 numbers that sum to 1"),
        ({"ref_probs": [0.3, 0.3, 0.3, 0.3]}, "must be model.actions=4 numbers that sum to 1"),
    ],
)
def test_tables_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        stack(Tabular(**(DEFAULTS | changes), seed=0))


def test_token_positions_have_no_meaning_here():
    with pytest.raises(BadInput, match="use logps=sequence"):
        stack(Tabular(**DEFAULTS, seed=0), shifted=False)
