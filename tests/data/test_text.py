"""From text to pairs of token ids: what is split where, what is dropped and counted, what is refused and how."""

import gzip
import json
from pathlib import Path

import datasets
import pytest

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
        assert asked == [("someone/pairs", {"split": "dev"})]


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
