"""How the prompts and responses of R runs' batches lie in a language model's input.

Legend: N rows of C columns, M columns at which a response token is predicted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.pairs import Ids

Ranked = tuple[Ids, ...]  # prompt, then its responses: chosen, rejected


@dataclass(frozen=True)
class Segment:
    """A prompt and one or more responses to it, side by side in a row.

    A response sees the prompt and itself; its positions start again after the prompt. `places` says for each response
    which (batch place, rank) it is.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    places: tuple[tuple[int, int], ...]

    def seen(self, shifted: bool) -> list[Ids]:
        """What the model reads of each response: no one predicts from the last token, if a token is predicted from the
        column before it."""
        return [ids[:-1] if shifted else ids for ids in self.responses]

    def width(self, shifted: bool) -> int:
        return len(self.prompt) + sum(map(len, self.seen(shifted)))


@dataclass(frozen=True)
class Layout:
    """The rows of one pass. A run's rows are neighbours, and every run has as many.

    ids_NC, positions_NC: padded on the right with 0; filled_NC: False there.
    segments: (row, first column, lengths of the prompt and of each response) in reading order.
    source_M: flattened columns whose hidden state predicts a response token, targets_M: that token, place_M: where its
        log-prob belongs in the flattened [R, B, K, T].
    """

    ids_NC: Tensor
    positions_NC: Tensor
    filled_NC: Tensor
    segments: tuple[tuple[int, int, tuple[int, ...]], ...]
    source_M: Tensor
    targets_M: Tensor
    place_M: Tensor


def segments_of(batch: Sequence[Ranked], *, share_prompts: bool) -> list[Segment]:
    """One segment a prompt with all its responses, or one a response."""
    if share_prompts:
        return [
            Segment(prompt, tuple(ranked), tuple((b, k) for k in range(len(ranked))))
            for b, (prompt, *ranked) in enumerate(batch)
        ]
    return [
        Segment(prompt, (response,), ((b, k),))
        for b, (prompt, *ranked) in enumerate(batch)
        for k, response in enumerate(ranked)
    ]


def micro_batches(
    runs: Sequence[list[Segment]], max_tokens: int | None, *, pack: bool, shifted: bool
) -> Iterator[list[list[Segment]]]:
    """Split each run's segments into as many parts as are needed for a part to have at most `max_tokens` columns in
    all, padding included; one segment a run at least.

    Segments are grouped by length, so that rows, if they are padded, are padded little.
    """
    count = len(runs[0])
    if max_tokens is None:
        yield [list(run) for run in runs]
        return
    by_length = [sorted(run, key=lambda s: s.width(shifted), reverse=True) for run in runs]
    start = 0
    while start < count:
        stop = start + 1
        while stop < count and _columns([run[start : stop + 1] for run in by_length], pack, shifted) <= max_tokens:
            stop += 1
        yield [run[start:stop] for run in by_length]
        start = stop


def _columns(runs: Sequence[Sequence[Segment]], pack: bool, shifted: bool) -> int:
    widths = [[s.width(shifted) for s in run] for run in runs]
    rows = [sum(run) for run in widths] if pack else [w for run in widths for w in run]
    return max(rows) * len(rows)


def lay_out(
    runs: Sequence[Sequence[Segment]], width: int, ranks: int, batch: int, *, pack: bool, shifted: bool
) -> Layout:
    """Rows for the segments of R runs: all of a run's in one row if `pack`, else one a row.

    Padding is on the right: on the left, models without position ids or with a recurrent state would start at the wrong
    place, and a padding column would see no column at all, which is NaN in some attentions.

    Args:
        width, ranks, batch: T, K and B of the result that `place_M` points into.
        shifted: a token is predicted from the column before it; otherwise from its own.
    """
    rows: list[list[Segment]] = []
    run_of_row: list[int] = []
    for r, segments in enumerate(runs):
        own = [list(segments)] if pack else [[s] for s in segments]
        rows += own
        run_of_row += [r] * len(own)
    columns = max(sum(s.width(shifted) for s in row) for row in rows)
    ids_NC = torch.zeros(len(rows), columns, dtype=torch.int64)
    positions_NC = torch.zeros_like(ids_NC)
    filled_NC = torch.zeros_like(ids_NC, dtype=torch.bool)
    places: list[tuple[int, int, tuple[int, ...]]] = []
    source: list[int] = []
    targets: list[int] = []
    place: list[int] = []
    for n, (row, run) in enumerate(zip(rows, run_of_row, strict=True)):
        ids: list[int] = []
        positions: list[int] = []
        for segment in row:
            first = len(ids)
            ids += segment.prompt
            positions += range(len(segment.prompt))
            before = n * columns + len(ids) - 1
            lengths = [len(segment.prompt)]
            for response, seen, (b, k) in zip(segment.responses, segment.seen(shifted), segment.places, strict=True):
                start = n * columns + len(ids)
                ids += seen
                positions += range(len(segment.prompt), len(segment.prompt) + len(seen))
                source += [before] * shifted + list(range(start, start + len(seen)))
                targets += response
                to = ((run * batch + b) * ranks + k) * width
                place += range(to, to + len(response))
                lengths.append(len(seen))
            places.append((n, first, tuple(lengths)))
        ids_NC[n, : len(ids)] = torch.tensor(ids)
        positions_NC[n, : len(ids)] = torch.tensor(positions)
        filled_NC[n, : len(ids)] = True
    return Layout(
        ids_NC, positions_NC, filled_NC, tuple(places), torch.tensor(source), torch.tensor(targets), torch.tensor(place)
    )


def segment_mask(lengths: Sequence[int]) -> Tensor:
    """May a column (query) read another (key)? [L, L] of one segment: causal, and no response sees another."""
    part = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ((part == 0) | (part[:, None] == part)).tril()


def row_parts(layout: Layout) -> tuple[Tensor, Tensor]:
    """Of each column, [N, C]: the number of its segment, and of its part in it (0: the prompt); -1 where padded."""
    segment_NC, part_NC = torch.full_like(layout.ids_NC, -1), torch.full_like(layout.ids_NC, -1)
    for number, (n, first, lengths) in enumerate(layout.segments):
        segment_NC[n, first : first + sum(lengths)] = number
        part_NC[n, first : first + sum(lengths)] = torch.repeat_interleave(
            torch.arange(len(lengths)), torch.tensor(lengths)
        )
    return segment_NC, part_NC
