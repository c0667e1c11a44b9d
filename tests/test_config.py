"""A command line becomes a RunConfig, or one line that says what to type instead."""

import pytest
from omegaconf import OmegaConf

from src.config import run_config
from src.errors import BadInput

# overrides -> what the one line must contain: the key, the value, what is allowed
REFUSED = {
    # unknown keys that were appended, so that Hydra lets them through
    "+bta=0.1": ["bta=0.1", "no such key", "beta", "loss"],
    "+loss.bta=0.1": ["loss.bta=0.1", "no such key", "loss.beta"],
    "+loss.beta.x=1": ["loss.beta", "{'x': 1}", "number"],
    "+optimizer.momentm=0.9": ["optimizer.momentm=0.9", "no such key", "optimizer.momentum"],
    "loss=mix +loss.terms.a.bta=1": ["loss.terms.a.bta=1", "no such key", "loss.terms.a.beta"],
    "+data.path=x": ["data.path='x'", "no such key"],
    # wrong types
    "beta=abc": ["beta='abc'", "number"],
    "beta=null": ["beta=None", "number"],
    "steps=1.5": ["steps=1.5", "integer"],
    "steps=true": ["steps=True", "integer"],
    "save=1": ["save=1", "boolean"],
    "output=5": ["output=5", "string"],
    "sweep=5": ["sweep=5", "string"],
    "loss.name=5": ["loss.name=5", "string"],
    "optimizer.momentum=fast": ["optimizer.momentum='fast'", "number"],
    "optimizer=adam optimizer.betas=0.9": ["optimizer.betas=0.9", "list"],
    "optimizer=adam optimizer.betas=[0.9]": ["optimizer.betas=[0.9]", "2 items"],
    "tracking.project=null": ["tracking.project=None", "string"],
    # out of range
    "beta=0": ["beta=0", "greater than 0"],
    "beta=-0.1": ["beta=-0.1", "greater than 0"],
    "beta=nan": ["beta=nan", "finite"],
    "beta=inf": ["beta=inf", "finite"],
    "lr=0": ["lr=0", "greater than 0"],
    "lr=inf": ["lr=inf", "finite"],
    "loss=mix loss.terms.a.beta=0": ["loss.terms.a.beta=0", "greater than 0"],
    "loss.beta=0": ["loss.beta=0", "greater than 0"],
    "steps=0": ["steps=0", "greater than or equal to 1"],
    "seed=-1": ["seed=-1", "greater than or equal to 0"],
    "seed=9223372036854775808": ["seed=9223372036854775808", "less than"],
    "batch_size=0": ["batch_size=0", "greater than or equal to 1", "'full'"],
    "batch_size=all": ["batch_size='all'", "integer", "'full'"],
    "max_grad_norm=0": ["max_grad_norm=0", "greater than 0"],
    "compute.threads=0": ["compute.threads=0", "greater than or equal to 1"],
    "scheduler=linear scheduler.warmup_steps=-1": ["scheduler.warmup_steps=-1", "greater than or equal to 0"],
    "data=synthetic data.p_star=2": ["data.p_star=2", "less than or equal to 1"],
    # the optimizer's own ranges
    "optimizer.momentum=-1": ["optimizer=sgd", "optimizer.momentum=-1", "Invalid momentum"],
    "optimizer.lr=-1": ["optimizer=sgd", "optimizer.lr=-1", "Invalid learning rate"],
    "optimizer=adam optimizer.betas=[0.9,1.5]": ["optimizer=adam", "optimizer.betas=[0.9, 1.5]", "Invalid beta"],
    # one of a few words
    "sampling=suffle": ["sampling='suffle'", "'shuffle'", "'replacement'", "'sequential'"],
    "dtype=float16": ["dtype='float16'", "'float32'", "'float64'", "'bfloat16'"],
    "compute.device=tpu": ["compute.device='tpu'", "'cpu'", "'cuda'"],
    # nodes
    "evaluation.every=0": ["evaluation.every=0", "greater than or equal to 1"],
    "evaluation.temperature=0": ["evaluation.temperature=0", "greater than 0"],
    "+evaluation.pears=3": ["evaluation.pears=3", "no such key", "evaluation.pairs"],
    "evaluation=3": ["evaluation=3", "evaluation.every"],
    "early_stop.kl_tolerance=-1": ["early_stop.kl_tolerance=-1", "greater than or equal to 0"],
    "objective=sft": ["objective=sft", "loss=sft", "loss=dpo"],
    # missing
    "data=jsonl": ["data.path", "give data.path="],
    "~steps": ["steps is missing"],
    "~seed": ["'seed'", "model.seed"],  # which is a copy of it
    "~loss": ["loss", "conf/loss", "_target_"],
    "beta=${bta}": ["bta", "beta"],
    # not what a choice is made of
    "loss._target_=src.nowhere.x": ["loss._target_='src.nowhere.x'", "cannot be imported"],
    "loss._target_=os.getcwd": ["loss.beta=0.1", "no such key"],
}


@pytest.mark.parametrize(("overrides", "fragments"), REFUSED.items(), ids=REFUSED)
def test_a_bad_value_is_refused_in_one_line_with_key_value_and_what_is_allowed(compose, overrides, fragments):
    with pytest.raises(BadInput) as refusal:
        run_config(compose(*overrides.split()))
    message = str(refusal.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message, message


# What Hydra refuses, and then our own checks, at the command line.
AT_THE_COMMAND_LINE = {
    "bta=0.1": ["bta=0.1", "no such key", "beta", "optimizer"],
    "loss.bta=0.1": ["loss.bta=0.1", "no such key", "loss.beta"],
    "hydra.run.dirr=x": ["hydra.run.dirr=x", "has no effect here", "output=…", "sweeper"],
    "loss=foo": ["loss=foo", "dpo", "ipo"],
    "loss=null": ["Config group override must be a string"],
    "-m loss=dpo,foo": ["loss=foo", "dpo", "ipo"],
    "-m beta=0.1,0": ["beta=0", "greater than 0"],
    "model.hidden_size=10": ["hidden_size=10", "model.num_attention_heads=4"],
}


@pytest.mark.parametrize(("command", "fragments"), AT_THE_COMMAND_LINE.items(), ids=AT_THE_COMMAND_LINE)
def test_a_refused_command_prints_one_line_exits_with_2_and_creates_nothing(cli, tmp_path, command, fragments):
    done = cli(*command.split(), "tracking=none", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("margincall: ")
    for fragment in fragments:
        assert fragment in line, line
    assert "append" not in line  # Hydra's advice to try `+bta=0.1` would be refused next
    assert list(tmp_path.iterdir()) == []


def test_the_defaults_convert(compose):
    config, destination = run_config(compose())
    assert (config.loss.name, config.optimizer.name, config.model.name) == ("dpo", "sgd", "tiny_llama")
    assert config.beta == config.loss.params["beta"] == 0.1
    assert destination.output == "outputs"


def test_the_plain_configuration_is_json_with_a_name_for_every_group(convert):
    plain = convert().plain()
    assert plain["loss"] == {"name": "dpo", "beta": 0.1}
    assert plain["data"] == {"name": "notebook_pair"}
    assert "_target_" not in str(plain)


def test_beta_and_lr_are_those_in_force_whichever_key_set_them(convert):
    config = convert("loss.beta=0.7", "optimizer.lr=0.3")
    assert (config.beta, config.lr) == (0.7, 0.3)


def test_converting_leaves_hydras_configuration_as_it_was(compose):
    config = compose()
    before = OmegaConf.to_yaml(config)
    run_config(config)
    assert OmegaConf.to_yaml(config) == before


# ---- identity


@pytest.mark.parametrize(
    "irrelevant",
    ["tracking=none", "tracking=wandb_online", "output=elsewhere", "sweep=named", "compute.threads=2",
     "compute.stack_size=3", "save=true", "kl_form=js", "evaluation.every=5", "evaluation.samples=3",
     "early_stop.min_reward_gain=0.1"],
)  # fmt: skip
def test_what_cannot_change_the_result_is_no_part_of_a_runs_identity(convert, irrelevant):
    assert convert(irrelevant).id == convert().id


def test_runs_made_before_a_setting_existed_keep_their_identity(convert):
    assert convert().id == "2b36066048"
    assert convert("loss=ipo", "model=tabular", "data=synthetic").id == "fc28db3327"
    assert convert("objective=reward_model", "kl_coef=0.1").id == "01f0aadc51"
    text = ("data=jsonl", "data.path=x", "model=smollm2", "loss=simpo", "reference=if_needed")
    assert convert(*text).id == "e600d3cca7"


def test_whatever_can_change_the_result_gives_another_id(convert):
    changes = [
        "beta=0.2", "lr=0.1", "seed=1", "steps=7", "loss=ipo", "optimizer=adam", "optimizer.momentum=0.9",
        "scheduler=linear", "model.hidden_size=16", "model.init=independent", "data=synthetic", "batch_size=2",
        "sampling=replacement", "logps=notebook_per_token", "dtype=float64", "max_grad_norm=1.0", "compute=cuda",
        "reference=if_needed", "objective=reward_model", "kl_coef=0.1", "kl_coef=0.1 kl_form=js",
        "loss=sft", "objective=sft loss=sft", "early_stop.patience=2", "early_stop.patience=2 evaluation.every=5",
    ]  # fmt: skip
    ids = {change: convert(*change.split()).id for change in ("seed=42", *changes)}
    assert len(set(ids.values())) == len(ids), ids


def test_beta_and_lr_count_only_through_the_loss_and_the_optimizer_that_use_them(convert):
    assert convert("beta=0.5").id == convert("loss.beta=0.5").id
    assert convert("beta=0.5", "loss.beta=0.1").id == convert().id
    assert convert("lr=0.5").id == convert("optimizer.lr=0.5").id
    assert convert("lr=0.5", "optimizer.lr=5e-5").id == convert().id


def test_the_order_of_overrides_does_not_matter(convert):
    overrides = ["beta=0.5", "loss=ipo", "optimizer=adam", "optimizer.eps=1e-6"]
    assert convert(*overrides).id == convert(*reversed(overrides)).id


@pytest.mark.parametrize(
    ("one_way", "another"),
    [("beta=1", "beta=1.0"), ("lr=1e-1", "lr=0.1"), ("max_grad_norm=1", "max_grad_norm=1.0"),
     ("optimizer.momentum=0", "optimizer.momentum=0.0"), ("optimizer.momentum=0.0", "+optimizer.dampening=0"),
     ("data=synthetic data.p_star=1", "data=synthetic data.p_star=1.0")],
)  # fmt: skip
def test_the_same_value_written_differently_is_the_same_run(convert, one_way, another):
    assert convert(*one_way.split()).id == convert(*another.split()).id
