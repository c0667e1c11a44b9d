"""The stacked Llama is transformers' Llama; its log-probs are those of a loop over single sequences."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.pairs import keep_usable
from src.data.toy import notebook_pair
from src.errors import BadInput
from src.policy.base import Build
from src.policy.parameters import ParameterStack
from src.policy.tiny_llama import TinyLlama, fuse, unfuse
from tests.policy.llama_oracle import token_log_pi

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
    """A stack of two runs, and each as saved by us and opened by transformers, in float64 weights."""
    from transformers import LlamaForCausalLM

    stack = policy(specs(0, 1))
    models = []
    for run in range(2):
        folder = tmp_path_factory.mktemp("hf") / "policy"
        stack.save(run, folder)
        models.append(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval())
    return stack, models


@pytest.mark.parametrize("shifted", [True, False])
def test_equal_to_transformers_on_the_same_weights(hugging_face, shifted):
    """transformers computes norms and the softmax in float32 even here, hence 1e-5 and not 1e-12."""
    _, models = hugging_face
    found = policy(specs(0, 1), shifted=shifted).token_logps(every_pair(2)).values
    for run, model in enumerate(models):
        for p, (prompt, ranked) in enumerate(zip(RAGGED.prompts, RAGGED.responses, strict=True)):
            for k, response in enumerate(ranked):
                with torch.no_grad():
                    log_pi = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
                at = torch.arange(len(response)) + len(prompt) - int(shifted)
                theirs = log_pi[at, torch.tensor(response)].to(found.dtype)
                torch.testing.assert_close(found[run, p, k, : len(response)], theirs, rtol=1e-5, atol=1e-5)


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


# ---- the kernel against one sequence at a time under autograd


def by_oracle(weights, spec, data, index_RB, shifted):
    """Log-prob of every response token, {(run, b, k): [T]}."""
    return {
        (run, b, k): token_log_pi(weights[run], spec, data.prompts[p], response, shifted).gather(
            -1, torch.tensor(response)[:, None]
        )[:, 0]
        for run, row in enumerate(index_RB.tolist())
        for b, p in enumerate(row)
        for k, response in enumerate(data.responses[p])
    }


@st.composite
def problems(draw):
    """A model's sizes, 1 to 3 runs, prompts with 2 to 4 responses of all lengths, a batch of them for each run."""
    kv_heads, group, half = draw(st.tuples(*[st.integers(1, 3)] * 3))
    vocabulary = draw(st.integers(8, 20))
    spec = {
        "vocab_size": vocabulary,
        "hidden_size": 2 * half * kv_heads * group,
        "intermediate_size": draw(st.integers(1, 9)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
    }
    ranks, shifted = draw(st.integers(2, 4)), draw(st.booleans())
    ids = st.integers(0, vocabulary - 1)
    prompts = st.lists(ids, min_size=int(shifted), max_size=7).map(tuple)
    responses = st.lists(st.lists(ids, min_size=1, max_size=5).map(tuple), min_size=ranks, max_size=ranks, unique=True)
    rows = draw(st.lists(st.tuples(prompts, responses), min_size=1, max_size=4))
    data = keep_usable([(prompt, *ranked) for prompt, ranked in rows], "test")
    runs, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    index = draw(st.lists(st.lists(st.integers(0, len(data) - 1), min_size=batch, max_size=batch),
                          min_size=runs, max_size=runs))  # fmt: skip
    return specs(*range(runs), **spec), data, torch.tensor(index), shifted


@settings(max_examples=60, deadline=None)
@given(problems())
def test_log_probs_and_gradients_of_any_shape_equal_the_oracles(problem):
    run_specs, data, index_RB, shifted = problem
    stack = policy(run_specs, data, shifted=shifted)
    found = stack.token_logps(index_RB)
    weights = [{k: w.double().requires_grad_() for k, w in spec._weights("reference").items()} for spec in run_specs]
    expected = by_oracle(weights, run_specs[0], data, index_RB, shifted)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for (run, b, k), values in expected.items():
        got = found.values[run, b, k]
        assert found.mask[run, b, k].tolist() == [t < len(values) for t in range(len(got))]
        assert got[len(values) :].abs().sum() == 0
        torch.testing.assert_close(got[: len(values)], values, rtol=1e-9, atol=1e-9)
        factor = torch.randn(len(values), generator=generator, dtype=torch.float64)
        ours, theirs = ours + got[: len(values)] @ factor, theirs + values @ factor
    ours.backward()
    theirs.backward()
    gradients = [fuse({k: w.grad for k, w in of_run.items()}, run_specs[0]) for of_run in weights]
    stacked = ParameterStack(gradients, torch.device("cpu"), torch.float64, run_specs[0].hidden_size).parameter
    torch.testing.assert_close(stack.parameters()[0].grad, stacked.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shifted", [True, False])
def test_whole_distributions_equal_the_oracles_and_carry_gradients(shifted):
    stack = policy(specs(0, 1), shifted=shifted)
    log_pi = stack.token_logps(every_pair(2), vocabulary=True).log_pi
    for run, spec in enumerate(specs(0, 1)):
        weights = {name: w.double() for name, w in spec._weights("reference").items()}
        for p, (prompt, ranked) in enumerate(zip(RAGGED.prompts, RAGGED.responses, strict=True)):
            for k, response in enumerate(ranked):
                expected = token_log_pi(weights, spec, prompt, response, shifted)
                torch.testing.assert_close(log_pi[run, p, k, : len(response)], expected, rtol=1e-12, atol=1e-12)
    (log_pi[0, 0, 0, 0].exp() * log_pi[0, 0, 0, 0]).sum().backward()
    assert stack.parameters()[0].grad[0].abs().sum() > 0


def test_float32_is_close_to_float64():
    exact, rounded = (policy(specs(0, 1), dtype=dtype).token_logps(every_pair(2)).values
                      for dtype in (torch.float64, torch.float32))  # fmt: skip
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-5, atol=1e-5)


def test_bfloat16_weights_give_float32_log_probs_and_a_gradient():
    stack = policy(specs(0), dtype=torch.bfloat16)
    values = stack.token_logps(every_pair(1)).values
    exact = policy(specs(0)).token_logps(every_pair(1)).values
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=0.1, atol=0.2)
    values.sum().backward()
    assert stack.parameters()[0].grad.dtype == torch.bfloat16 and stack.parameters()[0].grad.isfinite().all()


def test_what_else_is_in_the_data_does_not_change_a_pair():
    """A longer prompt or response elsewhere only adds padding."""
    together = policy(specs(0)).token_logps(every_pair(1)).values
    for p in range(len(RAGGED)):
        one = keep_usable([(RAGGED.prompts[p], *RAGGED.responses[p])], "test")
        alone = policy(specs(0), one).token_logps(every_pair(1, one)).values[0, 0]
        torch.testing.assert_close(together[0, p, :, : alone.shape[-1]], alone, rtol=0, atol=1e-12)


def test_runs_may_have_data_of_their_own():
    other = keep_usable([((3, 1, 4), (1, 5), (9,)), ((2,), (7, 1), (8,)), ((2, 7), (1, 8), (2,))], "test")
    build = Build(torch.device("cpu"), torch.float64)
    values = TinyLlama.stack(specs(0, 1), [RAGGED, other], build).token_logps(every_pair(2)).values
    alone = policy(specs(1), other).token_logps(every_pair(1, other)).values[0]
    torch.testing.assert_close(values[1][..., : alone.shape[-1]], alone, rtol=0, atol=1e-12)


def test_gradients_add_up_until_they_are_cleared():
    stack = policy(specs(0))
    (weights,) = stack.parameters()

    def backward(pair: int) -> torch.Tensor:
        stack.token_logps(torch.tensor([[pair]])).values.sum().backward()
        return weights.grad.clone()

    first = backward(0)
    both = backward(1)
    weights.grad = None
    second = backward(1)
    torch.testing.assert_close(both, first + second, rtol=1e-12, atol=1e-12)


def test_fused_weights_come_apart_into_the_same_numbers():
    (spec,) = specs(0)
    weights = spec._weights("reference")
    again = unfuse(fuse(weights, spec), spec, "lm_head")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


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
    with pytest.raises(BadInput, match="gives 3 numbers a head: rotary positions need an even number"):
        policy(specs(0, hidden_size=12))
    with pytest.raises(BadInput, match="no tokenizer"):
        specs(0)[0].tokenizer()
