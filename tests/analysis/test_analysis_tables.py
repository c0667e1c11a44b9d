"""Tables for papers, references, and what hangs on thresholds."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import by_setting, collapse, latex, load, references, tables
from analysis.by_setting import Cell
from analysis.statistics import mean_interval
from tests.conftest import CONF


def rows_of(table: str) -> list[list[str]]:
    """The cells of a LaTeX table, head first."""
    lines = [line.removesuffix(r" \\") for line in table.splitlines() if line.endswith(r" \\")]
    return [line.split(" & ") for line in lines]


def test_final_tex_has_a_row_for_each_setting_with_intervals_over_seeds_and_the_best_in_bold(
    write_sweep: Any, make_run: Any
) -> None:
    runs = [make_run(loss, 0.5, seed=s, noise=0.05) for loss in ("dpo", "ipo") for s in range(5)]
    sweep = load(write_sweep(*runs))
    text = latex.table(*by_setting.final(sweep.runs, sweep.history), "about")
    head, dpo, ipo = rows_of(text)
    assert head[:3] == ["loss", r"$\beta$", "$n$"] and "margin $h$ (nats)" in head
    assert dpo[:3] == ["DPO", "0.5", "5"] and ipo[0] == "IPO"
    assert len({len(row) for row in (head, dpo, ipo)}) == 1
    ends = [run.history()["margin"][-1] for run in runs[:5]]
    low, high = mean_interval(np.array(ends))
    assert dpo[head.index("margin $h$ (nats)")] == f"{np.mean(ends):.3g} [{low:.3g}, {high:.3g}]"
    chosen = head.index("$a$ (nats)")
    assert [r"\bfseries" in row[chosen] for row in (dpo, ipo)].count(True) == 1
    assert not any(r"\bfseries" in row[head.index("margin $h$ (nats)")] for row in (dpo, ipo))
    assert text.count("{") == text.count("}") and r"\toprule" in text and r"\bottomrule" in text


def test_an_interval_is_the_same_each_time_and_one_seed_has_none() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0])
    low, high = mean_interval(values)
    assert (low, high) == mean_interval(values) and 1.0 < low < 3.75 < high < 8.0
    assert all(map(math.isnan, mean_interval(values[:1])))
    exact = [np.mean(draw) for draw in np.array(np.meshgrid(*[values] * 4)).reshape(4, -1).T]
    assert (low, high) == pytest.approx(tuple(np.quantile(exact, [0.025, 0.975])), abs=0.15)


def test_a_run_that_did_not_finish_is_in_no_mean(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("ipo", 0.5), make_run("ipo", 0.5, seed=1, state="diverged", stopped_at=12),
            make_run("dpo", 0.5, state="failed", stopped_at=30)]  # fmt: skip
    sweep = load(write_sweep(*runs))
    _, ipo, dpo = rows_of(latex.table(*by_setting.final(sweep.runs, sweep.history), "about"))
    assert ipo[2] == "1" and "[" not in " ".join(ipo)
    assert dpo[2] == "0" and {*dpo[3:]} == {"--"}


def test_reward_models_are_rows_of_their_own(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(make_run("dpo"), make_run("dpo", objective="reward_model")))
    _, policy, model = rows_of(latex.table(*by_setting.final(sweep.runs, sweep.history), "about"))
    assert [policy[0], model[0]] == ["DPO", "DPO reward model"] and "--" in model and "--" not in policy


def test_collapse_tex_has_the_share_the_label_and_the_onset(write_sweep: Any, make_run: Any) -> None:
    """beta = 2, lr = .1: u = 4.6 is passed about step 129 (c = .8)."""
    runs = [*(make_run("dpo", 2.0, steps=600, seed=s) for s in (1, 2)), make_run("ipo", 0.5, steps=600)]
    sweep = load(write_sweep(*runs))
    verdicts = collapse.verdicts(sweep.runs, sweep.history)
    head, dpo, ipo = rows_of(latex.table(*by_setting.collapses(sweep.runs, verdicts), "about"))
    share, label, onset = (head.index(name) for name in ("share collapsed", "label", "onset (step)"))
    assert dpo[share].startswith("1 [1, 1]") and dpo[label] == "margin collapse" and dpo[onset].startswith("12")
    assert ipo[share] == r"{\boldmath\bfseries 0}" and (ipo[label], ipo[onset]) == ("none", "--")


def test_a_table_longer_than_a_page_goes_on_over_pages(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run("dpo", b / 100, steps=3) for b in range(1, latex.LONG + 2)]
    sweep = load(write_sweep(*runs))
    text = latex.table(*by_setting.final(sweep.runs, sweep.history), "about")
    assert r"\begin{longtable}" in text and r"\end{longtable}" in text and "tabular" not in text


@pytest.mark.parametrize("value, text", [
    (0.5, "0.5"), (-12.345, "$-$12.3"), (12345.0, "12300"), (123456.0, r"$1.23\times10^{5}$"),
    (-1.5e-7, r"$-1.5\times10^{-7}$"), (0.0, "0"), (math.inf, r"$\infty$"), (0.000123, "0.000123"),
])  # fmt: skip
def test_numbers_have_three_figures(value: float, text: str) -> None:
    assert latex.number(value) == text


def test_nothing_in_a_name_means_anything_to_latex() -> None:
    assert latex.escaped("a_b & 5 % of {x}\\y β^2") == (
        r"a\_b \& 5 \% of \{x\}\textbackslash{}y $\beta$\textasciicircum{}2"
    )


def test_the_best_of_equals_is_nobody() -> None:
    rows = [by_setting.Row(None, 1, {"x": Cell(value)}) for value in (1.0, 1.0)]  # type: ignore[arg-type]
    by_setting._mark(rows, "x", largest=True)
    assert not any(row.cells["x"].best for row in rows)  # type: ignore[union-attr]


# Papers


def test_every_loss_has_a_paper_or_is_said_to_have_none() -> None:
    losses = {file.stem for file in (CONF / "loss").glob("*.yaml")}
    known = set().union(*(names for _, names in references.entries()))
    assert known | references.NO_PAPER == losses and not known & references.NO_PAPER


def test_a_losss_paper_is_the_one_its_yaml_names() -> None:
    for file in (CONF / "loss").glob("*.yaml"):
        header = " ".join(line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#"))
        own = "".join(entry for entry, names in references.entries() if file.stem in names)
        for identifier in re.findall(r"arXiv (\d{4}\.\d{5})", header):
            assert f"eprint = {{{identifier}}}" in own, (file.stem, identifier)
        named = re.search(r"([A-Z][\w'-]+)(?: et al\.)? (\d{4})[,. :(]", header)
        if named and own:
            assert named[1] in own, (file.stem, named[1])


def test_entries_are_whole_and_their_keys_differ() -> None:
    entries = [entry for entry, _ in references.entries()]
    keys = [re.match(r"@\w+\{(\w+),", entry) for entry in entries]
    assert all(keys) and len({key[1] for key in keys if key}) == len(entries) > 30
    for entry in entries:
        assert entry.count("{") == entry.count("}") and all(f"  {name} = " in entry for name in ("author", "year"))


def test_losses_bib_has_the_papers_of_the_sweeps_losses_only(write_sweep: Any, make_run: Any) -> None:
    mix = {"name": "mix", "terms": {"a": {"name": "simpo", "beta": 2.0}, "b": {"name": "sft"}}, "weights": {"a": 1.0}}
    runs = load(write_sweep(make_run("ipo"), make_run(changes={"loss": mix}))).runs
    assert references.of_runs(runs) == ["ipo", "mix", "sft", "simpo"]
    text = references.bibtex(references.of_runs(runs))
    assert re.findall(r"@\w+\{(\w+),", text) == ["azar2024ipo", "meng2024simpo"]
    assert text.startswith("% No paper: mix, sft.")


# Thresholds, answers


def test_the_sensitivity_table_counts_runs_whose_label_moves(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(make_run("dpo", 2.0, steps=600), make_run("ipo", 0.5, steps=600)))
    found = collapse.features(sweep.runs, sweep.history)
    table = collapse.sensitivity_of(found)
    assert table.equals(collapse.sensitivity(sweep.runs, sweep.history))
    text = tables.sensitivity(table, 2)
    lines = text.splitlines()
    assert lines[0].startswith("How the labels of 2 runs move") and len(lines) == 3 + 2 + len(table)
    doubled = table[(table["threshold"] == "reward_margin") & (table["factor"] == 2.0)].iloc[0]
    assert doubled["changed"] == 1 and doubled["none"] == 2  # u of 4.6 is passed, 9.2 is not


def test_answers_cannot_break_their_table(tmp_path: Path) -> None:
    answers = pd.DataFrame([["r", 0, 3, "a\n# b", "x | y\n<script>", 0.5, math.nan]],
                           columns=["run", "step", "pair", "prompt", "answer", "k1", "k3"])  # fmt: skip
    text = tables.samples(pd.DataFrame({"label": ["dpo"]}, index=["r"]), answers, 10)
    assert "> a\n> # b\n" in text and "### Pair 3" in text
    assert text.splitlines()[-1].split(" | ")[-1].rstrip(" |") == r"x \| y<br>&lt;script&gt;"
