"""LoRA: PEFT's numbers for one run, and one run's numbers for a stack of many."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from src.data.pairs import PairData
from src.errors import BadInput
from src.policy.adapters import Lora, StackedLora, _dropped
from src.policy.base import Build
from src.policy.pretrained import Pretrained
from tests.policy.test_pretrained import (
    CPU,
    EVERY,
    LAYOUTS,
    PAIRS,
    policy_of,
    save,
    some_pairs,
    tiny_config,
    tiny_model,
)
from tests.tiny_tokenizer import tiny_tokenizer

# PEFT asks transformers for a name that is to go away.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

LINEAR = ("q_proj", "v_proj", "down_proj")


def lora(**changes) -> Lora:
    given = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": LINEAR, "quantize": None, "keep": "adapter", "seed": 0}
    return Lora(**(given | changes))


def away_from_the_start(policy) -> None:
    """B is 0 at first, and so is nearly every mistake's effect."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.3 * torch.randn_like(weight))


def peft_of(policy, run: int):
    """The same adapter in PEFT's model."""
    spec = policy._adapters[run]
    config = peft.LoraConfig(
        r=spec.r, lora_alpha=spec.alpha, target_modules=list(spec.targets), lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(tiny_model("llama"), config)
    state = {}
    for name, layer in policy.lm.model.named_modules():
        if isinstance(layer, StackedLora):
            for which in ("lora_A", "lora_B"):
                state[f"base_model.model.{name}.{which}.weight"] = getattr(layer, which)[run].detach().clone()
    loaded = peft.set_peft_model_state_dict(model, state)
    assert not loaded.unexpected_keys
    return model.double()


class TestOneRun:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_log_probs_and_gradients_are_pefts(self, layout):
        policy = policy_of(tiny_model("llama"), adapters=(lora(),), layout=LAYOUTS[layout])
        away_from_the_start(policy)
        theirs = peft_of(policy, 0)
        logps = policy.token_logps(EVERY).values[0].sum(-1)
        weights = torch.linspace(-1, 2, 12, dtype=torch.float64).view(6, 2)
        (logps * weights).sum().backward()

        def alone(prompt, response):
            logp = theirs(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
            return sum(logp[len(prompt) - 1 + t, token] for t, token in enumerate(response))

        expected = torch.stack(
            [
                torch.stack([alone(x, y) for y in ranked])
                for x, ranked in zip(PAIRS.prompts, PAIRS.responses, strict=True)
            ]
        )
        torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5)
        (expected * weights).sum().backward()
        gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
        named = dict(policy.lm.model.named_parameters())
        assert len(gradients) == len(policy.parameters()) == 2 * 2 * len(LINEAR)
        for name, gradient in gradients.items():
            ours = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            torch.testing.assert_close(named[ours].grad[0], gradient, rtol=0, atol=1e-4)

    def test_it_starts_as_the_model_without_it(self):
        with_it = policy_of(tiny_model("llama"), adapters=(lora(),))
        without = policy_of(tiny_model("llama"))
        assert torch.equal(with_it.token_logps(EVERY).values, without.token_logps(EVERY).values)

    def test_the_frozen_weights_get_no_gradient(self):
        policy = policy_of(tiny_model("llama"), adapters=(lora(),))
        policy.token_logps(EVERY).values.sum().backward()
        trained = {name for name, p in policy.lm.model.named_parameters() if p.grad is not None}
        assert trained == {name for name, p in policy.lm.model.named_parameters() if "lora" in name}

    def test_first_values_are_spread_as_pefts(self):
        """Uniform with the bound 1 / sqrt(inputs), other for every seed and layer; B is 0."""
        policy = policy_of(tiny_model("llama"), (PAIRS, PAIRS), adapters=(lora(r=64), lora(r=64, seed=1)))
        theirs = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=64, target_modules=list(LINEAR)))
        expected = {n: p for n, p in theirs.named_parameters() if "lora_A" in n}
        ours = [layer.lora_A for layer in policy._layers]
        assert len(ours) == len(expected)
        for mine, peer in zip(ours, expected.values(), strict=True):
            assert mine[0].abs().max() <= 1 / mine.shape[-1] ** 0.5
            assert abs(mine.std() / peer.std() - 1) < 0.05
            assert not torch.equal(mine[0], mine[1])
        assert not torch.equal(ours[0][0], ours[1][0])
        assert not any(layer.lora_B.any() for layer in policy._layers)

    def test_all_linear_is_all_but_the_head(self):
        policy = policy_of(tiny_model("llama"), adapters=(lora(targets="all-linear"),))
        assert len(policy._layers) == 2 * 7

    def test_a_layer_that_is_not_there(self):
        with pytest.raises(BadInput, match=r"no linear layer is named c_attn; there are down_proj, gate_proj, k_proj"):
            policy_of(tiny_model("llama"), adapters=(lora(targets=("c_attn",)),))

    def test_4_bits_need_a_gpu(self, tmp_path):
        spec = Pretrained(path=save(tmp_path, tiny_config("llama")))
        build = Build(CPU, torch.float32, adapters=(lora(quantize="nf4"),))
        with pytest.raises(BadInput, match=r"adapter\.quantize=nf4 needs compute=cuda"):
            Pretrained.stack([spec], [PAIRS], build)


class TestStack:
    """R runs over one model are each what they would be alone."""

    SPECS = (lora(seed=0, dropout=0.2), lora(seed=1, dropout=0.2), lora(seed=2, dropout=0.2))
    INDEX = torch.tensor([[0, 1, 2], [5, 5, 3], [4, 0, 1]])

    @pytest.mark.parametrize("step", [None, 7])
    @pytest.mark.parametrize("layout", [{}, {"attention": "dense"}, {"pack": False}, {"checkpoint_activations": True}])
    def test_each_run_is_what_it_is_alone(self, layout, step):
        stack = policy_of(tiny_model("llama"), (PAIRS,) * 3, adapters=self.SPECS, layout=layout)
        away_from_the_start(stack)
        together = stack.token_logps(self.INDEX, step=step)
        together.values.square().sum().backward()
        for r, spec in enumerate(self.SPECS):
            alone = policy_of(tiny_model("llama"), adapters=(spec,), layout=layout)
            with torch.no_grad():
                for mine, theirs in zip(alone.parameters(), stack.parameters(), strict=True):
                    mine.copy_(theirs[r : r + 1])
            if step is not None and layout.get("pack") is False:
                continue  # rows padded to another width have other masks; see StackedLora
            logps = alone.token_logps(self.INDEX[r : r + 1], step=step)
            width = logps.values.shape[-1]
            torch.testing.assert_close(together.values[r : r + 1, ..., :width], logps.values, rtol=0, atol=1e-5)
            assert not together.mask[r, ..., width:].any()
            logps.values.square().sum().backward()
            for mine, theirs in zip(alone.parameters(), stack.parameters(), strict=True):
                torch.testing.assert_close(theirs.grad[r : r + 1], mine.grad, rtol=1e-5, atol=1e-4)

    def test_runs_may_have_data_of_their_own(self):
        other = some_pairs()
        stack = policy_of(tiny_model("llama"), (PAIRS, other), adapters=self.SPECS[:2])
        away_from_the_start(stack)
        first = stack.token_logps(torch.tensor([[0, 1], [3, 2]])).values
        alone = policy_of(tiny_model("llama"), (other,), adapters=self.SPECS[1:2])
        with torch.no_grad():
            for mine, theirs in zip(alone.parameters(), stack.parameters(), strict=True):
                mine.copy_(theirs[1:])
        values = alone.token_logps(torch.tensor([[3, 2]])).values
        torch.testing.assert_close(first[1:, ..., : values.shape[-1]], values, rtol=0, atol=1e-5)

    def test_there_is_one_model_in_memory(self, tmp_path):
        spec = Pretrained(path=save(tmp_path, tiny_config("llama"), tokenizer=tiny_tokenizer()))
        one, two = (
            Pretrained.stack([spec] * 2, [PAIRS] * 2, Build(CPU, torch.float32, adapters=(lora(), lora(seed=s))))
            for s in (1, 2)
        )
        frozen = {name: p.data_ptr() for name, p in one.lm.model.named_parameters() if "lora" not in name}
        assert frozen == {name: p.data_ptr() for name, p in two.lm.model.named_parameters() if "lora" not in name}


class TestDropout:
    def test_it_is_for_training_only_and_differs_from_step_to_step(self):
        policy = policy_of(tiny_model("llama"), adapters=(lora(dropout=0.3),))
        away_from_the_start(policy)
        evaluated, first, again, second = (policy.token_logps(EVERY, step=s).values for s in (None, 0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.allclose(first, second)
        assert not torch.allclose(first, evaluated)

    def test_it_is_the_same_when_a_layer_or_a_part_is_computed_again(self):
        gradients = []
        for layout in ({"max_tokens": 14}, {"max_tokens": 14, "checkpoint_activations": True}):
            policy = policy_of(tiny_model("llama"), adapters=(lora(dropout=0.3),), layout=layout)
            away_from_the_start(policy)
            policy.token_logps(EVERY, step=3).values.sum().backward()
            gradients.append([p.grad for p in policy.parameters()])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("p", [0.01, 0.5])
    def test_elements_are_dropped_independently_with_probability_p(self, p):
        size, draws = 5000, 400
        kept = torch.ones(draws, size)
        for seed in range(draws):
            kept[seed, _dropped(size, p, seed)] = 0
        dropped = 1 - kept
        spread = (p * (1 - p) / dropped.numel()) ** 0.5
        assert abs(dropped.mean() - p) < 5 * spread
        neighbours = (dropped[:, 1:] * dropped[:, :-1]).mean()
        assert abs(neighbours - p * p) < 5 * (p * p / dropped.numel()) ** 0.5
        assert abs(dropped[:, 0].mean() - p) < 5 * (p * (1 - p) / draws) ** 0.5

    def test_what_comes_behind_changes_nothing_before(self):
        longer = _dropped(900, 0.05, 3)
        assert torch.equal(_dropped(500, 0.05, 3), longer[longer < 500])

    def test_its_expectation_is_the_layer_without_it(self):
        policy = policy_of(tiny_model("llama"), adapters=(lora(dropout=0.3, targets=("down_proj",)),))
        away_from_the_start(policy)
        layer = policy._layers[0]
        x = torch.randn(1, 3, 48, dtype=torch.float64)
        policy._lanes.noise = None
        exact = layer(x)
        drawn = []
        for step in range(2000):
            policy._lanes.noise = (step,)
            drawn.append(layer(x).detach())
        drawn = torch.stack(drawn)
        error = drawn.std(0) / len(drawn) ** 0.5
        assert ((drawn.mean(0) - exact).abs() < 5 * error).all()


class TestSaving:
    @pytest.fixture
    def policy(self, tmp_path):
        def make(keep):
            spec = Pretrained(path=save(tmp_path / "base", tiny_config("llama"), tokenizer=tiny_tokenizer()))
            adapters = (lora(keep=keep), lora(keep=keep, seed=1))
            policy = Pretrained.stack([spec] * 2, [PAIRS] * 2, Build(CPU, torch.float32, adapters=adapters))
            away_from_the_start(policy)
            return policy

        return make

    def logps(self, path: Path, model=None):
        if model is None:
            policy = Pretrained.stack([Pretrained(path=str(path))], [PAIRS], Build(CPU, torch.float32))
            return policy.token_logps(EVERY).values
        return policy_of(model).token_logps(EVERY).values

    def test_peft_reads_the_adapter(self, policy, tmp_path):
        ours = policy("adapter")
        ours.save(1, tmp_path / "policy")
        assert sorted(file.name for file in (tmp_path / "policy").glob("*.safetensors")) == [
            "adapter_model.safetensors"
        ]
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "policy").merge_and_unload()
        expected = ours.token_logps(EVERY.expand(2, -1)).values[1:]
        torch.testing.assert_close(self.logps(tmp_path, theirs).float(), expected, rtol=0, atol=1e-4)

    def test_the_merged_model_needs_neither(self, policy, tmp_path):
        ours = policy("merged")
        ours.save(0, tmp_path / "policy")
        expected = ours.token_logps(EVERY.expand(2, -1)).values[:1]
        torch.testing.assert_close(self.logps(tmp_path / "policy"), expected, rtol=0, atol=1e-4)

    def test_the_digest_is_that_of_the_weights_below(self, policy, tmp_path):
        ours = policy("adapter")
        plain = Pretrained.stack([Pretrained(path=str(tmp_path / "base"))], [PAIRS], Build(CPU, torch.float32))
        digest = ours.weights_digest()
        assert digest == plain.weights_digest()
        with torch.no_grad():
            plain.parameters()[3].view(-1)[5] += 1e-6
        assert digest != plain.weights_digest()


class TestSampling:
    def test_answers_follow_the_policys_own_probabilities(self):
        """One new token, drawn often: its frequencies are the model's probabilities, of this run and of no other."""
        policy = policy_of(tiny_model("llama"), (PAIRS, PAIRS), adapters=(lora(), lora(seed=1)))
        away_from_the_start(policy)
        prompt = PAIRS.prompts[0]
        draws = 4000
        drawn = [ids[0] for ids in policy.sample(1, [prompt] * draws, 1, 1.0, seed=0)]
        every = tuple((token,) for token in range(64))
        possible = PairData((prompt,), (every,))
        probabilities = policy.rescore(1, possible).values[0, 0, :, 0].exp()
        assert abs(probabilities.sum() - 1) < 1e-6
        counts = torch.bincount(torch.tensor(drawn), minlength=64) / draws
        assert ((counts - probabilities).abs() < 5 * (probabilities / draws).sqrt() + 1e-3).all()
        other = policy.rescore(0, possible).values[0, 0, :, 0].exp()
        assert (other - probabilities).abs().max() > 0.05

    def test_a_seed_gives_the_same_answers_and_leaves_torchs_own_draws_alone(self):
        policy = policy_of(tiny_model("llama"))
        before = torch.get_rng_state()
        one = policy.sample(0, PAIRS.prompts, 5, 1.0, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        assert one == policy.sample(0, PAIRS.prompts, 5, 1.0, seed=3) != policy.sample(0, PAIRS.prompts, 5, 1.0, seed=4)
        assert all(ids[-1] == 2 or len(ids) == 5 for ids in one)
        assert all(2 not in ids[:-1] for ids in one)

    def test_the_reference_is_the_model_without_adapters(self):
        policy = policy_of(tiny_model("llama"), adapters=(lora(),))
        before = policy.token_logps(EVERY).values.detach()
        away_from_the_start(policy)
        torch.testing.assert_close(policy.rescore(0, PAIRS, reference=True).values, before, rtol=0, atol=1e-12)
        assert not torch.allclose(policy.rescore(0, PAIRS).values, before)
