"""DPO and IPO on pairs whose reward is known, judged on prompts and responses that no pair has. Claim C19."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from hydra import compose, initialize_config_dir

from analysis import beside_history
from analysis.collapse import DEFAULT
from analysis.figures.looks import NAMES
from analysis.gold import token_utilities
from analysis.statistics import mean_interval, t_interval
from analysis.sweep import Sweep, as_dicts, read_json
from experiments.study import ROOT, Number, Verdict
from src.config import run_config
from src.data.pairs import PairData
from src.data.toy import gold
from src.launching.loading import load_data
from src.policy.base import Build
from src.policy.tiny_llama import TinyLlama
from src.train import train_stack

COLUMNS = ("log_pi/chosen", "log_pi/rejected")
UNPAIRED = ("kto", "bco")
PAIRED = ("dpo", "ipo")
LONGER = 2  # times the length of the responses trained on
SAME = 1e-6  # nats: no more than rounding
LAST = 0.75  # of the updates: what comes later is called the end, since Adam's late steps are not steady
COMPARISONS = 8  # two kinds of labels, two betas, two lengths

Array = npt.NDArray[np.float64]


def measure(sweep: Sweep) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a run, and one row a run and evaluation: margin (training pairs), accuracy (unseen pairs), chosen
    (their log-ratio), reward (gold, of the policy's own answers less those of the reference), kl (of these).
    """
    steps = _evaluations(sweep)
    rows = []
    for run in as_dicts(sweep.runs):
        own = steps[steps["run"] == run["id"]].reset_index(drop=True)
        early = own.iloc[1]  # the first evaluation after the start
        late = own[own["step"] >= LAST * own["step"].max()]
        history = sweep.history[sweep.history["run"] == run["id"]]
        whole_pass = math.ceil(run["pairs"] / run["batch_size"])
        mass = np.exp(history[["log_pi/chosen", "log_pi/rejected"]]).tail(whole_pass).mean() * run["data.comparisons"]
        rows.append(
            {
                "run": run["id"], "loss": run["loss.name"], "beta": run["beta"], "labels": run["data.labels"],
                "seed": int(run["seed"]), "u": run["beta"] * float(late["margin"].mean()),
                "accuracy": float(late["accuracy"].mean()),
                "early": float(early["accuracy"]), "early_u": run["beta"] * float(early["margin"]),
                "longer": _on_longer(sweep, run),
                "reward": float(late["reward"].mean()), "kl": float(late["kl"].mean()),
                "chosen": float(late["chosen"].mean()),
                "mass_chosen": float(mass["log_pi/chosen"]), "mass_rejected": float(mass["log_pi/rejected"]),
            }
        )  # fmt: skip
    return pd.DataFrame(rows), steps


def _evaluations(sweep: Sweep) -> pd.DataFrame:
    found = beside_history.evaluations(sweep).rows
    probes = beside_history.probes(sweep).rows.query("set == 'train'")
    margin = (probes["log_ratio_chosen"] - probes["log_ratio_rejected"]).groupby([probes["run"], probes["step"]]).mean()
    answers = beside_history.samples(sweep).rows
    worth = {
        run["id"]: token_utilities(
            vocabulary=int(run["data.vocabulary"]), spread=float(run["data.spread"]), seed=int(run["data.seed"])
        )
        for run in as_dicts(sweep.runs)
    }
    value = [
        float(worth[run][[int(token) for token in answer.split()]].sum())
        for run, answer in zip(answers["run"], answers["answer"], strict=True)
    ]
    reward = pd.Series(value, answers.index).groupby([answers["run"], answers["step"]]).mean()
    names = {
        "eval/rewards/accuracies": "accuracy",
        "eval/log_ratios/chosen": "chosen",
        "eval/kl_k1": "kl",
    }
    rows = found[["run", "step", *names]].rename(columns=names)
    rows = rows.join(margin.rename("margin"), on=["run", "step"]).join(reward.rename("reward"), on=["run", "step"])
    rows["reward"] -= rows.groupby("run")["reward"].transform("first")  # before the first update it is the reference's
    settings = {"loss.name": "loss", "beta": "beta", "data.labels": "labels", "seed": "seed"}
    return rows.join(sweep.runs[[*settings]].rename(columns=settings), on="run")


def _on_longer(sweep: Sweep, run: dict[str, Any]) -> float:
    """Share of pairs rightly ordered by the final policy's implied rewards, with responses `LONGER` times as long, of
    new prompts. Labels are those of the gold reward. NaN for a run that diverged, which has no policy.
    """
    folder = Path(sweep.source) / run["dir"]
    if not (folder / "policy").is_dir():
        return math.nan
    config = read_json(folder / "config.json")
    model = {key: value for key, value in config["model"].items() if key != "name"}
    data = {key: value for key, value in config["data"].items() if key != "name"}
    length = [LONGER * n for n in data["response_tokens"]]
    pairs = gold(**(data | {"response_tokens": length, "labels": "certain", "held_out": 0}))
    build = Build(torch.device("cpu"), torch.float32)
    logps = [
        TinyLlama.stack([TinyLlama(**(model | {"path": path}))], [pairs], build).rescore(0, pairs).values.sum(-1)
        for path in (str(folder / "policy"), model["path"])
    ]
    ratios = (logps[0] - logps[1]).double()[0]
    return float((ratios[:, 0] > ratios[:, 1]).double().mean())


def repaired(data: PairData) -> PairData:
    """The same responses with the same labels to the same prompts, paired otherwise: each prompt's rejected responses
    move on by one.
    """
    rejected = list(data.rejected)
    for prompt in dict.fromkeys(data.prompts):
        rows = [i for i, other in enumerate(data.prompts) if other == prompt]
        for i, j in zip(rows, rows[1:] + rows[:1], strict=True):
            rejected[i] = data.rejected[j]
    return replace(data, responses=tuple(zip(data.chosen, rejected, strict=True)), scores=())


def pairing(losses: Sequence[str] = ("dpo", *UNPAIRED)) -> pd.DataFrame:
    """How far policies end from one another that were trained on the same responses in other pairs: the largest
    difference of a response's log-prob [nats], by loss.
    """
    settings = (
        "model=tiny_llama model.vocab_size=16 model.hidden_size=16 model.intermediate_size=32 data=gold "
        "data.vocabulary=16 data.prompts=8 data.comparisons=4 batch_size=full dtype=float64 beta=0.1 lr=0.3 steps=60"
    )
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        runs = [
            run_config(compose("config", [*settings.split(), f"loss={loss}", "tracking=none"]))[0] for loss in losses
        ]
    drawn = replace(load_data(runs[:1])[0], scores=())
    ends = []
    for data in (drawn, repaired(drawn)):
        _, policy = train_stack(runs, [data] * len(runs), lambda *_: None, torch.device("cpu"))
        ends.append([policy.rescore(r, drawn).values.sum(-1) for r in range(len(runs))])
    start = [policy.rescore(r, drawn, reference=True).values.sum(-1) for r in range(len(runs))]
    rows = zip(losses, start, *ends, strict=True)
    return pd.DataFrame(
        {
            "loss": loss,
            "difference": float((one - other).abs().max()),
            "moved": float((one - before).abs().max()),
        }
        for loss, before, one, other in rows
    )


def verdict(runs: pd.DataFrame, pairs: pd.DataFrame) -> Verdict:
    wide = runs.pivot(index=["labels", "beta", "seed"], columns="loss")
    settings: list[tuple[str, float]] = [*dict.fromkeys(zip(runs["labels"], runs["beta"], strict=True))]
    tests = {"accuracy": "unseen pairs", "longer": "unseen pairs, twice as long"}
    level = 1 - 0.05 / COMPARISONS
    numbers, worse = [], []
    for labels, beta in settings:
        own = wide.xs((labels, beta), level=("labels", "beta"))
        where = f"{labels} labels, beta {beta:g}"
        for name, what in tests.items():
            gap = own[name]["dpo"] - own[name]["ipo"]
            numbers.append(_mean(f"accuracy, DPO less IPO, {what}, {where}", gap))
            if t_interval(gap, level)[1] < 0:
                worse.append(f"{what}, {where}")
        lost = own["accuracy"]["dpo"] - own["early"]["dpo"]
        numbers.append(_mean(f"accuracy on unseen pairs, end less before collapse, DPO, {where}", lost))
        for loss in PAIRED:
            name = f"{NAMES[loss]}, {where}"
            for column, what in (
                ("early", "accuracy on unseen pairs at the first evaluation, before collapse"),
                ("early_u", "reward margin of the training pairs there"),
                ("accuracy", "accuracy on unseen pairs at the end"),
                ("chosen", "log-ratio of unseen chosen responses at the end (nats)"),
                ("reward", "gold reward of its answers over the reference's"),
                ("kl", "KL of its answers (nats)"),
                ("mass_chosen", "probability of a prompt's seen chosen responses together"),
                ("mass_rejected", "probability of its seen rejected responses together"),
            ):
                values = own[column][loss]
                # A mean of shares near 0 cannot be below it, as Student's interval could.
                ends = mean_interval(values.to_numpy()) if column.startswith("mass") else t_interval(values)
                numbers.append(Number(f"{what}, {name}", float(values.mean()), *ends))
    dpo = runs[runs["loss"] == "dpo"]
    collapsed = float((dpo["u"] > DEFAULT.reward_margin).mean())
    numbers.append(Number("share of DPO's runs that collapse", collapsed))
    for row in as_dicts(pairs):
        what = (
            f"change of a log-prob where the same responses are paired otherwise, {NAMES[row['loss']]} (nats, largest)"
        )
        numbers.append(Number(what, row["difference"], expected=0.0 if row["loss"] in UNPAIRED else None))
    changed = pairs.set_index("loss")["difference"]
    needs = bool(changed["dpo"] > 100 * SAME and (changed[[*UNPAIRED]] < SAME).all())
    end, early, margin = (runs.groupby("loss")[name].mean() for name in ("accuracy", "early", "early_u"))
    rewards = runs.groupby("loss")["reward"].mean()
    seen = float((dpo["mass_chosen"] + dpo["mass_rejected"]).mean())
    said = (
        f"{collapsed:.0%} of DPO's runs collapse. Of unseen pairs DPO orders {end['dpo']:.1%} rightly and IPO "
        f"{end['ipo']:.1%}; before the collapse, at reward margins of {margin['dpo']:.2f} and {margin['ipo']:.2f} of "
        f"the training pairs, it was {early['dpo']:.1%} and {early['ipo']:.1%}. Their own answers to unseen prompts "
        f"gain a gold reward of {rewards['dpo']:.2f} and {rewards['ipo']:.2f}. All the responses that were seen with a "
        f"prompt have together a probability of {seen:.2%} under DPO at the end: what it moves goes to others. "
    )
    if needs:
        said += (
            "DPO's gradient needs the two responses of one prompt; KTO and BCO are sums over single responses, and "
            "pairing the same responses otherwise leaves them as they were."
        )
    else:
        said += "What the pairs are does not matter as it should."
    if needs and collapsed == 1 and len(worse) == len(settings) * len(tests):
        return Verdict("C19", "holds", said, tuple(numbers))
    if needs and worse:
        return Verdict("C19", "holds under conditions", f"DPO is worse on: {'; '.join(worse)}. {said}", tuple(numbers))
    no = "It needs pairs, and is nowhere worse. " if needs else ""
    return Verdict("C19", "refuted", no + said, tuple(numbers))


def _mean(quantity: str, values: "pd.Series[float]") -> Number:
    return Number(quantity, float(values.mean()), *t_interval(values))
