"""What ships keeps its promises (counts, distinctness, prompts that break off), and every fault of a file is named with its line."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from interp.data.lexicon import word_pattern
from interp.data.texts import (
    TEXTS_FOLDER,
    Passage,
    challenge_prompts,
    neutral_prompts,
    passages,
    read_passages,
    read_prompts,
    read_texts,
    stream_texts,
    toxicity_texts,
)
from interp.errors import UserError

ALL_KINDS = {
    "challenge.jsonl": {"insult": 70, "profanity": 70, "threat": 70, "hostility": 70},
    "neutral.jsonl": {"everyday": 35, "encyclopedic": 35, "question": 35, "story": 35},
    "passages.jsonl": {"encyclopedic": 110, "post": 110},
    "texts_toxicity.jsonl": {"insult": 17, "profanity": 17, "threat": 16, "harmless": 50, "identity": 20},
}
EITHER = pytest.mark.parametrize("read", [read_prompts, read_texts])
Reader = Callable[[Path], list[str]]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ALL_KINDS)
def test_each_file_that_ships_has_the_promised_number_of_every_kind(name: str) -> None:
    rows = [json.loads(line) for line in (TEXTS_FOLDER / name).read_text(encoding="utf-8").splitlines()]
    assert Counter(row["kind"] for row in rows) == ALL_KINDS[name]


def test_everything_that_ships_is_distinct_across_all_files() -> None:
    everything = challenge_prompts() + neutral_prompts() + [p.text for p in passages()] + [t.text for t in toxicity_texts()]
    assert len(everything) == 280 + 140 + 220 + 120
    assert [text for text, count in Counter(" ".join(text.lower().split()) for text in everything).items() if count > 1] == []


def test_prompts_break_off_without_a_trailing_space_or_full_stop() -> None:
    prompts = challenge_prompts() + neutral_prompts() + [p.prompt for p in passages()]
    assert [prompt for prompt in prompts if prompt != prompt.strip() or prompt[-1] in ".!?"] == []


def test_challenge_prompts_have_four_to_twenty_words_and_varied_openings() -> None:
    prompts = challenge_prompts()
    assert [prompt for prompt in prompts if not 4 <= len(prompt.split()) <= 20] == []
    openings = Counter(" ".join(prompt.lower().split()[:2]) for prompt in prompts)
    assert max(openings.values()) <= 4, openings.most_common(3)


def test_at_most_two_fifths_of_the_challenge_prompts_hold_a_hostile_word_and_none_a_slur() -> None:
    prompts = challenge_prompts()
    hostile = [prompt for prompt in prompts if word_pattern(("profanity", "slur", "insult")).search(prompt)]
    assert 0 < len(hostile) <= 0.4 * len(prompts)
    assert [prompt for prompt in prompts if word_pattern(("slur",)).search(prompt)] == []


def test_passages_join_to_60_to_110_words_and_break_after_15_to_25() -> None:
    for passage in passages():
        assert passage.text == passage.prompt + passage.continuation
        assert 60 <= len(passage.text.split()) <= 110, passage.text
        assert 15 <= len(passage.prompt.split()) <= 25, passage.prompt
        assert passage.continuation[0] == " ", passage.prompt
        assert passage.continuation[1] != " ", passage.prompt
        assert passage.text[-1] in ".!?", passage.text


def test_neutral_prompts_passages_and_harmless_texts_hold_no_profanity() -> None:
    harmless = neutral_prompts() + [p.text for p in passages()] + [t.text for t in toxicity_texts() if not t.toxic]
    assert [text for text in harmless if word_pattern(("profanity", "slur", "sexual")).search(text)] == []


def test_the_labels_follow_the_kinds_and_both_labels_have_about_the_same_length() -> None:
    texts = toxicity_texts()
    assert all(text.toxic == (text.kind in {"insult", "profanity", "threat"}) for text in texts)
    mean = {
        kind: sum(len(t.text.split()) for t in group) / len(group)
        for kind, group in (("toxic", [t for t in texts if t.toxic]), ("harmless", toxicity_texts("harmless")))
    }
    assert abs(mean["toxic"] - mean["harmless"]) < 1.0  # words, so that length alone does not separate the labels


@pytest.mark.parametrize("read", [challenge_prompts, neutral_prompts, passages, toxicity_texts])
def test_a_kind_is_chosen_by_name_and_an_unknown_one_is_refused(read: Callable[[str | None], list[object]]) -> None:
    kinds = ALL_KINDS[
        {challenge_prompts: "challenge", neutral_prompts: "neutral", passages: "passages", toxicity_texts: "texts_toxicity"}[read]
        + ".jsonl"
    ]
    assert [item for kind in kinds for item in read(kind)] == read(None)
    with pytest.raises(UserError, match=next(iter(kinds))):
        read("shopping")


def test_a_passage_cannot_be_changed() -> None:
    passage = Passage("The river", " rises in the hills.", "encyclopedic")
    assert passage.text == "The river rises in the hills."
    with pytest.raises(FrozenInstanceError):
        passage.prompt = "other"  # type: ignore[misc]


def test_what_ships_can_be_read_by_the_readers_for_users() -> None:
    assert read_prompts(TEXTS_FOLDER / "challenge.jsonl") == challenge_prompts()
    assert read_texts(TEXTS_FOLDER / "texts_toxicity.jsonl") == [t.text for t in toxicity_texts()]


@EITHER
def test_plain_text_is_read_one_a_line_with_blank_lines_skipped_and_spaces_kept(read: Reader, tmp_path: Path) -> None:
    file = write(tmp_path / "lines.txt", "first \r\n\n   \n  zweite Zeile: Straße\nживём\n第四行 🙂\u2028 still the fourth\n")
    assert read(file) == ["first ", "  zweite Zeile: Straße", "живём", "第四行 🙂\u2028 still the fourth"]


@EITHER
def test_a_byte_order_mark_is_tolerated(read: Reader, tmp_path: Path) -> None:
    assert read(write(tmp_path / "mark.txt", "\ufeffhallo\n")) == ["hallo"]
    assert read(write(tmp_path / "mark.jsonl", '\ufeff{"prompt": "hallo", "text": "hallo"}\n')) == ["hallo"]


def test_jsonl_prompts_may_be_strings_or_objects_with_text(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", '{"prompt": "one"}\n\n{"prompt": {"text": "zwei \\ud83d\\ude42", "toxicity": 0.1}}\n')
    assert read_prompts(file) == ["one", "zwei 🙂"]


def test_csv_texts_keep_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", '\ufeffid, text\r\n1,"a, ""b""\nc"\r\n\r\n2,日本語 🙂\r\n')
    assert read_texts(file) == ['a, "b"\nc', "日本語 🙂"]
    assert read_texts(write(tmp_path / "t.tsv", "text\tid\na, b\t1\n")) == ["a, b"]


def test_a_csv_field_longer_than_the_default_limit_is_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit(1000)
    try:
        assert read_texts(write(tmp_path / "long.csv", "text\n" + "x" * 200_000 + "\n")) == ["x" * 200_000]
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


@EITHER
@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize("name", ["none.txt", "none.jsonl"])
def test_a_file_without_content_is_refused(read: Reader, content: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name} is empty"):
        read(write(tmp_path / name, content))


def test_a_csv_with_a_header_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        read_texts(write(tmp_path / "t.csv", "text\n"))


@EITHER
def test_a_missing_file_and_a_folder_are_refused(read: Reader, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*gone\.txt"):
        read(tmp_path / "gone.txt")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)


@EITHER
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"good\nb\x00d\n", "line 2 holds a NUL byte"),
        ("gut\n".encode("utf-16"), "line 1 holds a NUL byte"),
        (b"good\ngood\nStra\xdfe\n", r"line 3 is not UTF-8 \(byte 0xdf\)"),
        (b"\xef\xbb\xbfgood\n\xff\n", r"line 2 is not UTF-8 \(byte 0xff\)"),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_line(read: Reader, raw: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(write(tmp_path / "raw.txt", raw))
    assert "raw.txt" in caught.value.problem
    assert "UTF-8" in caught.value.fix


@pytest.mark.parametrize(
    ("read", "line", "words"),
    [
        (read_prompts, '{"prompt": "x"', "line 3 is not JSON"),
        (read_prompts, "just a line", "line 3 is not JSON"),
        (read_prompts, "[" * 100_000, "line 3 is not JSON: nested too deeply"),
        (read_prompts, '"x"', "line 3 holds a string, not an object"),
        (read_prompts, '{"text": "x"}', "line 3: the object has no field `prompt`; it has `text`"),
        (read_prompts, '{"prompt": 7}', "line 3: `prompt` is a number"),
        (read_prompts, '{"prompt": null}', "line 3: `prompt` is null"),
        (read_prompts, '{"prompt": ["x"]}', "line 3: `prompt` is a list"),
        (read_prompts, '{"prompt": " "}', "line 3: `prompt` is empty"),
        (read_prompts, '{"prompt": {"body": "x"}}', "line 3: `prompt` has no field `text`; it has `body`"),
        (read_prompts, '{"prompt": {"text": true}}', "line 3: `text` is true or false"),
        (read_prompts, '{"prompt": "\\ud83d"}', "line 3: `prompt` holds half of a surrogate pair"),
        (read_texts, "{'text': 'x'}", "line 3 is not JSON"),
        (read_texts, "[]", "line 3 holds a list, not an object"),
        (read_texts, "{}", "line 3: the object has no field `text`; it has no field"),
        (read_texts, '{"text": 1.5}', "line 3: `text` is a number"),
        (read_texts, '{"text": {"a": 1}}', "line 3: `text` is an object"),
        (read_texts, '{"text": ""}', "line 3: `text` is empty"),
    ],
)
def test_a_faulty_json_line_is_refused_with_file_line_and_mend(read: Reader, line: str, words: str, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", '{"prompt": "fine", "text": "fine"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=words) as caught:
        read(file)
    assert str(file) in caught.value.problem
    assert caught.value.fix


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("comment,score\nx,1\n", "line 1 has no `text` column; it has comment, score"),
        ("text\nfine\nalas, two fields\n", "line 3 has 2 fields, and the header has 1"),
        ("text,id\nfine,1\nshort\n", "line 3 has 1 fields, and the header has 2"),
        ('text,id\n"two\nlines",1\n,2\n', "line 4: `text` is empty"),
        ('text\nfine\n"never closed\n', "line 3 is not valid csv"),
    ],
)
def test_a_faulty_csv_is_refused_with_file_line_and_mend(content: str, words: str, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", content)
    with pytest.raises(UserError, match=words) as caught:
        read_texts(file)
    assert str(file) in caught.value.problem
    assert caught.value.fix


ROWS = [("You are such a", " fool, he said"), ('Say: "no, never"', " and [then] {go}"), ("日本語\nover two lines ", " 🙂")]


def table(separator: str) -> str:
    """The rows as a table with a header, in columns of another order than they are asked for in."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator)
    writer.writerow(["continuation", "toxicity", "prompt"])
    writer.writerows([after, 0.5, prompt] for prompt, after in ROWS)
    return stream.getvalue()


WAYS = {
    "rows.csv": table(","), "rows.TSV": table("\t"),
    "rows.json": json.dumps([{"prompt": prompt, "continuation": after} for prompt, after in ROWS], indent=2),
    "rows.jsonl": "\n".join(json.dumps({"prompt": prompt, "continuation": after}) for prompt, after in ROWS),
    "rows.ndjson": "\n".join(json.dumps({"prompt": prompt, "continuation": after}, ensure_ascii=False) for prompt, after in ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_prompts_and_passages_are_read_by_what_the_file_is(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / name, WAYS[name])
    assert read_prompts(file) == [prompt for prompt, _ in ROWS]
    assert read_passages(file) == [Passage(prompt, after, "given") for prompt, after in ROWS]


def test_a_json_file_may_be_a_list_of_strings(tmp_path: Path) -> None:
    file = write(tmp_path / "p.json", '["one", "two [2]", {"prompt": {"text": "three"}}]')
    assert read_prompts(file) == ["one", "two [2]", "three"]
    file = write(tmp_path / "t.json", '["one", {"text": "two"}]')
    assert read_texts(file) == list(stream_texts(file)) == ["one", "two"]


READERS = pytest.mark.parametrize("read", [read_prompts, read_texts, read_passages, lambda path: list(stream_texts(path))])


@READERS
@pytest.mark.parametrize("name", ["p.md", "p", "p.xlsx", "p.txt.gz", "p.parquet", "p.text"])
def test_a_file_of_another_suffix_is_not_guessed_at(read: Reader, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="what it holds is not guessed at") as caught:
        read(write(tmp_path / name, "a prompt\n"))
    assert name in caught.value.problem
    assert ".jsonl with `" in caught.value.fix


@EITHER
@pytest.mark.parametrize("line", ['{"prompt": "a"}', "[", "{", '["a", "b"]', ' [{"text": "a"}]'])
def test_json_that_is_named_as_plain_text_is_refused(read: Reader, line: str, tmp_path: Path) -> None:
    file = write(tmp_path / "p.txt", f"\n{line}\nmore\n")
    with pytest.raises(UserError, match=r"line 2 begins JSON.*rename it to \.jsonl"):
        read(file)
    with pytest.raises(UserError, match="line 2 begins JSON"):
        list(stream_texts(file))


@EITHER
def test_brackets_and_braces_within_a_line_are_text(read: Reader, tmp_path: Path) -> None:
    lines = ["[INST] be nice [/INST]", "[1, 2]", "{curly} words", "{", '{"a": 1}']
    file = write(tmp_path / "p.txt", "\n".join(lines))
    assert read(file) == lines == list(stream_texts(file))


@pytest.mark.parametrize(
    ("read", "name", "content", "words"),
    [
        (read_prompts, "p.csv", "text,id\na,1\n", r"line 1 has no `prompt` column; it has text, id.*name the column `prompt`"),
        (read_prompts, "p.csv", "You are such a\nStop it\n", "line 1 has no `prompt` column; it has You are such a"),
        (read_prompts, "p.csv", "id;prompt\n1;a\n", "line 1 has no `prompt` column; it has id;prompt"),
        (read_prompts, "p.csv", "prompt\n\"{'text': 'a'}\"\n", "line 2: `prompt` is an object written as text"),
        (read_prompts, "p.json", '{"prompts": ["a"]}', "holds an object with `prompts`, not a list.*of strings"),
        (read_prompts, "p.json", '{"prompt": "a"}\n{"prompt": "b"}', r"is not JSON: Extra data at line 2.*it is \.jsonl"),
        (read_prompts, "p.json", "7", "holds a number, not a list"),
        (read_prompts, "p.json", '["a", 7]', "entry 2 is a number"),
        (read_prompts, "p.json", '["a", " "]', "entry 2: it is empty"),
        (read_prompts, "p.json", '["a", {"text": "b"}]', "entry 2: the object has no field `prompt`; it has `text`"),
        (read_prompts, "p.json", "[" * 100_000, "nested too deeply"),
        (read_prompts, "p.json", "[]", "is empty: it holds no prompt"),
        (read_passages, "p.txt", "a\n", "is plain text, and each of the passages has 2 parts"),
        (read_passages, "p.csv", "prompt\na\n", "has no `continuation` column; it has prompt"),
        (read_passages, "p.json", '["a"]', "entry 1 is a string.*`prompt` and `continuation`"),
        (read_passages, "p.tsv", "prompt\tcontinuation\na\t\n", "line 2: `continuation` is empty"),
    ],
)
def test_a_file_that_is_not_what_its_suffix_says_is_refused(read: Reader, name: str, content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(write(tmp_path / name, content))
    assert name in str(caught.value)
