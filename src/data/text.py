r"""Preference pairs from text: dialogues in the style of hh-rlhf, and prompt/chosen/rejected columns.

Every source of text reads a local file (.jsonl or .json, also .gz; .parquet, .csv, .arrow), a local folder, or a data
set on the hub, and has these parameters, beside its own:
    path, split, subset, streaming, num_proc   where the rows are: see `Source`
    limit        keep the first so many usable pairs in file order; nothing after them is read, and `dropped` counts
                 only the rows up to there
    holdout      the share of conversations set aside as `held_out` of the result: see `is_held_out`
    max_length   tokens of prompt and longest response: see `PairEncoder`
"""

from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt

from src.data.chat import conversation, rendered
from src.data.collect import collect, each
from src.data.pairs import PairData, prompt_key
from src.data.rows import Row, Source, found, read_rows, text_of
from src.data.tokenizing import Drop, PairEncoder, Texts
from src.errors import BadInput

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Lt(1)]
Length = Annotated[int, Gt(0)]

COLUMNS = ("chosen", "rejected")
LAST_TURN = "\n\nAssistant:"


def hh_rlhf(
    *,
    path: str,
    split: str = "train",
    subset: str | None = None,
    streaming: bool = False,
    num_proc: Count | None = None,
    limit: Count | None = None,
    holdout: Share = 0.0,
    max_length: Length,
    tokenizer: Any,
) -> PairData:
    r"""Pairs of whole dialogues "\n\nHuman: …\n\nAssistant: …" that differ in the last turn (Bai et al. 2022).

    Each dialogue is cut after its last "\n\nAssistant:", which stays with the prompt; the response keeps its leading
    space. Dropped and counted: a dialogue without such a turn, prompts that differ, a response of white space only.

    Raises:
        BadInput: the file cannot be used; one line saying where and why.
    """

    def texts(where: str, row: Row) -> Texts:
        halves = [text_of(where, row, column, COLUMNS).rpartition(LAST_TURN) for column in COLUMNS]
        if not all(turn for _, turn, _ in halves):
            raise Drop("no assistant turn")
        (prompt, _, chosen), (other_prompt, _, rejected) = halves
        if prompt != other_prompt:
            raise Drop("differing prompt")
        opening = prompt_key(prompt.partition(LAST_TURN)[0])
        return Texts(prompt + LAST_TURN, (chosen, rejected), prompt_key(prompt), opening)

    source = Source(path, split, subset, streaming, num_proc)
    return collect(each(read_rows(source), texts), source, PairEncoder(tokenizer, max_length), limit, holdout)


def jsonl(
    *,
    path: str,
    split: str = "train",
    subset: str | None = None,
    streaming: bool = False,
    num_proc: Count | None = None,
    limit: Count | None = None,
    holdout: Share = 0.0,
    max_length: Length,
    tokenizer: Any,
) -> PairData:
    """Pairs in TRL's columns `prompt`, `chosen`, `rejected`, as text or as chat messages [{"role": …, "content": …}].

    Accepted:
        text          prompt, chosen and rejected are strings, used as they are.
        messages      prompt is a list of messages; chosen and rejected hold the assistant's turn (or turns), or the
                      whole conversation, prompt included.
        mixed         as soon as one of the three is messages, a string prompt is a user's turn and a string response
                      an assistant's. UltraFeedback's binarised form (a string, and two whole conversations) is read
                      this way.
        no prompt     chosen and rejected are whole conversations, and the prompt is the messages both begin with.
    Without a prompt, strings are refused: the characters two texts begin with may end inside a word of the response.
    So are data of which some rows are text alone and others messages: only the messages would get a chat template.

    Messages go through the model's chat template: the prompt is what the template makes of the prompt's messages plus
    the opening of an assistant's turn, the response is what the rest of the conversation adds to it.

    Raises:
        BadInput: the file cannot be used; one line saying where and why.
    """
    forms: set[str] = set()

    def texts(where: str, row: Row) -> Texts:
        chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
        if not isinstance(prompt, list) and isinstance(chosen, str) and isinstance(rejected, str):
            if prompt is None:
                raise BadInput(
                    f"{where}: needs a column prompt, found {found(row)} (for dialogues 'Human: … Assistant: …' "
                    "that share their beginning, use data=hh_rlhf)"
                )
            form, prompt = "text", text_of(where, row, "prompt", COLUMNS)
            made = Texts(prompt, (chosen, rejected), prompt_key(prompt))
        else:
            form, (start, *replies) = "chat messages", conversation(where, row)
            made = rendered(where, start, replies, tokenizer)
        forms.add(form)
        if len(forms) > 1:
            raise BadInput(f"{where}: holds {form}, unlike the rows before it")
        return made

    source = Source(path, split, subset, streaming, num_proc)
    return collect(each(read_rows(source), texts), source, PairEncoder(tokenizer, max_length), limit, holdout)
