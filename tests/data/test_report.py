"""The data report: what it counts, what it estimates, and its command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from src.data.__main__ import main
from src.data.pairs import PairData
from src.data.report import data_report, judgements, shared
from tests.data.rated import helpsteer_row, long, write
from tests.data.test_text import REAL, dialogue, triple


def pairs(*rows: tuple[str, int, int]) -> PairData:
    """Rows of (prompt key, chosen, rejected)."""
    return PairData(
        prompts=tuple((1,) * len(key) for key, *_ in rows),
        responses=tuple(((chosen,), (rejected, 0)) for _, chosen, rejected in rows),
        keys=tuple(key for key, *_ in rows),
    )


class TestJudgements:
    def judged(self, *rows):
        responses = tuple(((a,), (b,)) for _, a, b in rows)
        return judgements(PairData(((1,),) * len(rows), responses, keys=tuple(key for key, *_ in rows)))

    def test_nothing_judged_twice_leaves_the_flip_rate_unknown(self):
        judged = self.judged(("a", 1, 2), ("b", 2, 1), ("a", 1, 3))
        assert (judged.compared, judged.flip_rate) == (0, None)

    def test_both_orders_are_a_disagreement_and_copies_are_agreement(self):
        judged = self.judged(("a", 1, 2), ("a", 2, 1), ("a", 1, 2), ("b", 1, 2), ("b", 1, 2))
        assert (judged.compared, judged.contrary, judged.both_ways) == (4, 2, 1)

    def test_the_flip_rate_of_simulated_labels_is_found(self):
        draw = np.random.default_rng(0)
        rate, prompts, times = 0.15, 3000, 3
        rows = [
            (str(i), *((2, 1) if draw.random() < rate else (1, 2))) for i in range(prompts) for _ in range(times)
        ]  # fmt: skip
        assert self.judged(*rows).flip_rate == pytest.approx(rate, abs=0.01)

    def test_labels_without_any_information_are_flipped_half_the_time(self):
        assert self.judged(("a", 1, 2), ("a", 2, 1)).flip_rate == 0.5

    def test_every_pair_of_a_ranked_list_is_a_judgement(self):
        data = PairData(prompts=((1,),) * 2, responses=(((1,), (2,), (3,)), ((2,), (1,), (3,))), keys=("a", "a"))
        judged = judgements(data)
        assert (judged.compared, judged.contrary) == (3, 1)


class TestReport:
    def test_duplicates(self):
        twice = data_report(pairs(("a", 1, 2), ("a", 1, 2), ("a", 1, 3), ("b", 1, 4)))["duplicates"]
        assert (twice["same_pair"], twice["same_prompt"], twice["responses_of_several_prompts"]) == (1, 2, 1)
        assert twice["most_repeated"] == [{"prompts": 2, "ids": [1]}]

    def test_lengths_are_counted_in_powers_of_two_and_none_is_left_out(self):
        lengths = data_report(pairs(("a", 1, 2), ("ab", 1, 2), ("abc", 1, 2), ("abcd", 1, 2)))["lengths"]
        assert lengths["edges"] == [1, 2, 4, 8]
        assert lengths["prompt"]["histogram"] == [1, 2, 1]
        assert lengths["rejected"]["histogram"] == [0, 4, 0]
        assert (lengths["prompt"]["min"], lengths["prompt"]["mean"], lengths["prompt"]["max"]) == (1, 2.5, 4)

    def test_shared_prompts(self):
        assert shared(pairs(("a", 1, 2), ("b", 1, 2)), pairs(("b", 3, 4), ("b", 5, 6), ("c", 1, 2))) == {
            "prompts": 1, "of_prompts": 2, "pairs": 2,
        }  # fmt: skip

    def test_it_is_plain_json(self):
        made = data_report(pairs(("a", 1, 2)), pairs(("a", 1, 2)))
        assert json.loads(json.dumps(made)) == made


class TestCommandLine:
    def report(self, capsys, *arguments: str) -> dict:
        assert main(["report", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    def test_lengths_are_in_characters_where_no_model_is_named(self, tmp_path, capsys):
        path = write(tmp_path / "a.jsonl", triple("12345", "ab", "c" * 2000))
        made = self.report(capsys, "data=jsonl", f"data.path={path}")
        assert made["unit"] == "characters"
        assert [made["lengths"][part]["max"] for part in ("prompt", "chosen", "rejected")] == [
            5,
            3,
            2001,
        ]  # with an end
        assert made["dropped"] == made["cut"] == {}

    def test_prompts_shared_with_another_file_whatever_their_white_space(self, tmp_path, capsys):
        one = write(tmp_path / "a.jsonl", triple("a  b", "1", "2"), triple("c", "1", "2"))
        other = write(tmp_path / "b.jsonl", triple("a b\n", "3", "4"), triple("d", "1", "2"))
        made = self.report(capsys, "data=jsonl", f"data.path={one}", "--against", f"data.path={other}")
        assert made["shared_with_other"] == {"prompts": 1, "of_prompts": 2, "pairs": 1}

    def test_held_out_prompts_are_found_to_be_apart(self, tmp_path, capsys):
        path = write(tmp_path / "a.jsonl", *(triple(f"q{i % 50}", f"a{i}", f"b{i}") for i in range(100)))
        made = self.report(capsys, "data=jsonl", f"data.path={path}", "data.holdout=0.3")
        assert made["pairs"] + made["held_out"]["pairs"] == 100
        assert made["shared_with_held_out"]["prompts"] == 0
        assert made["duplicates"]["same_prompt"] == made["pairs"] / 2

    def test_the_terminal_shows_counts_histogram_and_findings(self, tmp_path, capsys):
        rows = [helpsteer_row("q", long(str(r)), r, r, r, r, r) for r in (4, 1)]
        path = write(tmp_path / "a.jsonl", *rows, helpsteer_row("alone", long("x"), 1, 1, 1, 1, 1))
        assert main(["report", "data=helpsteer2", f"data.path={path}"]) == 0
        shown = capsys.readouterr().out
        assert "dropped: prompt: fewer than two usable responses  1" in " ".join(shown.split(" ")).replace("   ", "  ")
        assert "█" in shown
        assert "score gap" in shown
        assert "unknown: nothing judged twice" in shown

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["report"], "data=notebook_pair is not text: there is nothing to report; give data=…"),
            (["report", "data=jsonl"], "data.path has no default: give data.path=…"),
            (["report", "data=jsonl", "data.path=none.jsonl"], "none.jsonl: no such file"),
            (["report", "data=jsonl", "data.paht=x"],
             "data.paht=x: no such key; allowed are data.path, data.split, data.subset, data.streaming, data.num_proc, "
             "data.limit, data.holdout, data.max_length"),
            (["report", "data=jsnol"], "data=jsnol: no such choice; allowed are "),
            (["report", "data=jsonl", "data.path=x", "model=tabular"], "model=tabular has no tokenizer: "),
            (["show"], "argument command: invalid choice: 'show'"),
        ],
    )  # fmt: skip
    def test_a_mistake_is_one_line_and_exit_code_2(self, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        output = capsys.readouterr()
        assert caught.value.code == 2
        assert output.err.startswith(f"margincall: {message}")
        assert output.err.count("\n") == 1
        assert output.out == ""
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/hh-harmless-dev.jsonl.gz beside the repository")
    def test_the_real_file_as_a_command(self, tmp_path, environment):
        command = [sys.executable, "-m", "src.data", "report", "data=hh_rlhf", f"data.path={REAL.resolve()}", "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        made = json.loads(done.stdout)
        assert made["pairs"] == 1152
        assert made["dropped"] == {"empty response": 4}
        assert made["duplicates"]["same_pair"] == 0
        assert 0.4 < made["chosen_longer"] < 0.5


def test_a_dialogue_has_the_key_of_its_prompt_alone(tmp_path, capsys):
    one = write(tmp_path / "a.jsonl", dialogue("q", " a", " b"), dialogue("q", " b", " a"))
    assert main(["report", "data=hh_rlhf", f"data.path={one}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judgements"] == {
        "compared": 1, "contrary": 1, "both_ways": 1, "flip_rate": 0.5,
    }  # fmt: skip
