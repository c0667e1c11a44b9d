"""Reference log-probs on disk: found again where nothing they follow from has changed, and else computed."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from src.data.pairs import PairData
from src.data.text import jsonl
from src.policy.base import Build
from src.policy.tiny_llama import TinyLlama, TinyLlamaPolicy
from src.reference import CHUNK, References
from tests.held_out import texts
from tests.stacks import SMALL_LLAMA, configs
from tests.tiny_tokenizer import tiny_tokenizer

CPU = torch.device("cpu")
LLAMA = f"{' '.join(SMALL_LLAMA)} model.seed=0 data._target_=tests.held_out.texts tracking=none steps=3"


@pytest.fixture
def computed(monkeypatch) -> Counter:
    """Makes tiny Llamas large ones, whose reference is worth keeping; counts the prompts computed for it."""
    count: Counter[str] = Counter()
    rescore = TinyLlamaPolicy.rescore

    def counted(self, run, data, reference=False):
        count["prompts"] += len(data)
        return rescore(self, run, data)  # nothing was trained yet: its weights are the reference's

    def digest(self):
        return str(float(self.parameters()[0].detach().double().sum()))

    monkeypatch.setattr(TinyLlamaPolicy, "rescore", counted)
    monkeypatch.setattr(TinyLlamaPolicy, "weights_digest", digest)
    return count


def llama(data: list[PairData], dtype: torch.dtype = torch.float32, vocabulary: int = 32, **changes):
    (run,) = configs(f"{LLAMA} model.vocab_size={vocabulary}")
    build = Build(CPU, dtype, **changes)
    return TinyLlama.stack([run.model.build()] * len(data), data, build), build


def reference(folder: Path | None, data: list[PairData], weight: float | None = None, **changes):
    """As another process would get it: with no memory."""
    policy, build = llama(data, **changes)
    if weight is not None:
        with torch.no_grad():
            policy.parameters()[0].view(-1)[16] += weight  # of token 1, with which every prompt begins
    return References(folder).of_weights(policy.weights_digest(), policy, data, build)


def same(one, other) -> bool:
    return torch.equal(one.values, other.values) and torch.equal(one.mask, other.mask)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_what_is_read_is_what_was_computed_and_what_the_policy_gives(tmp_path, computed):
    data = texts()
    first = reference(tmp_path, [data])
    assert computed["prompts"] == len(data)
    again = reference(tmp_path, [data])
    assert computed["prompts"] == len(data)
    assert same(first, again)
    policy, _ = llama([data])
    expected = policy.token_logps(torch.arange(len(data))[None])
    torch.testing.assert_close(first.values, expected.values.detach())
    assert torch.equal(first.mask, expected.mask)


def test_many_prompts_are_computed_a_few_at_a_time(tmp_path, computed, monkeypatch):
    data = texts().held_out.take([0, 1, 2, 3, 4, 5, 6] * 6)
    sizes = []
    rescore = TinyLlamaPolicy.rescore
    monkeypatch.setattr(
        TinyLlamaPolicy,
        "rescore",
        lambda self, run, part, reference: sizes.append(len(part)) or rescore(self, run, part, reference),
    )
    found = reference(tmp_path, [data])
    assert sizes == [CHUNK, CHUNK, 42 - 2 * CHUNK]
    assert found.values.shape[:3] == (1, 42, 2)
    torch.testing.assert_close(found.values[:, :7], found.values[:, 35:])


@pytest.mark.parametrize(
    "change",
    ["lr=0.5", "beta=0.7", "loss=ipo", "optimizer=adam", "seed=9", "batch_size=2", "steps=4", "sampling=replacement"],
)
def test_a_run_that_differs_in_what_cannot_matter_finds_those_of_another_sweep(sweep, tmp_path, computed, change):
    assert sweep(LLAMA) == 0
    assert computed.pop("prompts") == len(texts())
    (kept,) = files(tmp_path / ".references")
    assert sweep(f"{LLAMA} {change}") == 0
    assert not computed
    assert files(tmp_path / ".references") == [kept]


def test_a_stack_computes_them_once_for_all_its_runs(sweep, computed):
    assert sweep(*(f"{LLAMA} seed={seed} loss={loss}" for seed in (0, 1) for loss in ("dpo", "ipo"))) == 0
    assert computed["prompts"] == len(texts())


def test_evaluation_adds_the_held_out_pairs_and_computes_nothing_again(sweep, tmp_path, computed):
    assert sweep(LLAMA) == 0
    assert sweep(f"{LLAMA} evaluation.every=2 lr=0.1") == 0
    assert computed["prompts"] == len(texts()) + len(texts().held_out)
    assert len(files(tmp_path / ".references")) == 2


def test_runs_of_a_stack_with_other_data_have_their_own(tmp_path, computed):
    data = texts()
    other = data.take([0, 1, 2, 4, 3])
    both = reference(tmp_path, [data, other])
    for run, pairs in enumerate((data, other)):
        alone = reference(None, [pairs])
        assert torch.equal(both.values[run], alone.values[0])
    assert len(files(tmp_path)) == 2


def one_token_else(data: PairData) -> PairData:
    (first, *rest), *others = data.responses[0], *data.responses[1:]
    changed = ((first[0] + 1, *first[1:]), *rest)
    return replace(data, responses=(changed, *others))


def another_boundary(data: PairData) -> PairData:
    """The same ids in each row, divided into prompt and chosen response one token later."""
    (chosen, rejected), prompt = data.responses[0], data.prompts[0]
    prompts = ((*prompt, chosen[0]), *data.prompts[1:])
    return replace(data, prompts=prompts, responses=((chosen[1:], rejected), *data.responses[1:]))


@pytest.mark.parametrize(
    "changed",
    [
        {"data": one_token_else}, {"data": another_boundary}, {"weight": 1e-3}, {"dtype": torch.float64},
        {"shifted": False}, {"autocast": torch.bfloat16},
    ],
    ids=["a token", "a boundary", "a weight", "dtype", "shift", "autocast"],
)  # fmt: skip
def test_whatever_they_follow_from_computes_them_anew(tmp_path, computed, changed, monkeypatch):
    monkeypatch.setattr("src.policy.tiny_llama.refuse_what_others_have", lambda *_: None)
    data = texts()
    reference(tmp_path, [data])
    computed.clear()
    data = changed.pop("data")(data) if "data" in changed else data
    found = reference(tmp_path, [data], **changed)
    assert computed["prompts"] == len(data)
    assert len(files(tmp_path)) == 2
    assert same(found, reference(None, [data], **changed))


def test_a_longer_limit_on_length_that_keeps_more_of_a_prompt_computes_them_anew(tmp_path, computed):
    """The responses and the number of pairs stay as they were: only what stands before them has changed."""
    rows = [{"prompt": "word " * n, "chosen": "yes", "rejected": "no"} for n in (2, 9)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def cut_to(length: int) -> PairData:
        return jsonl(path=str(tmp_path / "pairs.jsonl"), max_length=length, tokenizer=tiny_tokenizer())

    short, long, all_of_it = cut_to(20), cut_to(30), cut_to(100)
    assert short.responses == long.responses and short.prompts != long.prompts
    made = [reference(tmp_path, [data], vocabulary=300) for data in (short, long, all_of_it, cut_to(200))]
    assert computed["prompts"] == 6
    assert not torch.equal(made[0].values[0, 1], made[1].values[0, 1])
    assert same(made[2], made[3])  # a limit that cuts nothing
    assert len(files(tmp_path)) == 3


# ---- files that are not what they should be


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("no tensors")


def rewritten(change):
    def rewrite(file: Path) -> None:
        with safe_open(file, "pt") as opened:
            said = dict(opened.metadata())
        values, said = change(load_file(file)["logps"], said)
        save_file({"logps": values}, file, metadata=said)

    return rewrite


def nudge(values, said):
    values[3] += 1e-3
    return values, said


BROKEN = {
    "cut off": cut_off,
    "empty": empty,
    "text": text,
    "one number else": rewritten(nudge),
    "not a number": rewritten(lambda values, said: (values * torch.nan, said)),
    "too short": rewritten(lambda values, said: (values[:-1].clone(), said)),
    "of other weights": rewritten(lambda values, said: (values, {**said, "weights": "x"})),
    "of another format": rewritten(lambda values, said: (values, {**said, "format": "0"})),
    "without a digest": rewritten(lambda values, said: (values, {k: v for k, v in said.items() if k != "sha256"})),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_is_not_what_it_should_be_is_computed_anew_and_this_is_said(tmp_path, computed, caplog, how):
    data = texts()
    sound = reference(tmp_path, [data])
    (file,) = files(tmp_path)
    content = file.read_bytes()
    BROKEN[how](file)
    assert file.read_bytes() != content
    found = reference(tmp_path, [data])
    assert same(found, sound)
    assert computed["prompts"] == 2 * len(data)
    (record,) = caplog.records
    assert "is computed again: " in record.getMessage() and "\n" not in record.getMessage()
    assert same(reference(tmp_path, [data]), sound)
    assert computed["prompts"] == 2 * len(data)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".lock", ".safetensors"]


def test_numbers_that_are_not_finite_are_not_kept(tmp_path, computed):
    data = texts()
    found = reference(tmp_path, [data], weight=torch.nan)
    assert found.values.isnan().any()
    assert files(tmp_path) == []


def test_where_nothing_can_be_written_they_are_computed_and_this_is_said(tmp_path, computed, caplog):
    (tmp_path / "occupied").write_text("a file in the way; root may write everywhere")
    data = texts()
    assert same(reference(tmp_path / "occupied", [data]), reference(None, [data]))
    (record,) = caplog.records
    assert "not kept" in record.getMessage()


def test_whole_distributions_and_small_models_leave_nothing_on_disk(sweep, tmp_path):
    assert sweep(LLAMA) == 0
    assert not (tmp_path / ".references").exists()


def test_whole_distributions_of_a_large_model_are_not_kept_either(sweep, tmp_path, computed):
    assert sweep(f"{LLAMA} loss=tdpo1") == 0
    assert files(tmp_path / ".references") == []


SLOW = """
import sys, time
from pathlib import Path
import torch
from src.data.pairs import PairData
from src.policy.base import Build, TokenLogps
from src.reference import References

folder = Path(sys.argv[1])

class Slow:
    def rescore(self, run, data, reference=False):
        with (folder / "computed").open("a") as file:
            file.write("once\\n")
        time.sleep(2)
        return TokenLogps(-torch.ones(1, len(data), 2, 1), torch.ones(1, len(data), 2, 1, dtype=torch.bool))

pairs = PairData(((1,), (2,)), (((3,), (4,)), ((5,), (6,))))
build = Build(torch.device("cpu"), torch.float32)
print(References(folder / "r").of_weights("w", Slow(), [pairs], build).values.sum().item())
"""


def test_of_two_processes_one_computes_and_the_other_waits(tmp_path, environment):
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["-4.0\n"] * 2
    assert (tmp_path / "computed").read_text() == "once\n"
