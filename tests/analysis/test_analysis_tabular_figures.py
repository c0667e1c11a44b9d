"""Figures of tables over actions: probabilities, the frontier; and the true rewards they rest on."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from matplotlib.figure import Figure

from analysis import gold, load
from analysis.figures import action_probs, frontier
from analysis.figures import draw as d
from src.data.toy import gold as gold_data
from src.data.toy import ranked, synthetic
from src.theory import bandit

P_STAR = 0.8
GAP = math.log(P_STAR / (1 - P_STAR))


@dataclass
class TableRun(Run):
    """On one prompt of `data=synthetic`, a softmax over `actions` whose first two logits part by h."""

    actions: int = 2
    p_star: float = P_STAR

    def config(self) -> dict[str, Any]:
        model = {"name": "tabular", "actions": self.actions, "ref_probs": None, "init": "copy", "seed": self.seed}
        data = {"name": "synthetic", "prompts": 1, "p_star": self.p_star, "comparisons": 10, "seed": self.seed}
        return super().config() | {"model": model, "data": data} | self.changes

    def history(self) -> dict[str, Any]:
        columns = super().history()
        theta = np.zeros((self.rows(), self.actions))
        theta[:, 0], theta[:, 1] = columns["margin"] / 2, -columns["margin"] / 2
        log_pi = theta - np.logaddexp.reduce(theta, axis=1)[:, None]
        columns["exact/kl"] = (np.exp(log_pi) * (log_pi + math.log(self.actions))).sum(1)
        return columns | {f"log_pi/0/{k}": log_pi[:, k] for k in range(self.actions)}


def note(figure: Figure) -> str:
    return " ".join(figure.texts[-1].get_text().replace("\N{NO-BREAK SPACE}", " ").split())


def draw(module: Any, path: Path) -> Figure:
    sweep = load(path)
    figure: Figure = module.draw(sweep.runs, sweep.history)
    return figure


def lines(figure: Figure) -> list[list[Any]]:
    return [[line for line in ax.lines if line.get_linewidth() == d.WIDTH] for ax in figure.axes]


def test_each_panel_has_the_probability_of_every_action(write_sweep: Any) -> None:
    runs = [TableRun(loss, beta, actions=3) for loss in ("dpo", "ipo") for beta in (0.5, 1.0)]
    figure = draw(action_probs, write_sweep(*runs))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["DPO β = 0.5", "DPO β = 1", "IPO β = 0.5", "IPO β = 1"]
    for own, run in zip(lines(figure), runs, strict=True):
        shown = np.array([line.get_ydata() for line in own])
        assert shown == pytest.approx(np.exp([run.history()[f"log_pi/0/{k}"] for k in range(3)]), abs=1e-12)
    assert all(ax.get_ylim() == (-0.05, 1.05) for ax in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["action 0", "action 1", "action 2"]


def test_an_action_below_one_in_a_thousand_makes_the_axis_logarithmic(write_sweep: Any) -> None:
    run = TableRun("ipo", 0.02, lr=0.01, steps=600)  # h -> 25
    figure = draw(action_probs, write_sweep(run))
    ((chosen, rejected),) = lines(figure)
    assert rejected.get_ydata()[-1] == pytest.approx(run.history()["log_pi/0/1"][-1] / math.log(10))
    assert figure.axes[0].get_ylim()[0] < -10 and "β = 0.02 throughout." in note(figure)
    assert chosen.get_ydata()[-1] == pytest.approx(0.0, abs=1e-9)


def test_seeds_are_averaged_and_the_band_goes_from_least_to_largest(write_sweep: Any) -> None:
    runs = [TableRun("dpo", 0.5, seed=s, noise=0.05) for s in range(3)]
    figure = draw(action_probs, write_sweep(*runs))
    assert "Mean of π over 3 seeds; band: least to largest." in note(figure)
    assert len(figure.axes[0].collections) == 2


def test_runs_of_a_network_have_no_probabilities_of_actions(write_sweep: Any, make_run: Any) -> None:
    path = write_sweep(make_run())
    for module in (action_probs, frontier):
        with pytest.raises(d.NothingToDraw, match="distribution over actions"):
            draw(module, path)


def test_a_policy_of_two_actions_that_is_trained_on_one_preference_moves_along_the_frontier(write_sweep: Any) -> None:
    """Two actions leave one degree of freedom: every policy is some pi_beta, and lies on the frontier exactly."""
    run = TableRun("dpo", 0.5, lr=0.5, steps=200)
    figure = draw(frontier, write_sweep(run))
    (ax,) = figure.axes
    path = next(line for line in ax.lines if line.get_linewidth() == 0.9)
    kl, reward = np.asarray(path.get_xdata()), np.asarray(path.get_ydata())
    assert kl == pytest.approx(run.history()["exact/kl"], abs=1e-12)
    assert reward == pytest.approx(GAP * np.exp(run.history()["log_pi/0/0"]))
    best = next(line for line in ax.lines if line.get_color() == "black")
    order = np.argsort(best.get_xdata())
    along = np.interp(kl, np.asarray(best.get_xdata())[order], np.asarray(best.get_ydata())[order])
    assert reward == pytest.approx(along, abs=1e-3)
    assert note(figure) == "1 of 1 runs. A line is one run, one seed, pass by pass."


def test_actions_without_a_reward_are_left_out_of_the_policy_and_the_figure_says_so(write_sweep: Any) -> None:
    figure = draw(frontier, write_sweep(TableRun("ipo", 0.5, actions=4)))
    assert "Of the policy given one of the 2 compared actions; 2 others have no reward." in note(figure)


@pytest.mark.parametrize("changes, because", [
    ({"data": {"name": "notebook_pair"}}, "data=notebook_pair has no true reward"),
    ({"data": {"name": "synthetic", "p_star": 1.0}}, "p_star = 1 has no finite reward"),
    ({"model": {"name": "tiny_llama"}}, "no table over actions"),
])  # fmt: skip
def test_where_no_true_reward_is_known_the_figure_says_why(
    write_sweep: Any, changes: dict[str, Any], because: str
) -> None:
    with pytest.raises(d.NothingToDraw, match=because):
        draw(frontier, write_sweep(TableRun("ipo", changes=changes)))


def problem(reward: Any, ref: Any) -> gold.Gold:
    return gold.Gold(np.array([reward], dtype=float), np.log([ref]))


def test_the_frontier_is_the_theorys() -> None:
    rng = np.random.default_rng(0)
    ref, reward, betas = rng.dirichlet(np.ones(8)), rng.standard_normal(8), np.geomspace(0.05, 5, 7)
    found = gold.frontier(problem(reward, ref), betas)
    expected = bandit.kl_reward_frontier(ref, reward, betas)
    np.testing.assert_allclose(found, (expected.reward, expected.kl), rtol=1e-10)


def test_no_policy_lies_above_the_frontier() -> None:
    rng = np.random.default_rng(1)
    own = problem(rng.standard_normal(6), rng.dirichlet(np.ones(6)))
    log_pi = np.log(rng.dirichlet(np.full(6, 0.3), size=(2000, 1)))
    reward, kl = gold.reward_and_kl(log_pi, own)
    best, at = gold.frontier(own, np.geomspace(1e-3, 1e3, 5000))
    inside = kl < at.max()
    assert inside.sum() > 1000
    assert (np.interp(kl[inside], at[::-1], best[::-1]) - reward[inside] >= -1e-4).all()


def test_a_policy_with_an_impossible_action_has_a_finite_kl() -> None:
    with np.errstate(divide="ignore"):
        reward, kl = gold.reward_and_kl(np.log([[[1.0, 0.0]]]), problem([1.0, 0.0], [0.5, 0.5]))
    assert (float(reward[0]), float(kl[0])) == pytest.approx((1.0, math.log(2)))


def test_rewards_are_those_the_data_were_drawn_from() -> None:
    drawn = ranked(prompts=3, responses=4, rankings=1, spread=2.0, seed=5)
    utility = gold.ranked_utilities(prompts=3, responses=4, spread=2.0, seed=5)
    for (prompt,), scores, responses in zip(drawn.prompts, drawn.scores, drawn.responses, strict=True):
        assert scores == tuple(utility[prompt, k] for (k,) in responses)
    run = TableRun(actions=3)
    row = {"model.name": "tabular", "model.actions": 3, "data.name": "synthetic", "data.p_star": P_STAR}
    own = gold.of_run(row | {"model.ref_probs": json.dumps([0.2, 0.3, 0.5])}, tables=1)
    assert own.reward[0, :2].tolist() == pytest.approx([GAP, 0.0]) and math.isnan(own.reward[0, 2])
    assert np.exp(own.log_ref[0]).tolist() == pytest.approx([0.2, 0.3, 0.5]) and run.actions == 3
    first = synthetic(prompts=1, p_star=P_STAR, comparisons=1, seed=0).scores[0]
    assert max(first) - min(first) == pytest.approx(GAP)


def test_one_table_for_all_prompts_is_worth_the_mean_of_their_rewards() -> None:
    row = {"model.name": "tabular", "model.actions": 3, "data.name": "ranked", "data.prompts": 2, "data.responses": 3,
           "data.spread": 1.0, "data.seed": 1}  # fmt: skip
    each, shared = gold.of_run(row, tables=2), gold.of_run(row, tables=1)
    assert shared.reward[0] == pytest.approx(each.reward.mean(0))


GOLD_RUN = {
    "model.name": "tabular", "model.actions": 9, "data.name": "gold", "data.response_tokens": "[1, 1]",
    "data.vocabulary": 8, "data.spread": 2.0, "data.seed": 7,
}  # fmt: skip


def test_what_tokens_are_worth_is_what_the_gold_data_were_scored_by() -> None:
    drawn = gold_data(
        prompts=3, held_out=0, comparisons=20, vocabulary=8, prompt_tokens=2, response_tokens=[1, 1], spread=2.0,
        labels="sampled", seed=7,
    )  # fmt: skip
    own = gold.of_run(GOLD_RUN, tables=3)  # a table for each prompt: a token is worth the same after each
    for scores, responses in zip(drawn.scores, drawn.responses, strict=True):
        assert scores == pytest.approx([own.reward[0, k] for (k,) in responses])
    assert (own.reward[1, :8] == own.reward[0, :8]).all() and np.isnan(own.reward[:, 8]).all()


def test_responses_of_several_tokens_have_no_table_of_rewards() -> None:
    with pytest.raises(gold.NoGoldReward, match="several tokens"):
        gold.of_run(GOLD_RUN | {"data.response_tokens": "[1, 4]"}, tables=1)


def test_the_most_reward_at_a_kl_is_that_of_the_policy_on_the_frontier_which_has_it() -> None:
    rng = np.random.default_rng(3)
    own = problem(rng.standard_normal(6), rng.dirichlet(np.ones(6)))
    reward, kl = gold.frontier(own, np.geomspace(0.02, 1e4, 60))
    assert gold.most_reward(own, kl) == pytest.approx(reward, abs=1e-9)
    all_kl = float(-own.log_ref[0, own.reward[0].argmax()])  # of the policy that always gives the best action
    (everything,) = gold.most_reward(own, [all_kl])
    assert everything == pytest.approx(own.reward.max(), abs=1e-5)
    (nothing,) = gold.most_reward(own, [0.0])
    assert nothing == pytest.approx(float(gold.reward_and_kl(own.log_ref[None], own)[0][0]), abs=1e-6)


def test_no_policy_has_more_reward_than_the_most_at_its_kl() -> None:
    rng = np.random.default_rng(4)
    own = problem(rng.standard_normal(6), rng.dirichlet(np.ones(6)))
    log_pi = np.log(rng.dirichlet(np.full(6, 0.5), 2000))[:, None]
    reward, kl = gold.reward_and_kl(log_pi, own)
    assert (gold.most_reward(own, kl) - reward).min() > -1e-12


def test_the_most_reward_is_refused_where_some_rewards_are_not_known() -> None:
    with pytest.raises(ValueError, match="one table"):
        gold.most_reward(problem([1.0, np.nan], [0.5, 0.5]), [0.1])


@pytest.mark.parametrize(
    ("right", "scale", "first"), [(3.5, "linear", ["0", "1", "2", "3"]), (50.0, "symlog", ["0", "1", "10"])]
)
def test_the_axis_of_kl_is_linear_unless_runs_went_far(right: float, scale: str, first: list[str]) -> None:
    ax = Figure().add_subplot()
    frontier._kl_axis(ax, right)
    assert ax.get_xscale() == scale and ax.get_xlim()[1] == right
    labels = {text.get_text() for text in ax.get_xticklabels()}
    assert labels >= {*first}
