"""The stacked Llama is transformers' Llama; its log-probs are those of a loop over single sequences."""

import json

import pytest
import torch

from src.data.pairs import keep_usable
from src.data.toy import notebook_pair
from src.errors import BadInput
from src.policy.base import Build
from src.policy.tiny_llama import TinyLlama

SIZES = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "initializer_range": 0.3,  # large, so that attention is far from uniform and a mistake shows
    "init": "copy",
    "path": None,
}

# Prompts and responses of different lengths, so that rows are padded.
RAGGED = keep_usable(
    [
        ((5, 8, 9), (16, 29, 18, 17), (26, 14)),
        ((1,), (2, 3), (4,)),
        ((7, 7, 7, 7, 7), (1,), (3, 1, 4, 1, 5, 9)),
    ],
    "test",
)


def specs(*seeds: int, **changes) -> list[TinyLlama]:
    return [TinyLlama(**(SIZES | changes), seed=seed) for seed in seeds]


def policy(run_specs, data=RAGGED, dtype=torch.float64, shifted=True, reference=False):
    build = Build(torch.device("cpu"), dtype, shifted, "reference" if reference else "policy")
    return TinyLlama.stack(run_specs, [data] * len(run_specs), build)


def every_pair(runs: int, data=RAGGED) -> torch.Tensor:
    return torch.arange(len(data)).expand(runs, -1)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """Two runs saved by us and opened by transformers, in float64 weights."""
    from transformers import LlamaForCausalLM

    stack = policy(specs(0, 1))
    models = []
    for run in range(2):
        folder = tmp_path_factory.mktemp("hf") / "policy"
        stack.save(run, folder)
        models.append(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval())
    return stack, models


def test_equal_to_transformers_on_the_same_weights(hugging_face):
    """transformers computes norms and the softmax in float32 even here, hence 1e-5 and not 1e-12."""
    stack, models = hugging_face
    ids = torch.randint(0, 32, (2, 5, 11), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(11).expand(2, 5, -1)
    ours = stack.logits(ids, positions).view(2, 5, 11, 32)
    for run, model in enumerate(models):
        with torch.no_grad():
            theirs = model(ids[run]).logits
        torch.testing.assert_close(ours[run], theirs.to(ours.dtype), rtol=1e-5, atol=1e-5)


def test_a_saved_run_comes_back_through_path(hugging_face, tmp_path):
    stack, _ = hugging_face
    stack.save(1, tmp_path / "saved")
    again = policy(specs(9, path=str(tmp_path / "saved")))
    expected = stack.token_logps(every_pair(2)).values[1]
    torch.testing.assert_close(again.token_logps(every_pair(1)).values[0], expected, rtol=0, atol=0)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "llama"


def test_weights_of_other_shape_are_refused_by_name(hugging_face, tmp_path):
    hugging_face[0].save(0, tmp_path / "saved")
    with pytest.raises(BadInput, match=r"lm_head.weight is \(32, 24\), this configuration needs \(40, 24\)"):
        policy(specs(0, path=str(tmp_path / "saved"), vocab_size=40))


@pytest.mark.parametrize("shifted", [True, False])
def test_token_logps_equal_a_float64_loop_over_single_unpadded_sequences(shifted):
    stack = policy(specs(0, 1), shifted=shifted)
    found = stack.token_logps(every_pair(2))
    for run in range(2):
        for p in range(len(RAGGED)):
            for side, responses in enumerate((RAGGED.chosen, RAGGED.rejected)):
                prompt, response = RAGGED.prompts[p], responses[p]
                row = torch.tensor([[[*prompt, *response]]]).expand(2, 1, -1)
                logits = stack.logits(row, torch.arange(row.shape[-1]).expand(2, 1, -1))[run]
                for t, token in enumerate(response):
                    at = len(prompt) + t - int(shifted)
                    by_hand = logits[at][token] - logits[at].exp().sum().log()
                    assert found.values[run, p, side, t].item() == pytest.approx(by_hand.item(), abs=1e-12)
                assert found.mask[run, p, side].sum() == len(response)
                assert found.values[run, p, side, len(response) :].abs().sum() == 0


def test_gradients_equal_finite_differences_in_every_weight():
    stack = policy(specs(3))
    weights = torch.linspace(-1, 1, 6, dtype=torch.float64)

    def value() -> torch.Tensor:
        return (stack.token_logps(every_pair(1)).values.sum(-1).flatten() * weights).sum()

    value().backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in stack.parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        expected = (parameter.grad * direction).sum().item()
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = value().item()
            parameter -= 2e-6 * direction
            below = value().item()
            parameter += 1e-6 * direction
        assert expected == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-7)


def test_no_run_sees_another():
    stack = policy(specs(0, 1, 2))
    stack.token_logps(every_pair(3)).values[1].sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad[[0, 2]].abs().sum() == 0
        assert parameter.grad[1].abs().sum() > 0


def test_the_seed_makes_the_weights_and_runs_of_one_seed_start_equal():
    values = policy(specs(0, 1, 0)).token_logps(every_pair(3)).values
    assert torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[1])


def test_copy_starts_at_the_reference_and_independent_does_not():
    start, reference = (policy(specs(4), reference=r).token_logps(every_pair(1)).values for r in (False, True))
    assert torch.equal(start, reference)
    apart = specs(4, init="independent")
    start, reference = (policy(apart, reference=r).token_logps(every_pair(1)).values for r in (False, True))
    assert (start - reference).abs().max() > 0.1


def test_the_notebook_model_starts_near_the_uniform_distribution():
    """Initialised at 0.02 the logits are small, so each of the 4 response tokens starts near probability 1/32."""
    spec = TinyLlama(**(SIZES | {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4,
                                 "initializer_range": 0.02}), seed=42)  # fmt: skip
    data = notebook_pair()
    logps = policy([spec], data, torch.float32).token_logps(every_pair(1, data)).values.sum(-1)
    assert logps.flatten().tolist() == pytest.approx([-4 * 3.4657] * 2, abs=2.0)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match=r"model.vocab_size=20 is too small: the data use token id 29"):
        policy(specs(0, vocab_size=20))
    with pytest.raises(BadInput, match="a prompt is empty"):
        policy(specs(0), keep_usable([((), (1,), (2,))], "test"))
    with pytest.raises(BadInput, match=r"num_attention_heads=5 must divide hidden_size=24"):
        policy(specs(0, num_attention_heads=5))
    with pytest.raises(BadInput, match="no tokenizer"):
        specs(0)[0].tokenizer()
