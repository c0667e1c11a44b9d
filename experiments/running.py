"""Running a study: its sweeps through the command line, then measuring, judging, drawing, writing down."""

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.figures import style
from analysis.load import load
from experiments.study import ROOT, Frames, Study, Sweeps, Verdict
from src.store import provenance, write_json

FORMAT = 1


class StudyFailed(Exception):
    """A study could not be carried through: one line."""


def command(study: Study, sweep: str, out: Path, *, fast: bool) -> list[str]:
    """The arguments of `python` that train one of its sweeps, or what of it is missing."""
    words = study.overrides(sweep, fast=fast)
    there = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    return ["-m", "src.run", "-m", *words, "tracking=none", f"output={there}", f"sweep={sweep}"]


def train(study: Study, out: Path, *, fast: bool) -> None:
    """Raises StudyFailed if a run of a sweep fails or is stopped."""
    for sweep in study.sweeps:
        code = subprocess.run([sys.executable, *command(study, sweep, out, fast=fast)], cwd=ROOT).returncode
        if code:
            raise StudyFailed(f"{study.name}: the sweep {sweep} ended with exit code {code}; the same command goes on")


def loaded(study: Study, out: Path) -> Sweeps:
    """Raises StudyFailed if a sweep is not there, or lacks a run. A diverged run is a result."""
    sweeps = {}
    for name in study.sweeps:
        if not (out / name / "sweep.json").is_file():
            raise StudyFailed(f"{study.name}: {out / name} is not there; `python -m experiments run {study.name}`")
        sweeps[name] = load(out / name, columns=study.columns)
        if defects := sweeps[name].defects():
            raise StudyFailed(f"{study.name}: {name}: {'; '.join(defects)}")
        if failed := int((sweeps[name].runs["state"] == "failed").sum()):
            raise StudyFailed(f"{study.name}: {name}: {failed} runs failed")
    return sweeps


def judge(study: Study, out: Path, *, fast: bool) -> tuple[Sequence[Verdict], Sweeps, Frames]:
    """From what lies in `out`; what a study computes is computed anew."""
    sweeps = loaded(study, out)
    frames = study.measure(sweeps, fast)
    return study.check(frames), sweeps, frames


def run(study: Study, out: Path, *, fast: bool) -> dict[str, Any]:
    """Train what is missing, judge, draw; verdict.json and figures/ go to `out`, which is made. Gives verdict.json."""
    started, resumed = time.monotonic(), any((out / sweep).exists() for sweep in study.sweeps)
    train(study, out, fast=fast)
    verdicts, sweeps, frames = judge(study, out, fast=fast)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, draw in study.figures(sweeps, frames).items():
        style.save(draw(), out / "figures" / name)
    content = {
        "format": FORMAT,
        "study": study.name,
        "fast": fast,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "runs": sum(len(sweep.runs) for sweep in sweeps.values()),
        "seconds": round(time.monotonic() - started, 1),
        "resumed": resumed,
        "command": f"python -m experiments run {study.name}{' --fast' if fast else ''}",
        "sweeps": {name: shlex.join(["python", *command(study, name, out, fast=fast)]) for name in study.sweeps},
        "provenance": provenance(),
    }
    write_json(out / "verdict.json", content)
    return content


def changed(study: Study, outcomes: Mapping[str, str]) -> list[str]:
    """One line for each claim whose outcome is not the one that was kept."""
    kept = {verdict["claim"]: verdict["outcome"] for verdict in (study.stored or {"verdicts": []})["verdicts"]}
    return [
        f"{study.name}: {claim} {outcome}; kept is: {kept.get(claim, 'nothing')}"
        for claim, outcome in outcomes.items()
        if kept.get(claim) != outcome
    ]
