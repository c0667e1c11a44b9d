"""Runs of pretrained models in the training loop: stacks of adapters, batches in parts, half precision, resuming."""

import json

import numpy as np
import pytest
import torch

from src.checkpoint import Checkpoints
from src.train import train_stack
from tests.policy.test_pretrained import save, tiny_config
from tests.stacks import configs, train
from tests.tiny_tokenizer import CHAT, tiny_tokenizer


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> str:
    """A tiny model and seven pairs of text, as overrides."""
    folder = tmp_path_factory.mktemp("given")
    config = tiny_config("llama", max_position_embeddings=128, vocab_size=300)
    model = save(folder / "model", config, tokenizer=tiny_tokenizer(bos=True, template=CHAT))
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "by"]
    rows = [
        {"prompt": " ".join(words[i : i + 3]), "chosen": " ".join(words[i + 1 : i + 5]), "rejected": words[-1 - i]}
        for i in range(7)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        f"model=pretrained model.path={model} data=jsonl data.path={folder / 'pairs.jsonl'} batch_size=4 steps=8 "
        "optimizer=adamw lr=2e-3 beta=0.3 tracking=none"
    )


def assert_same(one, other, tolerance: float) -> None:
    """Within `tolerance` of the largest value of each column, or of 1."""
    for name, values in one.items():
        allowed = tolerance * max(1.0, np.abs(values).max())
        np.testing.assert_allclose(other[name], values, rtol=0, atol=allowed, err_msg=name)


LORA = "adapter=lora adapter.r=4 adapter.alpha=8"


class TestStackOfAdapters:
    RUNS = (
        "loss=dpo beta=0.1 lr=1e-3 seed=0",
        "loss=ipo beta=0.5 lr=2e-3 seed=1 scheduler=linear scheduler.warmup_steps=3",
        "loss=simpo beta=2.0 lr=1e-3 seed=2 optimizer=sgd max_grad_norm=0.1",
    )

    @pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-5)])
    def test_a_run_in_a_stack_is_that_run_alone(self, given, dtype, tolerance):
        """Loss, beta, lr, seed, order of the data, optimiser and dropout of its own; activations in float64 pass
        through float32 norms."""
        runs = configs(*(f"{given} {LORA} {run} dtype={dtype}" for run in self.RUNS))
        together, outcomes = train(runs)
        assert {outcome.state for outcome in outcomes} == {"finished"}
        for run, in_stack in zip(runs, together, strict=True):
            (alone,), _ = train([run])
            assert_same(alone, in_stack, tolerance)
            assert np.ptp(alone["margin"]) > 0.005

    def test_a_run_that_diverges_leaves_the_others_as_they_were(self, given):
        good = "loss=dpo beta=0.1 lr=1e-3"
        runs = configs(f"{given} {LORA} {good}", f"{given} {LORA} loss=dpo optimizer=sgd lr=1e38 seed=1")
        (history, _), (one, other) = train(runs)
        assert (one.state, other.state) == ("finished", "diverged")
        (alone,), _ = train(runs[:1])
        assert_same(alone, history, 1e-6)

    def test_all_parameters_are_trained_without_an_adapter(self, given):
        (full,), _ = train(configs(given))
        (adapted,), _ = train(configs(f"{given} {LORA}"))
        assert full["grad_norm"][0] > adapted["grad_norm"][0] > 0  # at the start A has no gradient, for B is 0
        assert max(abs(full["margin"][0]), abs(adapted["margin"][0])) < 1e-5


class TestBatchInParts:
    """`compute.max_tokens` computes a batch in parts. Loss and gradient are the whole batch's, whatever the loss."""

    @pytest.mark.parametrize("loss", ["dpo", "ipo_avg", "kto", "bco", "sft", "beta_dpo"])
    @pytest.mark.parametrize("parts", ["compute.max_tokens=1", "compute.max_tokens=60"])
    def test_four_times_one_is_four(self, given, loss, parts):
        (whole,), _ = train(configs(f"{given} loss={loss} dtype=float64"))
        (in_parts,), _ = train(configs(f"{given} loss={loss} dtype=float64 {parts}"))
        assert_same(whole, in_parts, 1e-6)

    def test_it_is_one_run_and_not_two(self, given):
        one, other = configs(given, f"{given} compute.max_tokens=60 compute.attention=dense")
        assert one.id == other.id

    def test_parts_hold_as_many_tokens_as_they_may(self, given, monkeypatch):
        from src.policy import causal_lm

        seen = []
        lay_out = causal_lm.lay_out

        def counted(*arguments, **options):
            layout = lay_out(*arguments, **options)
            seen.append(layout.ids_NC.numel())
            return layout

        monkeypatch.setattr(causal_lm, "lay_out", counted)
        train(configs(f"{given} steps=1 reference=if_needed loss=simpo compute.max_tokens=60"))
        assert 1 < len(seen) < 8
        assert max(seen) <= 60


class TestPrecision:
    @pytest.mark.parametrize("adapter", ["adapter=none", LORA])
    @pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
    def test_half_precision_products_train_nearly_the_same(self, given, autocast, adapter):
        (exact,), _ = train(configs(f"{given} {adapter} max_grad_norm=1.0 steps=12"))
        (half,), (outcome,) = train(configs(f"{given} {adapter} max_grad_norm=1.0 steps=12 autocast={autocast}"))
        assert outcome.state == "finished"
        assert not np.array_equal(half["margin"], exact["margin"])
        assert abs(half["margin"][-1] - exact["margin"][-1]) < 0.15 * abs(exact["margin"][-1])
        assert half["margin"][0] == 0

    def test_weights_and_adapters_stay_float32(self, given):
        (run,) = configs(f"{given} {LORA} autocast=bfloat16 steps=1")
        from src.launching.loading import load_data

        _, policy = train_stack([run], load_data([run]), lambda *_: None, torch.device("cpu"))
        assert {p.dtype for p in policy.lm.model.parameters()} == {torch.float32}

    def test_an_update_that_overflows_is_left_out_and_the_scale_halved(self, given):
        """beta = 10 makes gradients that float16 does not hold at the scale it begins with."""
        (history,), (outcome,) = train(configs(f"{given} autocast=float16 beta=10 optimizer=sgd lr=1e-5 steps=16"))
        assert outcome.state == "finished"
        overflowed = ~np.isfinite(history["grad_norm"])
        assert 1 <= overflowed.sum() < 16
        left_out = np.flatnonzero(overflowed[:-1])
        assert left_out[0] == 0
        assert abs(history["margin"][1]) < 1e-5 < abs(history["margin"][-1])

    def test_without_a_scaler_it_is_still_divergence(self, given):
        _, (outcome,) = train(configs(f"{given} optimizer=sgd lr=1e38"))
        assert outcome.state == "diverged"

    def test_others_models_have_none(self, given):
        from src.errors import BadInput

        for more in ("autocast=bfloat16", LORA):
            with pytest.raises(BadInput, match="needs model=pretrained or model=smollm2, not model=tiny_llama"):
                train(configs(f"{more} steps=1"))


class TestResuming:
    @pytest.mark.parametrize(
        "more",
        [
            "adapter=none",
            f"{LORA} adapter.dropout=0.3",
            f"{LORA} autocast=float16 beta=1e4 lr=1e-6",
            "compute.max_tokens=60 scheduler=cosine scheduler.warmup_steps=2",
        ],
    )
    def test_a_run_goes_on_to_the_bit(self, given, more, tmp_path):
        runs = configs(f"{given} {more}")
        from src.launching.loading import load_data

        def run(checkpoints, stop=None):
            rows: dict[int, dict[str, float]] = {}

            def emit(_, columns):
                for i, step in enumerate(columns["step"]):
                    rows[int(step)] = {name: float(values[i]) for name, values in columns.items()}

            updates = []
            try:
                train_stack(
                    runs, load_data(runs), emit, torch.device("cpu"), lambda step, _: updates.append(step),
                    checkpoints=checkpoints, stop=stop and (lambda: len(updates) == stop),
                )  # fmt: skip
            except KeyboardInterrupt:
                assert stop is not None
            return rows

        whole = run(None)
        first = run(Checkpoints(tmp_path / "c", None, None), stop=3)
        then = run(Checkpoints(tmp_path / "c", None, None))
        assert (sorted(first), sorted(then)) == ([0, 1, 2], [3, 4, 5, 6, 7])
        assert json.dumps(first | then) == json.dumps(whole)
