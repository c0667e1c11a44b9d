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
from experiments.study import ROOT, Frames, Size, Study, Sweeps, Verdict
from src.store import provenance, write_json

FORMAT = 1


class StudyFailed(Exception):
    """A study could not be carried through: one line."""


def command(study: Study, sweep: str, out: Path, size: Size) -> list[str]:
    """The arguments of `python` that train one of its sweeps, or what of it is missing."""
    words = study.overrides(sweep, size)
    there = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    return ["-m", "src.run", "-m", *words, "tracking=none", f"output={there}", f"sweep={sweep}"]


def train(study: Study, out: Path, size: Size) -> None:
    """Raises StudyFailed if a run of a sweep fails or is stopped."""
    for sweep in study.sweeps:
        code = subprocess.run([sys.executable, *command(study, sweep, out, size)], cwd=ROOT).returncode
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


def judge(study: Study, out: Path, size: Size) -> tuple[Sequence[Verdict], Sweeps, Frames]:
    """From what lies in `out`; what a study computes is computed anew."""
    sweeps = loaded(study, out)
    frames = study.measure(sweeps, size == "fast")
    return study.check(frames), sweeps, frames


def run(study: Study, out: Path, size: Size) -> dict[str, Any]:
    """Train what is missing, judge, draw; verdict.json and figures/ go to `out`, which is made. Gives verdict.json."""
    started, resumed = time.monotonic(), any((out / sweep).exists() for sweep in study.sweeps)
    train(study, out, size)
    verdicts, sweeps, frames = judge(study, out, size)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    drawings = study.figures(sweeps, frames)
    for name, draw in drawings.items():
        style.save(draw(), out / "figures" / name)
    content = {
        "format": FORMAT,
        "study": study.name,
        "size": size,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "figures": list(drawings),
        "runs": sum(len(sweep.runs) for sweep in sweeps.values()),
        "seconds": round(time.monotonic() - started, 1),
        "resumed": resumed,
        "command": f"python -m experiments run {study.name}{'' if size == 'full' else f' --{size}'}",
        "sweeps": {name: shlex.join(["python", *command(study, name, out, size)]) for name in study.sweeps},
        "provenance": provenance(),
    }
    write_json(out / "verdict.json", content)
    return content


def changed(study: Study, outcomes: Mapping[str, str], size: Size) -> list[str]:
    """One line for each claim whose outcome is not the one that was kept, though this size of run should find it."""
    kept = {verdict["claim"]: verdict["outcome"] for verdict in (study.stored or {"verdicts": []})["verdicts"]}
    return [
        f"{study.name}: {claim} {outcome}; kept is: {kept.get(claim, 'nothing')}"
        for claim, outcome in outcomes.items()
        if kept.get(claim) != outcome and not (size == "fast" and study.claims[claim].full_only)
    ]
