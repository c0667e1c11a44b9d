"""Chat messages of a row, and the prompt and responses a chat template makes of them."""

from collections.abc import Sequence
from typing import Any

from src.data.pairs import prompt_key
from src.data.rows import Row, cell
from src.data.tokenizing import Drop, Texts
from src.errors import BadInput

Message = dict[str, Any]


def conversation(where: str, row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, chosen and rejected as messages; the last two without the prompt."""
    chosen, rejected = (messages_of(where, row, column, "assistant") for column in ("chosen", "rejected"))
    if row.get("prompt") is None:
        # The last message of either is its response, even where the two conversations are the same.
        shared = shared_start(chosen[:-1], rejected[:-1])
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        prompt = messages_of(where, row, "prompt", "user")
        chosen, rejected = (
            messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
            for messages in (chosen, rejected)
        )
    if not chosen or not rejected or not all(m["content"].strip() for m in (chosen[-1], rejected[-1])):
        raise Drop("empty response")
    if not prompt or any(message["role"] != "assistant" for message in (*chosen, *rejected)):
        raise Drop("differing prompt")
    return prompt, chosen, rejected


def messages_of(where: str, row: Row, column: str, role: str) -> list[Message]:
    """A column as messages; a string is one message of `role`."""
    value = cell(where, row, column, ("chosen", "rejected"))
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise BadInput(f"{where}: column {column} must hold text or chat messages, this is {str(value)[:40]}")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise BadInput(f"{where}: column {column}: a chat message needs role and content as text: {message!r:.60}")
    # Tables fill up with None what only some messages have; templates test for the key.
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def rendered(where: str, prompt: list[Message], replies: Sequence[list[Message]], tokenizer: Any, **more: Any) -> Texts:
    """Apply the chat template, and find each response as what its conversation adds to the prompt.

    Args:
        replies: for each response its messages, best first.
        more: of `Texts`.

    Raises:
        BadInput: there is no template, or it refuses the conversation.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise BadInput(f"{where}: holds chat messages, and {tokenizer.name_or_path!r} has no chat template")
    try:
        start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        whole = [tokenizer.apply_chat_template(prompt + reply, tokenize=False) for reply in replies]
    except TemplateError as error:
        raise BadInput(f"{where}: the chat template refuses this conversation: {error}") from error
    # Some templates open an assistant's turn differently when it is still to be written; as in TRL, what all of them
    # begin with is then the prompt.
    end = min(shared_start(start, conversation) for conversation in whole)
    responses = tuple(conversation[end:] for conversation in whole)
    first = next((i for i, message in enumerate(prompt) if message["role"] == "user"), 0)
    return Texts(start[:end], responses, _key(prompt), _key(prompt[: first + 1]), rendered=True, **more)


def _key(prompt: list[Message]) -> str:
    """Of the words alone where only a user speaks: the same words in a data set of plain prompts have the same key."""
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt_key(prompt[0]["content"])
    return prompt_key("\n".join(f"{message['role']}: {message['content']}" for message in prompt))


def shared_start(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items the two begin with in common."""
    differ = (i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
    return next(differ, min(len(one), len(other)))
