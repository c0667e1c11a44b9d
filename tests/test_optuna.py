"""`hydra/sweeper=optuna`: a search is a sweep whose runs optuna chooses, one batch after another."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import optuna
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from src.errors import BadInput
from src.launching import work
from src.launching.compose import compose_jobs
from src.launching.jobs import run_jobs
from src.launching.search import search, settings
from src.launching.space import Space, space
from src.objectives import QUANTITIES, REDUCTIONS, NoValue, constraints, objective
from tests.conftest import CONF, TOY

SEARCHED = ("loss=dpo,ipo", "lr=tag(log,interval(1e-2,1))", "beta=interval(0.05,1)")
OPTIONS = {
    "objective": "final_kl", "subject_to": None, "direction": None, "sampler": "tpe", "n_trials": 6, "n_jobs": 3,
    "seed": 0, "storage": None, "study_name": None,
}  # fmt: skip

ReadSpace = Callable[..., Space]
Search = Callable[..., tuple[int, dict]]


@pytest.fixture
def read_space() -> ReadSpace:
    """The space some overrides span."""

    def read(*arguments: str) -> Space:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            return space(arguments, loader, loader.load_configuration("config", [], RunMode.MULTIRUN))

    return read


@pytest.fixture
def searched(read_space: ReadSpace, tmp_path: Path) -> Search:
    """Search in this process, in `tmp_path`/NAME; gives the exit code and optuna.json."""

    def run(*arguments: str, name: str = "s", after: Callable[[int], None] = lambda batch: None, **options: object):
        where = read_space(*TOY, "launcher.processes=1", f"output={tmp_path}", f"sweep={name}", *arguments)
        batches = 0

        def launch(lines):
            nonlocal batches
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                loader = GlobalHydra.instance().config_loader()
                master = loader.load_configuration("config", [], RunMode.MULTIRUN)
                launched = run_jobs(compose_jobs(loader, master, lines))
            batches += 1
            after(batches)
            return launched.code, launched.folders

        code = search(settings(OPTIONS | options), where, launch)
        return code, json.loads((tmp_path / name / "optuna.json").read_text())

    return run


# ---- objectives

HISTORY = {
    "step": np.arange(20),
    "loss": np.linspace(1.0, 0.05, 20),
    "rewards/accuracies": np.linspace(0, 0.95, 20),
    "log_pi/chosen": np.array([*range(-1, -11, -1), *range(-10, 0)], float),
    "exact/kl": np.full(20, 0.25),
    "k3_on_data": np.full(20, 7.0),
    "margin": np.array([1.0] * 19 + [math.nan]),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [("final_loss", 0.05), ("loss", 0.05), ("highest_loss", 1.0), ("late_loss", 0.075), ("accuracy", 0.95),
     ("lowest_log_pi_chosen", -10.0), ("final_log_pi_chosen", -1.0), ("final_kl", 0.25)],
)  # fmt: skip
def test_an_objective_is_a_reduction_of_a_quantity_over_the_rows_and_final_if_none_is_named(name, value):
    assert objective(name)(HISTORY) == pytest.approx(value, rel=1e-12)


def test_kl_is_the_exact_one_where_there_is_one_and_k3_on_the_data_elsewhere():
    assert objective("kl")({name: HISTORY[name] for name in HISTORY if name != "exact/kl"}) == 7.0


@pytest.mark.parametrize("name", [f"{reduction}_{quantity}" for reduction in REDUCTIONS for quantity in QUANTITIES])
def test_every_name_is_told_apart_and_has_a_direction(name):
    found = objective(name)
    assert found.name == name
    assert found.quantity.better in {"minimize", "maximize"}


@pytest.mark.parametrize(
    ("name", "history", "why"),
    [("chosen", HISTORY, "no column log_ratios/chosen"), ("loss", {}, "no column loss"),
     ("loss", {"loss": np.array([])}, "no row"), ("margin", HISTORY, "nan")],
)  # fmt: skip
def test_a_run_without_the_number_has_no_value_and_says_why(name, history, why):
    with pytest.raises(NoValue, match=why):
        objective(name)(history)


@pytest.mark.parametrize("name", ["", "final", "final_", "finalkl", "mean_kl", "final_beauty", "kl_final"])
def test_an_objective_that_does_not_exist_is_refused_with_what_there_is(name):
    with pytest.raises(BadInput, match=r"no such objective.*final_kl.*lowest.*accuracy"):
        objective(name)


def test_every_quantity_s_columns_are_in_the_contract():
    contract = (CONF.parent / "docs" / "run-directory.md").read_text()
    for quantity in QUANTITIES.values():
        for column in quantity.columns:
            assert f"`{column}`" in contract


def test_constraints_are_read_and_say_how_far_they_are_violated():
    at_least, at_most = constraints("accuracy>=0.9, lowest_log_pi_chosen <= -2e1")
    assert (at_least.name, at_most.name) == ("final_accuracy>=0.9", "lowest_log_pi_chosen<=-20")
    assert [at_least.violation(value) for value in (0.5, 0.9, 1.0)] == pytest.approx([0.4, 0.0, -0.1])
    assert [at_most.violation(value) for value in (-10.0, -30.0)] == [10.0, -10.0]
    assert constraints("") == ()


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy>0.9", "accuracy>=", "accuracy>=high", "beauty>=1", "0.9<=accuracy"]
)
def test_a_constraint_that_cannot_be_read_is_refused(text):
    with pytest.raises(BadInput):
        constraints(text)


# ---- the space


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        ("lr=tag(log,interval(1e-3,1))", FloatDistribution(1e-3, 1.0, log=True)),
        ("beta=interval(0.1,1)", FloatDistribution(0.1, 1.0)),
        ("steps=int(interval(1,9))", IntDistribution(1, 9)),
        ("steps=tag(log,int(interval(1,9)))", IntDistribution(1, 9, log=True)),
        ("steps=range(1,9,3)", IntDistribution(1, 7, step=3)),
        ("beta=range(0.25,1.25,0.25)", FloatDistribution(0.25, 1.0, step=0.25)),
        ("steps=range(9,1,-4)", IntDistribution(5, 9, step=4)),
        ("steps=range(3,4)", CategoricalDistribution(["3"])),
        ("loss=dpo,ipo", CategoricalDistribution(["dpo", "ipo"])),
        ("beta=choice(0.1,0.5)", CategoricalDistribution(["0.1", "0.5"])),
        ("scheduler=glob(c*)", CategoricalDistribution(["constant", "cosine"])),
    ],
)
def test_hydra_s_sweeps_are_optuna_s_distributions(read_space, override, distribution):
    read = read_space(override, "seed=1")
    assert dict(read.free) == {override.split("=")[0]: distribution}
    assert dict(read.fixed) == {"seed": "1"}


def test_a_trial_s_command_line_has_what_is_fixed_and_its_values(read_space):
    read = read_space(*SEARCHED, "seed=1")
    values = {"loss": "ipo", "lr": 0.012345678, "beta": 0.5}
    assert read.overrides(values) == ("seed=1", "loss=ipo", "lr=0.0123457", "beta=0.5")


def test_a_parameter_is_left_out_where_the_choice_has_none(read_space):
    read = read_space("loss=dpo,cdpo,robust", "loss.epsilon=interval(0.1,0.2)", "loss.beta=0.3")
    value = {"loss.epsilon": 0.15}
    assert read.overrides({"loss": "cdpo", **value}) == ("loss.beta=0.3", "loss=cdpo", "loss.epsilon=0.15")
    assert read.overrides({"loss": "dpo", **value}) == ("loss.beta=0.3", "loss=dpo")


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3), at=st.floats(0, 1))
def test_rounding_leaves_a_value_in_its_interval_and_where_it_was(low, width, at):
    high = low + width
    value = min(low + at * (high - low), high)
    read = Space({}, {"x": FloatDistribution(low, high)}, (), {(): frozenset()})
    (line,) = read.overrides({"x": value})
    typed = float(line.partition("=")[2])
    assert low <= typed <= high
    assert typed == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["loss=dpo"], "nothing to search"),
        (["sweep=a,b"], "sweep: all trials go to one sweep"),
        (["beta=interval(1,0.5)"], r"beta=interval\(1.0,0.5\)"),
        (["lr=tag(log,interval(0,1))"], "lr=interval"),
        (["lr=tag(exp,interval(0.1,1))"], "tag exp means nothing"),
        (["beta=interval(-2,-1)"], "beta=-1.5 is not allowed"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(read_space, arguments, named):
    with pytest.raises(BadInput, match=named):
        read_space(*arguments)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"objective": "beauty"}, "beauty: no such objective"),
        ({"sampler": "magic"}, "hydra.sweeper.sampler=magic.*tpe, random, cmaes"),
        ({"direction": "up"}, "hydra.sweeper.direction=up.*minimize, maximize"),
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0"),
        ({"n_jobs": 0}, "hydra.sweeper.n_jobs=0"),
        ({"seed": -1}, "hydra.sweeper.seed=-1"),
        ({"sampler": "cmaes", "subject_to": "accuracy>=1"}, "cmaes knows no constraints"),
        ({"storage": "sqlite:///x"}, "needs hydra.sweeper.study_name"),
    ],
)
def test_options_that_cannot_be_are_refused(options, named):
    with pytest.raises(BadInput, match=named):
        settings(OPTIONS | options)


# ---- real searches


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_is_one_sweep_and_the_same_seed_searches_the_same(searched, tmp_path, sampler):
    code, told = searched(*SEARCHED, sampler=sampler, n_trials=9)
    assert code == 0
    assert [trial["number"] for trial in told["trials"]] == list(range(9))
    assert {trial["state"] for trial in told["trials"]} == {"complete"}
    manifest = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
    assert {run["dir"] for run in manifest} == {trial["dir"] for trial in told["trials"]}
    best = min(told["trials"], key=lambda trial: trial["value"])
    assert (told["best"], told["direction"]) == (best["number"], "minimize")
    again = searched(*SEARCHED, sampler=sampler, n_trials=9, name="again")[1]
    other = searched(*SEARCHED, sampler=sampler, n_trials=9, name="other", seed=1)[1]
    assert [(t["value"], t["params"]) for t in again["trials"]] == [(t["value"], t["params"]) for t in told["trials"]]
    assert [t["params"] for t in other["trials"]] != [t["params"] for t in told["trials"]]


def test_the_value_is_the_objective_of_the_run_s_own_history(searched, tmp_path):
    import pyarrow as pa

    _, told = searched(*SEARCHED, n_trials=3, objective="lowest_log_pi_rejected")
    for trial in told["trials"]:
        with pa.OSFile(str(tmp_path / "s" / trial["dir"] / "history.arrow")) as file:
            history = pa.ipc.open_stream(file).read_all()
        assert trial["value"] == min(history["log_pi/rejected"].to_pylist())
        config = json.loads((tmp_path / "s" / trial["dir"] / "config.json").read_text())
        assert config["lr"] == pytest.approx(trial["params"]["lr"], rel=1e-5)
        assert config["loss"]["name"] == trial["params"]["loss"]
    assert told["direction"] == "maximize"
    assert told["best"] == max(told["trials"], key=lambda trial: trial["value"])["number"]


def test_tpe_comes_nearer_to_a_known_optimum_than_where_it_began(searched):
    """IPO's loss is smallest where its rate is largest, below 1/K: 30 trials find most of what there is to find."""
    _, told = searched("loss=ipo", "beta=0.5", "lr=tag(log,interval(1e-4,0.3))", objective="final_loss", n_trials=30)
    first, last = told["trials"][:10], told["trials"][10:]
    assert np.median([t["value"] for t in last]) < np.median([t["value"] for t in first])
    assert told["trials"][told["best"]]["params"]["lr"] > 0.1


def test_the_best_respects_the_constraint_even_if_others_are_better(searched):
    code, told = searched(*SEARCHED, subject_to="final_margin>=0.2", n_trials=12)
    assert code == 0
    name = "final_margin>=0.2"
    assert told["subject_to"] == [name]
    for trial in told["trials"]:
        assert trial["state"] == ("complete" if trial["constraints"][name] >= 0.2 else "infeasible")
    allowed = [trial for trial in told["trials"] if trial["state"] == "complete"]
    assert told["best"] == min(allowed, key=lambda trial: trial["value"])["number"]
    assert min(trial["value"] for trial in told["trials"]) < told["trials"][told["best"]]["value"]


def test_a_search_in_which_nothing_is_allowed_says_so_and_has_exit_code_1(searched, capsys):
    code, told = searched(*SEARCHED, subject_to="final_margin>=1e6")
    assert (code, told["best"]) == (1, None)
    assert "no trial gave a value that is allowed" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_that_diverges_is_a_failed_trial_and_no_failure(searched):
    code, told = searched("loss=ipo", "lr=choice(0.1,1e30)", sampler="random", n_trials=6)
    assert code == 0
    for trial in told["trials"]:
        diverged = trial["params"]["lr"] == "1e+30"
        assert trial["state"] == ("failed" if diverged else "complete")
        assert ("diverged: " in (trial["reason"] or "")) == diverged
        assert (trial["value"] is None) == diverged
    assert {trial["state"] for trial in told["trials"]} == {"failed", "complete"}


def test_a_run_that_fails_is_a_failed_trial_the_search_goes_on_and_the_exit_code_is_1(searched, monkeypatch):
    train = work.train_stack

    def sabotaged(runs, *args, **kwargs):
        if runs[0].loss.name == "dpo":
            raise RuntimeError("on fire")
        return train(runs, *args, **kwargs)

    monkeypatch.setattr(work, "train_stack", sabotaged)
    code, told = searched("loss=dpo,ipo", "beta=interval(0.1,1)", "compute.stack_size=1", n_trials=8)
    assert code == 1
    for trial in told["trials"]:
        failed = trial["params"]["loss"] == "dpo"
        assert trial["state"] == ("failed" if failed else "complete")
        assert trial["reason"] == ("failed: RuntimeError: on fire" if failed else None)
    assert told["trials"][told["best"]]["params"]["loss"] == "ipo"


def test_a_search_for_what_the_runs_do_not_have_fails_with_the_reason(searched):
    code, told = searched("loss=dpo,ipo", "objective=reward_model", objective="final_margin", n_trials=3)
    assert code == 1
    assert all("no column margin" in trial["reason"] for trial in told["trials"])


def test_the_same_search_again_trains_nothing_and_says_the_same(searched, tmp_path):
    _, told = searched(*SEARCHED)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/*")}
    assert searched(*SEARCHED)[1] == told
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/*")} == before


def test_a_search_that_was_killed_goes_on_with_the_same_command_as_if_nothing_had_happened(searched, tmp_path):
    undisturbed = searched(*SEARCHED, name="undisturbed", n_trials=9)[1]

    def kill(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(*SEARCHED, n_trials=9, after=kill)
    assert len(json.loads((tmp_path / "s" / "optuna.json").read_text())["trials"]) == 3
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/history.arrow")}
    assert len(trained) == 6
    resumed = searched(*SEARCHED, n_trials=9)[1]
    assert [(t["value"], t["params"], t["dir"]) for t in resumed["trials"]] == [
        (t["value"], t["params"], t["dir"]) for t in undisturbed["trials"]
    ]
    assert {path: path.stat().st_mtime_ns for path in trained} == trained


def test_a_search_can_be_made_longer(searched):
    short = searched(*SEARCHED, n_trials=3)[1]["trials"]
    longer = searched(*SEARCHED, n_trials=6)[1]["trials"]
    assert longer[:3] == short
    assert len(longer) == 6


def test_a_stored_study_goes_on_where_it_was_with_new_proposals(searched, tmp_path):
    stored = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "mine", "sampler": "random"}
    first = searched(*SEARCHED, n_trials=3, **stored)[1]["trials"]
    both = searched(*SEARCHED, n_trials=6, **stored)[1]["trials"]
    assert both[:3] == first
    assert len({json.dumps(trial["params"]) for trial in both}) == 6
    assert len(optuna.load_study(storage=stored["storage"], study_name="mine").trials) == 6


def test_a_storage_that_cannot_be_used_is_refused_before_anything_is_created(searched, tmp_path):
    with pytest.raises(BadInput, match=r"hydra\.sweeper\.storage=sqlite:////nowhere"):
        searched(*SEARCHED, storage="sqlite:////nowhere/at/all.db", study_name="x")
    assert list(tmp_path.iterdir()) == []


def test_cmaes_searches_too(searched):
    code, told = searched("lr=tag(log,interval(1e-2,1))", "beta=interval(0.05,1)", sampler="cmaes")
    assert (code, len(told["trials"])) == (0, 6)


# ---- as a person types it

TYPED = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=2", "launcher.processes=1", *TOY)


def test_a_search_on_the_command_line(cli, tmp_path):
    options = (
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.objective=final_kl",
        "hydra.sweeper.subject_to='accuracy>=0.9'",
    )
    done = cli(*TYPED, *options, *SEARCHED, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "search ended: 4 complete; best: trial" in done.stdout
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.startswith("tpe-final_kl-")
    assert len(json.loads((folder / "optuna.json").read_text())["trials"]) == 4
    assert done.stdout.splitlines()[-1].startswith("dpo_") or done.stdout.splitlines()[-1].startswith("ipo_")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["hydra.sweeper.objective=beauty", *SEARCHED], "beauty: no such objective; there are such as final_kl"),
        (["hydra.sweeper.n_trials=many", *SEARCHED], "many"),
        (["hydra.sweeper.trials=4", *SEARCHED], "trials"),
        (["losss=dpo,ipo"], "losss"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_created(cli, tmp_path, arguments, named):
    done = cli(*TYPED, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("margincall: ")
    assert named in line
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_one_line_says_what_to_install_and_everything_else_works(cli, environment, tmp_path):
    (tmp_path / "without").mkdir()
    absent = "raise ModuleNotFoundError('No module named optuna', name='optuna')"
    (tmp_path / "without" / "optuna.py").write_text(absent)
    path = f"{tmp_path / 'without'}:{environment['PYTHONPATH']}"
    done = cli(*TYPED, *SEARCHED, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr == "margincall: hydra/sweeper=optuna needs optuna: pip install -e '.[optuna]'\n"
    assert cli("--help", cwd=tmp_path, PYTHONPATH=path).returncode == 0


def test_optuna_is_not_imported_where_it_is_not_asked_for(cli, tmp_path):
    done = cli("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert "optuna" not in {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "optuna" in sys.modules  # the test can fail
