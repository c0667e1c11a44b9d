"""Every form of KL as a regulariser: on-policy on a table and on toy Llamas, off-policy beside DPO."""

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.optimize import brentq
from scipy.stats import fisher_exact

from analysis import collapse
from analysis.figures import draw as d
from analysis.figures import symlog
from analysis.figures.looks import LOOKS, Look
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import mean_interval
from experiments.kl_regularisers import grpo
from experiments.study import Drawings, Frames, Number, Outcome, Sweeps, Verdict
from src.policy.tiny_llama import TinyLlama
from src.theory.bandit import kl_divergence, kl_reward_frontier

Array = npt.NDArray[np.float64]
COLUMNS = collapse.COLUMNS[:8]
GROUPS = {"k1, k2, k3": ("k1", "k2", "k3"), "reverse, forward, JS": ("reverse", "forward", "js")}
NAMES = {form: form for form in grpo.FORMS} | {"reverse": "reverse KL", "forward": "forward KL", "js": "JS"}
ARMS = {"table": "table", "llama": "toy Llama", "dpo": "DPO, toy Llama"}
COEFFICIENTS = (0.5, 1.0, 2.0)
RATES = {"table": (0.3, 3.0, 30.0), "llama": (1e-3, 1e-2)}
DRAWN = {"table": 3.0, "llama": 1e-2}  # the rate of the figure's curves, and their coefficient:
DRAWN_COEFFICIENT = 1.0
PENALTY = 0.4  # of DPO
WHY = (
    "On average k1 as a loss has no gradient, k2 that of the reverse KL, k3 that of the forward KL; in the reward k1 "
    "has that of the reverse KL, and k3 that of the reverse less the forward KL, which drives away what is already "
    "less likely than under the reference. On responses of the data, not of the policy, k1 drives both down "
    "without end, and reverse KL and JS hardly charge for a rejected response that vanishes."
)
VOCABULARY, TOKENS, WANTED = 8, 4, 2  # of the Llama's answers; a token is worth 1 if it is one of the first two
GROUP = {"table": 8, "llama": 16}
EVERY = 10


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """runs: one row a run: arm, form, kl_coef (JS: a quarter of its own), lr, seed, unstable, kl, kl_optimum, gain
    (of reward, over the reference).
    curves: of one coefficient and rate, by step: kl over kl_optimum, and reward. penalty: the same of DPO's log-ratios.
    gradients: spread of one answer's gradient, exactly, on the table. forward_optima: are they beyond the bound?
    """
    runs, curves = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products too small to split
    steps = 120 if fast else 300
    for arm, seeds in {"table": 8 if fast else 24, "llama": 8 if fast else 10}.items():
        rates, kl_coefs = ((DRAWN[arm],), COEFFICIENTS[1:]) if fast else (RATES[arm], COEFFICIENTS)
        settings = grpo.grid(rates, grpo.FORMS, kl_coefs)
        record, optimum = _on_table(settings, seeds, steps) if arm == "table" else _on_llamas(settings, seeds, steps)
        runs.append(_runs(arm, settings, record, optimum))
        curves.append(_curves(arm, settings, record, optimum))
    torch.set_num_threads(threads)
    runs.append(_of_sweep(sweeps))
    return {
        "runs": pd.concat(runs, ignore_index=True),
        "curves": pd.concat(curves, ignore_index=True),
        "penalty": _log_ratios(sweeps),
        "gradients": gradients(*bandits(24)),
        "forward_optima": _forward_optima(24),
    }


def bandits(seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """References [S, V] as log-probs, and rewards of the actions [S, V]: both from standard normal numbers."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(seeds, 2, VOCABULARY, generator=generator, dtype=torch.float64)
    return numbers[:, 0].log_softmax(-1), numbers[:, 1]


def _on_table(settings: list[grpo.Setting], seeds: int, steps: int) -> tuple[grpo.Record, Array]:
    log_ref, values = bandits(seeds)
    record = grpo.train(
        grpo.Table(log_ref, len(settings)), settings, values, group=GROUP["table"], tokens=1, steps=steps, every=EVERY,
        optimizer=torch.optim.SGD,
    )  # fmt: skip
    return record, _optimum(log_ref, values)


def _on_llamas(settings: list[grpo.Setting], seeds: int, steps: int) -> tuple[grpo.Record, Array]:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    specs = [
        TinyLlama(
            vocab_size=VOCABULARY, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e4, initializer_range=0.2,
            init="copy", path=None, seed=seed, **sizes,
        )
        for seed in range(seeds)
    ]  # fmt: skip
    policy = grpo.Llamas(specs, (1, 2), TOKENS, len(settings))
    values = torch.zeros(seeds, VOCABULARY)
    values[:, :WANTED] = 1
    record = grpo.train(
        policy, settings, values, group=GROUP["llama"], tokens=TOKENS, steps=steps, every=EVERY,
        optimizer=torch.optim.Adam,
    )  # fmt: skip
    answers = torch.tensor([*product(range(VOCABULARY), repeat=TOKENS)])
    reward = (answers < WANTED).sum(-1).double().expand(seeds, -1)
    return record, _optimum(grpo.answer_log_probs(policy.reference.double(), TOKENS), reward)


def _optimum(log_ref: torch.Tensor, reward: torch.Tensor) -> Array:
    """KL(policy, reference) of the exact optimum under the reverse KL, [S, coefficients]."""
    pairs = zip(log_ref.exp().numpy(), reward.numpy(), strict=True)
    return np.stack([kl_reward_frontier(ref, r, COEFFICIENTS).kl for ref, r in pairs])


def forward_optimum(ref: Array, reward: Array, kl_coef: float) -> Array:
    """The policy [V] that maximises E[reward] - kl_coef KL(ref, policy): kl_coef ref/(level - reward), summing to 1."""
    best = int(reward.argmax())

    def excess(level: float) -> float:
        return float((kl_coef * ref / (level - reward)).sum() - 1)

    level = brentq(excess, reward[best] + kl_coef * ref[best], reward[best] + kl_coef, xtol=1e-14)
    return np.asarray(kl_coef * ref / (level - reward))


def _forward_optima(seeds: int) -> pd.DataFrame:
    """Of tables: does the optimum under the forward KL itself have more than twice the KL of that under the reverse?"""
    log_ref, values = bandits(seeds)
    bounds, rows = 2 * _optimum(log_ref, values), []
    for seed, (ref, reward) in enumerate(zip(log_ref.exp().numpy(), values.numpy(), strict=True)):
        for bound, kl_coef in zip(bounds[seed], COEFFICIENTS, strict=True):
            kl = float(kl_divergence(forward_optimum(ref, reward, kl_coef), ref))
            rows.append({"seed": seed, "kl_coef": kl_coef, "beyond": kl > bound})
    return pd.DataFrame(rows)


def _runs(arm: str, settings: list[grpo.Setting], record: grpo.Record, optimum: Array) -> pd.DataFrame:
    last = record.step >= 0.8 * record.step[-1]
    kl, reward = record.kl[last].mean(0), record.reward[last].mean(0)
    rows = []
    for run, (setting, seed) in enumerate(product(settings, range(len(optimum)))):
        best = optimum[seed, COEFFICIENTS.index(setting.kl_coef)]
        rows.append(
            {
                "arm": arm,
                "form": setting.form,
                "kl_coef": setting.kl_coef,
                "lr": setting.lr,
                "seed": seed,
                "unstable": not kl[run] <= 2 * best,  # nor is NaN
                "kl": kl[run],
                "kl_optimum": best,
                "gain": reward[run] - record.reward[0, run],
            }
        )
    return pd.DataFrame(rows)


def _curves(arm: str, settings: list[grpo.Setting], record: grpo.Record, optimum: Array) -> pd.DataFrame:
    parts, seeds = [], len(optimum)
    best = optimum[:, COEFFICIENTS.index(DRAWN_COEFFICIENT)]
    for form in grpo.FORMS:
        at = settings.index(grpo.Setting(DRAWN[arm], form, DRAWN_COEFFICIENT))
        own = slice(at * seeds, (at + 1) * seeds)
        for what, values in (("kl", record.kl[:, own] / best), ("reward", record.reward[:, own])):
            ends = [mean_interval(row) for row in values]
            part = pd.DataFrame({"step": record.step, "mean": values.mean(1)})
            part["low"], part["high"] = np.array(ends).T
            parts.append(part.assign(arm=arm, form=form, what=what, seeds=seeds))
    return pd.concat(parts, ignore_index=True)


def _of_sweep(sweeps: Sweeps) -> pd.DataFrame:
    """DPO with a penalty on its own pair: unstable is what diverged or has a label of `analysis.collapse`."""
    sweep = sweeps["dpo"]
    labels = collapse.verdicts(sweep.runs, sweep.history)["label"].reindex(sweep.runs.index)
    runs = pd.DataFrame({"form": sweep.runs["kl_form"], "lr": sweep.runs["lr"], "seed": sweep.runs["seed"]})
    scale = runs["form"].map(grpo.SCALE).fillna(1.0)
    runs["kl_coef"] = sweep.runs["kl_coef"].astype(float) / scale
    runs["unstable"] = labels.fillna("none") != "none"
    return runs.assign(arm="dpo", label=labels.astype(object)).reset_index(drop=True)


def _log_ratios(sweeps: Sweeps) -> pd.DataFrame:
    """Means over seeds at the drawn coefficient, JS at four times that."""
    runs, history = sweeps["dpo"].runs, sweeps["dpo"].history
    scale = runs["kl_form"].map(grpo.SCALE).fillna(1.0)
    those = runs.index[np.isclose(runs["kl_coef"].astype(float) / scale, PENALTY)]
    rows = history[history["run"].isin(those)].join(runs["kl_form"], on="run")
    parts = []
    for what in ("log_ratios/chosen", "log_ratios/rejected"):
        for form, own in rows.groupby("kl_form", sort=False):
            wide = own.pivot(index="step", columns="run", values=what)
            part = pd.DataFrame({"step": wide.index, "mean": wide.mean(axis=1).to_numpy()})
            part["low"], part["high"] = wide.min(axis=1).to_numpy(), wide.max(axis=1).to_numpy()
            parts.append(part.assign(form=form, what=what, seeds=wide.shape[1]))
    return pd.concat(parts, ignore_index=True)


def gradients(log_ref: torch.Tensor, values: torch.Tensor, kl_coef: float = 1.0) -> pd.DataFrame:
    """By form and seed: standard deviation of the whole gradient that one answer gives, at the optimum of the reverse
    KL on the table, with the exact mean as baseline (root of the summed variances of the logits' slopes).
    """
    log_pi = (log_ref + values / kl_coef).log_softmax(-1)
    pi = log_pi.exp()
    ratio = log_pi - log_ref
    score = torch.eye(log_pi.shape[-1]) - pi[:, None]  # [S, x, V]: slope of log pi(x)
    slopes = {"k1": torch.ones_like(ratio), "k2": ratio, "k3": 1 - (-ratio).exp()}
    rows = []
    for form in grpo.FORMS:
        reward = values - kl_coef * grpo.IN_REWARD[form](ratio) if form in grpo.IN_REWARD else values
        weight = (pi * reward).sum(-1, keepdim=True) - reward
        if form in slopes:
            weight = weight + kl_coef * slopes[form]
        each = weight[..., None] * score  # of an exact divergence the slope is the same for every answer
        mean = (pi[..., None] * each).sum(1)
        variance = (pi * (each - mean[:, None]).square().sum(-1)).sum(-1)
        rows += [{"form": form, "seed": s, "sd": float(v) ** 0.5} for s, v in enumerate(variance)]
    return pd.DataFrame(rows)


def check(frames: Frames) -> list[Verdict]:
    runs = frames["runs"]
    shares, numbers = [], []
    for (arm, form), own in runs.groupby(["arm", "form"], sort=False):
        by_seed = own.groupby("seed")["unstable"].mean()
        what = f"{ARMS[str(arm)]}, {NAMES[str(form)]}"
        numbers.append(Number.mean(f"share of runs unstable, {what}", by_seed))
        if arm != "dpo":
            ratio = (own["kl"] / own["kl_optimum"]).groupby(own["seed"]).median()
            numbers.append(Number.mean(f"KL at the end over that of the optimum, {what}", ratio, 1.0))
            worse = (own["gain"] < 0).groupby(own["seed"]).mean()
            numbers.append(Number.mean(f"share of runs that end with less reward than the reference's, {what}", worse))
    for form, own in frames["gradients"].groupby("form", sort=False):
        what = f"s.d. of one answer's gradient at the optimum, table, {NAMES[str(form)]}, coefficient 1"
        numbers.append(Number.mean(what, own["sd"]))
    beyond = frames["forward_optima"].groupby("seed")["beyond"].mean()
    numbers.append(
        Number.mean("share of tables where the optimum under the forward KL is itself beyond the bound", beyond)
    )
    for (arm, coef, lr), cell in runs.groupby(["arm", "kl_coef", "lr"], sort=False):
        for group, forms in GROUPS.items():
            found = cell.groupby("form")["unstable"].agg(["sum", "count"])
            for one, other in combinations([form for form in forms if form in found.index], 2):
                (k, n), (j, m) = (map(int, found.loc[form]) for form in (one, other))
                p = float(fisher_exact([[k, n - k], [j, m - j]]).pvalue)
                shares.append({"arm": arm, "group": group, "cell": (coef, lr), "gap": abs(k / n - j / m), "p": p})
    table = pd.DataFrame(shares)
    table["differs"] = (table["gap"] > 0.5) & (table["p"] < 0.05 / len(table))
    most = {}
    for key, own in table.groupby(["arm", "group"], sort=False):
        most[str(key[0]), str(key[1])] = float(own.groupby("cell")["differs"].any().mean())
    for (arm, group), share in most.items():
        numbers.append(Number(f"share of cells where two of {group} differ, {ARMS[arm]}", share))
    where = [f"{group} ({ARMS[arm]}: {share:.0%} of cells)" for (arm, group), share in most.items() if share > 0]
    said = (
        f"{_said(runs)} Under k3 and the forward KL the optimum is another, on the table beyond the bound in "
        f"{beyond.mean():.0%} of cases. {WHY}"
    )
    if not where:
        return [Verdict("C16", "refuted", f"No two forms differ in any cell. {said}", tuple(numbers))]
    outcome: Outcome = "holds" if all(share > 0.5 for share in most.values()) else "holds under conditions"
    lacking = [f"{group} ({ARMS[arm]})" for (arm, group), share in most.items() if share == 0]
    finding = f"Shares of unstable runs differ among {'; '.join(where)}."
    finding += f" They do not among {'; '.join(lacking)}." if lacking else ""
    return [Verdict("C16", outcome, f"{finding} {said}", tuple(numbers))]


def _said(runs: pd.DataFrame) -> str:
    """What became of each form, on-policy and beside DPO."""
    listed = []
    for where, own in (("On-policy", runs[runs["arm"] != "dpo"]), ("Beside DPO", runs[runs["arm"] == "dpo"])):
        shares = own.groupby("form", sort=False)["unstable"].mean()
        each = ", ".join(f"{NAMES[str(form)]} {share:.0%}" for form, share in shares.items())
        listed.append(f"{where} unstable are: {each}.")
    return " ".join(listed)


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {
        "by_form": lambda: _draw(frames["curves"]),
        "beside_dpo": lambda: _draw_penalty(frames["penalty"]),
    }


LOOK = dict(zip(("k2", "k1", "k3", "k1 in reward", "k3 in reward", "reverse", "forward"), LOOKS, strict=False)) | {
    "js": Look((0.25, 0.25, 0.25), "D")
}


def _keys(forms: Sequence[str]) -> list[Line2D]:
    return [
        Line2D(
            [], [], color=LOOK[form].colour, marker=LOOK[form].marker, linewidth=d.WIDTH, label=NAMES[form], **d.MARKER
        )
        for form in forms
    ]


def _draw(curves: pd.DataFrame) -> Figure:
    """KL and reward against updates, those forms that are estimated beside those that are exact."""
    kinds = {"estimated": [form for form in grpo.FORMS if form[0] == "k"], "exact": [*GROUPS["reverse, forward, JS"]]}
    cells = [(arm, kind) for arm in DRAWN for kind in kinds]
    seeds = curves.groupby("arm")["seeds"].first()
    note = (
        f"KL coefficient {DRAWN_COEFFICIENT:g} (JS: {grpo.SCALE['js'] * DRAWN_COEFFICIENT:g}). KL(policy, reference) "
        "is over that of the exact optimum under the reverse KL; dashed: 1, and the bound, 2. Table: SGD, lr "
        f"{DRAWN['table']:g}; Llama: Adam, lr {DRAWN['llama']:g}. Line: mean over {seeds['table']} (table) or "
        f"{seeds['llama']} (Llama) seeds; band: its 95\N{NO-BREAK SPACE}% bootstrap interval."
    )
    titles = [f"{'Table' if arm == 'table' else 'Toy Llama'}, KL {kind}" for arm, kind in cells]
    panels = [Panel("KL / optimum's", 34.0), Panel("reward", 34.0)]
    with sheet(titles, "updates", panels, [_keys([*kinds["estimated"], *kinds["exact"]])], note) as on:
        for i, (arm, kind) in enumerate(cells):
            own = curves[curves["arm"] == arm]
            for ax, what in zip(on.axes[2 * i : 2 * i + 2], ("kl", "reward"), strict=True):
                for nth, form in enumerate(kinds[kind]):
                    frame = own[(own["form"] == form) & (own["what"] == what)]
                    d.draw_curve(ax, frame[frame["step"] > 0], LOOK[form], (nth, len(kinds[kind])))
                if what == "kl":
                    ax.set_yscale("log")
                    ax.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100]))
                    ax.yaxis.set_minor_locator(NullLocator())
                    ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
                    ax.set_ylim(0.3, 1.3 * curves.loc[curves["what"] == "kl", "high"].max())
                    for height in (1.0, 2.0):
                        ax.axhline(height, color="black", linewidth=0.8, linestyle=(0, (4, 2.5)), zorder=2)
                else:
                    of_reward = own[own["what"] == "reward"]
                    ax.set_ylim(of_reward["low"].min() - 0.1, of_reward["high"].max() + 0.1)
    return on.figure


def _draw_penalty(rows: pd.DataFrame) -> Figure:
    forms = [form for form in LOOK if form in set(rows["form"])]
    note = (
        f"DPO, β = 0.1, on one pair; penalty coefficient {PENALTY:g} (JS: {grpo.SCALE['js'] * PENALTY:g}). Line: mean "
        f"over {rows['seeds'].iloc[0]} seeds; band: least to largest. y axis: linear from −1 to 1, logarithmic beyond."
    )
    panels = [Panel("chosen log-ratio (nats)", 40.0), Panel("rejected log-ratio (nats)", 40.0)]
    with sheet([""], "updates", panels, [_keys(forms)], note) as on:
        for ax, what in zip(on.axes, ("log_ratios/chosen", "log_ratios/rejected"), strict=True):
            ax.set_yscale("symlog", **symlog.SCALE)
            for nth, form in enumerate(forms):
                frame = rows[(rows["form"] == form) & (rows["what"] == what)]
                d.draw_curve(ax, frame, LOOK[form], (nth, len(forms)))
            ax.set_ylim(symlog.limit(ax.yaxis, rows.loc[rows["what"] == what, "mean"].to_numpy(), False))
    return on.figure
