"""Rated responses become preferences: what the score is, which pairs are kept, and what is counted as dropped."""

import itertools
import json

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.ratings import Choosing, Rated, helpsteer2, ultrafeedback
from src.data.tokenizing import Drop
from src.errors import BadInput
from tests.data.rated import CRITERIA, completion, helpsteer_row, long, ultrafeedback_row, write
from tests.tiny_tokenizer import CHAT, tiny_tokenizer

CHATTY = tiny_tokenizer(template=CHAT)
WEIGHTS = {"correctness": 0.4, "helpfulness": 0.3, "coherence": 0.2, "complexity": 0.05, "verbosity": 0.05}
MAPPING = {
    "helpfulness": "helpfulness",
    "honesty": "correctness",
    "truthfulness": "correctness",
    "instruction_following": "coherence",
}
GOOD, FAIR, POOR = ("5",) * 4, ("3",) * 4, ("1",) * 4


def read(source, path, *, tokenizer=CHATTY, **changes):
    options = {"max_length": 1000, "weights": WEIGHTS, "min_gap": 0.1, "min_chars": 16}
    if source is ultrafeedback:
        options["mapping"] = MAPPING
    return source(path=path, tokenizer=tokenizer, **(options | changes))


def texts(data) -> list[tuple[str, ...]]:
    rows = zip(data.prompts, data.responses, strict=True)
    return [tuple(CHATTY.decode(ids) for ids in (prompt, *responses)) for prompt, responses in rows]


class TestHelpSteer2:
    def test_two_consecutive_rows_with_one_prompt_are_a_pair_and_the_higher_score_is_chosen(self, tmp_path):
        path = write(
            tmp_path / "a.jsonl",
            helpsteer_row("c#", long("worse"), 1, 1, 3, 2, 2),
            helpsteer_row("c#", long("better"), 3, 4, 4, 2, 1),
        )
        data = read(helpsteer2, path)
        assert texts(data) == [("<user>c#<eos>\n<assistant>", f"{long('better')}<eos>", f"{long('worse')}<eos>")]

    def test_scores_are_weighted_means_of_ratings_brought_to_0_1(self, tmp_path):
        path = write(
            tmp_path / "a.jsonl",
            helpsteer_row("c#", long("a"), 3, 4, 4, 2, 1),
            helpsteer_row("c#", long("b"), 0, 0, 0, 4, 4),
        )
        (scores,) = read(helpsteer2, path).scores
        assert scores == pytest.approx((0.3 * 3 / 4 + 0.4 + 0.2 + 0.05 * 2 / 4 + 0.05 / 4, 0.1))

    def test_only_the_proportions_of_the_weights_matter_and_those_of_0_need_no_column(self, tmp_path):
        rows = [{"prompt": "p", "response": long(str(r)), "helpfulness": r} for r in (1, 3)]
        path = write(tmp_path / "a.jsonl", *rows)
        data = read(helpsteer2, path, weights=dict.fromkeys(CRITERIA, 0.0) | {"helpfulness": 7.0})
        assert data.scores == ((0.75, 0.25),)

    def test_a_prompt_of_several_turns_is_a_conversation(self, tmp_path):
        prompt = "one\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\nthree\nfour"
        rows = [helpsteer_row(prompt, long(str(r)), r, r, r, r, r) for r in (4, 0)]
        ((rendered, *_),) = texts(read(helpsteer2, write(tmp_path / "a.jsonl", *rows)))
        assert rendered == "<user>one<eos>\n<assistant>two<eos>\n<user>three\nfour<eos>\n<assistant>"

    def test_a_row_without_its_partner_is_counted(self, tmp_path):
        rows = [helpsteer_row(p, long(f"{p}{r}"), r, r, r, r, r) for p, r in (("a", 4), ("b", 4), ("b", 0), ("a", 0))]
        data = read(helpsteer2, write(tmp_path / "a.jsonl", *rows))
        assert len(data) == 1
        assert data.dropped == {"prompt: fewer than two usable responses": 2}

    def test_a_criterion_that_contradicts_the_score_is_noted(self, tmp_path):
        rows = [helpsteer_row("p", long("a"), 1, 4, 4, 2, 2), helpsteer_row("p", long("b"), 2, 0, 0, 2, 4)]
        assert read(helpsteer2, write(tmp_path / "a.jsonl", *rows)).noted == {
            "helpfulness says otherwise": 1,
            "verbosity says otherwise": 1,
        }

    def test_a_missing_criterion_is_an_error_that_says_what_there_is(self, tmp_path):
        row = helpsteer_row("p", long("a"), 1, 1, 1, 1, 1)
        del row["coherence"]
        with pytest.raises(BadInput) as caught:
            read(helpsteer2, write(tmp_path / "a.jsonl", row))
        assert str(caught.value).endswith(
            "line 1: needs the columns prompt, response, correctness, helpfulness, coherence, complexity and verbosity"
            ", found prompt, response, helpfulness, correctness, complexity, verbosity"
        )


class TestUltraFeedback:
    def test_aspects_are_averaged_into_criteria_and_criteria_without_aspects_do_not_count(self, tmp_path):
        row = ultrafeedback_row("q", completion(long("a"), "5", "4", "2", "3"), completion(long("b"), *POOR))
        (scores,) = read(ultrafeedback, write(tmp_path / "a.jsonl", row)).scores
        correctness, helpfulness, coherence = (3 / 4 + 1 / 4) / 2, 2 / 4, 1.0
        assert scores == pytest.approx(((0.4 * correctness + 0.3 * helpfulness + 0.2 * coherence) / 0.9, 0.0))

    def test_an_aspect_without_a_rating_leaves_the_others_of_its_criterion(self, tmp_path):
        row = ultrafeedback_row("q", completion(long("a"), "5", "N/A", "5", "5"), completion(long("b"), *POOR))
        assert read(ultrafeedback, write(tmp_path / "a.jsonl", row)).scores == ((1.0, 0.0),)

    @pytest.mark.parametrize("rating", ["N/A", "", "0", "6", "nan", None])
    def test_a_response_without_a_rating_for_a_criterion_is_dropped(self, tmp_path, rating):
        unrated = completion(long("c"), "5", "5", "5", rating)
        row = ultrafeedback_row("q", unrated, completion(long("a"), *FAIR), completion(long("b"), *POOR))
        data = read(ultrafeedback, write(tmp_path / "a.jsonl", row))
        assert data.dropped == {"response: not rated": 1}
        assert data.scores == ((0.5, 0.0),)

    def test_an_overall_score_that_contradicts_is_noted_and_changes_nothing(self, tmp_path):
        row = ultrafeedback_row(
            "q", completion(long("a"), *GOOD, overall=2.0), completion(long("b"), *POOR, overall=9.5)
        )
        data = read(ultrafeedback, write(tmp_path / "a.jsonl", row))
        assert data.scores == ((1.0, 0.0),)
        assert data.noted == {"overall_score says otherwise": 1}

    def test_a_table_fills_what_is_missing_with_none(self, tmp_path):
        full, bare = completion(long("a"), *GOOD), completion(long("b"), *FAIR)
        bare["annotations"] = None
        rows = [ultrafeedback_row("q", full, completion(long("c"), *POOR), bare)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
        data = read(ultrafeedback, str(tmp_path / "a.parquet"))
        assert data.scores == ((1.0, 0.0),)
        assert data.dropped == {"response: not rated": 1}

    def test_chinese(self, tmp_path):
        responses = ("这是一个很好的回答。", "这是一个不好的回答。", "作为一个AI，我不能回答。", "不知道")
        row = ultrafeedback_row(
            "你好吗？",
            *(completion(text, *ratings) for text, ratings in zip(responses, (GOOD, POOR, FAIR, FAIR), strict=True)),
        )
        data = read(ultrafeedback, write(tmp_path / "a.jsonl", row), min_chars=8, templates=["作为一个AI"])
        assert texts(data) == [("<user>你好吗？<eos>\n<assistant>", f"{responses[0]}<eos>", f"{responses[1]}<eos>")]
        assert data.dropped == {"response: templated": 1, "response: too short": 1}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"completions": None}, "line 1: column completions must hold a list, not NoneType"),
            ({"completions": ["a"]}, "line 1: column completions must hold objects, not str"),
            ({"completions": [{"response": "a"}]},
             "line 1, in completions: needs the columns response and annotations, found response"),
            ({"completions": [{"response": "a", "annotations": {"honesty": "5"}}]},
             "line 1: annotations must hold an object {Rating: …} for each aspect"),
            ({"instruction": 3}, "line 1: column instruction must hold text, not int"),
        ],
    )  # fmt: skip
    def test_another_schema_is_refused_with_its_row(self, tmp_path, change, message):
        row = ultrafeedback_row("q", completion(long("a"), *GOOD), completion(long("b"), *POOR)) | change
        with pytest.raises(BadInput) as caught:
            read(ultrafeedback, write(tmp_path / "a.jsonl", row))
        assert str(caught.value).endswith(message)

    def test_a_mapping_to_an_unknown_criterion_is_refused(self, tmp_path):
        with pytest.raises(BadInput, match=r"data.mapping names honest, and data.weights has correctness, helpfulness"):
            read(ultrafeedback, "x", mapping={"honesty": "honest"})

    def test_weights_of_nothing_but_0_are_refused(self):
        with pytest.raises(BadInput, match=r"data.weights: no criterion of the data has a weight above 0"):
            read(ultrafeedback, "x", weights={"helpfulness": 0.0}, mapping={"helpfulness": "helpfulness"})

    def test_a_model_without_a_chat_template_is_refused(self, tmp_path):
        row = ultrafeedback_row("q", completion(long("a"), *GOOD), completion(long("b"), *POOR))
        with pytest.raises(BadInput, match=r"line 1: holds chat messages, and 'tiny' has no chat template"):
            read(ultrafeedback, write(tmp_path / "a.jsonl", row), tokenizer=tiny_tokenizer())


class TestWhatIsCompared:
    def file(self, tmp_path):
        ratings = {"first": "5", "third": "3", "second": "4", "fourth": "1"}
        return write(
            tmp_path / "a.jsonl", ultrafeedback_row("q", *(completion(long(t), *(r,) * 4) for t, r in ratings.items()))
        )

    def compared(self, data) -> list[str]:
        return [" > ".join(text.split(":")[0] for text in row[1:]) for row in texts(data)]

    def test_best_against_worst(self, tmp_path):
        assert self.compared(read(ultrafeedback, self.file(tmp_path))) == ["first > fourth"]

    def test_all_pairs(self, tmp_path):
        data = read(ultrafeedback, self.file(tmp_path), pairing="all", min_gap=0.5)
        assert self.compared(data) == ["first > third", "first > fourth", "second > fourth", "third > fourth"]
        assert data.dropped == {"pair: scores too close": 2}
        assert np.array(data.scores) == pytest.approx(np.array([(1, 0.5), (1, 0), (0.75, 0), (0.5, 0)]))

    def test_one_ranked_list(self, tmp_path):
        data = read(ultrafeedback, self.file(tmp_path), pairing="ranked", ranks=4)
        assert self.compared(data) == ["first > second > third > fourth"]
        assert data.scores[0] == pytest.approx((1, 0.75, 0.5, 0))
        assert data.ranks == 4

    def test_a_longer_list_keeps_its_ends_and_a_shorter_one_is_dropped(self, tmp_path):
        data = read(ultrafeedback, self.file(tmp_path), pairing="ranked", ranks=3)
        assert self.compared(data) == ["first > second > fourth"]
        with pytest.raises(BadInput, match=r"no usable pair \(1 x prompt: fewer than 4 distinct ranks\)"):
            read(ultrafeedback, self.file(tmp_path), pairing="ranked", ranks=4, min_gap=0.3)

    def test_short_templated_equal_and_doubtful_responses_are_dropped_and_counted(self, tmp_path):
        rows = (
            ultrafeedback_row("1", completion(long("a"), *GOOD), completion(long("b"), *POOR)),
            ultrafeedback_row("2", completion("   too short   ", *GOOD), completion(long("b"), *POOR)),
            ultrafeedback_row("3", completion("I’M  just an AI, and so on", *GOOD), completion(long("b"), *POOR)),
            ultrafeedback_row("4", completion(long("same"), *GOOD), completion(f" {long('Same')}\n", *POOR)),
            ultrafeedback_row("5", completion(long("a"), *GOOD), completion(long("b"), *GOOD)),
            ultrafeedback_row("6", completion(long("a"), *GOOD), completion(long("b"), "4", "5", "5", "5")),
            ultrafeedback_row("7"),
        )
        data = read(ultrafeedback, write(tmp_path / "a.jsonl", *rows), templates=["I'm just an AI"], min_gap=0.3)
        assert len(data) == 1
        assert data.dropped == {
            "response: too short": 1,
            "response: templated": 1,
            "prompt: fewer than two usable responses": 3,
            "pair: chosen equal to rejected": 1,
            "pair: scores too close": 2,
        }

    def test_equal_scores_are_no_preference_even_without_a_gap(self, tmp_path):
        row = ultrafeedback_row("q", completion(long("a"), *GOOD), completion(long("b"), *GOOD))
        with pytest.raises(BadInput, match="1 x pair: scores too close"):
            read(ultrafeedback, write(tmp_path / "a.jsonl", row), min_gap=0.0)

    @given(
        st.lists(st.integers(0, 20).map(lambda n: n / 20), max_size=6),
        st.sampled_from(["best_worst", "all", "ranked"]),
        st.integers(2, 4),
        st.integers(0, 20).map(lambda n: n / 20),
    )
    def test_whatever_the_scores_neighbours_are_min_gap_apart_and_nothing_is_lost_uncounted(
        self, scores, pairing, ranks, min_gap
    ):
        rated = [Rated(f"response {i}", score, {}) for i, score in enumerate(scores)]
        lists = list(Choosing(pairing, ranks, min_gap, 0, ()).lists(rated))
        assert lists
        for chosen in lists:
            if not isinstance(chosen, Drop):
                gaps = [a.score - b.score for a, b in itertools.pairwise(chosen)]
                assert all(gap > 0 and gap >= min_gap - 1e-6 for gap in gaps)
                assert len(chosen) == (ranks if pairing == "ranked" else 2)
        if pairing == "all" and len(scores) > 1:
            assert len(lists) == len(scores) * (len(scores) - 1) // 2
        else:
            assert len(lists) == 1


@pytest.mark.parametrize("name", ["helpsteer2", "ultrafeedback", "ultrafeedback_zh"])
def test_the_yaml_files_say_what_the_recipe_says(convert, name):
    params = convert(f"data={name}").data.params
    assert params["weights"] == WEIGHTS
    assert sum(params["weights"].values()) == pytest.approx(1)
    assert params.get("mapping", MAPPING) == MAPPING


def test_negative_weights_and_wrong_pairings_are_refused_by_name(convert):
    with pytest.raises(BadInput, match=r"data.weights=.* is not allowed: input should be greater than or equal to 0"):
        convert("data=helpsteer2", "data.weights.verbosity=-1")
    with pytest.raises(BadInput, match=r"data.pairing='some' is not allowed: input should be 'best_worst', 'all' or"):
        convert("data=ultrafeedback", "data.pairing=some")


def test_the_order_of_responses_in_the_file_does_not_matter(tmp_path):
    completions = [completion(long(name), *(rating,) * 4) for name, rating in (("a", "5"), ("b", "3"), ("c", "1"))]
    one = read(ultrafeedback, write(tmp_path / "1.jsonl", ultrafeedback_row("q", *completions)), pairing="all")
    other = read(ultrafeedback, write(tmp_path / "2.jsonl", ultrafeedback_row("q", *completions[::-1])), pairing="all")
    assert json.dumps(one.report()) == json.dumps(other.report())
