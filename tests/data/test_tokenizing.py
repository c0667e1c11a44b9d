"""Three real tokenizers: what stands at the boundary, where special tokens are, and what is cut when it is too long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.chat import rendered
from src.data.tokenizing import Drop, PairEncoder, Texts
from tests.real_tokenizers import real_tokenizer

NAMES = ("smollm2", "deepseek", "llama2")
LONG = 10_000

# Not "▁", which is how SentencePiece writes a space, nor what SmolLM2's vocabulary has no bytes for.
ASSIGNED = st.characters(
    exclude_categories=["Cs", "Co", "Cn"], max_codepoint=0x1FFFF, exclude_characters="▁\x04\x06\x13\x14\x16\x1d"
)

every_tokenizer = pytest.mark.parametrize("name", NAMES)


def encoded(name: str, prompt: str, *responses: str, max_length: int = LONG):
    return PairEncoder(real_tokenizer(name), max_length).encode(Texts(prompt, responses, "key"))


def ids_of(name: str, text: str, special: bool = False) -> tuple[int, ...]:
    return tuple(real_tokenizer(name)(text, add_special_tokens=special).input_ids)


def chat(name: str, user: str, *replies: str) -> Texts:
    messages = [[{"role": "assistant", "content": reply}] for reply in replies]
    return rendered("here", [{"role": "user", "content": user}], messages, real_tokenizer(name))


@every_tokenizer
def test_these_are_the_real_vocabularies(name):
    assert len(real_tokenizer(name)) == {"smollm2": 49152, "deepseek": 129280, "llama2": 32000}[name]


class TestText:
    @every_tokenizer
    def test_bos_is_written_only_by_the_tokenizer_that_does_so(self, name):
        prompt = encoded(name, "Hello", " a", " b").prompt
        assert prompt == ids_of(name, "Hello", special=True)
        assert (prompt[0] == real_tokenizer(name).bos_token_id) == (name == "llama2")

    @every_tokenizer
    def test_eos_ends_every_response_once(self, name):
        eos = real_tokenizer(name).eos_token_id
        for ids in encoded(name, "Hello", " yes", f" no{real_tokenizer(name).eos_token}").responses:
            assert ids[-1] == eos
            assert eos not in ids[:-1]

    @every_tokenizer
    @pytest.mark.parametrize("response", [" yes", "yes", "\n\nyes", "  two", "你好，世界", "é😀", "'s"])
    def test_prompt_and_response_decode_to_the_text_they_were(self, name, response):
        """SentencePiece would otherwise say "Human: hi yes" where the text has "Human: hiyes"."""
        pair = encoded(name, "Human: hi", response, " other")
        whole = real_tokenizer(name).decode([*pair.prompt, *pair.responses[0]], skip_special_tokens=True)
        assert whole == f"Human: hi{response}"

    @every_tokenizer
    def test_where_a_word_begins_the_ids_are_those_of_the_whole_text(self, name):
        prompt, response = "\n\nHuman: What is it?\n\nAssistant:", " It is a well-known café, I think.\n\nIs it?"
        pair = encoded(name, prompt, response, " No.")
        assert (*pair.prompt, *pair.responses[0][:-1]) == ids_of(name, prompt + response, special=True)

    @every_tokenizer
    def test_inside_a_word_the_prompt_keeps_its_own_ids_for_every_response(self, name):
        pair = encoded(name, "The cap", "ital", "tain")
        assert pair.prompt == ids_of(name, "The cap", special=True)

    @settings(deadline=None)
    @given(st.sampled_from(NAMES), st.text(ASSIGNED, min_size=1))
    def test_any_response_decodes_to_itself(self, name, text):
        if not text.strip():
            with pytest.raises(Drop, match="empty response"):
                encoded(name, "a", text, " other")
            return
        pair = encoded(name, "a", text, " other")
        decoded = real_tokenizer(name).decode([*pair.prompt, *pair.responses[0]], skip_special_tokens=True)
        assert decoded == f"a{text}"


class TestChat:
    @every_tokenizer
    def test_ids_are_those_of_the_rendered_conversation(self, name):
        tokenizer = real_tokenizer(name)
        pair = PairEncoder(tokenizer, LONG).encode(chat(name, "How are you?", "Fine.", "Bad."))
        messages = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine."}]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        expected = ids_of(name, whole.removesuffix("\n"))  # ChatML ends a turn with a line break after its EOS
        assert (*pair.prompt, *pair.responses[0]) == expected

    @every_tokenizer
    def test_bos_is_the_templates_and_not_doubled(self, name):
        prompt = PairEncoder(real_tokenizer(name), LONG).encode(chat(name, "hi", "a", "b")).prompt
        bos = real_tokenizer(name).bos_token_id  # SmolLM2's is what opens every turn
        assert prompt[0] == bos
        assert prompt[1] != bos

    @every_tokenizer
    def test_the_prompt_ends_where_the_assistant_begins_to_speak(self, name):
        pair = PairEncoder(real_tokenizer(name), LONG).encode(chat(name, "hi", "Fine.", "Bad."))
        prompt = real_tokenizer(name).decode(pair.prompt)
        opening = {"smollm2": "<|im_start|>assistant\n", "deepseek": "<｜Assistant｜>", "llama2": "[/INST]"}
        assert prompt.endswith(opening[name])
        response = real_tokenizer(name).decode(pair.responses[0], skip_special_tokens=True)
        assert response.strip() == "Fine."


def test_a_response_the_vocabulary_has_no_bytes_for_is_empty():
    with pytest.raises(Drop, match="empty response"):
        encoded("smollm2", "a", "\x04\x06", " other")


class TestTruncation:
    PROMPT = "\n\nHuman: " + " ".join(f"word{i}" for i in range(100)) + "\n\nAssistant:"

    @every_tokenizer
    def test_the_prompt_loses_its_beginning_and_the_responses_nothing(self, name):
        whole, cut = (encoded(name, self.PROMPT, " A good one.", " B.", max_length=n) for n in (LONG, 60))
        assert cut.responses == whole.responses
        assert cut.prompt_cut
        assert not whole.prompt_cut
        assert len(cut.prompt) + max(len(ids) for ids in cut.responses) == 60
        kept = cut.prompt[1:] if name == "llama2" else cut.prompt
        assert kept == whole.prompt[-len(kept) :]

    @every_tokenizer
    def test_a_bos_the_tokenizer_writes_survives(self, name):
        cut = encoded(name, self.PROMPT, " A.", " B.", max_length=20).prompt
        assert (cut[0] == real_tokenizer(name).bos_token_id) == (name == "llama2")

    @every_tokenizer
    def test_a_pair_that_just_fits_is_not_cut_and_one_token_less_cuts_one_token(self, name):
        whole = encoded(name, self.PROMPT, " A good one.", " B.")
        length = len(whole.prompt) + max(len(ids) for ids in whole.responses)
        assert encoded(name, self.PROMPT, " A good one.", " B.", max_length=length) == whole
        shorter = encoded(name, self.PROMPT, " A good one.", " B.", max_length=length - 1)
        assert (len(shorter.prompt), shorter.prompt_cut) == (len(whole.prompt) - 1, True)

    @every_tokenizer
    def test_a_response_that_leaves_no_room_is_dropped_and_never_shortened(self, name):
        length = len(encoded(name, "a", self.PROMPT, " B.").responses[0])
        assert len(encoded(name, "a", self.PROMPT, " B.", max_length=length + 1).responses[0]) == length
        with pytest.raises(Drop, match="response longer than max_length"):
            encoded(name, "a", self.PROMPT, " B.", max_length=length)
