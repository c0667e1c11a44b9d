"""Preferences as token ids: what every data source produces and every policy reads.

Shape legend used all over `src`:  R runs of the stack, P prompts with ranked responses, B of them in a batch,
K responses ranked best first (a preference pair is K = 2: chosen, rejected), T response tokens (padded).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from src.errors import BadInput

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PairData:
    """P prompts, each with K ranked responses; for K = 2, preference pairs.

    Token ids are what the policy sees: special tokens, templates and truncation already applied. `scores` are rewards
    of the responses from elsewhere, P x K, or empty. `candidates` lists the responses that exist, for policies that
    treat a whole response as one action; by default those that occur, in order of first appearance. `dropped` and `cut`
    count rows by reason, and `noted` the kept rows that something is to be said about.

    Of text, `keys` holds what `prompt_key` gives each prompt as it was before truncation, and `held_out` the pairs
    whose prompts were set aside: not for training, and None where none were asked for.
    """

    prompts: tuple[Ids, ...]
    responses: tuple[tuple[Ids, ...], ...]
    scores: tuple[tuple[float, ...], ...] = ()
    candidates: tuple[Ids, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    keys: tuple[str, ...] = ()
    held_out: "PairData | None" = None

    def __post_init__(self) -> None:
        if not self.candidates:
            every = (ids for ranked in self.responses for ids in ranked)
            object.__setattr__(self, "candidates", tuple(dict.fromkeys(every)))

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def ranks(self) -> int:
        """K, the responses of a prompt."""
        return len(self.responses[0])

    @property
    def chosen(self) -> tuple[Ids, ...]:
        return tuple(ranked[0] for ranked in self.responses)

    @property
    def rejected(self) -> tuple[Ids, ...]:
        return tuple(ranked[-1] for ranked in self.responses)

    @property
    def lengths(self) -> np.ndarray:
        """Response lengths in tokens, [P, K]."""
        return np.array([[len(ids) for ids in ranked] for ranked in self.responses])

    @property
    def row_lengths(self) -> np.ndarray:
        """Tokens of the prompt and its longest response, [P]."""
        total: np.ndarray = np.array([len(ids) for ids in self.prompts]) + self.lengths.max(axis=1)
        return total

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids and their boundaries."""
        digest = hashlib.sha256()
        for prompt, ranked in zip(self.prompts, self.responses, strict=True):
            for ids in (prompt, *ranked):
                digest.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
        return digest.hexdigest()

    def report(self) -> dict[str, object]:
        """The run directory's data.json."""
        made: dict[str, object] = {
            "fingerprint": self.fingerprint,
            "pairs": len(self),
            "prompts": len(set(self.prompts)),
            "response_tokens": [int(n) for n in self.lengths.sum(axis=0)[[0, -1]]],
            "dropped": dict(self.dropped),
            "cut": dict(self.cut),
        }
        if self.noted:
            made["noted"] = dict(self.noted)
        if self.held_out is not None:
            made["held_out"] = self.held_out.report()
        return made

    def only_chosen(self) -> "PairData":
        """The same prompts, each with its best response alone; held-out ones too."""
        return replace(
            self,
            responses=tuple((best,) for best, *_ in self.responses),
            scores=tuple((best,) for best, *_ in self.scores),
            held_out=None if self.held_out is None else self.held_out.only_chosen(),
        )

    def take(self, rows: Sequence[int]) -> "PairData":
        """These rows, in this order. What was dropped stays with the whole, and so does `held_out`."""

        def of(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[i] for i in rows) if values else ()

        return PairData(of(self.prompts), of(self.responses), of(self.scores), keys=of(self.keys))


def prompt_key(text: str) -> str:
    """16 hexadecimal digits for a prompt, the same however its words are spaced."""
    return hashlib.sha256(" ".join(text.split()).encode(errors="surrogatepass")).hexdigest()[:16]


def is_held_out(key: str, share: float) -> bool:
    """Is a prompt, or a conversation, of this key in the `share` of all that is not for training?

    That depends on its words alone: neither on its data set, nor on tokenizer, order or limit. What a share sets
    aside, a larger share does too.
    """
    return int(key, 16) < share * 16.0 ** len(key)


def keep_usable(
    rows: Iterable[tuple[Ids, ...]],
    source: str,
    dropped: Counter[str] | None = None,
    cut: Counter[str] | None = None,
    candidates: tuple[Ids, ...] = (),
    scores: tuple[tuple[float, ...], ...] = (),
) -> PairData:
    """Drop rows no loss can learn from, count them by reason.

    Args:
        rows: token ids: prompt, then K responses, best first (chosen, rejected).
        source: what to call the data in an error.
        dropped, cut: counts from earlier stages, carried on.
        scores: one of each response, for every row.

    Raises:
        BadInput: no row is left.
    """
    kept: list[tuple[Ids, ...]] = []
    kept_scores: list[tuple[float, ...]] = []
    counts: Counter[str] = Counter(dropped or ())
    for i, (prompt, *ranked) in enumerate(rows):
        if not all(ranked):
            counts["empty response"] += 1
        elif len(set(ranked)) < len(ranked):
            counts["chosen equal to rejected"] += 1
        else:
            kept.append((prompt, *ranked))
            kept_scores += [scores[i]] if scores else []
    if not kept:
        raise nothing_usable(source, counts)
    prompts, responses = tuple(row[0] for row in kept), tuple(row[1:] for row in kept)
    return PairData(prompts, responses, tuple(kept_scores), candidates, counts, Counter(cut or ()))


def nothing_usable(source: str, dropped: Counter[str]) -> BadInput:
    """The error to raise where every row was dropped."""
    reasons = ", ".join(f"{n} x {reason}" for reason, n in dropped.items()) or "it has no rows"
    return BadInput(f"{source}: no usable pair ({reasons})")
