"""A byte-level tokenizer that is made in a moment and can read any text."""

from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["<eos>", "<bos>", "<system>", "<user>", "<assistant>"]


def tiny_tokenizer(*, bos: bool = False, eos: bool = True, template: str | None = None) -> PreTrainedTokenizerFast:
    """261 tokens: the special ones and the 256 bytes. `bos`: it puts <bos> before a text by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>" if eos else None, name_or_path="tiny"
    )
    made.chat_template = template
    return made
