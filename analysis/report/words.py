"""A sweep in words: how many runs, which losses collapse, when, and where only. Pure: frames in, text out."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.collapse import LABELS, Thresholds
from analysis.figures.looks import loss_name
from analysis.report.settings import shown
from analysis.sweep import UNFINISHED, UNREAD

NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class OfALoss:
    """What became of the runs of one loss. counts: verdict -> runs, in the order of `LABELS`."""

    loss: str
    counts: dict[str, int]
    sentence: str


def of_losses(runs: pd.DataFrame, verdicts: pd.DataFrame, varied: Sequence[str]) -> list[OfALoss]:
    """`Sweep.runs`, `collapse.verdicts` and the settings that vary -> a row for each loss, in the sweep's order."""
    judged = runs.join(verdicts[["label", "onset"]].rename(columns={"label": "verdict"}))
    judged["verdict"] = judged["verdict"].astype(object).where(judged["verdict"].notna(), NOT_JUDGED)
    found = []
    for loss, own in judged.groupby("loss.name", sort=False):
        counts = own["verdict"].value_counts()
        ordered = {label: int(counts[label]) for label in (*LABELS, NOT_JUDGED) if label in counts}
        others = [column for column in varied if column != "loss.name"]
        found.append(OfALoss(str(loss), ordered, _sentence(own, ordered, others)))
    return found


def lead(runs: pd.DataFrame, losses: Sequence[OfALoss], varied: Sequence[str]) -> list[str]:
    """What the sweep is, what became of it, and what is missing: a few sentences."""
    own = runs[runs["copy_of"].isna()]
    trained = own[~own["state"].isin(UNREAD)]
    sentences = [f"{_count(len(own), 'run')} of {_count(len(losses), 'loss', 'losses')}{_span(trained, varied)}."]
    total = {label: sum(loss.counts.get(label, 0) for loss in losses) for label in (*LABELS, NOT_JUDGED)}
    judged = sum(total[label] for label in LABELS)
    collapsed = {label: total[label] for label in LABELS[1:] if total[label]}
    if judged:
        kinds = ", ".join(f"{n:,} {label}" for label, n in collapsed.items())
        bad = sum(collapsed.values())
        verb = "collapse or diverge" if "diverged" in collapsed else "collapse" if bad > 1 else "collapses"
        sentences.append(f"{bad:,} of {judged:,} {verb}: {kinds}." if bad else f"None of {judged:,} collapses.")
        never = [loss_name(loss.loss) for loss in losses if {*loss.counts} == {"none"}]
        if never and bad:
            sentences.append(f"No run of {_listed(never)} does.")
    if total[NOT_JUDGED]:
        sentences.append(f"{_count(total[NOT_JUDGED], 'run')} could not be judged: too short, or without a margin.")
    sentences.append(_lacking(own))
    return [sentence for sentence in sentences if sentence]


def glossary(at: Thresholds) -> dict[str, str]:
    """Verdict -> what it means, with the thresholds in force. The last that applies, from the top, is the verdict."""
    return {
        "none": "None of what follows.",
        "rejected collapse": f"The rejected response's log-ratio b is below {at.rejected:.3g} nats and still falling, "
        f"by more than {-at.falling:g} nats for each e-fold of training.",
        "margin collapse": f"The reward margin u = βh is above {at.reward_margin:g} and still grows like the logarithm "
        f"of training, with a slope above {at.growth:g}.",
        "displacement": f"The chosen response's log-ratio a is below {at.displaced:g} nats while the loss has fallen.",
        "dispersion": f"Displacement, and more than {100 * at.unaccounted:g} % of all probability has gone to "
        "responses that are in no pair.",
        "full collapse": "Margin collapse together with displacement, with an objective below the reference's, or with "
        "a policy that no longer depends on its reference.",
        "diverged": "The run stopped at a loss or a gradient that is not finite.",
    }


def _sentence(own: pd.DataFrame, counts: dict[str, int], varied: Sequence[str]) -> str:
    if {*counts} == {"none"}:
        return f"none of {len(own):,} runs collapses" if len(own) > 1 else "does not collapse"
    parts = []
    for label, n in counts.items():
        if label == "none":
            continue
        those = own[own["verdict"] == label]
        part = f"{label} in {n:,} of {len(own):,}" if n < len(own) else f"{label} in all {n:,}" if n > 1 else label
        parts.append(part + _when(those["onset"].dropna()) + _only_where(own, those, varied))
    return "; ".join(parts)


def _when(onset: "pd.Series[float]") -> str:
    if onset.empty:
        return ""
    low, high, middle = int(onset.min()), int(onset.max()), onset.median()
    return f" from step {low}" if low == high else f" from steps {low} to {high} (median {middle:g})"


def _only_where(own: pd.DataFrame, those: pd.DataFrame, varied: Sequence[str]) -> str:
    """Such as `, only where lr = 0.5`: a setting that all of these runs share and not all of their loss."""
    for column in varied:
        if column != "seed" and those[column].nunique(dropna=False) == 1 < own[column].nunique(dropna=False):
            value = those[column].iloc[0]
            where = "only where" if (own[column] == value).sum() > len(those) else "exactly where"
            return f", {where} {shown(column)} = {_value(value)}"
    return ""


def _span(runs: pd.DataFrame, varied: Sequence[str]) -> str:
    parts = []
    for column in varied:
        if column == "loss.name":
            continue
        values = sorted(runs[column].dropna().unique(), key=lambda value: (isinstance(value, str), value))
        if len(values) > 5:
            parts.append(f"{len(values)} values of {shown(column)} ({_value(values[0])} to {_value(values[-1])})")
        elif values:
            parts.append(f"{shown(column)} = {', '.join(map(_value, values))}")
    return ", with " + "; ".join(parts) if parts else ""


def _lacking(own: pd.DataFrame) -> str:
    states = own["state"].value_counts()
    finished = int(states.get("finished", 0))
    if finished == len(own):
        return "All runs finished."
    order = [state for state in ("diverged", "failed", *UNFINISHED, *UNREAD) if state in states]
    return f"{finished} of {len(own)} runs finished; " + ", ".join(f"{states[state]} {state}" for state in order) + "."


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
