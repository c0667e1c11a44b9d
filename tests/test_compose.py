"""Composing a sweep's cells quickly gives what Hydra gives slowly, and says no to what could have no effect."""

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode

from src.config import run_config
from src.errors import BadInput
from src.launching.compose import compose_jobs
from src.launching.plan import Cell, plan
from src.run import refuse_idle
from tests.conftest import CONF


@pytest.fixture
def composed():
    """Cells, each a string of overrides, to composed jobs."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        yield lambda *cells: compose_jobs(loader, master, [cell.split() for cell in cells])


CELLS = [
    "loss=dpo beta=0.1",
    "loss=ipo beta=0.5",
    "loss=dpo beta=0.5 loss.beta=0.2 lr=1e-3",
    "loss=cdpo loss.epsilon=0.2 optimizer=adamw optimizer.betas=[0.8,0.9] seed=3",
    "loss=mix loss@loss.terms.a=ipo loss.weights.b=0.3",
    "+loss@loss.terms.c=hinge loss=mix +loss.weights.c=0.5",
    "model=tabular data=synthetic data.p_star=0.6 max_grad_norm=1.0 sweep=x",
    "loss=mix loss.weights={a:2.0,b:0.5}",
    "++seed=7 launcher.processes=3",
]


def test_every_cell_is_composed_as_hydra_composes_it(composed):
    jobs = composed(*CELLS)
    for cell, (config, overrides) in zip(CELLS, jobs, strict=True):
        assert run_config(config) == run_config(hydra.compose("config", overrides=cell.split())), cell
        assert list(overrides) == cell.split()


def test_a_cell_does_not_feel_what_another_was_given(composed):
    (first, _), (_, _), (third, _) = composed("loss=dpo", "loss=dpo beta=0.9 loss.beta=0.3", "loss=dpo")
    assert run_config(first) == run_config(third)


def test_a_parameter_that_only_some_choices_have_makes_cells_only_for_them(composed, tmp_path):
    jobs = composed(*(f"loss={loss} loss.epsilon={e}" for loss in ("dpo", "cdpo") for e in (0.1, 0.2)))
    cells = [Cell(run_config(config)[0], overrides) for config, overrides in jobs]
    _, destination = run_config(jobs[0][0])
    runs = plan(cells, destination).runs
    assert [run.label for run in runs] == ["dpo", "cdpo_epsilon0.1", "cdpo_epsilon0.2"]
    assert runs[0].shown_as == ()


def test_cells_that_differ_only_in_what_their_loss_does_not_use_are_one_run_shown_as_both(composed):
    jobs = composed(*(f"loss={loss} beta={beta}" for loss in ("dpo", "orpo") for beta in (0.1, 0.5)))
    _, destination = run_config(jobs[0][0])
    runs = plan([Cell(run_config(config)[0], overrides) for config, overrides in jobs], destination).runs
    assert [run.label for run in runs] == ["dpo_beta0.1", "dpo_beta0.5", "orpo"]
    assert [run.shown_as for run in runs] == [(), (), ({"beta": 0.5},)]


@pytest.mark.parametrize("override", ["loss.epsilom=0.1", "betta=0.1", "optimizer.momentun=0.9", "loss.beta.x=1"])
def test_a_key_that_no_cell_has_is_an_error(composed, override):
    with pytest.raises(HydraException, match="Could not override"):
        composed(f"loss=dpo {override}", f"loss=cdpo {override}")


@pytest.mark.parametrize(
    "override",
    ["hydra.run.dir=/tmp/x", "+hydra.foo=1", "hydra.sweep.subdir=a", "hydra.output_subdir=x", "hydra.job.chdir=true",
     "~hydra.run", "hydra/output=x"],
)  # fmt: skip
def test_a_setting_of_hydra_that_would_do_nothing_is_refused(override):
    with pytest.raises(BadInput, match=r"has no effect here; output=… and sweep=…"):
        refuse_idle([override])


@pytest.mark.parametrize(
    "override", ["hydra/launcher=basic", "hydra.sweeper.n_trials=3", "hydra.mode=MULTIRUN", "hydra.verbose=true"]
)
def test_and_one_that_does_something_is_not(override):
    refuse_idle([override])


def test_on_the_command_line_that_is_one_line_and_exit_code_2(cli, tmp_path):
    for many in ((), ("-m",)):
        done = cli(*many, "hydra.run.dir=elsewhere", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("margincall: hydra.run.dir=elsewhere: has no effect here")
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interval_without_a_search_says_where_searches_are(cli, tmp_path):
    done = cli("-m", "lr=interval(0.1,1)", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "hydra/sweeper=optuna" in done.stderr
