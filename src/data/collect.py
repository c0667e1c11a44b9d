"""From preferences as text to `PairData`: tokenised, counted, and divided into training and held-out pairs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from src.data.pairs import PairData, is_held_out, nothing_usable
from src.data.tokenizing import Drop, Encoded, PairEncoder, Texts
from src.errors import BadInput

Item = TypeVar("Item")


def each(items: Iterable[tuple[str, Item]], texts_of: Callable[[str, Item], Texts]) -> Iterator[Texts | Drop]:
    """One preference, or the reason why there is none, for each (where, item)."""
    for where, item in items:
        try:
            yield texts_of(where, item)
        except Drop as reason:
            yield reason


def collect(
    preferences: Iterable[Texts | Drop], source: object, encoder: PairEncoder, limit: int | None, holdout: float
) -> PairData:
    """Tokenise preferences until `limit` usable ones for training are found; count what is left out.

    Args:
        source: what to call the data in an error.
        holdout: the share of prompts that is not for training but becomes `held_out` of what is returned; see
            `is_held_out`. All prompts of a conversation are on one side. Held-out pairs do not count towards the limit.

    Raises:
        BadInput: no preference is usable, or none on one of the two sides.
    """
    dropped: Counter[str] = Counter()
    training, held_out = _Side(), _Side()
    for entry in preferences:
        try:
            if isinstance(entry, Drop):
                raise entry
            encoded = encoder.encode(entry)
            if len(set(encoded.responses)) < len(encoded.responses):
                raise Drop("chosen equal to rejected")
        except Drop as reason:
            dropped[str(reason)] += 1
            continue
        side = held_out if is_held_out(entry.opening or entry.key, holdout) else training
        side.add(entry, encoded)
        if len(training) == limit:
            break
    if not len(training) and not len(held_out):
        raise nothing_usable(str(source), dropped)
    if not len(training) or (holdout and not len(held_out)):
        empty = "held out" if len(training) else "left for training"
        both = len(training) + len(held_out)
        raise BadInput(f"{source}: holdout={holdout} of {both} usable pairs: none is {empty}; use another share")
    return training.data(dropped, held_out.data(Counter(), None) if holdout else None)


class _Side:
    """The rows of one side."""

    def __init__(self) -> None:
        self._rows: list[tuple[Texts, Encoded]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, texts: Texts, encoded: Encoded) -> None:
        self._rows.append((texts, encoded))

    def data(self, dropped: Counter[str], held_out: PairData | None) -> PairData:
        cut = Counter({"prompt cut on the left": sum(encoded.prompt_cut for _, encoded in self._rows)})
        return PairData(
            prompts=tuple(encoded.prompt for _, encoded in self._rows),
            responses=tuple(encoded.responses for _, encoded in self._rows),
            scores=tuple(texts.scores for texts, _ in self._rows if texts.scores),
            dropped=dropped,
            cut=+cut,
            noted=Counter(note for texts, _ in self._rows for note in texts.notes),
            keys=tuple(texts.key for texts, _ in self._rows),
            held_out=held_out,
        )
