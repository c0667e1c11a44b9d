"""Preferences from rated responses: HelpSteer2, UltraFeedback, and sets of either shape.

Ratings are brought to [0, 1]; a response's score is the weighted mean of its criteria, over those that the data set
rates. Responses are compared by score, within a prompt. What is dropped is counted with what it was: a response, a
prompt with all its responses, or one pair.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from src.data.chat import Message, rendered
from src.data.collect import collect
from src.data.pairs import PairData
from src.data.rows import Row, Source, cell, read_rows, text_of
from src.data.text import Count, Length, Share
from src.data.tokenizing import Drop, PairEncoder, Texts
from src.errors import BadInput

Pairing = Literal["best_worst", "all", "ranked"]
Weights = dict[str, Annotated[float, Ge(0)]]
Gap = Annotated[float, Interval(ge=0, le=1)]
Ranks = Annotated[int, Ge(2)]

TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
COMPLETION = ("response", "annotations")
ROUNDING = 1e-9  # of a sum of a few weights; ratings are far apart from that


@dataclass(frozen=True)
class Rated:
    """A response, its score in [0, 1], and single opinions of it by name: the criteria, and an overall one if any."""

    text: str
    score: float
    opinions: Mapping[str, float]


@dataclass(frozen=True)
class Choosing:
    """Which responses are good enough to be compared, and which comparisons are sure enough to be kept.

    pairing: of a prompt's responses, take
        best_worst   the highest against the lowest score;
        all          every pair;
        ranked       one list: the best, then always the next that is at least `min_gap` worse.
    ranks: responses in such a list. Prompts with fewer are dropped; of more, the first ranks - 1 and the last are kept.
    min_gap: how far apart in score two responses must be; equal ones are never compared.
    min_chars: shorter responses are dropped; white space around them does not count.
    templates: responses that begin so are dropped, whatever the case and the form of the apostrophes.
    """

    pairing: Pairing
    ranks: int
    min_gap: float
    min_chars: int
    templates: Sequence[str]

    def check(self, text: str) -> None:
        """Raises Drop for a response that is not worth comparing."""
        if len(text.strip()) < self.min_chars:
            raise Drop("response: too short")
        if _plain(text).startswith(tuple(_plain(template) for template in self.templates)):
            raise Drop("response: templated")

    def lists(self, rated: Sequence[Rated]) -> Iterator[list[Rated] | Drop]:
        """Each comparison to learn from, best first, or why it is none."""
        ordered = sorted(rated, key=lambda response: -response.score)  # equal ones stay in the data's order
        if len(ordered) < 2:
            yield Drop("prompt: fewer than two usable responses")
            return
        if self.pairing == "ranked":
            chain = self._chain(ordered)
            short = len(chain) < self.ranks
            yield Drop(f"prompt: fewer than {self.ranks} distinct ranks") if short else chain
            return
        pairs = [(ordered[0], ordered[-1])] if self.pairing == "best_worst" else itertools.combinations(ordered, 2)
        for better, worse in pairs:
            if _plain(better.text) == _plain(worse.text):
                yield Drop("pair: chosen equal to rejected")
            else:
                yield [better, worse] if self._sure(better, worse) else Drop("pair: scores too close")

    def _chain(self, ordered: Sequence[Rated]) -> list[Rated]:
        chain = [ordered[0]]
        for response in ordered:
            if self._sure(chain[-1], response):
                chain.append(response)
        return chain if len(chain) <= self.ranks else [*chain[: self.ranks - 1], chain[-1]]

    def _sure(self, better: Rated, worse: Rated) -> bool:
        gap = better.score - worse.score
        return gap > ROUNDING and gap > self.min_gap - ROUNDING


def helpsteer2(
    *,
    path: str,
    split: str = "train",
    subset: str | None = None,
    streaming: bool = False,
    num_proc: Count | None = None,
    limit: Count | None = None,
    holdout: Share = 0.0,
    max_length: Length,
    weights: Weights,
    pairing: Pairing = "best_worst",
    ranks: Ranks = 2,
    min_gap: Gap,
    min_chars: Annotated[int, Ge(0)],
    templates: tuple[str, ...] = (),
    tokenizer: Any,
) -> PairData:
    r"""Responses rated by people on five criteria, integers 0 to 4 (Wang et al. 2024, arXiv 2406.08673).

    A row has `prompt`, `response`, and a column for each criterion. Consecutive rows with the same prompt, two of them
    in the published set, are compared. A prompt of several turns has "<extra_id_1>Assistant\n" and
    "<extra_id_1>User\n" between them. Prompts go through the model's chat template.

    Args:
        weights: of the columns that are criteria.
        others: see `src.data.text` and `Choosing`.

    Raises:
        BadInput: the file cannot be used; one line saying where and why.
    """
    weights = _positive(weights)
    choosing = Choosing(pairing, ranks, min_gap, min_chars, templates)
    needed = ("prompt", "response", *weights)

    def rate(where: str, row: Row) -> Rated:
        text = text_of(where, row, "response", needed)
        ratings = {name: [_unit(cell(where, row, name, needed), 0, 4)] for name in weights}
        choosing.check(text)
        criteria = _criteria(ratings)
        return Rated(text, _score(criteria, weights), criteria)

    def preferences() -> Iterator[Texts | Drop]:
        rows = ((text_of(where, row, "prompt", needed), where, row) for where, row in read_rows(source))
        for prompt, group in itertools.groupby(rows, key=lambda row: row[0]):
            members = list(group)
            entries = [_or_drop(rate, where, row) for _, where, row in members]
            yield from _preferences(members[0][1], _turns(prompt), entries, choosing, tokenizer)

    source = Source(path, split, subset, streaming, num_proc)
    return collect(preferences(), source, PairEncoder(tokenizer, max_length), limit, holdout)


def ultrafeedback(
    *,
    path: str,
    split: str = "train",
    subset: str | None = None,
    streaming: bool = False,
    num_proc: Count | None = None,
    limit: Count | None = None,
    holdout: Share = 0.0,
    max_length: Length,
    weights: Weights,
    mapping: dict[str, str],
    pairing: Pairing = "best_worst",
    ranks: Ranks = 4,
    min_gap: Gap,
    min_chars: Annotated[int, Ge(0)],
    templates: tuple[str, ...] = (),
    tokenizer: Any,
) -> PairData:
    """Responses rated by a language model on four aspects, "1" to "5" (Cui et al. 2023, arXiv 2310.01377).

    A row has `instruction` and `completions`, each with `response`, `annotations` {aspect: {"Rating": "4"}} and perhaps
    `overall_score`, which is another opinion by the same model: it is counted where it contradicts a pair, and not used
    otherwise. A rating can be "N/A"; a response without any for one of the criteria is dropped. The instruction goes
    through the model's chat template as a user's turn.

    Args:
        weights: of the criteria. Those that no aspect is mapped to do not count.
        mapping: aspect to criterion. The aspects of one criterion are averaged.
        others: see `src.data.text` and `Choosing`.

    Raises:
        BadInput: the file cannot be used; one line saying where and why.
    """
    unknown = sorted(set(mapping.values()) - set(weights))
    if unknown:
        raise BadInput(f"data.mapping names {', '.join(unknown)}, and data.weights has {', '.join(weights)}")
    weights = _positive({name: weight for name, weight in weights.items() if name in mapping.values()})
    choosing = Choosing(pairing, ranks, min_gap, min_chars, templates)

    def rate(where: str, completion: Row) -> Rated:
        text, annotations = text_of(where, completion, "response", COMPLETION), completion["annotations"] or {}
        ratings: dict[str, list[float | None]] = {name: [] for name in weights}
        for aspect, criterion in mapping.items():
            if criterion in weights:
                annotation = annotations.get(aspect) or {}
                ratings[criterion].append(_unit(annotation.get("Rating"), 1, 5))
        choosing.check(text)
        criteria, overall = _criteria(ratings), _number(completion.get("overall_score"))
        opinions = criteria if overall is None else {**criteria, "overall_score": overall}
        return Rated(text, _score(criteria, weights), opinions)

    def preferences() -> Iterator[Texts | Drop]:
        for where, row in read_rows(source):
            prompt = [{"role": "user", "content": text_of(where, row, "instruction", ("instruction", "completions"))}]
            entries = [_or_drop(rate, where, completion) for completion in _completions(where, row)]
            yield from _preferences(where, prompt, entries, choosing, tokenizer)

    source = Source(path, split, subset, streaming, num_proc)
    return collect(preferences(), source, PairEncoder(tokenizer, max_length), limit, holdout)


def _preferences(
    where: str, prompt: list[Message], entries: Sequence[Rated | Drop], choosing: Choosing, tokenizer: Any
) -> Iterator[Texts | Drop]:
    """What one prompt gives, dropped responses first."""
    yield from (entry for entry in entries if isinstance(entry, Drop))
    for chosen in choosing.lists([entry for entry in entries if isinstance(entry, Rated)]):
        if isinstance(chosen, Drop):
            yield chosen
            continue
        best, worst = chosen[0].opinions, chosen[-1].opinions
        contrary = tuple(f"{name} says otherwise" for name in best if best[name] < worst.get(name, best[name]))
        replies = [[{"role": "assistant", "content": response.text}] for response in chosen]
        scores = tuple(response.score for response in chosen)
        yield rendered(where, prompt, replies, tokenizer, scores=scores, notes=contrary)


def _or_drop(rate: Callable[[str, Row], Rated], where: str, row: Row) -> Rated | Drop:
    try:
        return rate(where, row)
    except Drop as reason:
        return reason


def _positive(weights: Weights) -> Weights:
    """Those above 0: what counts for nothing need not be there."""
    positive = {name: weight for name, weight in weights.items() if weight > 0}
    if not positive:
        raise BadInput("data.weights: no criterion of the data has a weight above 0")
    return positive


def _criteria(ratings: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """The mean rating of each criterion. Raises Drop if one has none: the score would be of other things."""
    known = {name: [value for value in values if value is not None] for name, values in ratings.items()}
    if not all(known.values()):
        raise Drop("response: not rated")
    return {name: sum(values) / len(values) for name, values in known.items()}


def _score(criteria: Mapping[str, float], weights: Weights) -> float:
    return sum(weights[name] * value for name, value in criteria.items()) / sum(weights[name] for name in criteria)


def _unit(rating: Any, low: int, high: int) -> float | None:
    """A rating brought from [low, high] to [0, 1]; None if it is not on that scale, such as "N/A"."""
    value = _number(rating)
    return None if value is None or not low <= value <= high else (value - low) / (high - low)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _turns(prompt: str) -> list[Message]:
    """HelpSteer2's prompt as messages; the first turn is the user's and has no mark."""
    first, *rest = TURN.split(prompt)
    later = zip(rest[::2], rest[1::2], strict=True)
    return [{"role": role.lower(), "content": text} for role, text in [("user", first), *later]]


def _completions(where: str, row: Row) -> list[Row]:
    """Raises BadInput where they are not a list of objects with COMPLETION's keys."""
    completions = cell(where, row, "completions", ("instruction", "completions"))
    if not isinstance(completions, list):
        raise BadInput(f"{where}: column completions must hold a list, not {type(completions).__name__}")
    for completion in completions:
        if not isinstance(completion, dict):
            raise BadInput(f"{where}: column completions must hold objects, not {type(completion).__name__}")
        for key in COMPLETION:
            cell(f"{where}, in completions", completion, key, COMPLETION)
        aspects = completion["annotations"] or {}  # tables fill up with None
        if not isinstance(aspects, dict) or not all(isinstance(aspect, dict | None) for aspect in aspects.values()):
            raise BadInput(f"{where}: annotations must hold an object {{Rating: …}} for each aspect")
    return completions


def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())
