"""`python -m analysis`: what it writes, prints, refuses."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.__main__ import main
from analysis.figures import style

FIGURES = (
    "collapse_map", "curves_loss", "final_margin", "gradient_weight", "kl_on_data", "margin", "phase", "rejected_prob",
    "rewards", "survival",
)  # fmt: skip
TABLES = (
    "collapse.csv", "collapse.tex", "final.csv", "final.md", "final.tex", "losses.bib", "sensitivity.csv",
    "sensitivity.md",
)  # fmt: skip
WRITTEN = sorted([*TABLES, *(f"{name}.{ending}" for name in FIGURES for ending in ("pdf", "png"))])
ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but their files are left empty: rendering takes most of the time."""

    def save(figure: Figure, stem: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
        files = style.files(stem, formats)
        for file in files:
            file.touch()
        return files

    monkeypatch.setattr(style, "save", save)


def test_everything_is_written_and_summed_up(command: Any) -> None:
    figures, out = command.sweep / "figures", command.out
    assert command.status == 0
    assert sorted(file.name for file in figures.iterdir()) == WRITTEN
    assert all((figures / name).stat().st_size and str(figures / name) in out for name in WRITTEN)
    assert "synthetic: 4 of 4 runs" in out and command.err == ""
    summary = [line for line in out.splitlines() if "margin" in line and "beta=" in line]
    assert [line.split(":")[0] for line in summary] == [
        "dpo beta=0.1", "dpo beta=0.5", "ipo beta=0.1", "ipo beta=0.5"
    ]  # fmt: skip
    assert "pi(rejected)" in summary[0] and "target" not in summary[0]
    assert "margin 5 nats" in summary[2] and summary[2].endswith("within 1 % of its target 5")


@pytest.mark.usefixtures("quick")
def test_ipo_short_of_its_target_is_said_to_be(
    write_sweep: Any, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_sweep(make_run("ipo", lr=1e-3)))]) == 0
    assert "NOT within 1 % of its target 5" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_figure_none_of_whose_runs_has_its_column_is_not_written_and_stdout_says_why(
    write_sweep: Any, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(make_run("simpo", reference=False), make_run("dpo", reference=False))
    assert main([str(path), "--strict"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "2 of 2 runs" in out
    assert sorted(file.name for file in (path / "figures").iterdir()) == [
        *TABLES[:2], "curves_loss.pdf", "curves_loss.png", *TABLES[2:6], "rejected_prob.pdf", "rejected_prob.png",
        *TABLES[6:],
    ]  # fmt: skip
    assert "figure margin: not written, no run has margin in its history" in out
    assert "figure rewards: not written, no run has rewards/margins and rewards/accuracies in its history" in out
    assert "simpo beta=0.1: pi(rejected) " in out and "nan" not in out and "nats" not in out


@pytest.mark.usefixtures("quick")
def test_a_reward_model_is_summed_up_by_what_it_has(
    write_sweep: Any, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(make_run("ipo"), make_run("ipo", objective="reward_model"))
    assert main([str(path)]) == 0
    policy, model = capsys.readouterr().out.splitlines()[-2:]
    assert policy.startswith("ipo beta=0.1: margin 5 nats")
    assert model == "ipo beta=0.1 reward model: reward margin 0.5, accuracy 1"


@pytest.mark.usefixtures("quick")
def test_a_sweep_of_reward_models_only_has_the_figures_of_rewards(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(make_run("dpo", objective="reward_model"))
    assert main([str(path)]) == 0
    assert {file.stem for file in (path / "figures").iterdir()} == {
        "rewards", "curves_loss", "final", "collapse", "collapse_map", "survival", "sensitivity", "losses"
    }  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_a_figure_of_an_earlier_sweep_that_is_not_written_again_does_not_linger(
    write_sweep: Any, make_run: Any
) -> None:
    path = write_sweep(make_run("dpo", objective="reward_model"))
    (path / "figures").mkdir()
    for name in ("margin.pdf", "margin.png", "mine.png"):
        (path / "figures" / name).touch()
    assert main([str(path)]) == 0
    left = {file.name for file in (path / "figures").iterdir()}
    assert "mine.png" in left and not left & {"margin.pdf", "margin.png"}


@pytest.mark.usefixtures("quick")
def test_a_collapse_is_said_with_its_step_and_how_many_seeds_it_struck(
    write_sweep: Any, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """beta = 2, lr = .1: c = K eta beta^2 = .8, so u = 4.6 is passed about step 103/.8 = 129."""
    path = write_sweep(*(make_run("dpo", 2.0, steps=600, seed=s) for s in (1, 2)), make_run("dpo", 0.1, seed=3))
    assert main([str(path)]) == 0
    calm, collapsed = capsys.readouterr().out.splitlines()[-2:]
    assert "collapse" not in calm and "; margin collapse from step 12" in collapsed and "(2 of 2 seeds)" in collapsed
    table = pd.read_csv(path / "figures" / "collapse.csv")
    assert table["label"].to_list() == ["margin collapse", "margin collapse", "none"]
    assert table["onset"].between(120, 130).to_list() == [True, True, False]


@pytest.mark.usefixtures("quick")
def test_out_takes_the_place_of_the_sweeps_own_folder(four_runs: Path, tmp_path: Path) -> None:
    assert main([str(four_runs), "--out", str(tmp_path / "new" / "place")]) == 0
    assert sorted(file.name for file in (tmp_path / "new" / "place").iterdir()) == WRITTEN
    assert not (four_runs / "figures").exists()


@pytest.mark.usefixtures("quick")
def test_lacking_runs_are_named_and_the_rest_is_drawn(four_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(next(four_runs.glob("dpo_beta0.5*")))
    (next(four_runs.glob("ipo_beta0.5*")) / "status.json").write_text("{")
    assert main([str(four_runs)]) == 0
    out, err = capsys.readouterr()
    assert "dpo_beta0.5_seed42" in err and "missing" in err
    assert "ipo_beta0.5_seed42" in err and "status.json is not readable JSON" in err
    assert "2 of 4 runs; 1 missing; 1 unreadable" in out


@pytest.mark.usefixtures("quick")
def test_strict_refuses_what_is_otherwise_left_out(four_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(four_runs), "--strict", "--out", str(four_runs / "whole")]) == 0
    shutil.rmtree(next(four_runs.glob("dpo_beta0.5*")))
    assert main([str(four_runs), "--strict"]) == 2
    assert "--strict: 1 defect(s), nothing written: dpo_beta0.5_seed42: missing" in capsys.readouterr().err
    assert not (four_runs / "figures").exists()


@pytest.mark.usefixtures("quick")
def test_strict_lets_a_divergence_pass(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(make_run(), make_run("ipo", state="diverged", stopped_at=12, reason="loss is not finite"))
    assert main([str(path), "--strict"]) == 0


@pytest.mark.parametrize("prepare, because", [
    (lambda path: None, "no such directory"),
    (lambda path: path.mkdir(), "no sweep.json"),
    (lambda path: (path.mkdir(), (path / "sweep.json").write_text('{"format": 9}')), "format 9"),
])  # fmt: skip
def test_what_is_no_sweep_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Any, because: str
) -> None:
    path = tmp_path / "x"
    prepare(path)
    before = sorted(tmp_path.rglob("*"))
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(path) in err and because in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_without_a_row_yet_is_told_so(
    write_sweep: Any, make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(make_run(state="planned", stopped_at=0))
    assert main([str(path)]) == 1
    assert "none has a row of history yet" in capsys.readouterr().err
    assert not (path / "figures").exists()


def test_an_out_that_is_a_file_is_refused(four_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(four_runs), "--out", str(four_runs / "sweep.json")]) == 2
    assert "cannot be used as a directory" in capsys.readouterr().err


def test_figures_are_the_same_to_the_byte_in_another_process_at_another_time(command: Any, tmp_path: Path) -> None:
    """Also: the command loads neither torch nor src, help needs no plotting library, and pyplot opens no window."""
    code = (
        "import sys\n"
        "from analysis.__main__ import main, _parser\n"
        "_parser().format_help()\n"
        "assert not {'matplotlib', 'seaborn', 'scipy'} & set(sys.modules)\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'src', 'tkinter'} & set(sys.modules)\n"
        "assert not sys.modules['matplotlib.pyplot'].get_fignums()\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    environment["MPLBACKEND"] = "TkAgg"
    arguments = [sys.executable, "-W", "error", "-c", code, str(command.sweep), "--out", str(tmp_path)]
    again = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for name in WRITTEN:
        assert (command.sweep / "figures" / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert b"CreationDate" not in (tmp_path / "margin.pdf").read_bytes()


@pytest.mark.usefixtures("quick")
def test_figures_formats_and_metrics_are_chosen_by_name(four_runs: Path) -> None:
    out = four_runs / "figures"
    assert main([str(four_runs), "--figures", "margin,kl_estimators", "--format", "svg,png"]) == 0
    drawn = {file.name for file in out.iterdir()} - {*TABLES}
    assert drawn == {"margin.svg", "margin.png", "kl_estimators.svg", "kl_estimators.png"}
    shutil.rmtree(out)
    assert main([str(four_runs), "--metric", "grad_norm,log_ratios/chosen", "--format", "svg"]) == 0
    drawn = {file.name for file in out.iterdir()} - {*TABLES}
    assert drawn == {"curves_grad_norm.svg", "curves_log_ratios_chosen.svg"}


@pytest.mark.parametrize("arguments, said", [
    (["--figures", "margin,foo"], "--figures: no 'foo'; there are rejected_prob, margin, "),
    (["--format", "png,gif"], "--format: no 'gif'; there are pdf, png, svg"),
    (["--metric", "loss,foo"], "--metric: no 'foo' in the history of synthetic; there are grad_norm, "),
])  # fmt: skip
def test_a_name_that_is_not_there_is_refused_in_one_line_with_those_that_are(
    four_runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([str(four_runs), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert not (four_runs / "figures").exists()


@pytest.mark.usefixtures("quick")
def test_without_a_source_the_figures_that_need_no_sweep_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--format", "png"]) == 0
    files = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert files == ["bradley_terry.png", "gradient_weight.png", "kl_estimators.png"]
    assert capsys.readouterr().out.count("\n") == 3
    for arguments in (["--figures", "margin"], ["--metric", "loss"]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "SOURCE" in err


def test_an_svg_is_the_same_to_the_byte_in_another_process(four_runs: Path, tmp_path: Path) -> None:
    arguments = ["-m", "analysis", str(four_runs), "--figures", "margin,phase,kl_estimators", "--format", "svg"]
    for place, hashes in (("one", "1"), ("two", "2")):
        environment = os.environ | {"PYTHONHASHSEED": hashes, "SOURCE_DATE_EPOCH": hashes}
        command = [sys.executable, "-W", "error", *arguments, "--out", str(tmp_path / place)]
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    for name in ("margin.svg", "phase.svg", "kl_estimators.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
        assert b"<dc:date>" not in (tmp_path / "one" / name).read_bytes()
