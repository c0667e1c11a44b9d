"""Attention over rows in which prompts, each with several responses, lie side by side.

Three ways to the same numbers: by segment (each prompt and its responses by themselves, so that no time goes into
columns that may not be read anyway), dense (one mask for the whole row), and flex (torch's FlexAttention with a block
mask, for CUDA). The first goes through the door `transformers` leaves open, its `AttentionInterface`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from src.policy.packing import Layout, row_parts, segment_mask

Kind = Literal["segments", "dense", "flex"]
BY_SEGMENT = "margincall_segments"


def register() -> None:
    """Make `BY_SEGMENT` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(BY_SEGMENT, by_segment)


def inputs_for(kind: Kind, layout: Layout, device: torch.device, dtype: torch.dtype) -> Mapping[str, Any]:
    """What a model's forward is to be called with, so that its attention is that of `layout`."""
    if kind == "segments":
        masks: list[list[Tensor]] = [[] for _ in layout.ids_NC]
        for row, _, lengths in layout.segments:
            masks[row].append(segment_mask(lengths).to(device))
        # Models pass a mask of four dimensions on as it is; by_segment does not read it.
        return {"attention_mask": torch.empty(1, 1, 1, 1, device=device), "segments": masks}
    segment_NC, part_NC = (x.to(device) for x in row_parts(layout))
    if kind == "flex":
        from torch.nn.attention.flex_attention import create_block_mask

        def readable(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = segment_NC[row, query] == segment_NC[row, key]
            return same & ((part_NC[row, key] == 0) | (part_NC[row, query] == part_NC[row, key])) & (key <= query)

        rows, columns = layout.ids_NC.shape
        return {"attention_mask": create_block_mask(readable, rows, None, columns, columns, device=str(device))}
    same = segment_NC[:, :, None] == segment_NC[:, None]
    mask = (same & ((part_NC[:, None] == 0) | (part_NC[:, :, None] == part_NC[:, None]))).tril()
    added = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
    return {"attention_mask": added[:, None]}


def by_segment(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Sequence[Sequence[Tensor]],
    scaling: float | None = None,
    dropout: float = 0.0,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Attention of each segment by itself, as transformers calls it: [N, H, C, D] to [N, C, H, D].

    Args:
        segments: of each row, the masks [L, L] of its segments from left to right.
    """
    groups = query.shape[1] // key.shape[1]
    grouped = groups > 1 and query.device.type == "cpu"  # with a mask, CUDA's fast kernels want as many keys as queries
    if groups > 1 and not grouped:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    attend = partial(F.scaled_dot_product_attention, dropout_p=dropout, scale=scaling, enable_gqa=grouped)
    columns = query.shape[2]
    rows = []
    for masks, *of_row in zip(segments, query, key, value, strict=True):
        widths = [len(mask) for mask in masks]
        padding = columns - sum(widths)
        # Split, not sliced: a slice's gradient is a tensor of zeros as large as the row, for every segment.
        parts = (x.split([*widths, padding], 1) for x in of_row)
        outputs = [
            attend(q[None], k[None], v[None], attn_mask=mask)
            for mask, q, k, v in zip(masks, *parts, strict=False)  # without the padding
        ]
        outputs.append(query.new_zeros(1, query.shape[1], padding, value.shape[3]))
        rows.append(torch.cat(outputs, 2).transpose(1, 2))
    return torch.cat(rows), None
