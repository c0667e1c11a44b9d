"""A data report for people."""

from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

PARTS = ("prompt", "chosen", "rejected")
BAR = 16  # characters
EXCERPT = 60  # characters


def drawn(report: dict[str, Any], unit: str, decode: Callable[[list[int]], str]) -> Group:
    """What `data_report` found.

    Args:
        unit: of the lengths, "tokens" or "characters".
        decode: gives the text of a response's ids.
    """
    blocks = [_counts(report), _summary(report, unit), _histogram(report["lengths"], unit), _findings(report, decode)]
    return Group(*(part for block in blocks for part in (block, Text())))


def console() -> Console:
    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = 120
    return made


def _counts(report: dict[str, Any]) -> Table:
    """Without shares: what was dropped are rows, responses or prompts."""
    table = _table("pairs", "")
    table.add_row("kept", f"{report['pairs']:,}")
    if "held_out" in report:
        table.add_row("held out", f"{report['held_out']['pairs']:,}")
    for kind, prefix in (("cut", "kept: "), ("noted", "kept: "), ("dropped", "dropped: ")):
        for name, n in sorted(report.get(kind, {}).items(), key=lambda count: -count[1]):
            table.add_row(f"{prefix}{name}", f"{n:,}")
    return table


def _summary(report: dict[str, Any], unit: str) -> Table:
    lengths = report["lengths"]
    keys = [key for key in lengths["prompt"] if key != "histogram"]
    table = _table(unit, *keys)
    for name in PARTS:
        table.add_row(name, *(f"{lengths[name][key]:,.0f}" for key in keys))
    if report["score_gap"] is not None:
        table.add_row("score gap", *(f"{report['score_gap'][key]:.3f}" for key in keys))
    return table


def _histogram(lengths: dict[str, Any], unit: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(unit, justify="right")
    for name in PARTS:
        table.add_column(name, no_wrap=True)
    most = max(max(lengths[name]["histogram"]) for name in PARTS)
    for i, (low, high) in enumerate(zip(lengths["edges"][:-1], lengths["edges"][1:], strict=True)):
        counts = [lengths[name]["histogram"][i] for name in PARTS]
        bars = (f"{'█' * -(-BAR * n // most):<{BAR}} {n:<7,}" for n in counts)  # at least one block for what there is
        table.add_row(f"{low:,} … {high - 1:,}", *bars)
    return table


def _findings(report: dict[str, Any], decode: Callable[[list[int]], str]) -> Table:
    twice, judged = report["duplicates"], report["judgements"]
    table = _table("found", "", "")
    table.add_row("prompts", f"{report['prompts']:,}", "")
    table.add_row("chosen longer than rejected", "", f"{report['chosen_longer']:.1%}")
    table.add_row("copies of a pair before", f"{twice['same_pair']:,}", _share(twice["same_pair"], report["pairs"]))
    table.add_row("prompt seen before", f"{twice['same_prompt']:,}", _share(twice["same_prompt"], report["pairs"]))
    table.add_row("responses given to several prompts", f"{twice['responses_of_several_prompts']:,}", "")
    for response in twice["most_repeated"]:
        text = " ".join(decode(response["ids"]).split())
        table.add_row(Text(f"  {text[:EXCERPT]}"), f"{response['prompts']:,}", "")
    table.add_row("responses judged both ways", f"{judged['both_ways']:,}", f"of {judged['compared']:,} comparisons")
    flips = "unknown: nothing judged twice" if judged["flip_rate"] is None else f"{judged['flip_rate']:.1%}"
    table.add_row("labels flipped, estimate", "", flips)
    for key, name in (("held_out", "prompts also held out"), ("other", "prompts also in the other")):
        if f"shared_with_{key}" in report:
            both = report[f"shared_with_{key}"]
            table.add_row(name, f"{both['prompts']:,}", f"of {both['of_prompts']:,}; {both['pairs']:,} of its pairs")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _share(n: int, whole: int) -> str:
    return f"{n / whole:.1%}" if whole else ""
