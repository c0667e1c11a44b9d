"""Preference pairs from text: dialogues in the style of hh-rlhf, and prompt/chosen/rejected columns.

Both sources read a local file (.jsonl or .json, also .gz; .parquet, .csv, .arrow), a local folder, or a data set on
the hub. `limit` keeps the first so many usable pairs in file order; nothing after them is read, and `dropped` counts
only the rows up to there. How text becomes token ids is described at `PairEncoder`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt

from src.data.pairs import Ids, PairData, keep_usable
from src.data.rows import Row, read_rows
from src.data.tokenizing import Drop, PairEncoder, Texts
from src.errors import BadInput

Message = dict[str, Any]

LAST_TURN = "\n\nAssistant:"


def hh_rlhf(
    *,
    path: str,
    split: str = "train",
    limit: Annotated[int, Ge(1)] | None = None,
    max_length: Annotated[int, Gt(0)],
    tokenizer: Any,
) -> PairData:
    r"""Pairs of whole dialogues "\n\nHuman: …\n\nAssistant: …" that differ in the last turn (Bai et al. 2022).

    Each dialogue is cut after its last "\n\nAssistant:", which stays with the prompt; the response keeps its leading
    space. Dropped and counted: a dialogue without such a turn, prompts that differ, a response of white space only.

    Raises:
        BadInput: the file cannot be used; one line saying where and why.
    """

    def texts(where: str, row: Row) -> Texts:
        halves = [_text(where, row, column).rpartition(LAST_TURN) for column in ("chosen", "rejected")]
        if not all(turn for _, turn, _ in halves):
            raise Drop("no assistant turn")
        (prompt, _, chosen), (other_prompt, _, rejected) = halves
        if prompt != other_prompt:
            raise Drop("differing prompt")
        return Texts(prompt + LAST_TURN, chosen, rejected)

    return _pairs(path, split, limit, PairEncoder(tokenizer, max_length), texts)


def jsonl(
    *,
    path: str,
    split: str = "train",
    limit: Annotated[int, Ge(1)] | None = None,
    max_length: Annotated[int, Gt(0)],
    tokenizer: Any,
) -> PairData:
    """Pairs in TRL's columns `prompt`, `chosen`, `rejected`, as text or as chat messages [{"role": …, "content": …}].

    Accepted:
        text          prompt, chosen and rejected are strings, used as they are.
        messages      prompt is a list of messages; chosen and rejected hold the assistant's turn (or turns), or the
                      whole conversation, prompt included.
        mixed         as soon as one of the three is messages, a string prompt is a user's turn and a string response
                      an assistant's. UltraFeedback (a string, and two whole conversations) is read this way.
        no prompt     chosen and rejected are whole conversations, and the prompt is the messages both begin with.
    Without a prompt, strings are refused: the characters two texts begin with may end inside a word of the response.

    Messages go through the model's chat template: the prompt is what the template makes of the prompt's messages plus
    the opening of an assistant's turn, the response is what the rest of the conversation adds to it.

    Raises:
        BadInput: the file cannot be used; one line saying where and why.
    """

    def texts(where: str, row: Row) -> Texts:
        chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
        if not isinstance(prompt, list) and isinstance(chosen, str) and isinstance(rejected, str):
            if prompt is None:
                raise BadInput(
                    f"{where}: needs a column prompt, found {_found(row)} (for dialogues 'Human: … Assistant: …' "
                    "that share their beginning, use data=hh_rlhf)"
                )
            return Texts(_text(where, row, "prompt"), chosen, rejected)
        return _rendered(where, *_conversation(where, row), tokenizer)

    return _pairs(path, split, limit, PairEncoder(tokenizer, max_length), texts)


def _pairs(
    path: str, split: str, limit: int | None, encoder: PairEncoder, texts_of: Callable[[str, Row], Texts]
) -> PairData:
    """Read, shape and tokenise rows until `limit` usable pairs are found; count what is left out."""
    dropped: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    rows: list[tuple[Ids, Ids, Ids]] = []
    usable = 0
    for where, row in read_rows(path, split):
        try:
            texts = texts_of(where, row)
            if not texts.chosen.strip() or not texts.rejected.strip():
                raise Drop("empty response")
            pair = encoder.encode(texts)
        except Drop as reason:
            dropped[str(reason)] += 1
            continue
        rows.append((pair.prompt, pair.chosen, pair.rejected))
        if pair.chosen != pair.rejected:  # equal ones are dropped, and counted, by keep_usable
            usable += 1
            cut["prompt cut on the left"] += pair.prompt_cut
        if usable == limit:
            break
    return keep_usable(rows, f"{path}[{split}]", dropped, +cut)


def _found(row: Row) -> str:
    return ", ".join(row) or "none"


def _text(where: str, row: Row, column: str) -> str:
    value = _cell(where, row, column)
    if not isinstance(value, str):
        raise BadInput(f"{where}: column {column} must hold text, not {type(value).__name__}")
    return value


def _cell(where: str, row: Row, column: str) -> Any:
    if column not in row:
        raise BadInput(f"{where}: needs the columns chosen and rejected, found {_found(row)}")
    return row[column]


def _conversation(where: str, row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, chosen and rejected as messages; the last two without the prompt."""
    chosen, rejected = (_messages(where, row, column, "assistant") for column in ("chosen", "rejected"))
    if row.get("prompt") is None:
        # The last message of either is its response, even where the two conversations are the same.
        shared = _shared(chosen[:-1], rejected[:-1])
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        prompt = _messages(where, row, "prompt", "user")
        chosen, rejected = (
            messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
            for messages in (chosen, rejected)
        )
    if not chosen or not rejected or not all(m["content"].strip() for m in (chosen[-1], rejected[-1])):
        raise Drop("empty response")
    if not prompt or any(message["role"] != "assistant" for message in (*chosen, *rejected)):
        raise Drop("differing prompt")
    return prompt, chosen, rejected


def _messages(where: str, row: Row, column: str, role: str) -> list[Message]:
    """A column as messages; a string is one message of `role`."""
    value = _cell(where, row, column)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise BadInput(f"{where}: column {column} must hold text or chat messages, this is {str(value)[:40]}")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise BadInput(f"{where}: column {column}: a chat message needs role and content as text: {message!r:.60}")
    # Tables fill up with None what only some messages have; templates test for the key.
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def _rendered(
    where: str, prompt: list[Message], chosen: list[Message], rejected: list[Message], tokenizer: Any
) -> Texts:
    """Apply the chat template, and find the response as what a conversation adds to its prompt."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise BadInput(f"{where}: holds chat messages, and {tokenizer.name_or_path!r} has no chat template")
    try:
        start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        whole = [tokenizer.apply_chat_template(prompt + reply, tokenize=False) for reply in (chosen, rejected)]
    except TemplateError as error:
        raise BadInput(f"{where}: the chat template refuses this conversation: {error}") from error
    # Some templates open an assistant's turn differently when it is still to be written; as in TRL, what all three
    # begin with is then the prompt.
    end = min(_shared(start, conversation) for conversation in whole)
    return Texts(start[:end], whole[0][end:], whole[1][end:], rendered=True)


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items the two begin with in common."""
    differ = (i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
    return next(differ, min(len(one), len(other)))
