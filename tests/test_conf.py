"""Every YAML file in conf/ is a choice that works."""

import json
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from src.config import GROUPS
from tests.conftest import CONF
from tests.stacks import SMALL_LLAMA

FILES = sorted(CONF.glob("*/*.yaml"))
IDS = [f"{path.parent.name}={path.stem}" for path in FILES]

# What a choice cannot do without, and what makes it small.
NEEDS = {
    "data=hh_rlhf": "data.path=x",
    "data=jsonl": "data.path=x",
    "data=ranked": "loss=list_mle",
    "data=gold": "model=tabular model.actions=32 data.response_tokens=[1,1]",
    "data=token_ids": "data.rows=[[[0],[1],[2]]]",
    "model=pretrained": "model.path=x",
    "model=tiny_llama": " ".join(SMALL_LLAMA),
    "data=notebook_pair": f"model=tiny_llama {' '.join(SMALL_LLAMA)}",
}
# Text, real models and adapters are trained in tests/data, tests/policy and test_language_models.py; the others need
# what a test machine may not have.
NOT_TRAINED_HERE = {
    "data=hh_rlhf", "data=jsonl", "data=helpsteer2", "data=ultrafeedback", "data=ultrafeedback_zh", "data=mix",
    "model=pretrained", "model=smollm2", "adapter=lora", "adapter=qlora", "tracking=wandb_online", "compute=cuda",
}  # fmt: skip
TRAINED = [choice for choice in IDS if choice not in NOT_TRAINED_HERE]


def test_the_folders_of_conf_are_the_groups_of_the_configuration():
    assert {path.parent.name for path in FILES} == set(GROUPS)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_choice_is_named_after_its_file_and_its_target_can_be_imported(path: Path):
    content = yaml.safe_load(path.read_text())
    assert content["name"] == path.stem
    assert callable(resolve_name(content["_target_"]))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_choice_says_what_it_is_in_a_comment_on_top(path: Path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 15


@pytest.mark.parametrize("choice", IDS)
def test_every_choice_composes_and_passes_its_own_checks(convert, choice):
    group, _, name = choice.partition("=")
    assert getattr(convert(choice, *NEEDS.get(choice, "").split()), group).name == name


@pytest.mark.parametrize("choice", TRAINED)
def test_every_choice_trains_two_steps(sweep, tmp_path, choice):
    # Of two choices in one group the later one counts.
    assert sweep(f"model=tabular data=synthetic tracking=none steps=2 {NEEDS.get(choice, '')} {choice}") == 0
    (run,) = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    status = json.loads((tmp_path / "s" / run["dir"] / "status.json").read_text())
    assert (status["state"], status["steps_done"]) == ("finished", 2)
