"""Data without a file: pairs written out, and pairs whose reward is known."""

import numpy as np
import pytest
from scipy.special import expit

from src.data.toy import gold, token_ids
from src.errors import BadInput

SMALL = {
    "prompts": 6, "held_out": 2, "comparisons": 5, "vocabulary": 8, "prompt_tokens": 2, "response_tokens": [1, 4],
    "spread": 1.0, "labels": "sampled", "seed": 3,
}  # fmt: skip


def drawn(**changes):
    return gold(**(SMALL | changes))


class TestTokenIds:
    def test_rows_are_prompt_chosen_rejected(self):
        data = token_ids(rows=[[[5, 6], [1], [2, 3]], [[7], [4], [1]]], held_out=[[[8], [1], [4]]])
        assert data.prompts == ((5, 6), (7,))
        assert (data.chosen, data.rejected) == (((1,), (4,)), ((2, 3), (1,)))
        assert data.held_out.prompts == ((8,),)

    def test_without_held_out_rows_none_are_held_out(self):
        assert token_ids(rows=[[[0], [1], [2]]], held_out=[]).held_out is None

    def test_rows_that_rank_different_numbers_of_responses_are_refused(self):
        with pytest.raises(BadInput, match="rank 2 and 3 responses"):
            token_ids(rows=[[[0], [1], [2]], [[0], [1], [2], [3]]], held_out=[])

    def test_rows_no_loss_can_learn_from_are_counted(self):
        data = token_ids(rows=[[[0], [1], [2]], [[0], [1], [1]], [[0], [], [1]]], held_out=[])
        assert len(data) == 1
        assert dict(data.dropped) == {"chosen equal to rejected": 1, "empty response": 1}
        with pytest.raises(BadInput, match=r"data\.rows: no usable pair"):
            token_ids(rows=[[[0], [1], [1]]], held_out=[])


class TestGold:
    def test_there_are_as_many_prompts_comparisons_and_tokens_as_asked_for(self):
        data = drawn()
        assert len(data) == 30 and len(data.held_out) == 10
        assert len(set(data.prompts)) == 6 and all(len(prompt) == 2 for prompt in data.prompts)
        assert not set(data.prompts) & set(data.held_out.prompts)
        assert set(drawn(prompts=60).lengths.ravel().tolist()) == {1, 2, 3, 4}
        assert max(max(ids) for pair in data.responses for ids in pair) < 8

    def test_the_scores_are_sums_of_the_tokens_utilities(self):
        utility = 2.5 * np.random.default_rng(3).standard_normal(8)
        data = drawn(spread=2.5)
        for part in (data, data.held_out):
            for pair, scores in zip(part.responses, part.scores, strict=True):
                np.testing.assert_allclose(scores, [utility[list(ids)].sum() for ids in pair], rtol=1e-14)

    def test_certain_labels_are_those_of_the_reward(self):
        scores = np.array(drawn(labels="certain", prompts=60).scores)
        assert (scores[:, 0] > scores[:, 1]).all()

    def test_sampled_labels_are_drawn_from_bradley_and_terry(self):
        """Of 20,000 pairs the better one wins as often as its probability says, to 4 standard errors."""
        scores = np.array(drawn(prompts=40, comparisons=500, held_out=0).scores)
        gap = np.abs(scores[:, 0] - scores[:, 1])
        won, p = scores[:, 0] > scores[:, 1], expit(gap)
        assert abs((won - p).mean()) < 4 * np.sqrt((p * (1 - p)).mean() / len(won))
        assert 0.05 < 1 - won.mean() < 0.45

    def test_with_one_token_every_token_is_an_action(self):
        assert drawn(response_tokens=[1, 1], prompts=1, comparisons=1).candidates == tuple((k,) for k in range(8))

    def test_the_seed_decides_everything(self):
        assert drawn().fingerprint == drawn().fingerprint != drawn(seed=4).fingerprint

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"response_tokens": [4, 1]}, "data.response_tokens"),
            ({"response_tokens": [1, 2, 3]}, "data.response_tokens"),
            ({"prompt_tokens": 1, "prompts": 8, "held_out": 1}, "9 different prompts of 1 tokens out of 8"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(self, changes, said):
        with pytest.raises(BadInput, match=said):
            drawn(**changes)
