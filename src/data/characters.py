"""Characters in the place of tokens, to look at data before there is a model."""

from types import SimpleNamespace
from typing import Any


class Characters:
    """As much of a tokenizer as `PairEncoder` and the chat rendering use; a token is a character."""

    name_or_path = "characters"
    bos_token_id = None
    eos_token = "\U0010fffe"  # no character of any text: Unicode guarantees that it never becomes one
    eos_token_id = ord(eos_token)
    chat_template = "role: content"

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(character) for character in text])

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids).replace(self.eos_token, "")

    def convert_ids_to_tokens(self, i: int) -> str:
        return chr(i)

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = False, **_: Any) -> str:
        turns = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
        return f"{turns}\nassistant: " if add_generation_prompt else turns
