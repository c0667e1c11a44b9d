"""Writes docs/losses.md, the family of losses in tables: `python -m src.loss_table` (minutes: it trains every loss).

Definitions are the header comments of conf/loss/*.yaml, optima the facts beside each loss, growth laws src/theory, and
the rest is trained by the ordinary loop in one stack.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from src.config import Choice, RunConfig, run_config
from src.launching.loading import load_data
from src.losses.base import facts_of
from src.theory.bandit import Growth, growth_law
from src.theory.weights import descent_target, is_margin_loss, side_weights
from src.train import train_stack

CONF = Path(__file__).parent.parent / "conf"
PAGE = Path(__file__).parent.parent / "docs" / "losses.md"

REF, BETA, ETA = (0.3, 0.2, 0.25, 0.25), 0.5, 0.25
SHORT, LONG = 1_000, 30_000  # updates after which the state is reported
PROBLEM = (
    f"beta={BETA} lr={ETA} optimizer=sgd model=tabular model.ref_probs={list(REF)} data=synthetic data.p_star=1.0 "
    "data.comparisons=1 dtype=float64 reference=always tracking=none"
).replace(", ", ",")

GROUPS = {  # module of src/losses: heading, what the losses there have in common
    "pairwise": ("Losses of the margin", "Functions of h = a - b, for one pair; u = beta h."),
    "sided": ("Sided losses", "Chosen and rejected are looked at separately; A = beta a, B = beta b."),
    "reference_free": ("Reference-free losses", "Functions of the policy's own log-probs lw, ll; lengths |w|, |l|."),
    "tokenwise": ("Token-wise losses", "They read token log-probs or whole next-token distributions."),
    "listwise": ("Listwise losses", "For K ranked responses, s_i = beta log-ratio of the i-th; here K = 2."),
    "mix": ("Mixtures", ""),
}


@dataclass
class State:
    """One run after some number of updates. Probabilities as natural logs: they underflow otherwise."""

    h: float
    log_chosen: float
    log_rejected: float


@dataclass
class Row:
    loss: Choice
    states: dict[int, State] = field(default_factory=dict)  # by updates made; empty for a run that diverged


def loss_names() -> list[str]:
    return sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))


def configured(overrides: Sequence[str], steps: int) -> list[RunConfig]:
    """One run of the problem above for each string of further overrides, such as `loss=cpo beta=0.1`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return [
            run_config(compose("config", overrides=[*PROBLEM.split(), f"steps={steps}", *each.split()]))[0]
            for each in overrides
        ]


def measure(overrides: Sequence[str], at: Sequence[int]) -> list[Row]:
    """Train all of them in one stack and report them after `at` updates. Only those rows of the history are kept."""
    runs = configured(overrides, max(at) + 1)
    rows = [Row(run.loss) for run in runs]

    def emit(run: int, columns: Mapping[str, np.ndarray]) -> None:
        for k, t in enumerate(columns["step"].tolist()):
            if t in at:
                state = (float(columns[name][k]) for name in ("margin", "logps/chosen", "logps/rejected"))
                rows[run].states[t] = State(*state)

    torch.set_num_threads(1)
    train_stack(runs, load_data(runs), emit, torch.device("cpu"))
    return rows


def page(rows: Sequence[Row], laws: Mapping[str, Growth]) -> str:
    """The whole document."""
    parts = [INTRODUCTION]
    for module, (heading, shared) in GROUPS.items():
        members = [row for row in rows if row.loss.target.split(".")[-2] == module]
        parts.append(f"## {heading}\n\n{shared}".rstrip())
        parts.append("\n".join(f"- **{row.loss.name}** {definition(row.loss.name)}" for row in members))
        parts.append(table(members, laws))
    return "\n\n".join(parts) + "\n"


def definition(name: str) -> str:
    """The YAML's header comment as one Markdown paragraph; its indented lines are equations or commands."""
    words = []
    for line in (CONF / "loss" / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        words.append(f"`{line[1:].strip()}`" if line.startswith("#  ") else line[1:].strip())
    return " ".join(words)


COLUMNS = (
    "loss", "settings", "h only", "-dL/da, dL/db", "optimum h", "growth of h", "pi(rejected) to 0",
    f"h({SHORT})", f"h({LONG})", f"rejected({SHORT})", f"rejected({LONG})", f"chosen({SHORT})", f"chosen({LONG})",
)  # fmt: skip


def table(rows: Sequence[Row], laws: Mapping[str, Growth]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [cells(row, laws[row.loss.name]) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(row: Row, law: Growth) -> list[str]:
    loss = row.loss
    chosen, rejected = (float(side[0]) for side in side_weights(loss, [0.0], [0.0], REF))
    states = [row.states.get(t) for t in (SHORT, LONG)]
    return [
        loss.name,
        ", ".join(f"{key} {plain(value)}" for key, value in loss.params.items() if key != "beta"),
        "yes" if is_margin_loss(loss, REF) else "",
        f"{number(-chosen)}, {number(rejected)}",
        optimum(loss),
        f"settles at {number(law.h)}" if law.law == "settles" else f"{law.law}{slope(law)}",
        "yes" if law.collapses else "no",
        *(number(s.h) if s else "diverged" for s in states),
        *(probability(s.log_rejected) if s else "" for s in states),
        *(probability(s.log_chosen) if s else "" for s in states),
    ]


def slope(law: Growth) -> str:
    return f" x {law.slope:.3g}" if law.law == "log t" else ""


def optimum(loss: Choice) -> str:
    """As stated beside the loss; found by root finding where that is silent and the loss is one of h."""
    stated = facts_of(loss).optimum
    if stated is None and not is_margin_loss(loss, REF):
        return ""
    h = descent_target(loss, 30 / BETA, REF) if stated is None else stated(**loss.params)
    return "none" if math.isinf(h) else number(h)


def plain(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={plain(inner)}" for key, inner in value.items())
    return value.name if isinstance(value, Choice) else str(value)


def number(x: float) -> str:
    # + 0.0: there is no -0 in the tables
    return f"{round(x, 12) + 0.0:.4g}"


def probability(log_p: float) -> str:
    """Three digits, also below the smallest float."""
    if log_p > -200:
        return f"{math.exp(log_p):.3g}"
    exponent = math.floor(log_p / math.log(10))
    return f"{math.exp(log_p - exponent * math.log(10)):.2f}e{exponent}"


INTRODUCTION = f"""\
# The family of losses

Generated by `python -m src.loss_table`; edit conf/loss/*.yaml, the losses or that module, not this page.

`loss=<name>` chooses one. a, b are the log-ratios (log policy - log reference) of chosen and rejected, h = a - b the
margin, all in nats; l(x) = -log sigma(x).

**The problem.** One prompt, four responses with reference probabilities {REF}; the first is preferred to
the second, once and for all. Softmax policy from the reference, SGD with lr {ETA}, beta {BETA}, float64; `settings` are
the other hyper-parameters, at their defaults. Losses without a beta ignore it, and some are meant for another (SimPO
2 to 10, length-normalised DPO 5, DiscoPOP 0.05).

| column | meaning |
|---|---|
| h only | for one pair the loss is a function of h alone (given the reference) |
| -dL/da, dL/db | gradient at the start: how hard chosen is pushed up, and rejected down, per nat |
| optimum h | where descent from h = 0 is headed with a and b free; none: ever onwards; blank: not a matter of h alone |
| growth of h | under gradient flow, followed for 1e8 updates; `log t x s`: h gains s nats for every factor e in t |
| pi(rejected) to 0 | the loss collapses on a pair whose label is certain: h still grows, see below |
| h(t), rejected(t), chosen(t) | measured after t updates of the training loop: margin, pi(rejected), pi(chosen) |

A loss collapses here if dh/dlog t is above 0.01 nats over the last of the eight decades. The line is nowhere near
anything: those that settle have less than 1e-4, those that do not more than 0.05. pi(rejected) is at most
e^-h ref(rejected)/ref(chosen), so where h grows without end it tends to 0.

Under Adam and RMSprop read t for log t: they divide the update by the gradient that makes SGD slow, so a margin that
grows like log t under SGD grows linearly. The log of the gradient falls by at most -ln(beta2)/2 an update that way,
0.0005 at beta2 = .999 (`src.theory.growth.adam_kappa`)."""


def main() -> None:
    names = loss_names()
    rows = measure([f"loss={name}" for name in names], at=(SHORT, LONG))
    laws = {row.loss.name: growth_law(row.loss, REF, eta=ETA) for row in rows}
    PAGE.write_text(page(rows, laws))


if __name__ == "__main__":
    main()
