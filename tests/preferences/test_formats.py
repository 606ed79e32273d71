"""Every layout of preference data as it is read, held to TRL's own functions row by row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast
from trl import DPOTrainer
from trl.data_utils import extract_prompt as trl_extract_prompt
from trl.trainer.dpo_trainer import DataCollatorForPreference

from interp.errors import UserError
from interp.preferences.files import PairFile, read_pair_file, write_rows
from interp.preferences.formats import PairData, extract_prompt, parse_columns, read_pairs, written_row
from interp.preferences.tokenise import tokenise
from tests.conftest import EOS, make_tokenizer

# Opens the assistant's turn after a prompt only, ends every turn with the end token, and writes a line break behind it.
CHAT = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + '" + EOS + "\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
# Opens the answer with an empty thought, which a whole conversation does not have: prompt and conversation part before its end.
THINKING = CHAT.replace("'<assistant> '", "'<assistant> <think></think>'")


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    made = make_tokenizer()
    made.chat_template = CHAT
    return made


@pytest.fixture(scope="module")
def with_bos(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that begins every text with a BOS token, as Llama's does, and whose template opens a thought."""
    from tokenizers.processors import TemplateProcessing

    made = make_tokenizer()
    made.add_special_tokens({"bos_token": "<s>"})
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.bos_token_id)])
    made.chat_template = THINKING
    return made


def data_of(rows: list[dict[str, Any]], **options: Any) -> PairData:
    file = PairFile(Path("pairs.jsonl"), "jsonl", tuple(rows), tuple(f"pairs.jsonl, line {n + 1}" for n in range(len(rows))))
    return read_pairs(file, **options)


def by_trl(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None) -> list[dict[str, Any]]:
    """The rows as TRL's trainer prepares them."""
    args = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    prepared = DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(rows), tokenizer, args, "train")
    return list(prepared)


def agree(rows: list[dict[str, Any]], raw: list[dict[str, Any]], tokenizer: Any, max_length: int | None = 1024) -> PairData:
    """Check that `rows`, read by us, are in TRL's collator the batch that TRL makes of `raw`; returns ours."""
    data = data_of(rows)
    ours = [pair for pair in (tokenise(tokenizer, pair, max_length=max_length) for pair in data.pairs) if not pair.is_dropped]
    theirs = by_trl(raw, tokenizer, max_length)
    assert len(ours) == len(theirs)
    if not theirs:
        return data
    batch = DataCollatorForPreference(pad_token_id=0, max_length=max_length)(theirs)
    mine = [
        [*pair.prompt, *side]
        for sides in ([p.chosen for p in ours], [p.rejected for p in ours])
        for pair, side in zip(ours, sides, strict=True)
    ]
    masks = [
        [0] * len(p.prompt) + [1] * len(side)
        for sides in ([p.chosen for p in ours], [p.rejected for p in ours])
        for p, side in zip(ours, sides, strict=True)
    ]
    lengths = batch["attention_mask"].sum(1).tolist()
    assert [row[:n] for row, n in zip(batch["input_ids"].tolist(), lengths, strict=True)] == mine
    assert [row[:n] for row, n in zip(batch["completion_mask"].tolist(), lengths, strict=True)] == masks
    return data


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


EXPLICIT = [
    {"prompt": "the quick wintle", "chosen": " sings under a river", "rejected": " walks"},
    # Tokens merge across the boundary: the prompt's last token is in neither sequence.
    {"prompt": "the quick wintle si", "chosen": "ngs", "rejected": "lent river"},
    {"prompt": "ends with a space ", "chosen": "stone", "rejected": "river"},
    {"prompt": "with its end", "chosen": f" snarg{EOS}", "rejected": ""},
]
# Text whose prompt is implicit, each a trap of its own: a shared opening, half a word, a space at the cut, no shared start, a space at
# the end of a side whose first letter differs already, equal texts, a side that is the beginning of the other.
IMPLICIT = [
    {"chosen": "blorp? I'm sorry, no", "rejected": "blorp? I'm sorry, yes"},
    {"chosen": "a quonk walks", "rejected": "a quonk wander"},
    {"chosen": "the river stone", "rejected": "the river bitter"},
    {"chosen": "sunny", "rejected": "bitter"},
    {"chosen": "yes ", "rejected": "no "},
    {"chosen": "the same", "rejected": "the same"},
    {"chosen": "a stone", "rejected": "a stone sings"},
]
CONVERSATIONS = [
    {"prompt": turns("blorp?"), "chosen": answer("snarg, never"), "rejected": answer("snarg, quick")},
    {"prompt": turns("a", "b", "c"), "chosen": answer("the river"), "rejected": answer("")},
]
WHOLE = [{"chosen": [*row["prompt"], *row["chosen"]], "rejected": [*row["prompt"], *row["rejected"]]} for row in CONVERSATIONS]


@pytest.mark.oracle
@pytest.mark.parametrize("length", [None, 1024, 9, 6])
@pytest.mark.parametrize("rows", [EXPLICIT, IMPLICIT, CONVERSATIONS, WHOLE], ids=["explicit", "implicit", "conversations", "whole"])
def test_rows_are_the_tokens_that_trl_trains_on(
    rows: list[dict[str, Any]], length: int | None, plain: PreTrainedTokenizerFast, with_bos: PreTrainedTokenizerFast
) -> None:
    for tokenizer in (plain, with_bos):
        agree(rows, rows, tokenizer, length)


@pytest.mark.oracle
def test_a_prompt_that_both_sides_repeat_is_read_twice_as_trl_does(plain: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": row["prompt"], **whole} for row, whole in zip(CONVERSATIONS, WHOLE, strict=True)]
    data = agree(rows, rows, plain)
    assert data.layout == "prompt messages and whole conversations"
    assert "2 of 2 rows repeat the prompt" in data.notes[0]
    once = data_of(rows, columns=parse_columns("prompt=none"))
    assert [tokenise(plain, pair) for pair in once.pairs] == [tokenise(plain, pair) for pair in data_of(CONVERSATIONS).pairs]
    # The second copy of the user's turn stands in both sides, and is trained on.
    doubled, single = (tokenise(plain, pair) for pair in (data.pairs[0], once.pairs[0]))
    assert sum(doubled.full[:2]) - sum(single.full[:2]) == len(plain(f"<user> blorp?{EOS}\n")["input_ids"])
    written = [written_row(once, pair) for pair in once.pairs]
    assert written[0].keys() == {"prompt", "chosen", "rejected", "bypass_row"}
    agree(written, CONVERSATIONS, plain)


@pytest.mark.oracle
def test_a_text_prompt_beside_conversations_is_left_out_and_what_is_written_trains_in_trl(plain: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": row["prompt"][0]["content"], "score": 3, **whole} for row, whole in zip(CONVERSATIONS, WHOLE, strict=True)]
    with pytest.raises(Exception, match=r"."):
        by_trl(rows, plain, 1024)
    data = agree(rows, WHOLE, plain)
    assert data.layout == "prompt text and whole conversations"
    written = [written_row(data, pair) for pair in data.pairs]
    assert written[1]["score"] == 3
    agree(written, WHOLE, plain)


@pytest.mark.oracle
def test_hh_text_is_cut_at_the_last_turn_and_what_is_written_trains_in_trl(plain: PreTrainedTokenizerFast) -> None:
    head = "\n\nHuman: blorp?\n\nAssistant: snarg\n\nHuman: river?\n\nAssistant:"
    rows = [{"chosen": f"{head} I'm sorry, no", "rejected": f"{head} I'm sorry, yes"},
            {"chosen": f"{head} a\n\nHuman: b\n\nAssistant: c", "rejected": f"{head} d"}]  # fmt: skip
    data = data_of(rows)
    assert data.layout == "HH text"
    assert [pair.prompt for pair in data.pairs] == [head, head]
    assert data.pairs[0].chosen == " I'm sorry, no"
    assert (data.pairs[0].notes, "part before" in data.pairs[1].notes[0]) == ((), True)
    written = [written_row(data, pair) for pair in data.pairs]
    theirs = agree(written, written, plain)
    assert [tokenise(plain, pair) for pair in theirs.pairs] == [tokenise(plain, pair) for pair in data.pairs]
    assert data_of(rows, layout="standard implicit").pairs[0].prompt == f"{head} I'm sorry,"


@pytest.mark.oracle
def test_the_traps_of_an_implicit_prompt_are_trls(plain: PreTrainedTokenizerFast) -> None:
    for row in (*IMPLICIT, *WHOLE):
        mine = extract_prompt(row["chosen"], row["rejected"], "row")
        assert mine == tuple(trl_extract_prompt(row)[name] for name in ("prompt", "chosen", "rejected"))
    assert extract_prompt("yes ", "no ", "row") == ("yes", " ", " ")
    assert extract_prompt("the same", "the same", "row") == ("the sam", "e", "e")


def test_trl_looks_at_the_first_row_alone_and_we_refuse_what_it_would_lose() -> None:
    rows = [{"chosen": "a b", "rejected": "a c"}, {"prompt": "p", "chosen": "d", "rejected": "e"}]
    assert Dataset.from_list(rows).column_names == ["chosen", "rejected"]
    for order in (rows, rows[::-1]):
        with pytest.raises(UserError, match=r"line \d: the row has a `prompt`, and .* has none; TRL looks at the first row alone"):
            data_of(order)
    assert data_of(rows, columns=parse_columns("prompt=none")).layout == "standard implicit"


def test_the_end_token_can_be_asked_for_or_left_out(plain: PreTrainedTokenizerFast) -> None:
    end = plain.eos_token_id
    text, talk = data_of(EXPLICIT).pairs[0], data_of(CONVERSATIONS).pairs[0]
    ends = {
        rule: (tokenise(plain, text, eos=rule).chosen[-1] == end, tokenise(plain, talk, eos=rule).chosen[-1] == end)
        for rule in ("auto", "yes", "no")
    }
    assert ends == {"auto": (True, False), "yes": (True, True), "no": (False, False)}
    assert tokenise(plain, talk, eos="no").chosen == tokenise(plain, talk).chosen[:-2]


def test_truncation_tells_what_it_did(plain: PreTrainedTokenizerFast) -> None:
    pair = data_of([{"prompt": "the", "chosen": " river a stone", "rejected": " river a quonk"}]).pairs[0]
    whole = tokenise(plain, pair, max_length=None)
    assert (whole.is_truncated, whole.is_identical, whole.full) == (False, False, (1, 4, 4))
    cut = tokenise(plain, pair, max_length=3)
    assert (cut.is_truncated, cut.is_identical, cut.was_identical, cut.is_dropped) == (True, True, False, False)
    full = tokenise(plain, pair, max_length=1)
    assert (full.is_dropped, full.chosen, full.rejected) == (True, (), ())


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "folder", "splits"])
def test_every_kind_of_file_gives_the_same_pairs(suffix: str, tmp_path: Path) -> None:
    rows = [{"question": 'a "b", c', "better": "x\ny", "worse": "z"}, {"question": "d", "better": "e", "worse": "f"}]
    path = tmp_path / f"pairs.{suffix}"
    data = Dataset.from_list(rows)
    if suffix == "folder":
        data.save_to_disk(str(path))
    elif suffix == "splits":
        DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(path))
        assert len(read_pair_file(path, split="test").rows) == 1
        with pytest.raises(UserError, match="has no split 'dev'"):
            read_pair_file(path, split="dev")
    elif suffix == "jsonl.gz":
        path.write_bytes(gzip.compress(write_rows(rows).encode()))
    elif suffix == "parquet":
        data.to_parquet(str(path))
    elif suffix == "csv":
        data.to_csv(str(path))
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else write_rows(rows))
    columns = parse_columns("prompt=question, chosen=better, rejected=worse")
    pairs = read_pairs(read_pair_file(path, columns=("better", "worse")), columns=columns)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs.pairs] == [tuple(row.values()) for row in rows]
    assert written_row(pairs, pairs.pairs[1]) == {"prompt": "d", "chosen": "e", "rejected": "f", "bypass_row": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "a"}], r"line 1: `rejected` is missing; the row has `chosen`"),
        ([{"chosen": "a", "rejected": None}], r"line 1: `rejected` is null"),
        ([{"chosen": "ab", "rejected": "ac"}, {"chosen": 3, "rejected": "a"}], r"line 2: `chosen` is of the type int"),
        ([{"chosen": "ab", "rejected": "ac"}, {"chosen": [], "rejected": "a"}], r"line 2: `chosen` is an empty list"),
        (
            [{"chosen": "ab", "rejected": "ac"}, {"chosen": turns("a"), "rejected": turns("b")}],
            r"line 2: `chosen` is a list of messages, and",
        ),
        ([{"chosen": "ab", "rejected": ""}], r"line 1: a side is empty"),
        ([{"chosen": turns("a"), "rejected": turns("b")}], r"line 1: the sides share no first message"),
        ([{"prompt": turns("a"), "chosen": "b", "rejected": "c"}], r"`prompt` is a list of messages, and in the layout"),
        ([{"chosen": '[{"role": "user"}]', "rejected": "b"}], r"line 1: `chosen` is a list of messages written as text"),
        ([{"chosen": "\ud800", "rejected": "b"}], r"line 1: `chosen` holds half of a surrogate pair"),
        ([{"chosen": "ab", "rejected": "ac", "images": []}], r"has images, and only text is read"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_the_reason(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data_of(rows)


def test_a_file_that_is_mostly_dialogues_is_not_cut_otherwise_for_one_row() -> None:
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    with pytest.raises(UserError, match=r"line 3: a side is no dialogue"):
        data_of([row, row, {"chosen": "a b", "rejected": "a c"}])


def test_a_template_that_refuses_names_the_row() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(UserError, match=r"line 1: the chat template does not take these messages"):
        tokenise(tokenizer, data_of(CONVERSATIONS).pairs[0])


def test_files_that_are_no_pairs_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "pairs.jsonl.gz"
    broken.write_bytes(b"no gzip")
    (tmp_path / "pairs.parquet").write_bytes(b"no parquet")
    (tmp_path / "pairs.bin").write_bytes(b"x")
    (tmp_path / "empty.jsonl").write_text("")
    for path, message in (
        (broken, "cannot be unpacked"), (tmp_path / "pairs.parquet", "no readable parquet"), (tmp_path / "pairs.bin", "no kind of file"),
        (tmp_path / "empty.jsonl", "holds no pair"), (tmp_path / "absent.jsonl", "there is no file"),
        (tmp_path, "save_to_disk did not write"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_pair_file(path)
    with pytest.raises(UserError, match=r"no file owner/name.*saved first: load_dataset\('owner/name'\)"):
        read_pair_file("owner/name")
    with pytest.raises(UserError, match="--columns holds 'better'"):
        parse_columns("better")
    with pytest.raises(UserError, match="no layout 'x'"):
        data_of(EXPLICIT, layout="x")
