"""A search: optuna proposes trials in batches; a batch trains as a sweep does, and its histories are the answer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from src.errors import BadInput
from src.launching.space import Space
from src.objectives import Constraint, NoValue, Objective, constraints, objective
from src.store import ENDED, FORMAT, RunDirectory, read_history, write_json

DIRECTIONS = ("minimize", "maximize")
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "cmaes": lambda seed: CmaEsSampler(seed=seed),
}

# Trains these command lines; gives the exit code and the run directory of each.
Launch = Callable[[Sequence[Sequence[str]]], tuple[int, Sequence[Path]]]


@dataclass(frozen=True)
class Settings:
    """What is searched for and how; `hydra.sweeper.*` with the names read. See `settings`."""

    objective: Objective
    subject_to: tuple[Constraint, ...]
    direction: str
    sampler: str
    n_trials: int
    n_jobs: int
    seed: int
    storage: str | None
    study_name: str | None

    def plain(self) -> dict[str, Any]:
        """What decides which trials are proposed, as plain JSON types."""
        return {
            "objective": self.objective.name,
            "direction": self.direction,
            "subject_to": [constraint.name for constraint in self.subject_to],
            "sampler": self.sampler,
            "seed": self.seed,
            "n_jobs": self.n_jobs,
        }


def settings(given: Mapping[str, Any]) -> Settings:
    """Check `hydra.sweeper.*`.

    Raises:
        BadInput: one line with the key and what is allowed.
    """
    chosen = objective(given["objective"])
    direction, sampler = given["direction"] or chosen.quantity.better, given["sampler"]
    for key, value, allowed in (("direction", direction, DIRECTIONS), ("sampler", sampler, tuple(SAMPLERS))):
        if value not in allowed:
            raise BadInput(f"hydra.sweeper.{key}={value}: no such {key}; give one of {', '.join(allowed)}")
    for key, least in (("n_trials", 1), ("n_jobs", 1), ("seed", 0)):
        if given[key] < least:
            raise BadInput(f"hydra.sweeper.{key}={given[key]}: must be at least {least}")
    if given["storage"] and not given["study_name"]:
        raise BadInput("hydra.sweeper.storage needs hydra.sweeper.study_name, by which the study is found again")
    subject_to = constraints(given["subject_to"] or "")
    if subject_to and sampler == "cmaes":
        raise BadInput("hydra.sweeper.sampler=cmaes knows no constraints: use tpe or random, or leave out subject_to")
    return Settings(**{**given, "objective": chosen, "subject_to": subject_to, "direction": direction})


def search(what: Settings, where: Space, launch: Launch) -> int:
    """Train `n_trials` trials, `n_jobs` at a time, and write the sweep's optuna.json after each batch.

    With a seed the same trials are proposed for the same answers, so the same command finds what is trained already.

    Returns:
        The exit code: 130 when stopped by a signal; 1 when a run failed or none gave a value that is allowed; else 0.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # optuna's line for each trial would repeat what we print
    study = _study(what)
    failed = False
    while (left := what.n_trials - _answered(study)) > 0:
        trials = [study.ask(dict(where.free)) for _ in range(min(what.n_jobs, left))]
        lines = [where.overrides(trial.params) for trial in trials]
        code, folders = launch(lines)
        for trial, line, folder in zip(trials, lines, folders, strict=True):
            _tell(study, trial, line, folder, what, stopped=code == 130)
        _write(study, what, folders[0].parent / "optuna.json")
        if code == 130:
            return code
        failed = failed or code != 0
        print(f"{_answered(study)} of {what.n_trials} trials; {_best_in_words(study, what)}")
    best = _best(study)
    counts = Counter(_state(trial) for trial in _trials(study))
    print(f"search ended: {', '.join(f'{n} {state}' for state, n in counts.items())}; {_best_in_words(study, what)}")
    if best is not None:
        print(f"{best.user_attrs['dir']}: {' '.join(best.user_attrs['overrides'])}")
    return 1 if failed or best is None else 0


def _study(what: Settings) -> optuna.Study:
    """A study of its own, or the stored one that goes on."""
    try:
        direction = StudyDirection[what.direction.upper()]
        study = optuna.create_study(
            storage=what.storage, study_name=what.study_name, direction=direction, load_if_exists=True
        )
    except Exception as error:  # optuna, SQLAlchemy and its drivers each have their own
        raise BadInput(f"hydra.sweeper.storage={what.storage}: {type(error).__name__}: {error}") from error
    # Otherwise a stored study would be given its first proposals again.
    study.sampler = SAMPLERS[what.sampler](what.seed + len(_trials(study)))
    return study


def _answered(study: optuna.Study) -> int:
    """Trials that are over: not those that were stopped by a signal or by the death of this process."""
    return sum(trial.state.is_finished() and not trial.user_attrs.get("stopped") for trial in _trials(study))


def _trials(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False)  # `study.trials` copies all of them each time it is looked at


def _tell(
    study: optuna.Study, trial: optuna.Trial, line: Sequence[str], folder: Path, what: Settings, stopped: bool
) -> None:
    """Read off a trial's value. One that diverged or failed has none, and optuna is told so."""
    trial.set_user_attr("overrides", list(line))
    trial.set_user_attr("dir", folder.name)
    try:
        value, found = _measure(RunDirectory(folder), what)
    except NoValue as reason:
        trial.set_user_attr("reason", str(reason))
        trial.set_user_attr("stopped", stopped and RunDirectory(folder).state not in {*ENDED, "failed"})
        study.tell(trial, state=TrialState.FAIL)
        return
    for constraint, measured in found.items():
        trial.set_user_attr(constraint.name, measured)
        trial.set_constraint(constraint.name, constraint.violation(measured))
    study.tell(trial, value)


def _measure(run: RunDirectory, what: Settings) -> tuple[float, dict[Constraint, float]]:
    """The objective's value and those the constraints are about.

    Raises:
        NoValue: the run did not finish, or lacks one of them.
    """
    status = run.status
    if status.get("state") != "finished":
        raise NoValue(f"{status.get('state', 'unreadable')}: {status.get('reason') or 'no reason given'}")
    table = read_history(run.path)
    history = {} if table is None else {name: table[name].to_numpy() for name in table.column_names}
    return what.objective(history), {constraint: constraint.objective(history) for constraint in what.subject_to}


def _state(trial: FrozenTrial) -> str:
    if trial.state != TrialState.COMPLETE:
        return "failed" if trial.state == TrialState.FAIL and not trial.user_attrs.get("stopped") else "stopped"
    return "infeasible" if any(violation > 0 for violation in trial.constraints.values()) else "complete"


def _best(study: optuna.Study) -> FrozenTrial | None:
    """The best that respects the constraints; of equals the first."""
    allowed = [trial for trial in _trials(study) if _state(trial) == "complete"]
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    return min(allowed, key=lambda trial: sign * (trial.value or 0.0), default=None)


def _best_in_words(study: optuna.Study, what: Settings) -> str:
    best = _best(study)
    if best is None:
        return "no trial gave a value that is allowed"
    held = "".join(f", {c.objective.name} {best.user_attrs[c.name]:.4g}" for c in what.subject_to)
    return f"best: trial {best.number}, {what.objective.name} {best.value:.6g}{held}"


def _write(study: optuna.Study, what: Settings, path: Path) -> None:
    best = _best(study)
    trials = [
        {
            "number": trial.number,
            "state": _state(trial),
            "value": trial.value if trial.state == TrialState.COMPLETE else None,
            "params": trial.params,
            **{key: trial.user_attrs.get(key) for key in ("overrides", "dir", "reason")},
            "constraints": {c.name: trial.user_attrs.get(c.name) for c in what.subject_to},
        }
        for trial in _trials(study)
    ]
    content = {"format": FORMAT, **what.plain(), "best": None if best is None else best.number, "trials": trials}
    write_json(path, content)
