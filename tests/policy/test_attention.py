"""Three ways to attend to prompts with several responses each are one."""

import pytest
import torch
import torch.nn.functional as F

from src.policy.attention import by_segment, inputs_for
from src.policy.packing import lay_out, segments_of

CPU = torch.device("cpu")
BATCH = [((1, 2, 3), (4, 5), (6, 7, 8, 9)), ((1,), (2, 3, 4), (5,))]
OTHER = [((1, 2, 3, 4, 5, 6), (7, 8), (9,)), ((3,), (4,), (5, 6, 7))]


@pytest.fixture(params=[True, False], ids=["one row a run", "one row a prompt"])
def layout(request):
    """Two runs, so that rows are padded."""
    runs = [segments_of(batch, share_prompts=True) for batch in (BATCH, OTHER)]
    return lay_out(runs, 4, 2, 2, pack=request.param, shifted=True)


@pytest.fixture
def states(layout):
    torch.manual_seed(0)
    rows, columns = layout.ids_NC.shape
    return [torch.randn(rows, heads, columns, 16, requires_grad=True) for heads in (6, 2, 2)]


def dense(layout, query, key, value):
    mask = inputs_for("dense", layout, CPU, torch.float32)["attention_mask"]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def test_by_segment_is_dense_in_value_and_gradient(layout, states):
    given = inputs_for("segments", layout, CPU, torch.float32)
    filled = layout.filled_NC[..., None, None]  # what padding attends to is nobody's business
    found = []
    for attend in (
        lambda: by_segment(None, *states, None, segments=given["segments"])[0],
        lambda: dense(layout, *states),
    ):
        out = attend() * filled
        out.square().sum().backward()
        found.append([out, *(x.grad.clone() for x in states)])
        for x in states:
            x.grad = None
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore")  # torch's own, about running FlexAttention without compiling it
def test_flex_reads_the_same_columns(layout, states):
    """On a CPU it has no gradient; its values say what the block mask lets through."""
    from torch.nn.attention.flex_attention import flex_attention

    mask = inputs_for("flex", layout, CPU, torch.float32)["attention_mask"]
    query, key, value = (x.detach() for x in states)
    key, value = (x.repeat_interleave(3, 1) for x in (key, value))
    flex = flex_attention(query, key, value, block_mask=mask).transpose(1, 2)
    filled = layout.filled_NC[..., None, None]
    torch.testing.assert_close(flex * filled, dense(layout, *(x.detach() for x in states)) * filled)


def test_a_response_does_not_see_another_nor_another_prompt(layout, states):
    """Changing one response changes no other column."""
    query, key, value = (x.detach() for x in states)
    segments = inputs_for("segments", layout, CPU, torch.float32)["segments"]
    before = by_segment(None, query, key, value, None, segments=segments)[0]
    row, first, (prompt, chosen, _) = layout.segments[0]
    of_chosen = slice(first + prompt, first + prompt + chosen)
    key, value = key.clone(), value.clone()
    key[row, :, of_chosen] += 1
    value[row, :, of_chosen] += 1
    changed = (by_segment(None, query, key, value, None, segments=segments)[0] != before).flatten(2).any(-1)
    assert changed.nonzero().tolist() == [[row, c] for c in range(of_chosen.start, of_chosen.stop)]
