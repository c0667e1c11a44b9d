"""Studies: that each can be run, that its check can fail, and that docs/claims.md says what was found."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments import claims, running
from experiments.__main__ import main
from experiments.study import names, read
from tests.conftest import REPO

COMPUTED = [name for name in names() if not read(name).sweeps]
SWEEPS = [(name, sweep) for name in names() for sweep in read(name).sweeps]


def test_a_study_that_is_not_there_is_refused_in_one_line(capsys, tmp_path):
    assert main(["run", "no_such_study", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "no_such_study" in captured.err and "bradley_terry" in captured.err
    assert not (tmp_path / "out").exists()


def test_every_study_is_listed_with_its_verdicts(capsys):
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    for name in names():
        assert f"{name} (" in out
        assert all(claim in out for claim in read(name).claims)


def values_of(word):
    """The values an override asks for, as Hydra reads them: a comma may also stand within one."""
    override = OverridesParser.create().parse_override(word)
    if override.is_sweep_override():
        return [*override.sweep_string_iterator()]
    return [word.partition("=")[2]]


def test_a_list_is_one_value_and_a_range_is_many():
    assert values_of("data.rows=[[[0],[1],[2]]],[[[0],[2],[1]]]") == ["[[[0],[1],[2]]]", "[[[0],[2],[1]]]"]
    assert values_of("seed=range(3)") == ["0", "1", "2"] and values_of("data.x=[1,2]") == ["[1,2]"]


@pytest.mark.parametrize(("name", "sweep"), SWEEPS)
@pytest.mark.parametrize("size", ["full", "fast", "gpu"])
def test_the_sweeps_of_a_study_are_sound_configurations(convert, name, sweep, size):
    values = {word.partition("=")[0]: values_of(word) for word in read(name).overrides(sweep, size)}
    for end in (0, -1):  # of every list of values the first and the last
        run = convert(*(f"{key}={those[end]}" for key, those in values.items()))
        assert run.loss.name in values["loss"]


@pytest.mark.parametrize("name", names())
def test_a_study_says_what_would_refute_each_of_its_claims(name):
    study = read(name)
    assert study.question.endswith("?")
    for claim, content in study.claims.items():
        assert content.holds_if.endswith(".") and content.refuted_if.endswith(".")
        assert (claim in claims.CLAIMS) == (content.says is None)
    assert set(study.fast) | set(study.gpu) <= set(study.sweeps)


def test_the_page_of_claims_is_that_of_the_kept_verdicts():
    assert claims.PAGE.read_text() == claims.page(map(read, names())), "python -m experiments run STUDY writes it"


def test_the_page_says_so_where_a_claim_has_no_study_yet():
    text = claims.page([])
    assert all(f"## {claim}\n" in text for claim in claims.CLAIMS)
    assert text.count("No study yet.") == len(claims.CLAIMS) == 19


def test_every_row_of_its_tables_has_as_many_cells_as_its_head():
    width = 0
    for line in claims.PAGE.read_text().splitlines():
        cells = len(re.split(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not (width and cells) or cells == width, line
        width = cells


def test_every_figure_it_shows_is_there():
    shown = set(re.findall(r"!\[.*\]\((.*)\)", claims.PAGE.read_text()))
    assert {(claims.PAGE.parent / path).resolve() for path in shown} == {*claims.IMAGES.glob("*.png")}


@pytest.mark.parametrize("name", names())
def test_kept_verdicts_are_of_a_full_run_and_on_the_claims_of_the_study(name):
    study = read(name)
    assert study.stored is not None and study.stored["size"] == "full"
    assert [verdict["claim"] for verdict in study.stored["verdicts"]] == list(study.claims)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_kept_verdict_still_holds(name):
    study = read(name)
    verdicts = study.check(study.measure({}, True))
    assert running.changed(study, {verdict.claim: verdict.outcome for verdict in verdicts}, "fast") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name not in COMPUTED])
def test_a_kept_verdict_still_holds_when_its_sweeps_are_run_in_small(name, tmp_path, environment):
    command = [sys.executable, "-m", "experiments", "run", name, "--fast", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name / "verdict.json").is_file()


def test_a_study_from_computation_to_verdict_and_figures(tmp_path: Path, capsys):
    kept = (read("kl_estimators").folder / "verdict.json").read_bytes()
    page = claims.PAGE.read_bytes()
    assert main(["run", "kl_estimators", "--fast", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "kl_estimators" / "verdict.json").read_text())
    assert content["size"] == "fast" and {v["claim"] for v in content["verdicts"]} == {"C8", "C9"}
    assert sorted(file.name for file in (tmp_path / "kl_estimators" / "figures").iterdir()) == [
        "moments.pdf", "moments.png"
    ]  # fmt: skip
    assert (read("kl_estimators").folder / "verdict.json").read_bytes() == kept, "a fast run is never kept"
    assert claims.PAGE.read_bytes() == page
    assert main(["check", "kl_estimators", "--fast", "--out", str(tmp_path)]) == 0


def test_check_fails_where_a_verdict_is_not_the_one_that_was_kept():
    study = read("kl_estimators")
    assert running.changed(study, {"C8": "holds"}, "fast") == ["kl_estimators: C8 holds; kept is: refuted"]


def test_a_claim_that_only_a_full_run_can_judge_is_compared_with_full_runs_only():
    study = read("kl_estimators")
    full_only = study.model_copy(update={"claims": {"C8": study.claims["C8"].model_copy(update={"full_only": True})}})
    assert running.changed(full_only, {"C8": "holds"}, "fast") == []
    assert running.changed(full_only, {"C8": "holds"}, "full") != []


def test_a_study_whose_sweep_was_not_run_is_not_judged(tmp_path, capsys):
    name = SWEEPS[0][0]
    assert main(["check", name, "--out", str(tmp_path)]) == 1
    assert "is not there" in capsys.readouterr().err


def test_a_sweep_that_fails_ends_the_study(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(running, "command", lambda *_, **__: ["-c", "raise SystemExit(3)"])
    assert main(["run", SWEEPS[0][0], "--fast", "--out", str(tmp_path)]) == 1
    assert "exit code 3" in capsys.readouterr().err
    assert not (tmp_path / SWEEPS[0][0] / "verdict.json").exists()
