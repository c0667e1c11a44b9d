"""Texts to token ids: where special tokens go, and what is cut when a pair is too long."""

from dataclasses import dataclass
from typing import Any

from src.data.pairs import Ids
from src.errors import BadInput


class Drop(Exception):
    """This row is of no use; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Texts:
    """One preference as text. `rendered`: by a chat template, which has then put in the special tokens itself."""

    prompt: str
    chosen: str
    rejected: str
    rendered: bool = False


@dataclass(frozen=True)
class Encoded:
    prompt: Ids
    chosen: Ids
    rejected: Ids
    prompt_cut: bool


class PairEncoder:
    """Tokenises prompt and response apart and leaves them apart.

    A response's ids therefore do not depend on how text merges across the boundary, chosen and rejected share exactly
    the same prompt ids, and no special token stands between prompt and response.

    - BOS: before a text prompt if the tokenizer puts it there by itself, and it is not there yet. Of a BOS in chats
      the template decides.
    - EOS: after every response that does not end with it. A template's line break after its EOS is no part of the
      response, since a policy that has said EOS says nothing more.
    - Length: the prompt loses tokens on its left, but never a BOS the tokenizer puts there by itself, until prompt and
      longer response fit in `max_length` tokens together. A response is never shortened.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        """Raises BadInput for a tokenizer without EOS: responses would have no end to learn."""
        if tokenizer.eos_token_id is None:
            raise BadInput(f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.bos = tokenizer.bos_token_id
        self.adds_bos = tokenizer("a").input_ids[:1] == [self.bos] and self._ids("a")[:1] != (self.bos,)

    def encode(self, texts: Texts) -> Encoded:
        """Raises Drop where a response alone leaves no room for a prompt token, the prompt has no token, or the text
        is not valid Unicode.
        """
        prompt = self._prompt(texts)
        chosen, rejected = (self._response(text, texts.rendered) for text in (texts.chosen, texts.rejected))
        room = self.max_length - max(len(chosen), len(rejected))
        if room < 1:
            raise Drop("response longer than max_length")
        if not prompt:
            raise Drop("empty prompt")
        return Encoded(self._cut(prompt, room), chosen, rejected, prompt_cut=len(prompt) > room)

    def _prompt(self, texts: Texts) -> Ids:
        ids = self._ids(texts.prompt)
        if self.adds_bos and not texts.rendered and ids[:1] != (self.bos,):
            return (self.bos, *ids)
        return ids

    def _response(self, text: str, rendered: bool) -> Ids:
        if rendered and text.rstrip().endswith(self.tokenizer.eos_token):
            text = text.rstrip()
        ids = self._ids(text)
        eos = self.tokenizer.eos_token_id
        return ids if ids[-1:] == (eos,) else (*ids, eos)

    def _cut(self, prompt: Ids, room: int) -> Ids:
        if len(prompt) <= room:
            return prompt
        head = prompt[:1] if self.adds_bos and prompt[0] == self.bos else ()
        return head + prompt[len(prompt) - (room - len(head)) :]

    def _ids(self, text: str) -> Ids:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
            raise Drop("text is not valid Unicode") from error
        # verbose=False: `transformers` would warn of a length that is dealt with here.
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
