"""From text to pairs of token ids: what is split where, what is dropped and counted, what is refused and how."""

import gzip
import itertools
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.pairs import is_held_out, prompt_key
from src.data.text import hh_rlhf, jsonl
from src.errors import BadInput
from tests.tiny_tokenizer import CHAT, tiny_tokenizer

REAL = Path(__file__).parents[2] / "../shared/data/hh-harmless-dev.jsonl.gz"
PLAIN, BOS, CHATTY = tiny_tokenizer(), tiny_tokenizer(bos=True), tiny_tokenizer(template=CHAT)


def write(file: Path, *rows: object) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def dialogue(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    start = f"\n\nHuman: {prompt}\n\nAssistant:"
    return {"chosen": start + chosen, "rejected": start + rejected}


def triple(prompt: object, chosen: object, rejected: object) -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def texts(data, tokenizer=PLAIN) -> list[tuple[str, str, str]]:
    ids = zip(data.prompts, data.chosen, data.rejected, strict=True)
    return [tuple(tokenizer.decode(part) for part in pair) for pair in ids]


def read(source, path: str, tokenizer=PLAIN, max_length=1000, **options):
    return source(path=path, tokenizer=tokenizer, max_length=max_length, **options)


class TestHhRlhf:
    def test_a_dialogue_is_cut_after_its_last_assistant_mark(self, tmp_path):
        earlier = "hi\n\nAssistant: hello\n\nHuman: well?"
        path = write(tmp_path / "a.jsonl", dialogue(earlier, " yes", " no\n\nHuman"))
        (pair,) = texts(read(hh_rlhf, path))
        assert pair == (f"\n\nHuman: {earlier}\n\nAssistant:", " yes<eos>", " no\n\nHuman<eos>")

    def test_useless_rows_are_counted_by_reason(self, tmp_path):
        other = {"chosen": dialogue("a", " x", "")["chosen"], "rejected": dialogue("b", "", " y")["rejected"]}
        path = write(
            tmp_path / "a.jsonl",
            dialogue("q", " good", " bad"),
            dialogue("q", " ", " bad"),
            dialogue("q", " good", ""),
            other,
            dialogue("q", " same", " same"),
            {"chosen": "no mark", "rejected": "no mark either"},
            dialogue("q", " half a \ud800 pair", " bad"),
        )
        data = read(hh_rlhf, path)
        assert len(data) == 1
        assert data.dropped == {
            "empty response": 2,
            "differing prompt": 1,
            "chosen equal to rejected": 1,
            "no assistant turn": 1,
            "text is not valid Unicode": 1,
        }

    def test_limit_counts_usable_pairs_and_reads_no_further(self, tmp_path):
        rows = [
            dialogue("q", "", " x"),
            dialogue("1", " a", " b"),
            dialogue("q", " s", " s"),
            dialogue("2", " a", " b"),
        ]
        file = tmp_path / "a.jsonl"
        write(file, *rows)
        file.write_text(file.read_text() + "not JSON\n")
        data = read(hh_rlhf, str(file), limit=2)
        assert [prompt for prompt, _, _ in texts(data)] == [rows[1]["chosen"][:-2], rows[3]["chosen"][:-2]]
        assert data.dropped == {"empty response": 1, "chosen equal to rejected": 1}
        assert read(hh_rlhf, str(file), limit=1).dropped == {"empty response": 1}

    @pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/hh-harmless-dev.jsonl.gz beside the repository")
    def test_on_real_data_every_row_is_kept_or_counted(self):
        data = read(hh_rlhf, str(REAL), max_length=2000)
        assert len(data) + data.dropped.total() == 1156
        assert data.dropped["empty response"] == 4
        assert all(prompt.endswith("\n\nAssistant:") for prompt, *_ in texts(data) if not data.cut)
        assert all(ids[-1] == PLAIN.eos_token_id for ids in (*data.chosen, *data.rejected))
        assert data.row_lengths.max() <= 2000


class TestFiles:
    ROWS = (triple("a", "b", "c"), triple("d\u2028e", "ö", "你好"))

    def expected(self):
        return [(row["prompt"], f"{row['chosen']}<eos>", f"{row['rejected']}<eos>") for row in self.ROWS]

    def test_lines_with_and_without_gzip_blank_lines_and_byte_order_mark(self, tmp_path):
        path = write(tmp_path / "a.jsonl", *self.ROWS)
        assert texts(read(jsonl, path)) == self.expected()
        lines = Path(path).read_bytes()
        (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\n" + lines.replace(b"\n", b"\r\n\n")))
        assert texts(read(jsonl, str(tmp_path / "b.jsonl.gz"))) == self.expected()
        (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + lines)
        assert texts(read(jsonl, str(tmp_path / "c.json"))) == self.expected()

    def test_one_json_array(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps(self.ROWS, indent=1), encoding="utf-8")
        assert texts(read(jsonl, str(tmp_path / "a.json"))) == self.expected()

    @pytest.mark.parametrize("kind", ["parquet", "csv"])
    def test_tables_are_read_in_place(self, tmp_path, kind, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        table = datasets.Dataset.from_list(list(self.ROWS)).to_pandas()
        getattr(table, f"to_{kind}")(tmp_path / f"a.{kind}", index=False)
        assert texts(read(jsonl, str(tmp_path / f"a.{kind}"))) == self.expected()
        assert not (tmp_path / "cache").exists()

    def test_a_folder_has_splits(self, tmp_path):
        write(tmp_path / "train.jsonl", self.ROWS[0])
        write(tmp_path / "test.jsonl", self.ROWS[1])
        assert texts(read(jsonl, str(tmp_path), split="test")) == self.expected()[1:]
        with pytest.raises(BadInput, match=r"\[dev\]: cannot be read: .*Available splits"):
            read(jsonl, str(tmp_path), split="dev")

    def test_any_other_name_is_the_hubs(self, tmp_path, monkeypatch):
        asked = []

        def load_dataset(name, **options):
            asked.append((name, options))
            return datasets.Dataset.from_list(list(self.ROWS))

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert texts(read(jsonl, "someone/pairs", split="dev")) == self.expected()
        read(jsonl, "someone/pairs", subset="harmless-base", num_proc=2)
        read(jsonl, "someone/pairs", subset="zh.parquet", streaming=True, num_proc=2)
        assert asked == [
            ("someone/pairs", {"split": "dev"}),
            ("someone/pairs", {"split": "train", "data_dir": "harmless-base", "num_proc": 2}),
            ("someone/pairs", {"split": "train", "data_files": "zh.parquet", "streaming": True}),
        ]

    def test_a_stream_is_read_no_further_than_the_limit(self, tmp_path, monkeypatch):
        def endless():
            for i in itertools.count():
                assert i < 3
                yield triple(str(i), "a", "b")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: endless())
        assert len(read(jsonl, "someone/pairs", streaming=True, limit=3)) == 3

    def test_a_subset_of_a_folder_is_a_folder_or_file_in_it(self, tmp_path):
        for name, row in zip(("harmless-base", "helpful-base"), self.ROWS, strict=True):
            (tmp_path / name).mkdir()
            write(tmp_path / name / "train.jsonl", row)
        assert texts(read(jsonl, str(tmp_path), subset="helpful-base")) == self.expected()[1:]
        assert texts(read(jsonl, str(tmp_path), subset="harmless-base/train.jsonl")) == self.expected()[:1]
        with pytest.raises(BadInput, match=r"/missing: no such file$"):
            read(jsonl, str(tmp_path), subset="missing")
        with pytest.raises(BadInput, match=r"a single file has no subset; subset='a' is not there"):
            read(jsonl, str(tmp_path / "helpful-base" / "train.jsonl"), subset="a")


class TestHoldout:
    ROWS = tuple(triple(f"q{i % 150}", f"a{i}", f"b{i}") for i in range(300))

    def test_a_prompt_is_on_one_side_only_and_no_pair_is_lost(self, tmp_path):
        data = read(jsonl, write(tmp_path / "a.jsonl", *self.ROWS), holdout=0.2)
        assert not set(data.keys) & set(data.held_out.keys)
        assert not set(data.prompts) & set(data.held_out.prompts)
        assert len(data) + len(data.held_out) == 300
        assert 30 < len(data.held_out) < 90
        assert data.held_out.held_out is None

    def test_without_a_share_nothing_is_held_out(self, tmp_path):
        path = write(tmp_path / "a.jsonl", *self.ROWS)
        data = read(jsonl, path)
        assert data.held_out is None
        assert "held_out" not in data.report()

    def test_the_side_depends_on_the_prompt_alone(self, tmp_path):
        """Neither on order, tokenizer, limit, truncation nor the spacing of words."""
        one = read(jsonl, write(tmp_path / "a.jsonl", *self.ROWS), holdout=0.2)
        spaced = [{**row, "prompt": f" {row['prompt']}\n"} for row in self.ROWS[::-1]]
        path = write(tmp_path / "b.jsonl", *spaced)
        other = read(jsonl, path, tokenizer=BOS, max_length=8, holdout=0.2, limit=100)
        assert other.cut
        assert set(other.keys) <= set(one.keys)
        assert set(other.held_out.keys) <= set(one.held_out.keys)

    def test_a_user_message_is_on_the_side_of_the_same_words_as_text(self, tmp_path):
        chats = [triple([user(row["prompt"])], row["chosen"], row["rejected"]) for row in self.ROWS]
        one = read(jsonl, write(tmp_path / "a.jsonl", *self.ROWS), holdout=0.2)
        other = read(jsonl, write(tmp_path / "b.jsonl", *chats), CHATTY, holdout=0.2)
        assert other.held_out.keys == one.held_out.keys

    def test_all_turns_of_a_conversation_are_on_one_side(self, tmp_path):
        """The prompt of a later turn contains the answer to an earlier one."""
        later = [dialogue(f"q{i}\n\nAssistant: a\n\nHuman: more", " c", " d") for i in range(100)]
        path = write(tmp_path / "a.jsonl", *(dialogue(f"q{i}", " a", " b") for i in range(100)), *later)
        data = read(hh_rlhf, path, holdout=0.3)
        openings = [{text.split("\n\nAssistant:")[0] for text, *_ in texts(side)} for side in (data, data.held_out)]
        assert not openings[0] & openings[1]
        assert (len(data), len(data.held_out)) == (2 * len(openings[0]), 2 * len(openings[1]))

    def test_so_are_those_of_chats(self, tmp_path):
        turns = [user("q"), assistant("a"), user("more")]
        rows = [triple([{**turns[0], "content": f"q{i}"}, *turns[1:n]], "b", "c") for i in range(100) for n in (1, 3)]
        data = read(jsonl, write(tmp_path / "a.jsonl", *rows), CHATTY, holdout=0.3)
        assert len(data) % 2 == len(data.held_out) % 2 == 0
        openings = [{text.split("<eos>")[0] for text, *_ in texts(side, CHATTY)} for side in (data, data.held_out)]
        assert not openings[0] & openings[1]

    def test_a_larger_share_holds_out_what_a_smaller_one_does(self, tmp_path):
        path = write(tmp_path / "a.jsonl", *self.ROWS)
        held_out = [set(read(jsonl, path, holdout=share).held_out.keys) for share in (0.1, 0.2, 0.5)]
        assert held_out[0] < held_out[1] < held_out[2]

    @given(st.floats(0, 0.99), st.text())
    def test_the_share_is_a_probability_over_keys(self, share, text):
        key = prompt_key(text)
        assert is_held_out(key, share) == (int(key, 16) / 16**16 < share)
        assert prompt_key(f" {text}\t") == key

    def test_the_limit_counts_pairs_for_training(self, tmp_path):
        data = read(jsonl, write(tmp_path / "a.jsonl", *self.ROWS), holdout=0.2, limit=50)
        assert len(data) == 50
        assert len(data.held_out) > 0

    def test_the_report_of_a_run_names_both_sides(self, tmp_path):
        data = read(jsonl, write(tmp_path / "a.jsonl", *self.ROWS), holdout=0.2)
        assert data.report()["held_out"]["fingerprint"] == data.held_out.fingerprint
        assert data.held_out.fingerprint != data.fingerprint

    def test_a_side_that_is_empty_is_refused(self, tmp_path):
        path = write(tmp_path / "a.jsonl", self.ROWS[0])
        with pytest.raises(BadInput, match=r"holdout=1e-09 of 1 usable pairs: none is held out; use another share"):
            read(jsonl, path, holdout=1e-9)
        with pytest.raises(BadInput, match=r"holdout=0.999\d+ of 1 usable pairs: none is left for training"):
            read(jsonl, path, holdout=1 - 1e-9)


class TestIdentity:
    def test_how_a_data_set_is_read_is_no_part_of_it(self, convert):
        plain = convert("data=hh_rlhf", "data.path=x").id
        assert convert("data=hh_rlhf", "data.path=x", "data.num_proc=2", "data.streaming=true").id == plain

    def test_what_is_read_is(self, convert):
        changes = ("data.subset=a", "data.subset=b", "data.holdout=0.1", "data.holdout=0.2", "data.split=test")
        ids = {convert("data=hh_rlhf", "data.path=x", change).id for change in ("seed=42", *changes)}
        assert len(ids) == len(changes) + 1

    def test_a_run_from_before_a_parameter_existed_keeps_its_identity(self, convert):
        now = convert("data=hh_rlhf", "data.path=x")
        before = {key: now.data.params[key] for key in ("path", "split", "limit", "max_length")}
        assert replace(now, data=replace(now.data, params=before)).id == now.id

    def test_so_do_the_parts_of_a_mix(self, convert):
        assert convert("data=mix", "data.parts.en.num_proc=2").id == convert("data=mix").id
        assert convert("data=mix", "data.parts.en.holdout=0.1").id != convert("data=mix").id


class TestSpecialTokens:
    def one(self, tmp_path, tokenizer, row=None, **options):
        data = read(jsonl, write(tmp_path / "a.jsonl", row or triple("ab", "cd", "e")), tokenizer, **options)
        return texts(data, tokenizer)[0]

    def test_bos_only_where_the_tokenizer_puts_it(self, tmp_path):
        assert self.one(tmp_path, PLAIN) == ("ab", "cd<eos>", "e<eos>")
        assert self.one(tmp_path, BOS) == ("<bos>ab", "cd<eos>", "e<eos>")

    def test_bos_and_eos_are_not_doubled(self, tmp_path):
        row = triple("<bos>ab", "cd<eos>", "<eos>e")
        assert self.one(tmp_path, BOS, row) == ("<bos>ab", "cd<eos>", "<eos>e<eos>")

    def test_bos_alone_is_prompt_enough(self, tmp_path):
        assert self.one(tmp_path, BOS, triple("", "c", "d"))[0] == "<bos>"
        with pytest.raises(BadInput, match=r"no usable pair \(1 x empty prompt\)"):
            self.one(tmp_path, PLAIN, triple("", "c", "d"))

    def test_the_response_is_tokenised_apart_from_the_prompt(self, tmp_path):
        """Byte-level tokens of "é" are two; cut between prompt and response they stay on their sides."""
        data = read(jsonl, write(tmp_path / "a.jsonl", triple("a", " é", "b")))
        assert data.chosen[0] == (*PLAIN(" é", add_special_tokens=False).input_ids, PLAIN.eos_token_id)

    def test_a_tokenizer_without_eos_is_refused(self, tmp_path):
        with pytest.raises(BadInput, match="the tokenizer of 'tiny' has no end-of-sequence token"):
            self.one(tmp_path, tiny_tokenizer(eos=False))


class TestLength:
    def read(self, tmp_path, tokenizer, max_length, *rows):
        return read(jsonl, write(tmp_path / "a.jsonl", *rows), tokenizer, max_length)

    def test_the_prompt_is_cut_on_the_left_for_the_longer_response(self, tmp_path):
        data = self.read(tmp_path, PLAIN, 8, triple("0123456789", "abc", "d"), triple("012", "abc", "abcd"))
        assert texts(data) == [("6789", "abc<eos>", "d<eos>"), ("012", "abc<eos>", "abcd<eos>")]
        assert data.cut == {"prompt cut on the left": 1}

    def test_bos_survives_the_cut(self, tmp_path):
        rows = (triple("0123456789", "abc", "d"), triple("0123456789", "abcdef", "d"))
        data = self.read(tmp_path, BOS, 8, *rows)
        assert [prompt for prompt, *_ in texts(data, BOS)] == ["<bos>789", "<bos>"]

    def test_a_response_is_never_shortened(self, tmp_path):
        rows = (triple("012", "abcdef", "d"), triple("012", "d", "abcdefg"))
        data = self.read(tmp_path, PLAIN, 8, *rows)
        assert texts(data) == [("2", "abcdef<eos>", "d<eos>")]
        assert data.dropped == {"response longer than max_length": 1}

    def test_nothing_is_cut_or_counted_where_all_fits(self, tmp_path):
        data = self.read(tmp_path, PLAIN, 8, triple("012", "abcd", "d"), triple("0123456789", "same", "same"))
        assert data.cut == {}


class TestChatMessages:
    PROMPT = "<user>hi<eos>\n<assistant>"
    EXPECTED = (PROMPT, "good<eos>", "bad<eos>")

    @pytest.mark.parametrize(
        "row",
        [
            triple([user("hi")], [assistant("good")], [assistant("bad")]),
            triple([user("hi")], [user("hi"), assistant("good")], [user("hi"), assistant("bad")]),
            triple("hi", [user("hi"), assistant("good")], [user("hi"), assistant("bad")]),
            triple("hi", [assistant("good")], [assistant("bad")]),
            triple([user("hi")], "good", "bad"),
            {"chosen": [user("hi"), assistant("good")], "rejected": [user("hi"), assistant("bad")]},
            triple(None, [user("hi"), assistant("good")], [user("hi"), assistant("bad")]),
            triple([{**user("hi"), "name": None}], [assistant("good")], [assistant("bad")]),
        ],
        ids=["turns", "conversations", "text and conversations", "text and turns", "messages and text", "no prompt",
             "null prompt", "null key"],
    )  # fmt: skip
    def test_every_accepted_shape_is_the_same_pair(self, tmp_path, row):
        data = read(jsonl, write(tmp_path / "a.jsonl", row), CHATTY)
        assert texts(data, CHATTY) == [self.EXPECTED]

    def test_ids_are_those_of_the_rendered_conversation_up_to_its_last_eos(self, tmp_path):
        prompt = [{"role": "system", "content": "be"}, user("a"), assistant("b"), user("c")]
        data = read(jsonl, write(tmp_path / "a.jsonl", triple(prompt, [assistant("d")], [assistant("e")])), CHATTY)
        rendered = CHATTY.apply_chat_template([*prompt, assistant("d")], return_dict=True).input_ids
        assert [*data.prompts[0], *data.chosen[0]] == rendered[:-1]  # less the template's line break
        assert data.chosen[0][-1] == CHATTY.eos_token_id

    def test_a_template_decides_about_bos_itself(self, tmp_path):
        row = triple([user("hi")], [assistant("good")], [assistant("bad")])
        for template, expected in ((CHAT, self.PROMPT), ("<bos>" + CHAT, f"<bos>{self.PROMPT}")):
            tokenizer = tiny_tokenizer(bos=True, template=template)
            data = read(jsonl, write(tmp_path / "a.jsonl", row), tokenizer)
            assert texts(data, tokenizer)[0][0] == expected

    def test_a_template_that_opens_the_turn_otherwise_when_it_is_to_be_written(self, tmp_path):
        tokenizer = tiny_tokenizer(template=CHAT.replace("<assistant>", "<assistant><think>"))
        row = triple([user("hi")], [assistant("good")], [assistant("bad")])
        data = read(jsonl, write(tmp_path / "a.jsonl", row), tokenizer)
        assert texts(data, tokenizer) == [self.EXPECTED]

    def test_a_template_that_does_not_write_eos(self, tmp_path):
        tokenizer = tiny_tokenizer(template=CHAT.replace("<eos>", "|"))
        row = triple([user("hi")], [assistant("good")], [assistant("bad")])
        data = read(jsonl, write(tmp_path / "a.jsonl", row), tokenizer)
        assert texts(data, tokenizer)[0][1] == "good|\n<eos>"

    def test_useless_rows_are_counted_by_reason(self, tmp_path):
        good = triple("hi", [assistant("good")], [assistant("bad")])
        path = write(
            tmp_path / "a.jsonl",
            good,
            triple("hi", [assistant(" ")], [assistant("bad")]),
            triple("hi", [user("hi")], [user("hi"), assistant("bad")]),
            triple("hi", [user("ho"), assistant("good")], [user("hi"), assistant("bad")]),
            {"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]},
            {"chosen": [user("a"), assistant("x")], "rejected": [user("a"), assistant("x")]},
        )
        data = read(jsonl, path, CHATTY)
        assert len(data) == 1
        assert data.dropped == {"empty response": 2, "differing prompt": 2, "chosen equal to rejected": 1}

    def test_plain_text_is_not_put_through_the_template(self, tmp_path):
        data = read(jsonl, write(tmp_path / "a.jsonl", triple("hi", "good", "bad")), CHATTY)
        assert texts(data, CHATTY) == [("hi", "good<eos>", "bad<eos>")]


class TestBadInput:
    @pytest.mark.parametrize(
        ("source", "name", "content", "message"),
        [
            (jsonl, "a.jsonl", b"", "a.jsonl[train]: no usable pair (it has no rows)"),
            (jsonl, "a.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "b"}',
             "a.jsonl[train]: no usable pair (1 x chosen equal to rejected)"),
            (jsonl, "a.jsonl", b'\n{"prompt": "a"',
             "a.jsonl, line 2: not valid JSON: Expecting ',' delimiter (column 15)"),
            (jsonl, "a.json", b'[{},\n{]', "a.json, line 2: not valid JSON: Expecting property name enclosed in double "
             "quotes (column 2)"),
            (jsonl, "a.jsonl", b'["a"]', 'a.jsonl, row 1: a row must be a JSON object, this is "a"'),
            (jsonl, "a.jsonl", b'{"chosen": "caf\xe9"}', "a.jsonl, line 1: not UTF-8 (byte 0xe9)"),
            (jsonl, "a.json", b'[\n{"chosen":\n"caf\xe9"}]', "a.json, line 3: not UTF-8 (byte 0xe9)"),
            (jsonl, "a.jsonl", b'{"question": "a", "answer": "b"}',
             "a.jsonl, line 1: needs the columns chosen and rejected, found question, answer"),
            (hh_rlhf, "a.jsonl", b'{"prompt": "a", "chosen": "b"}',
             "a.jsonl, line 1: needs the columns chosen and rejected, found prompt, chosen"),
            (jsonl, "a.jsonl", b'{"chosen": "a", "rejected": "b"}',
             "a.jsonl, line 1: needs a column prompt, found chosen, rejected "
             "(for dialogues 'Human: \xe2\x80\xa6 Assistant: \xe2\x80\xa6' "
             "that share their beginning, use data=hh_rlhf)"),
            (hh_rlhf, "a.jsonl", b'{"chosen": 1, "rejected": "b"}',
             "a.jsonl, line 1: column chosen must hold text, not int"),
            (jsonl, "a.jsonl", b'{"prompt": 1, "chosen": "a", "rejected": "b"}',
             "a.jsonl, line 1: column prompt must hold text, not int"),
            (jsonl, "a.jsonl", b'{"prompt": "a", "chosen": [], "rejected": "b"}',
             "a.jsonl, line 1: column chosen must hold text or chat messages, this is []"),
            (jsonl, "a.jsonl", b'{"prompt": "a", "chosen": [{"role": "user"}], "rejected": "b"}',
             "a.jsonl, line 1: column chosen: a chat message needs role and content as text: {'role': 'user'}"),
            (jsonl, "a.jsonl", b'{"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}',
             "a.jsonl, line 1: holds chat messages, and 'tiny' has no chat template"),
            (jsonl, "a.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n\n{"prompt": "d", "answer": "e"}',
             "a.jsonl, line 3: needs the columns chosen and rejected, found prompt, answer"),
            (jsonl, "a.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + b"x" * 2_000_000,
             "a.jsonl, line 2: longer than 1,000,000 bytes; a row is a JSON object on one line"),
            (jsonl, "a.jsonl.gz", gzip.compress(b"x" * 2_000_000),
             "a.jsonl.gz, line 1: longer than 1,000,000 bytes; a row is a JSON object on one line"),
            (jsonl, "a.txt", b"a", "a.txt: cannot tell its format from its name; known are .jsonl, .json, .jsonl.gz, "
             ".json.gz, .parquet, .csv, .arrow"),
            (jsonl, "a.jsonl.gz", b"{}", "a.jsonl.gz: cannot be read: Not a gzipped file (b'{}')"),
            (jsonl, "a.jsonl.gz", gzip.compress(b"{}" * 99)[:-9],
             "a.jsonl.gz: cannot be read: Compressed file ended before the end-of-stream marker was reached"),
        ],
    )  # fmt: skip
    def test_one_line_says_where_and_what(self, tmp_path, monkeypatch, source, name, content, message):
        monkeypatch.chdir(tmp_path)
        Path(name).write_bytes(content)
        with pytest.raises(BadInput) as caught:
            read(source, name)
        assert str(caught.value) == message.encode("latin-1").decode()

    @pytest.mark.parametrize("path", ["missing.jsonl", "./missing", "a/b/c", "/missing", "~/missing.parquet"])
    def test_a_file_that_is_not_there(self, tmp_path, monkeypatch, path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BadInput, match=f"^{path}: no such file$"):
            read(jsonl, path)

    def test_a_file_has_one_split(self, tmp_path):
        path = write(tmp_path / "a.jsonl", triple("a", "b", "c"))
        with pytest.raises(BadInput, match="a single file has one split, 'train'; split='test' is not there"):
            read(jsonl, path, split="test")

    def test_rows_of_text_and_of_messages_in_one_file(self, tmp_path):
        """Only the messages would get a chat template."""
        path = write(tmp_path / "a.jsonl", triple("a", "b", "c"), triple("a", [assistant("b")], [assistant("c")]))
        with pytest.raises(BadInput, match="line 2: holds chat messages, unlike the rows before it"):
            read(jsonl, path, CHATTY)

    def test_a_long_json_array_on_one_line_is_no_long_row(self, tmp_path):
        rows = [triple(str(i), "b" * 500, "c" * 500) for i in range(1000)]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        assert len(read(jsonl, str(tmp_path / "a.json"))) == 1000

    @pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-that-name/a.jsonl", "a\0b"])
    def test_a_path_that_cannot_be_one(self, tmp_path, monkeypatch, path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BadInput, match=r"cannot be read: |no such file$"):
            read(jsonl, path)

    def test_a_folder_that_is_empty(self, tmp_path):
        with pytest.raises(BadInput, match=r"\[train\]: cannot be read: "):
            read(jsonl, str(tmp_path))

    def test_a_split_without_rows(self, tmp_path):
        datasets.Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(BadInput, match=r"a.parquet\[train\]: no usable pair \(it has no rows\)"):
            read(jsonl, str(tmp_path / "a.parquet"))

    def test_wrong_columns_of_a_table_are_named_with_the_row(self, tmp_path):
        datasets.Dataset.from_list([{"question": "a", "answer": "b"}]).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(
            BadInput, match=r"a.parquet\[train\], row 1: needs the columns chosen and rejected, found qu"
        ):
            read(jsonl, str(tmp_path / "a.parquet"))

    def test_secrets_in_an_error_of_the_hub_are_not_repeated(self, tmp_path, monkeypatch):
        def load_dataset(name, **options):
            raise ConnectionError("403 for https://hub/a.parquet?Signature=s3cret&Key=k with token hf_abcDEF123")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(BadInput) as caught:
            read(hh_rlhf, "someone/pairs")
        assert str(caught.value) == (
            "someone/pairs[train]: cannot be read: 403 for https://hub/a.parquet?… with token hf_…"
        )

    def test_code_that_comes_with_a_data_set_is_not_run(self, tmp_path):
        (tmp_path / "pairs").mkdir()
        (tmp_path / "pairs" / "pairs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(BadInput, match="cannot be read"):
            read(jsonl, str(tmp_path / "pairs"))
        assert not (tmp_path / "ran").exists()

    def test_the_command_line_says_it_in_one_line_and_leaves_nothing(self, tmp_path, cli):
        (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
        done = cli("data=jsonl", "data.path=a.jsonl", "model=smollm2", "tracking=none", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr == ("margincall: a.jsonl, line 1: needs the columns chosen and rejected, found prompt\n")
        assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]

    def test_a_broken_table(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"no")
        with pytest.raises(BadInput, match=r"a.parquet\[train\]: cannot be read: Parquet file size is 2 bytes"):
            read(jsonl, str(tmp_path / "a.parquet"))

    def test_the_hub_out_of_reach(self, tmp_path, monkeypatch):
        def load_dataset(name, **options):
            raise ConnectionError("Couldn't reach\nthe hub")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(BadInput, match=r"^someone/pairs\[train\]: cannot be read: Couldn't reach the hub$"):
            read(hh_rlhf, "someone/pairs")

    def test_a_conversation_the_template_refuses(self, tmp_path):
        refusing = tiny_tokenizer(template="{{ raise_exception('roles must alternate') }}")
        path = write(tmp_path / "a.jsonl", triple("a", "b", [assistant("c")]))
        with pytest.raises(BadInput, match="line 1: the chat template refuses this conversation: roles must alternate"):
            read(jsonl, path, refusing)
