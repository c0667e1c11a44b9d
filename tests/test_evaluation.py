"""What is measured now and then: as the history measures it, of pairs that training never sees, changing nothing."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from src.config import EarlyStop, Launcher, RunConfig
from src.data.pairs import PairData
from src.errors import BadInput
from src.evaluation import Evaluated, check_evaluation, has_settled
from src.kl import k1, k3
from src.launching import work
from src.launching.loading import load_data
from src.policy.base import Build
from src.policy.tabular import Tabular
from src.policy.tiny_llama import TinyLlama
from src.store import read_samples, read_stream
from src.train import Outcome, train_stack
from tests.conftest import TOY
from tests.held_out import one_pair, responses, texts
from tests.stacks import SMALL_LLAMA, configs, train
from tests.tiny_tokenizer import tiny_tokenizer

TABULAR = "model=tabular data=notebook_pair data._target_=tests.held_out.one_pair tracking=none dtype=float64 lr=0.5"
LLAMA = f"data._target_=tests.held_out.texts tracking=none dtype=float64 {' '.join(SMALL_LLAMA)}"
CPU = torch.device("cpu")


class Followed:
    """The rows of a stack's histories and of its evaluations, and how its runs ended."""

    def __init__(self, runs: Sequence[RunConfig], data: Sequence[PairData] | None = None) -> None:
        rows: list[list[dict]] = [[] for _ in runs]
        self.evaluated: list[list[Evaluated]] = [[] for _ in runs]
        self.outcomes, self.policy = train_stack(
            runs, data or load_data(runs), lambda r, columns: rows[r].extend(pa.table(dict(columns)).to_pylist()), CPU,
            keep=lambda r, found: self.evaluated[r].append(found),
        )  # fmt: skip
        self.histories = rows

    def metrics(self, run: int = 0) -> list[dict[str, float]]:
        return [{name: values.item() for name, values in found.metrics.items()} for found in self.evaluated[run]]

    def probes(self, run: int = 0) -> list[dict]:
        return [row for found in self.evaluated[run] for row in pa.table(dict(found.probes)).to_pylist()]


def test_a_run_is_evaluated_before_the_first_update_every_so_often_and_after_the_last():
    for steps, expected in ((10, [0, 4, 8, 10]), (8, [0, 4, 8]), (3, [0, 3])):
        (run,) = configs(f"{TABULAR} steps={steps} evaluation.every=4")
        assert [row["step"] for row in Followed([run]).metrics()] == expected


@pytest.mark.parametrize("model", [TABULAR, LLAMA])
def test_an_evaluated_run_has_the_history_of_one_that_is_not_to_the_bit(model):
    problem = f"{model} steps=12 optimizer=adam lr=1e-2 batch_size=1"
    plain, evaluated = configs(f"{problem} seed=3", f"{problem} seed=3 evaluation.every=5 evaluation.samples=2")
    followed = Followed([evaluated])
    assert followed.histories == Followed([plain]).histories
    assert len(followed.evaluated[0]) == 4
    assert evaluated.id == plain.id


@pytest.mark.parametrize("objective", ["preference", "reward_model", "sft loss=sft"])
@pytest.mark.parametrize("model", [TABULAR, LLAMA])
def test_where_the_held_out_pairs_are_the_batch_every_metric_is_the_historys(model, objective):
    runs = configs(
        *(f"{model} steps=4 batch_size=full evaluation.every=1 objective={objective} lr={lr}" for lr in (0.1, 0.2))
    )
    data = [replace(pairs, held_out=replace(pairs, held_out=None)) for pairs in load_data(runs)]
    data = [data[0]] * 2
    followed = Followed(runs, data)
    for run in (0, 1):
        rows = followed.metrics(run)
        assert [row.pop("step") for row in rows] == [0, 1, 2, 3, 4]
        for found, expected in zip(rows, followed.histories[run], strict=False):
            assert {"eval/loss"} < found.keys()
            for name, value in found.items():
                assert value == pytest.approx(expected[name.removeprefix("eval/")], rel=1e-10, abs=1e-12), name
        assert rows[0] != rows[-1]
    assert followed.metrics(0) != followed.metrics(1)


def test_a_stack_is_evaluated_as_each_of_its_runs_alone():
    cells = [f"loss={loss} seed={seed}" for loss in ("dpo", "ipo") for seed in (0, 1)]
    runs = configs(*(f"{cell} {LLAMA} steps=6 evaluation.every=3 evaluation.samples=2" for cell in cells))
    together = Followed(runs)
    for r, run in enumerate(runs):
        alone = Followed([run])
        for ours, theirs in zip(together.metrics(r), alone.metrics(), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)
        assert [x.answers[0]["answer"] for x in together.evaluated[r]] == [
            x.answers[0]["answer"] for x in alone.evaluated[0]
        ]


def test_probes_are_the_log_ratios_of_the_first_training_pairs_and_of_the_held_out_pairs_one_by_one():
    run, data = (
        configs(f"{LLAMA} steps=5 lr=1e-2 evaluation.every=5 evaluation.probes=2 evaluation.pairs=3")[0],
        texts(),
    )
    followed = Followed([run], [data])
    rows = followed.probes()
    names = [("train", 0), ("train", 1), ("held_out", 0), ("held_out", 2), ("held_out", 4)]
    assert [(row["step"], row["set"], row["pair"]) for row in rows] == [(t, *name) for t in (0, 5) for name in names]
    assert all(row["log_ratio_chosen"] == row["log_ratio_rejected"] == 0 for row in rows[:5])
    for row in rows[5:]:
        pairs = (data if row["set"] == "train" else data.held_out).take([row["pair"]])
        now, before = (followed.policy.rescore(0, pairs, reference).values.sum(-1)[0, 0] for reference in (False, True))
        expected = (now - before).tolist()
        assert [row["log_ratio_chosen"], row["log_ratio_rejected"]] == pytest.approx(expected, abs=1e-12)
    last = followed.metrics()[-1]
    mean = np.mean([row["log_ratio_chosen"] for row in rows[7:]])
    assert last["eval/log_ratios/chosen"] == pytest.approx(mean)


def test_probes_alone_need_no_held_out_pairs():
    (run,) = configs(f"{' '.join(SMALL_LLAMA)} tracking=none steps=4 evaluation.every=2 evaluation.pairs=0")
    followed = Followed([run])
    assert [row["set"] for row in followed.probes()] == ["train"] * 3
    assert [row.keys() for row in followed.metrics()] == [{"step"}] * 3


@pytest.mark.parametrize("more", ["objective=reward_model", "loss=simpo reference=if_needed"])
def test_without_a_reference_there_are_no_log_ratios_to_follow(more):
    (run,) = configs(f"{TABULAR} {more} steps=2 evaluation.every=1")
    assert Followed([run]).probes() == []


def test_a_loss_of_whole_distributions_is_evaluated_without_its_value():
    (run,) = configs(f"{LLAMA} loss=tdpo1 steps=2 evaluation.every=1")
    found = Followed([run]).metrics()[0]
    assert "eval/margin" in found and "eval/loss" not in found


# ---- the policy's own answers


def test_kl_from_a_tables_own_answers_is_its_exact_kl_within_the_standard_error():
    (run,) = configs(f"{TABULAR} steps=20 lr=2.0 evaluation.every=20 evaluation.samples=4000")
    followed = Followed([run], [replace(one_pair(), held_out=responses((0, 1), prompts=4000))])
    last = followed.metrics()[-1]
    log_pi = followed.policy.parameters()[0].detach()[0, 0].log_softmax(-1)
    exact = float((log_pi.exp() * (log_pi - math.log(1 / 4))).sum())
    assert exact > 0.1
    for estimator in ("k1", "k3"):
        error = last[f"eval/kl_{estimator}_se"]
        assert 0 < error < 0.05
        assert abs(last[f"eval/kl_{estimator}"] - exact) < 4 * error
    found = np.array([answer["k1"] for answer in followed.evaluated[0][-1].answers])
    assert last["eval/kl_k1_se"] == pytest.approx(found.std(ddof=1) / len(found) ** 0.5)


def test_an_answers_numbers_are_sums_over_its_tokens():
    (run,) = configs(f"{LLAMA} steps=3 lr=0.1 evaluation.every=3 evaluation.samples=3 evaluation.max_new_tokens=5")
    data = texts()
    followed = Followed([run], [data])
    first, last = (found.answers for found in followed.evaluated[0])
    assert [answer["pair"] for answer in first] == [0, 2, 4]
    assert all(answer["k1"] == answer["k3"] == 0 for answer in first)  # it still is its reference
    for answer in last:
        assert answer["prompt"] == " ".join(map(str, data.held_out.prompts[answer["pair"]]))
        ids = tuple(map(int, answer["answer"].split()))
        assert answer["tokens"] == len(ids) == 5
        one = PairData((data.held_out.prompts[answer["pair"]],), ((ids,),))
        ours, theirs = (followed.policy.rescore(0, one, reference).values[0, 0, 0] for reference in (False, True))
        for estimator in (k1, k3):
            assert answer[estimator.__name__] == pytest.approx(float(estimator(ours - theirs).sum()), rel=1e-9)
    assert last[0]["k1"] != 0


def test_at_another_temperature_answers_are_shown_and_no_kl_is_estimated():
    (run,) = configs(f"{TABULAR} steps=2 evaluation.every=2 evaluation.samples=2 evaluation.temperature=0.5")
    followed = Followed([run])
    assert not [name for name in followed.metrics()[-1] if "kl_" in name]
    assert len(followed.evaluated[0][-1].answers) == 2


def llama(pairs: PairData):
    """Two random ones, in float64."""
    (run,) = configs(f"{LLAMA} model.init=independent model.initializer_range=0.5")
    specs = [replace(run.model.build(), seed=seed) for seed in (0, 1)]
    return TinyLlama.stack(specs, [pairs] * 2, Build(CPU, torch.float64))


def table(pairs: PairData):
    specs = [
        Tabular(actions=4, ref_probs=None, per_prompt=False, init="independent", init_std=1.0, seed=s) for s in (0, 1)
    ]
    return Tabular.stack(specs, [pairs] * 2, Build(CPU, torch.float64))


@pytest.mark.parametrize(("policy", "pairs"), [(llama, texts()), (table, responses((0, 1), (1, 0)))])
def test_rescoring_the_data_gives_the_log_probs_of_the_data(policy, pairs):
    made = policy(pairs)
    found = made.token_logps(torch.arange(len(pairs)).expand(2, -1))
    for run in (0, 1):
        again = made.rescore(run, pairs)
        torch.testing.assert_close(again.values[0], found.values[run].detach(), rtol=1e-12, atol=1e-12)
        assert not again.values.requires_grad
    assert not torch.equal(made.rescore(0, pairs, reference=True).values, made.rescore(0, pairs).values)


@pytest.mark.parametrize(("policy", "pairs"), [(llama, texts()), (table, responses((0, 1), (1, 0)))])
def test_answers_follow_from_the_seed_and_are_drawn_from_the_runs_own_distribution(policy, pairs):
    made = policy(pairs)
    prompts = [pairs.prompts[0]] * 3000
    drawn = made.sample(1, prompts, 1, 1.0, seed=5)
    assert drawn == made.sample(1, prompts, 1, 1.0, seed=5)
    assert drawn != made.sample(1, prompts, 1, 1.0, seed=6)
    assert drawn != made.sample(0, prompts, 1, 1.0, seed=5)
    distinct = sorted(set(drawn))
    one = PairData((pairs.prompts[0],), (tuple(distinct),))
    probs = made.rescore(1, one).values[0, 0, :, 0].exp().numpy()
    shares = np.array([drawn.count(ids) for ids in distinct]) / len(drawn)
    assert np.abs(shares - probs).max() < 4 * 0.5 / len(drawn) ** 0.5
    assert probs.sum() > 0.99
    coldest = made.sample(1, prompts[:20], 1, 1e-3, seed=0)
    assert set(coldest) == {distinct[int(probs.argmax())]}


# ---- what cannot be evaluated is said beforehand

REFUSED = {
    "evaluation.every=2": ["evaluation.pairs=64", "data.holdout"],
    "evaluation.every=2 evaluation.pairs=0 evaluation.samples=2": ["evaluation.samples=2", "data.holdout"],
    "data._target_=tests.held_out.one_pair evaluation.every=2 model=tabular model.per_prompt=true": ["per_prompt"],
    "data._target_=tests.held_out.one_pair evaluation.every=2 evaluation.samples=1 objective=reward_model":
        ["evaluation.samples=1", "objective=reward_model"],
    "data._target_=tests.held_out.one_pair evaluation.every=2 evaluation.samples=1 logps=notebook_per_token":
        ["evaluation.samples=1", "logps=notebook_per_token"],
    "early_stop.patience=2": ["early_stop.patience=2", "evaluation.every"],
    "early_stop.patience=2 evaluation.every=2 evaluation.pairs=0": ["early_stop.patience=2", "evaluation.pairs"],
    "early_stop.patience=2 evaluation.every=2 objective=reward_model": ["early_stop.patience=2", "objective"],
    "early_stop.patience=2 evaluation.every=2 loss=simpo reference=if_needed": ["early_stop.patience=2", "reference"],
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "fragments"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_evaluated_is_refused_in_one_line(overrides, fragments):
    (run,) = configs(f"{overrides} tracking=none")
    with pytest.raises(BadInput) as refusal:
        check_evaluation(run, load_data([run])[0])
    for fragment in fragments:
        assert fragment in str(refusal.value)


def test_an_evaluation_without_held_out_pairs_creates_nothing(cli, tmp_path):
    done = cli(*TOY, "evaluation.every=2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "data.holdout" in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ---- early stop


@pytest.mark.parametrize(
    ("rewards", "kls", "settled"),
    [
        ([0, 1, 2, 3], [1, 1, 1, 1], False),  # it rises
        ([0, 3, 3, 3], [1, 1, 1, 1], True),
        ([0, 3, 2, 3.1], [1, 1, 1, 1], False),
        ([3, 3], [1, 1], False),  # too few to tell
        ([0, 3, 3, 2], [1, 2, 1, 1], False),  # KL is not steady …
        ([0, 3, 3, 2], [2, 1, 1.04, 1.02], True),  # … over the last three
        ([3, 3, 3], [0, 0, 0], True),
        ([math.nan] * 3, [math.nan] * 3, False),
    ],
)
def test_a_run_has_settled_where_its_reward_rises_no_more_and_its_kl_is_steady(rewards, kls, settled):
    seen = list(zip(rewards, kls, strict=True))
    assert has_settled(seen, EarlyStop(patience=2, kl_tolerance=0.05)) is settled


def test_a_gain_below_the_least_that_counts_is_none():
    seen = [(0.0, 1.0), (1.0, 1.0), (1.05, 1.0), (1.09, 1.0)]
    assert not has_settled(seen, EarlyStop(patience=2))
    assert has_settled(seen, EarlyStop(patience=2, min_reward_gain=0.1))


STOPPING = f"{TABULAR} steps=200 evaluation.every=10 early_stop.patience=2 early_stop.min_reward_gain=1e-3 lr=0.05"


def test_a_run_that_has_settled_ends_as_finished_and_the_others_go_on_as_if_it_had_not():
    runs = configs(f"loss=ipo beta=0.5 {STOPPING}", f"loss=dpo beta=0.5 {STOPPING} lr=0.5")
    followed = Followed(runs)
    stopped, other = followed.outcomes
    assert (stopped.state, other) == ("finished", Outcome("finished", 200))
    assert stopped.steps_done == stopped.step == len(followed.histories[0]) < 200
    assert stopped.step % 10 == 0
    assert stopped.reason == f"early stop at step {stopped.step}: the reward margin no longer rises and KL is steady"
    assert [row["step"] for row in followed.metrics()] == list(range(0, stopped.step + 1, 10))
    plain, _ = train(
        configs(*(f"loss={loss} beta=0.5 {TABULAR} steps=200 lr={lr}" for loss, lr in (("ipo", 0.05), ("dpo", 0.5))))
    )
    for name, values in plain[1].items():
        assert [row[name] for row in followed.histories[1]] == values.tolist(), name
    for name, values in plain[0].items():
        assert [row[name] for row in followed.histories[0]] == values[: stopped.step].tolist(), name


def test_the_weights_of_a_run_that_stopped_are_those_it_stopped_with():
    runs = configs(f"loss=ipo beta=0.5 {STOPPING} optimizer=adam", f"loss=dpo beta=0.5 {STOPPING} optimizer=adam")
    together = Followed(runs)
    assert together.outcomes[0].step is not None and together.outcomes[1].step is None
    (short,) = configs(f"loss=ipo beta=0.5 {TABULAR} lr=0.05 optimizer=adam steps={together.outcomes[0].step}")
    expected = Followed([short]).policy.parameters()[0][0]
    torch.testing.assert_close(together.policy.parameters()[0][0], expected, rtol=1e-12, atol=1e-12)


def test_early_stop_is_part_of_a_runs_identity_where_it_is_on_and_so_are_its_evaluations(convert):
    ids = {
        "off": convert().id,
        "on": convert("early_stop.patience=2", "evaluation.every=5").id,
        "patience": convert("early_stop.patience=3", "evaluation.every=5").id,
        "every": convert("early_stop.patience=2", "evaluation.every=6").id,
    }
    assert len(set(ids.values())) == 4
    assert convert("early_stop.kl_tolerance=0.5", "evaluation.every=6").id == ids["off"]
    assert convert("early_stop.patience=2", "evaluation.every=5", "evaluation.probes=3").id == ids["on"]


# ---- on disk

FILES = "evaluations.arrow", "probes.arrow"
KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nobody closes its files
ON_DISK = f"{LLAMA} steps=20 lr=1e-2 evaluation.every=3 evaluation.pairs=2 evaluation.probes=1 evaluation.samples=2"


def folders(sweep: Path) -> list[Path]:
    return [sweep / run["dir"] for run in json.loads((sweep / "sweep.json").read_text())["runs"]]


def written(folder: Path) -> dict[str, object]:
    tables = {name: read_stream(folder, name) for name in (*FILES, "history.arrow")}
    assert all(table is not None for table in tables.values())
    return {name: table.to_pydict() for name, table in tables.items()} | {"samples": read_samples(folder)}


def test_evaluations_are_in_the_run_directory(sweep, tmp_path):
    assert sweep(f"{ON_DISK} loss=dpo") == 0
    (folder,) = folders(tmp_path / "s")
    found = written(folder)
    steps = [0, 3, 6, 9, 12, 15, 18, 20]
    assert found["evaluations.arrow"]["step"] == steps
    assert found["probes.arrow"]["step"] == [t for t in steps for _ in range(3)]
    assert [row["step"] for row in found["samples"]] == [t for t in steps for _ in range(2)]
    assert list(found["samples"][0]) == ["step", "pair", "prompt", "answer", "tokens", "k1", "k3"]
    schema = {field.name: str(field.type) for field in read_stream(folder, "probes.arrow").schema}
    assert schema == {"step": "int64", "set": "string", "pair": "int64", "log_ratio_chosen": "double",
                      "log_ratio_rejected": "double"}  # fmt: skip


@KILLED
@pytest.mark.parametrize(("checkpoint", "dies", "resumed"), [(8, 13, 8), (6, 7, 6), (20, 19, None)])
def test_a_run_that_was_killed_ends_with_the_evaluations_of_one_that_was_not(
    sweep, tmp_path, monkeypatch, checkpoint, dies, resumed
):
    """In the midst of training, and with the last evaluation of one run written and those of the others not."""
    stopping = "early_stop.patience=1 early_stop.min_reward_gain=100 early_stop.kl_tolerance=1"
    cells = [f"{ON_DISK} loss=dpo", f"{ON_DISK} loss=ipo", f"{ON_DISK} loss=ipo lr=1e30", f"{ON_DISK} {stopping}"]
    assert sweep(*cells, output=tmp_path / "whole") == 0
    launcher, train = Launcher(processes=1, checkpoint_steps=checkpoint), work.train_stack

    def dying(*arguments):
        def die(step, margins):
            if step == dies:
                raise SystemExit("killed")

        def keep(run, found):
            arguments[-1](run, found)
            if found.metrics["step"][0] > dies:
                raise SystemExit("killed")

        return train(*arguments[:4], die if dies < 19 else None, *arguments[5:-1], keep)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(work, "train_stack", dying)
        sweep(*cells, launcher=launcher)
    with (folders(tmp_path / "s")[0] / "samples.jsonl").open("a") as file:
        file.write('{"step": 3, "pa')
    assert sweep(*cells, launcher=launcher) == 0
    for ours, theirs in zip(folders(tmp_path / "s"), folders(tmp_path / "whole" / "s"), strict=True):
        np.testing.assert_equal(written(ours), written(theirs))
    states = [json.loads((folder / "status.json").read_text()) for folder in folders(tmp_path / "s")]
    assert [status["state"] for status in states] == ["finished", "finished", "diverged", "finished"]
    assert states[3]["step"] == states[3]["steps_done"] == 3
    assert states[1].get("resumed", [{"step": None}])[0]["step"] == resumed


def test_a_finished_run_is_made_again_only_where_evaluations_are_asked_for_that_it_does_not_have(sweep, tmp_path):
    plain = f"{LLAMA} steps=6"
    evaluated = f"{plain} evaluation.every=3"
    assert sweep(plain) == 0
    (folder,) = folders(tmp_path / "s")

    def made() -> int:
        return (folder / "history.arrow").stat().st_mtime_ns

    first, history = made(), written_history(folder)
    assert sweep(evaluated) == 0
    second = made()
    assert second > first
    assert written_history(folder) == history
    assert sweep(plain) == 0 and sweep(evaluated) == 0
    assert made() == second
    assert (folder / "evaluations.arrow").is_file()
    assert sweep(f"{plain} evaluation.every=2") == 0
    assert read_stream(folder, "evaluations.arrow")["step"].to_pylist() == [0, 2, 4, 6]


def written_history(folder: Path) -> dict:
    return read_stream(folder, "history.arrow").to_pydict()


def test_a_run_that_died_before_its_last_evaluation_is_not_called_complete(sweep, tmp_path, monkeypatch):
    assert sweep(f"{LLAMA} steps=6 evaluation.every=4") == 0
    (folder,) = folders(tmp_path / "s")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
    train = work.train_stack
    with monkeypatch.context() as patch:
        patch.setattr(work, "train_stack", None)
        assert sweep(f"{LLAMA} steps=6 evaluation.every=4") == 0
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
    table = read_stream(folder, "evaluations.arrow").slice(0, 2)
    with pa.OSFile(str(folder / "evaluations.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    trained = []
    monkeypatch.setattr(work, "train_stack", lambda *arguments: trained.append(1) or train(*arguments))
    assert sweep(f"{LLAMA} steps=6 evaluation.every=4") == 0
    assert trained and read_stream(folder, "evaluations.arrow")["step"].to_pylist() == [0, 4, 6]


# ---- a language model, text and its tokenizer


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> tuple[str, ...]:
    """Overrides for a small model with a tokenizer of bytes, and pairs of words."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": f"prompt {n} ", "chosen": "yes " * (1 + n % 3), "rejected": f"no {n}"} for n in range(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("model=pretrained", f"model.path={folder}", "data=jsonl", f"data.path={folder}/pairs.jsonl",
            "data.holdout=0.2", "data.max_length=48", "tracking=none", "steps=6", "batch_size=2", "optimizer=adamw",
            "lr=1e-3", "evaluation.every=3", "evaluation.samples=4", "evaluation.max_new_tokens=8")  # fmt: skip


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_language_model_is_evaluated_on_held_out_text_and_answers_in_words(sweep, tmp_path, language_model, adapter):
    common = " ".join((*language_model, f"adapter={adapter}"))
    assert sweep(f"{common} loss=dpo", f"{common} loss=ipo") == 0
    held_out = json.loads((folders(tmp_path / "s")[0] / "data.json").read_text())["held_out"]["pairs"]
    for folder in folders(tmp_path / "s"):
        found = written(folder)
        rows = read_stream(folder, "evaluations.arrow").to_pylist()
        assert [row["step"] for row in rows] == [0, 3, 6]
        assert rows[0]["eval/margin"] == pytest.approx(0, abs=1e-4)
        assert rows[0]["eval/kl_k3"] == pytest.approx(0, abs=1e-6)
        assert rows[2]["eval/kl_k3"] > 1e-5 and rows[2]["eval/kl_k3_se"] > 0
        assert found["probes.arrow"]["set"].count("held_out") == 3 * held_out
        assert {row["prompt"][:7] for row in found["samples"]} == {"prompt "}
        assert all(1 <= row["tokens"] <= 8 for row in found["samples"])
    assert len(list((tmp_path / ".references").glob("*.safetensors"))) == 2  # training and held-out pairs, for both


def test_an_evaluated_language_model_trains_as_one_that_is_not(sweep, tmp_path, language_model):
    plain = " ".join(o for o in language_model if not o.startswith("evaluation"))
    assert sweep(" ".join(language_model)) == sweep(plain, output=tmp_path / "plain") == 0
    (one,), (other,) = folders(tmp_path / "s"), folders(tmp_path / "plain" / "s")
    assert written_history(one) == written_history(other)
    assert not (other / "evaluations.arrow").exists()
