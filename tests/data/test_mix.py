"""A mix: exact shares, no pair twice, the same sample for the same seed, and refusals in one line."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.config import Choice
from src.data.mix import _shares, mix
from src.errors import BadInput
from tests.data.rated import completion, helpsteer_row, long, ultrafeedback_row, write
from tests.tiny_tokenizer import CHAT, tiny_tokenizer

CHATTY = tiny_tokenizer(template=CHAT)


@pytest.fixture
def parts(tmp_path, convert):
    """English with 40 pairs and Chinese with 20, as the YAML file has them but for the paths."""

    def made(*overrides: str) -> dict[str, Choice]:
        english = [helpsteer_row(f"q{i}", long(f"q{i} {r}"), r, r, r, r, r) for i in range(40) for r in (4, 1)]
        chinese = [
            ultrafeedback_row(f"问{i}", *(completion(f"第{i}个足够长的回答{r}", *(r,) * 4) for r in ("5", "1")))
            for i in range(20)
        ]
        paths = {"en": write(tmp_path / "en.jsonl", *english), "zh": write(tmp_path / "zh.jsonl", *chinese)}
        given = [f"data.parts.{name}.path={path}" for name, path in paths.items()]
        return convert("data=mix", *given, "data.parts.zh.subset=null", *overrides).data.params["parts"]

    return made


def mixed(parts, **changes):
    options = {"weights": {"en": 0.7, "zh": 0.3}, "size": 20, "seed": 0}
    return mix(parts=parts, tokenizer=CHATTY, **(options | changes))


def languages(data) -> Counter[str]:
    return Counter("zh" if "问" in CHATTY.decode(prompt) else "en" for prompt in data.prompts)


def test_the_mix_of_the_yaml_file_is_5250_english_and_2250_chinese_pairs(convert):
    params = convert("data=mix").data.params
    assert _shares(params["weights"], params["size"]) == {"en": 5250, "zh": 2250}
    assert (params["parts"]["en"].name, params["parts"]["zh"].name) == ("helpsteer2", "ultrafeedback_zh")


def test_each_part_gives_its_share_and_the_report_says_so(parts):
    data = mixed(parts())
    assert languages(data) == {"en": 14, "zh": 6}
    assert data.report()["noted"] == {"part en": 14, "part zh": 6}
    assert len(set(data.keys)) == 20
    assert all(best > worst for best, worst in data.scores)


def test_the_order_mixes_the_parts(parts):
    order = ["问" in CHATTY.decode(prompt) for prompt in mixed(parts()).prompts]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def test_a_seed_gives_the_same_sample_and_another_seed_another(parts):
    made = parts()
    assert mixed(made).fingerprint == mixed(made).fingerprint
    assert mixed(made).fingerprint != mixed(made, seed=1).fingerprint


def test_a_larger_mix_contains_the_smaller(parts):
    made = parts()
    assert set(mixed(made).keys) < set(mixed(made, size=40).keys)


def test_what_a_part_dropped_is_counted_with_its_name(parts):
    data = mixed(parts("data.parts.zh.min_chars=11"))
    assert data.dropped == {"zh: response: too short": 20, "zh: prompt: fewer than two usable responses": 10}


def test_held_out_prompts_are_never_in_training_and_keep_the_proportions(parts):
    data = mixed(parts("data.parts.en.holdout=0.4", "data.parts.zh.holdout=0.4"), size=10)
    assert languages(data) == {"en": 7, "zh": 3}
    assert not set(data.keys) & set(data.held_out.keys)
    counts = languages(data.held_out)
    assert counts["zh"] >= 3
    assert abs(counts["en"] - counts["zh"] * 7 / 3) < 1


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        ((), {"size": 100},
         "data=mix: part en has 40 usable pairs, and 70 are its share of 100; lower data.size or its weight"),
        ((), {"weights": {"en": 1.0}},
         "data.weights={'en': 1.0} must give each of the parts en, zh a weight, not all 0"),
        ((), {"weights": {"en": 0.0, "zh": 0.0}},
         "data.weights={'en': 0.0, 'zh': 0.0} must give each of the parts en, zh a weight, not all 0"),
        (("data.parts.en.holdout=0.5",), {}, "data=mix: the parts hold out different shares: en 0.5, zh 0.0"),
        (("data@data.parts.zh=ranked", "data.parts.zh.responses=3"), {},
         "data=mix: the parts have different numbers of responses a prompt: en 2, zh 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused_in_one_line(tmp_path, convert, overrides, changes, message, parts):
    made = parts()
    if overrides and "holdout" in overrides[0]:
        made = parts(*overrides)
    elif overrides:
        made["zh"] = convert("data=mix", *overrides).data.params["parts"]["zh"]
    with pytest.raises(BadInput) as caught:
        mixed(made, **changes)
    assert str(caught.value) == message


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any), st.integers(1, 10_000))
def test_shares_add_up_and_none_is_off_by_one_or_more(weights, size):
    named = {str(i): float(weight) for i, weight in enumerate(weights)}
    shares = _shares(named, size)
    assert sum(shares.values()) == size
    assert all(abs(shares[name] - size * weight / sum(weights)) < 1 for name, weight in named.items())
