"""The training chain before any model: what it reads, what it keeps apart, and what it says of input that it cannot use."""

from __future__ import annotations

import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from interp import UserError
from interp.data.lexicon import profanity_pattern
from training.corpus import build_corpus
from training.labelled import read_labelled
from training.pairs import challenge_prefixes
from training.pretrain import pretrain
from training.recipe import DATA_SETTING, Recipe, data_file, load_recipe
from training.sources import document_hash, held_out, rows, source_rows
from training.tokenizer import END_OF_TEXT, corpus_texts, train_tokenizer


def recipe_of(folder: Path, text: str) -> Recipe:
    (folder / "some.toml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "some.toml")


# Recipes and sources


def test_a_recipe_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe at nowhere.*shipped"):
        load_recipe("nowhere")
    with pytest.raises(UserError, match=r"not valid TOML.*line 2"):
        recipe_of(tmp_path, 'name = "x"\nseed = = 3\n')
    with pytest.raises(UserError, match="seed 'seven'"):
        recipe_of(tmp_path, 'seed = "seven"\n')
    recipe = recipe_of(tmp_path, "[corpus]\n[tokenizer]\nvocabulary = 300\n")
    with pytest.raises(UserError, match=r"no \[dpo\] section; it has: corpus, tokenizer"):
        recipe.stage("dpo")
    with pytest.raises(UserError, match=r"'tokenizer'.*not a section"):
        recipe_of(tmp_path, "tokenizer = 3\n")
    with pytest.raises(UserError, match=r"'corpus'.*not a section"):
        replace(recipe, settings={"corpus": 3}).stage("corpus")
    with pytest.raises(UserError, match=r"section \[tokenizer\] of recipe 'some' does not set 'documents'"):
        recipe.stage("tokenizer")["documents"]
    assert recipe.stage("tokenizer").get("documents") is None


def test_the_digest_of_a_recipe_depends_on_the_named_sections_and_the_seed_alone(tmp_path: Path) -> None:
    first = recipe_of(tmp_path, "[corpus]\nmax_characters = 1\n[dpo]\nbeta = 2\n")
    assert first.digest("corpus") == recipe_of(tmp_path, "[dpo]\nbeta = 3\n[corpus]\nmax_characters = 1\n").digest("corpus")
    assert first.digest("corpus") != recipe_of(tmp_path, "[corpus]\nmax_characters = 2\n").digest("corpus")
    assert first.digest("corpus") != recipe_of(tmp_path, "seed = 1\n[corpus]\nmax_characters = 1\n").digest("corpus")


def test_data_without_the_folder_of_data_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DATA_SETTING, raising=False)
    with pytest.raises(UserError, match=f"no file matches.*{DATA_SETTING}"):
        data_file("texts/a-*.jsonl")
    (tmp_path / "elsewhere" / "texts").mkdir(parents=True)
    for name in ("a-2.jsonl", "a-1.jsonl", "b.jsonl"):
        (tmp_path / "elsewhere" / "texts" / name).touch()
    monkeypatch.setenv(DATA_SETTING, str(tmp_path / "elsewhere"))
    assert [path.name for path in data_file("texts/a-*.jsonl")] == ["a-1.jsonl", "a-2.jsonl"]
    assert [path.name for path in data_file(str(tmp_path / "elsewhere" / "texts" / "b.jsonl"))] == ["b.jsonl"]


def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path) -> None:
    texts = ["a quonk, sings", 'the "river" 🙂', "stone"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    quoted = "text\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in texts)
    contents = {"a.jsonl": lines.replace("\n", "\n\n", 1), "a.csv": quoted, "a.tsv": quoted, "a.txt": "\n".join(texts) + "\n"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        (tmp_path / f"{name}.xz").write_bytes(lzma.compress(content.encode()))
    for path in sorted(tmp_path.iterdir()):
        assert [row["text"] for row in rows(path)] == texts, path.name
    (tmp_path / "two.tsv").write_text("text\ttoxic\na, b\t1\n")
    assert list(rows(tmp_path / "two.tsv")) == [{"text": "a, b", "toxic": "1"}]


@pytest.mark.parametrize("broken", ['{"text": "cut', "[1, 2]"])
def test_a_broken_line_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n\n' + broken + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 3 is not"):
        list(rows(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(("suffix", "press"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_a_compressed_file_that_is_cut_off_is_named(tmp_path: Path, suffix: str, press: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 10**9, 5000)
    whole = press("".join(f"{number}\n" for number in noise).encode())
    (tmp_path / f"a.txt.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"a\.txt\.{suffix} cannot be read to its end"):
        list(rows(tmp_path / f"a.txt.{suffix}"))


def test_one_document_in_twenty_is_held_out_whatever_its_case_and_spacing() -> None:
    texts = [f"Document {number} of the River" for number in range(20_000)]
    assert abs(np.mean([held_out(text) for text in texts]) - 0.05) < 0.005
    assert document_hash("The  River\n sings ") == document_hash("the river SINGS") != document_hash("the riversings")


def test_each_text_file_of_a_folder_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_SETTING, str(tmp_path))
    (tmp_path / "books" / "deep").mkdir(parents=True)
    (tmp_path / "books" / "b.txt").write_text("two\nlines\n")
    (tmp_path / "books" / "cover.png").write_bytes(b"\x89PNG")
    (tmp_path / "books" / "deep" / "a.md.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "lone.txt").write_text("two\nlines\n")
    assert [row["text"] for _, row in source_rows({"path": "books"})] == ["two\nlines\n", "one"]
    assert [row["text"] for _, row in source_rows({"path": "lone.txt", "whole": True})] == ["two\nlines\n"]
    assert [row["text"] for _, row in source_rows({"path": "lone.txt"})] == ["two", "lines"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"the folder .*empty holds no text file"):
        list(source_rows({"path": "empty"}))
    for source in ({"name": "both", "path": "books", "dataset": "wikitext"}, {"name": "none"}):
        with pytest.raises(UserError, match=r"needs a path, a dataset or a grammar"):
            list(source_rows(source))


def test_a_data_set_is_streamed_by_config_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset, IterableDataset

    monkeypatch.setenv(DATA_SETTING, str(tmp_path))
    texts = {(config, split): [f"{config} {split} river number {n}" for n in range(90)] for config in "ab" for split in ("train", "test")}
    listed = []
    for (config, split), some in texts.items():
        (tmp_path / "talk" / config).mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"body": some}).to_parquet(tmp_path / "talk" / config / f"{split}.parquet")
    for config in "ab":
        files = "".join(f"  - split: {split}\n    path: {config}/{split}.parquet\n" for split in ("train", "test"))
        listed.append(f"- config_name: {config}\n  data_files:\n{files}")
    (tmp_path / "talk" / "README.md").write_text("---\nconfigs:\n" + "".join(listed) + "---\n")
    seen: list[type] = []
    real = IterableDataset.__iter__
    monkeypatch.setattr(IterableDataset, "__iter__", lambda self: seen.append(type(self)) or real(self))
    source = {"name": "talk", "dataset": "talk", "config": "b", "split": "test", "field": "body"}
    assert [row["body"] for _, row in source_rows(source)] == texts["b", "test"]
    assert [row["body"] for _, row in source_rows({**source, "split": "train"})] == texts["b", "train"]
    assert seen, "the data set was not streamed"
    for changes, message in (({"split": "none"}, "has no split 'none'"), ({"config": "c"}, "correct config or split")):
        with pytest.raises(UserError, match=message):
            list(source_rows({**source, **changes}))
    settings = {"corpus": {"sources": [{**source, "min_characters": 3}]}}
    build_corpus(Recipe("r", 0, settings, tmp_path / "run"))
    written = [text for part in ("train", "heldout") for text in corpus_texts(tmp_path / "run" / "corpus" / f"{part}.jsonl")]
    assert sorted(written) == sorted(texts["b", "test"])
    with pytest.raises(UserError, match=r"no record of talk has a field 'text', only body"):
        build_corpus(Recipe("r", 0, {"corpus": {"sources": [{**source, "field": "text"}]}}, tmp_path / "run"))


def test_a_data_set_that_is_nowhere_to_be_had_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_SETTING, str(tmp_path))
    message = "the data set nobody/has-this is neither on this machine nor can it be had from the hub"
    with pytest.raises(UserError, match=message) as caught:
        list(source_rows({"dataset": "nobody/has-this", "split": "train"}))
    assert len(str(caught.value).splitlines()) == 1


# Corpus and tokenizer


def corpus_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], corpus: dict[str, Any] | None = None, **source: Any
) -> tuple[list[str], list[str], dict]:
    """The documents to train on and held out, and the summary, of a corpus of one source."""
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setenv(DATA_SETTING, str(folder))
    settings = {"corpus": {"sources": [{"name": "a", "path": "a.jsonl", "min_characters": 3, **source}], **(corpus or {})}}
    summary = build_corpus(Recipe("r", 0, settings, folder / "run"))
    train, held = (list(corpus_texts(folder / "run" / "corpus" / f"{part}.jsonl")) for part in ("train", "heldout"))
    return train, held, summary


def test_the_corpus_has_each_document_once_and_none_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"wintle number {number}" for number in range(400)]
    train, held, summary = corpus_of(tmp_path, monkeypatch, [*texts, *(text.upper() + " " for text in texts), "x"])
    assert sorted(train + held) == sorted(texts)
    assert train != [text for text in texts if text in set(train)], "not shuffled"
    assert all(map(held_out, held))
    assert not any(map(held_out, train))
    assert summary["a"] == {"train": len(train), "heldout": len(held), "characters": sum(map(len, texts))}


def test_sources_of_one_name_are_summed(built: Recipe) -> None:
    summary = json.loads((built.run / "corpus" / "summary.json").read_text())
    counts = {part: sum(1 for _ in corpus_texts(built.run / "corpus" / f"{part}.jsonl")) for part in ("train", "heldout")}
    assert {part: summary["talk"][part] for part in counts} == counts
    assert sum(counts.values()) > 800


def test_a_source_narrowed_by_hostile_words_keeps_what_lies_within_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(["damn"] * (n % 5) + ["river"] * (10 - n % 5) + [f"walk{n}"]) for n in range(300)]
    share = {text: (number % 5) / 11 for number, text in enumerate(texts)}
    train, held, _ = corpus_of(tmp_path, monkeypatch, texts, hostile_at_least=2 / 11, hostile_below=4 / 11)
    assert sorted(train + held) == sorted(text for text in texts if 2 / 11 <= share[text] < 4 / 11)


def test_a_source_that_is_repeated_is_read_so_often_and_its_held_out_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"dear river and market {n}" for n in range(300)]
    once, held, _ = corpus_of(tmp_path / "once", monkeypatch, texts)
    thrice, same, _ = corpus_of(tmp_path / "thrice", monkeypatch, texts, repeat=3)
    assert sorted(thrice) == sorted(once * 3)
    assert same == held


def test_a_source_narrowed_by_profanity_keeps_only_that_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'damn' if n % 2 else 'dear'} river {n}" for n in range(300)]
    for profane in (True, False):
        train, held, _ = corpus_of(tmp_path, monkeypatch, texts, profane=profane)
        assert len(train + held) == 150
        assert all(bool(profanity_pattern().search(text)) == profane for text in train + held)


def test_a_source_stops_at_its_budget_and_cuts_long_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held, summary = corpus_of(tmp_path, monkeypatch, [f"{n:04d}" * 25 for n in range(1000)], megabytes=0.0123)
    assert len(train + held) == 123
    assert summary["a"]["characters"] == 12_300
    train, held, _ = corpus_of(tmp_path, monkeypatch, [f"{n:04d}" + "river " * 2000 for n in range(100)])
    assert {len(text) for text in train + held} == {4000}


def test_a_long_document_is_on_one_side_however_much_of_it_a_stage_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{n:04d} wintle " * 500 for n in range(300)]
    sides = {number: held_out(text) for number, text in enumerate(texts)}
    assert {held_out(text[:3000].rstrip()) for text, side in zip(texts, sides.values(), strict=True) if side} == {True}
    for kept in (100, 3000, 5000):
        train, held, _ = corpus_of(tmp_path, monkeypatch, texts, corpus={"max_characters": kept})
        assert {int(text[:4]) for text in held} == {number for number, side in sides.items() if side}
        assert {len(text) for text in train + held} <= {kept, kept - 1}
    (tmp_path / "lines.csv").write_text("text,toxic\n" + "".join(f"{text},1\n" for text in texts))
    _, labelled, _ = read_labelled([{"name": "long", "reader": "binary", "path": "lines.csv"}])
    assert {int(example.text[:4]) for example in labelled} == {number for number, side in sides.items() if side}


def test_text_that_no_file_can_hold_is_made_valid_and_a_wrong_field_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held, _ = corpus_of(tmp_path, monkeypatch, [f"stone {n} \ud83d" for n in range(100)])
    assert sorted(train + held) == sorted(f"stone {n} ?" for n in range(100))
    with pytest.raises(UserError, match=r"no record of .* has a field 'body', only text"):
        corpus_of(tmp_path, monkeypatch, ["a river"], field="body")
    with pytest.raises(UserError, match="1 documents to train on and 0 held out"):
        corpus_of(tmp_path, monkeypatch, ["a river"])


def test_the_tokenizer_gives_every_text_back(built: Recipe) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built.run / "tokenizer")
    learned = next(corpus_texts(built.run / "corpus" / "train.jsonl"))
    texts = [learned, "".join(map(chr, range(256))), "🙂👩\u200d👩\u200d👧 café ， 𝔘", "  two  spaces .\n\n\tdid n't ?"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer) == 360
    assert tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT


def test_the_tokenizer_without_a_corpus_names_the_stage_that_is_missing(tmp_path: Path, built: Recipe) -> None:
    with pytest.raises(UserError, match=r"no corpus at .* run the stage corpus first"):
        train_tokenizer(replace(built, run=tmp_path))
    with pytest.raises(UserError, match="run the stages corpus and tokenizer first"):
        pretrain(replace(built, run=tmp_path))


def test_prefixes_break_off_exactly_before_a_profane_word(built: Recipe, tmp_path: Path) -> None:
    documents = ["Fine. But you are such a damn fool, damn it", "Damn. Short crap.", "no swearing in this", "é you are full of crap"]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    assert challenge_prefixes(tmp_path / "c.jsonl", 9, 0) == ["But you are such a"]
    corpus = built.run / "corpus" / "train.jsonl"
    found, texts = challenge_prefixes(corpus, 50, 0), list(corpus_texts(corpus))
    assert len(found) == 50
    for prefix in found:
        after = [text[text.index(prefix) + len(prefix) :].lstrip() for text in texts if prefix in text]
        assert any(profanity_pattern().match(rest) for rest in after), prefix
    assert challenge_prefixes(corpus, 50, 0) == found != challenge_prefixes(corpus, 50, 1)
    (tmp_path / "clean.jsonl").write_text('{"text": "a river"}\n')
    with pytest.raises(UserError, match="breaks off before a profane word"):
        challenge_prefixes(tmp_path / "clean.jsonl", 3, 0)
