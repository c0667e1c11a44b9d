"""Texts to token ids: where special tokens go, and what is cut when a pair is too long."""

from dataclasses import dataclass
from typing import Any

from src.data.pairs import Ids
from src.errors import BadInput

ANCHOR = "\n"  # in SentencePiece vocabularies a token of its own that merges with nothing
SPACE = "▁"  # how SentencePiece writes it


class Drop(Exception):
    """This row is of no use; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Texts:
    """One prompt and its K responses, best first.

    key: what `prompt_key` gives the prompt as the data has it.
    opening: the same of the first turn of a conversation, by which training and held-out prompts are told apart: the
        next turn of a conversation holds the answer to the one before. None: `key`.
    scores: one a response, or none.
    notes: what to count the row under if it is kept.
    rendered: by a chat template, which has then put in the special tokens itself.
    """

    prompt: str
    responses: tuple[str, ...]
    key: str
    opening: str | None = None
    scores: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    rendered: bool = False


@dataclass(frozen=True)
class Encoded:
    prompt: Ids
    responses: tuple[Ids, ...]
    prompt_cut: bool


class PairEncoder:
    """Tokenises prompt and response apart and leaves them apart.

    A response's ids therefore do not depend on how text merges across the boundary, all responses share exactly the
    same prompt ids, and no special token stands between prompt and response. Nor does a space: SentencePiece tokenizers
    write one before whatever text they are given, which belongs before a prompt only.

    - BOS: before a text prompt if the tokenizer puts it there by itself, and it is not there yet. Of a BOS in chats
      the template decides.
    - EOS: after every response that does not end with it. A template's line break after its EOS is no part of the
      response, since a policy that has said EOS says nothing more.
    - Length: the prompt loses tokens on its left, but never a BOS the tokenizer puts there by itself, until prompt and
      longest response fit in `max_length` tokens together. A response is never shortened.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        """Raises BadInput for a tokenizer without EOS: responses would have no end to learn."""
        if tokenizer.eos_token_id is None:
            raise BadInput(f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.bos = tokenizer.bos_token_id
        self.adds_bos = tokenizer("a").input_ids[:1] == [self.bos] and self._ids("a")[:1] != (self.bos,)
        self.anchor = self._find_anchor()

    def encode(self, texts: Texts) -> Encoded:
        """Raises Drop where a response has no token of its own or alone leaves no room for a prompt token, the prompt
        has no token, or the text is not valid Unicode.
        """
        if not all(text.strip() for text in texts.responses):
            raise Drop("empty response")
        prompt = self._prompt(texts)
        responses = tuple(self._response(text, texts.rendered) for text in texts.responses)
        if any(len(ids) == 1 for ids in responses):  # EOS: a vocabulary can lack all that a text consists of
            raise Drop("empty response")
        room = self.max_length - max(len(ids) for ids in responses)
        if room < 1:
            raise Drop("response longer than max_length")
        if not prompt:
            raise Drop("empty prompt")
        return Encoded(self._cut(prompt, room), responses, prompt_cut=len(prompt) > room)

    def _prompt(self, texts: Texts) -> Ids:
        ids = self._ids(texts.prompt)
        if self.adds_bos and not texts.rendered and ids[:1] != (self.bos,):
            return (self.bos, *ids)
        return ids

    def _response(self, text: str, rendered: bool) -> Ids:
        if rendered and text.rstrip().endswith(self.tokenizer.eos_token):
            text = text.rstrip()
        ids = self._ids(ANCHOR + text)[len(self.anchor) :] if self.anchor else self._ids(text)
        eos = self.tokenizer.eos_token_id
        return ids if ids[-1:] == (eos,) else (*ids, eos)

    def _find_anchor(self) -> Ids:
        """The tokens of ANCHOR if the tokenizer writes a space before a text: behind them it does not."""
        first = self._ids("a")[:1]
        if not first or not self.tokenizer.convert_ids_to_tokens(first[0]).startswith(SPACE):
            return ()
        anchor = self._ids(ANCHOR)
        apart = all(self._ids(ANCHOR + text)[: len(anchor)] == anchor for text in ("a", " a", ANCHOR))
        return anchor if apart else ()

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
