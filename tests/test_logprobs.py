"""From token log-probs to the pairs a loss sees, on a batch small enough to write out."""

import pytest
import torch

from src.logprobs import ReferenceLogps, pair_log_ratios
from src.policy.base import TokenLogps

# One run, one pair: chosen of 3 tokens, rejected of 2 (one padded).
VALUES = torch.tensor([[[[-1.0, -2.0, -3.0], [-4.0, -5.0, 0.0]]]], dtype=torch.float64)
MASK = torch.tensor([[[[True, True, True], [True, True, False]]]])
REFERENCE = torch.tensor([[[[-1.5, -2.0, -2.0], [-4.0, -4.0, 0.0]]]], dtype=torch.float64)


def reduce(form):
    logps, reference = TokenLogps(VALUES, MASK), TokenLogps(REFERENCE, MASK)
    return pair_log_ratios(logps, reference, torch.tensor([[10]]), form)


def test_published_form_sums_over_the_response():
    pairs, weights = reduce("sequence")
    assert pairs.logps.tolist() == [[[-6.0, -9.0]]]
    assert pairs.a.item() == pytest.approx(-6.0 + 5.5)
    assert pairs.b.item() == pytest.approx(-9.0 + 8.0)
    assert pairs.h.item() == pytest.approx(0.5)
    assert pairs.lengths.tolist() == [[[3, 2]]]
    assert weights.tolist() == [[1.0]]


def test_notebook_form_takes_each_token_by_itself_and_divides_by_the_whole_row():
    pairs, weights = reduce("notebook_per_token")
    assert pairs.a.tolist() == [pytest.approx([0.5, 0.0, -1.0])]
    assert pairs.b.tolist() == [pytest.approx([0.0, -1.0, 0.0])]  # the missing third token counts as 0
    assert weights.tolist() == [pytest.approx([0.1, 0.1, 0.1])]


def test_notebook_form_of_the_notebook_pair_by_hand():
    """Four response tokens in rows of ten: the mean of four losses, times 0.4."""
    from tests.stacks import configs, train

    run = configs("loss=dpo logps=notebook_per_token steps=1 dtype=float64 model.hidden_size=16 tracking=none")
    (history,), _ = train(run)
    assert history["loss"][0] == pytest.approx(0.4 * 0.6931471805599453, rel=1e-14)


def test_reference_of_a_batch_is_picked_per_run():
    values = torch.arange(2 * 3 * 2 * 4, dtype=torch.float64).view(2, 3, 2, 4)
    reference = ReferenceLogps(values, torch.ones_like(values, dtype=torch.bool))
    index = torch.tensor([[2, 0], [1, 1]])
    picked = reference.of(index, width=3)
    assert torch.equal(picked.values[0, 0], values[0, 2, :, :3])
    assert torch.equal(picked.values[1, 1], values[1, 1, :, :3])
