"""Five losses at two betas on SmolLM2-135M, as stacks of adapters, on real dialogues.

There is one seed: intervals are over pairs, and say nothing about another run.
"""

import pandas as pd
from scipy.stats import binomtest

from analysis import beside_history
from analysis.figures import held_out, reward_histograms
from analysis.figures.looks import NAMES
from experiments.study import Drawings, Frames, Number, Outcome, Sweeps, Verdict

COLUMNS = ("loss", "margin", "rewards/margins", "log_ratios/chosen", "log_ratios/rejected")


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """pairs: the followed pairs at the last evaluation: loss, beta, set, h, a. kl: of answers then: loss, beta, k3."""
    pairs, kl = [], []
    for sweep in sweeps.values():
        settings = sweep.runs[["loss.name", "beta"]].rename(columns={"loss.name": "loss"})
        probes = _last(beside_history.probes(sweep).rows).join(settings, on="run")
        probes["h"] = probes["log_ratio_chosen"] - probes["log_ratio_rejected"]
        pairs.append(probes.rename(columns={"log_ratio_chosen": "a"})[["loss", "beta", "set", "h", "a"]])
        answers = _last(beside_history.samples(sweep).rows).join(settings, on="run")
        kl.append(answers[["loss", "beta", "k3"]])
    return {"pairs": pd.concat(pairs, ignore_index=True), "kl": pd.concat(kl, ignore_index=True)}


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["step"] == rows.groupby("run")["step"].transform("max")]


def check(frames: Frames) -> list[Verdict]:
    pairs = frames["pairs"]
    trained, others = (pairs[pairs["set"] == name] for name in ("train", "held_out"))
    return [_memory(trained, others), _displacement(others, frames["kl"]), _target(trained), _length(trained)]


def _memory(trained: pd.DataFrame, others: pd.DataFrame) -> Verdict:
    numbers: list[Number] = []
    verdicts: list[tuple[bool, bool, bool]] = []  # by heart, far from it, learnt about others
    for (loss, beta), own in trained.groupby(["loss", "beta"], sort=False):
        those = others[(others["loss"] == loss) & (others["beta"] == beta)]
        what = f"{NAMES[str(loss)]}, beta {beta:g}"
        numbers.append(_share(f"trained pairs with a positive margin, {what}", own))
        numbers.append(_share(f"held-out pairs with a positive margin, {what}", those, 0.5))
        wrong = int((own["h"] <= 0).sum())
        if loss in ("dpo", "ipo"):
            low = numbers[-1].low
            verdicts.append((wrong <= 1, wrong > len(own) / 4, low is not None and low > 0.5))
    learnt = sum(beyond for *_, beyond in verdicts)
    said = (
        f"In {sum(heart for heart, *_ in verdicts)} of {len(verdicts)} runs of DPO and IPO the trained pairs are known "
        f"by heart; in {learnt} the held-out pairs are ordered better than by chance. One seed, few pairs."
    )
    if any(far for _, far, _ in verdicts) or learnt > len(verdicts) / 2:
        return Verdict("real-memory", "refuted", said, tuple(numbers))
    every = all(heart for heart, *_ in verdicts) and not learnt
    return Verdict("real-memory", "holds" if every else "holds under conditions", said, tuple(numbers))


def _displacement(others: pd.DataFrame, kl: pd.DataFrame) -> Verdict:
    numbers, below = [], {}
    for (loss, beta), own in others.groupby(["loss", "beta"], sort=False):
        number = Number.mean(f"held-out log-ratio of chosen, {NAMES[str(loss)]}, beta {beta:g} (nats)", own["a"])
        below[str(loss), float(beta)] = number.high is not None and number.high < 0  # type: ignore[arg-type]
        numbers.append(number)
    for (loss, beta), answers in kl.groupby(["loss", "beta"], sort=False):
        numbers.append(
            Number.mean(f"KL of sampled answers (k3), {NAMES[str(loss)]}, beta {beta:g} (nats)", answers["k3"])
        )
    so = {loss: [beta for (name, beta), yes in below.items() if name == loss and yes] for loss, _ in below}
    asked = {loss: sum(name == loss for name, _ in below) for loss in so}
    where = "; ".join(
        f"{NAMES[loss]} at {', '.join(f'{beta:g}' for beta in betas) or 'no beta'}" for loss, betas in so.items()
    )
    said = f"Chosen answers of held-out pairs end less probable than under the reference, beyond the interval: {where}."
    if not so["dpo"] or len(so["dpop"]) == asked["dpop"]:
        return Verdict("real-displacement", "refuted", said, tuple(numbers))
    every = all(len(so[loss]) == asked[loss] for loss in ("dpo", "ipo")) and not so["dpop"]
    return Verdict("real-displacement", "holds" if every else "holds under conditions", said, tuple(numbers))


def _target(trained: pd.DataFrame) -> Verdict:
    numbers, near = [], {}
    for beta, own in trained[trained["loss"] == "ipo"].groupby("beta"):
        target = 1 / (2 * float(beta))  # type: ignore[arg-type]
        numbers.append(Number.mean(f"margin of trained pairs, IPO, beta {beta:g} (nats)", own["h"], target))
        near[beta] = abs(numbers[-1].measured / target - 1) <= 0.25
    means = ", ".join(f"{number.measured:.1f} ({number.expected:g})" for number in numbers)
    said = f"Mean margins of the trained pairs and, in brackets, 1/(2 beta): {means} nats."
    return Verdict("real-target", _all_some_none([*near.values()]), said, tuple(numbers))


def _length(trained: pd.DataFrame) -> Verdict:
    numbers, far, further = [], [], []
    for beta, own in trained[trained["loss"] == "ipo_avg"].groupby("beta"):
        target = 1 / (2 * float(beta))  # type: ignore[arg-type]
        of_sums = trained[(trained["loss"] == "ipo") & (trained["beta"] == beta)]["h"].mean()
        numbers.append(
            Number.mean(f"margin of trained pairs, {NAMES['ipo_avg']}, beta {beta:g} (nats)", own["h"], target)
        )
        far.append(numbers[-1].measured > 2 * target)
        further.append(numbers[-1].measured > of_sums)
    means = ", ".join(f"{number.measured:.1f} ({number.expected:g})" for number in numbers)
    said = f"Mean margins of the trained pairs and, in brackets, 1/(2 beta): {means} nats."
    if not any(further):
        return Verdict("real-length", "refuted", said, tuple(numbers))
    every = all(far) and all(further)
    return Verdict("real-length", "holds" if every else "holds under conditions", said, tuple(numbers))


def _all_some_none(good: list[bool]) -> Outcome:
    return "holds" if all(good) else "holds under conditions" if any(good) else "refuted"


def _share(quantity: str, pairs: pd.DataFrame, expected: float | None = None) -> Number:
    positive = int((pairs["h"] > 0).sum())
    low, high = binomtest(positive, len(pairs)).proportion_ci(0.95)
    return Number(f"{quantity}, of {len(pairs)}", positive / len(pairs), low, high, expected)


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    main = sweeps["losses"]
    return {
        "held_out": lambda: held_out.draw(main.runs, beside_history.evaluations(main).rows),
        "reward_histograms": lambda: reward_histograms.draw(main.runs, beside_history.probes(main).rows),
    }
