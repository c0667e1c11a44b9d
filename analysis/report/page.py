"""The page: everything put together, everything that comes from data escaped."""

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from analysis import beside_history, collapse, passes, tables
from analysis.figures import looks
from analysis.figures.collapse_map import SHADES
from analysis.load import WANDB
from analysis.report import curves, payload, pictures, provenance, settings, words
from analysis.sweep import Sweep, census

SCRIPTS = ("scales.js", "plot.js", "table.js", "page.js")


def columns() -> set[str]:
    """Of the histories, what the page, its tables and its figures need."""
    return {*collapse.COLUMNS, *tables.LAST, *tables.LARGEST, *payload.METRICS, *pictures.columns()}


def build(sweep: Sweep, *, data_file: str, out: Path) -> tuple[str, str]:
    """The page and the CSV that goes beside it as `data_file`. The same sweep gives the same bytes.

    out: where the page will lie, so that it can name the run directories from there.
    """
    table = tables.final(sweep.runs, sweep.history)
    verdicts = collapse.verdicts(sweep.runs, sweep.history)
    varied = settings.varying(sweep.runs)
    losses = words.of_losses(sweep.runs, verdicts, varied)
    metrics = payload.metrics(sweep)
    batches = passes.rows_of_a_pass(sweep.runs)
    noisy = bool((batches > 1).any())
    points = curves.points_a_line(sweep.runs, [*metrics, *(metrics if noisy else ())])
    lines = {f"metric-{i}": curves.thinned(sweep.runs, sweep.history, name, points) for i, name in enumerate(metrics)}
    if noisy:
        runs, means = curves.means_over_a_pass(sweep.runs, sweep.history, [*metrics], batches)
        lines |= {f"mean-{i}": curves.thinned(runs, means, name, points) for i, name in enumerate(metrics)}
    found = beside_history.evaluations(sweep).rows
    measured = payload.evaluated(found)
    if measured:
        rows = found["run"].value_counts().reindex(sweep.runs.index, fill_value=0)
        runs = beside_history.with_evaluated_columns(sweep.runs, found).assign(rows=rows)
        for i, name in enumerate(measured, start=len(metrics)):
            lines[f"metric-{i}"] = curves.thinned(runs, found, name, points)
    theory = payload.theory_lines(sweep)
    given = payload.of(sweep, table, verdicts, varied) | {
        "metrics": [[name, *about] for name, about in (metrics | measured).items()],
        "last": int(max(frame["step"].max() for frame in (sweep.history, found) if len(frame))),
        "theory": bool(theory.counts.any()),
        "means": noisy,
    }
    blocks = [_data("data", "application/json", _json(given))]
    blocks += [_data(id, "text/plain", those.packed()) for id, those in lines.items()]
    blocks.append(_data("theory", "text/plain", theory.packed()))
    style, script = _text("page.css"), "\n".join(map(_text, SCRIPTS))
    where = provenance.of(sweep.source, sweep.runs)
    html = Template(_text("page.html")).substitute(
        policy=escape(_policy(style, script)),
        title=escape(sweep.name),
        census=escape(census(sweep.runs)),
        lead=" ".join(escape(sentence) for sentence in words.lead(sweep.runs, losses, varied)),
        losses=_losses(losses),
        glossary="".join(f"<dt>{_swatch(name)}{escape(name)}</dt><dd>{escape(about)}</dd>"
                         for name, about in words.glossary(collapse.DEFAULT).items()),
        notices=_notices(sweep.notices()),
        rule=escape(_rule(sweep.runs, points, noisy)),
        data_file=escape(data_file),
        histories=_histories(sweep.source, out),
        figures=_figures(pictures.draw(sweep, verdicts)),
        command=_command(where),
        provenance=_provenance(where),
        common=_pairs(settings.common(sweep.runs)),
        style=style,
        script=script,
        blocks="\n".join(blocks),
    )  # fmt: skip
    joined = table.join(verdicts.drop(columns=["rows"]).rename(columns={"label": "verdict"}), rsuffix=" (verdict)")
    return html, tables.csv(joined)


def _policy(style: str, script: str) -> str:
    """Nothing is fetched, and nothing runs but what this package wrote, whatever the data hold."""
    return f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return files("analysis.report").joinpath(name).read_text(encoding="utf-8")


def _data(id: str, kind: str, content: str) -> str:
    return f'<script type="{kind}" id="{id}">{content}</script>'


def _json(content: Mapping[str, Any]) -> str:
    """No `<` in it, so nothing in it can end the script element that holds it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _losses(losses: Sequence[words.OfALoss]) -> str:
    """An entry for each loss: its name with its colour, a bar of its verdicts, what they say."""
    base = looks.of_losses([loss.loss for loss in losses])
    rows = []
    for loss in losses:
        of = sum(loss.counts.values())
        red, green, blue = (round(255 * part) for part in base[loss.loss].colour)
        bar, x = "", 0.0
        for label, n in loss.counts.items():
            bar += (
                f'<rect x="{x:.2f}" width="{100 * n / of:.2f}" height="10" class="{"none" if label == "none" else ""}" '
                f'fill="{SHADES.get(label, "#888888")}">'
                f"<title>{escape(label)}: {n} of {of}</title></rect>"
            )
            x += 100 * n / of
        rows.append(
            '<li><b><svg class="dot" viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="4.5" '
            f'fill="rgb({red},{green},{blue})"/></svg>{escape(looks.loss_name(loss.loss))}</b>'
            f'<svg class="verdicts" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(_counts(loss.counts))}">{bar}</svg><span>{escape(loss.sentence)}</span></li>'
        )
    many = " many" if len(losses) > 8 else ""
    return f'<ul class="losses{many}" aria-label="What became of the runs of each loss">{"".join(rows)}</ul>'


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {label}" for label, n in counts.items())


def _swatch(label: str) -> str:
    fill = SHADES.get(label, "#888888")
    return (
        f'<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" '
        f'class="{"none" if label == "none" else ""}" fill="{fill}"/></svg>'
    )


def _notices(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    those = "1 run or folder needs" if len(lines) == 1 else f"{len(lines)} runs or folders need"
    opened = " open" if len(lines) <= 6 else ""
    return f'<details class="notices"{opened}><summary>{those} a look</summary><ul>{items}</ul></details>'


def _rule(runs: pd.DataFrame, points: int, noisy: bool) -> str:
    longest = int(runs["rows"].max())
    means = " Means over a pass over the data stand at its last step; the start stands by itself." if noisy else ""
    if longest <= points:
        return f"Curves show every one of their rows, at most {longest:,}.{means}"
    return (
        f"Curves of more than {points:,} rows are thinned for the screen: they are cut into {points // 2:,} buckets, "
        "half of the cuts even in steps and half in log steps, and of each bucket the rows with the smallest and the "
        "largest value are drawn, and the first that is not finite; beside them the first and the last row. Every "
        "point is a row of the history, rounded to seven figures, and no extreme is lost. The longest history has "
        f"{longest:,} rows.{means}"
    )


def _histories(source: str, out: Path) -> str:
    if source.startswith(WANDB):
        return f"Full histories: <code>{escape(source)}</code>."
    folder = Path(os.path.relpath(source, out.parent)).as_posix()
    place = "beside this page" if folder == "." else f"in <code>{escape(folder)}</code>"
    return f"Full histories: <code>history.arrow</code> in the folder of each run, {place}."


def _figures(drawn: Sequence[pictures.Picture]) -> str:
    shown = "".join(
        f'<figure class="{"wide" if picture.width > 100 else "column"}"><button type="button" class="enlarge" '
        f'aria-label="Enlarge the figure {escape(picture.name)}"><img alt="{escape(picture.caption)}" '
        f'src="{picture.uri}"></button><figcaption><b>{escape(picture.name)}</b> {escape(picture.caption)}</figcaption>'
        "</figure>"
        for picture in drawn
        if picture.uri
    )
    left_out = "".join(
        f"<li><b>{escape(picture.name)}</b> {escape(picture.caption)}</li>" for picture in drawn if not picture.uri
    )
    return f'<div class="gallery">{shown}</div>' + (f'<ul class="left-out">{left_out}</ul>' if left_out else "")


def _command(where: provenance.Provenance) -> str:
    if not where.command:
        return "<p>The command that made the sweep is not recorded in this source.</p>"
    return (
        f'<div class="command"><pre tabindex="0"><code id="command">{escape(where.command)}</code></pre>'
        '<button type="button" id="copy">Copy</button></div>'
    )


def _provenance(where: provenance.Provenance) -> str:
    facts = {"sweep begun": where.created} if where.created else {}
    for name, values in where.facts.items():
        several = len(values) > 1
        facts[name] = "; ".join(f"{value} ({n:,} runs)" if several else value for value, n in values)
    if where.missing:
        facts["not recorded"] = f"for {where.missing:,} run{'s' if where.missing > 1 else ''}"
    return _pairs(facts)


def _pairs(facts: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
