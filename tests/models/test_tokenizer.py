"""The tokens are those of the folder's tokenizer.json, with the tokenizers library as referee, whatever class its settings name."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from interp import Model, ModelPair, UserError, capture, generate, load_model
from interp.models import tokenizer as reading
from tests.conftest import CONFIGS, EOS, TEXTS, WORDS, gpt2_config, make_hf, save
from tests.models.test_checkpoints import edit_json, make_adapter

TEXT = "In 1984 I don't think they'll\n\n  say WE'VE 12345 雨が降る, café"
# How modern vocabularies divide text, but for digits, which stand in groups of three: no class of transformers builds this one.
GROUPS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def divided_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary with a pre-tokenizer of its own, trained on contractions and numbers too."""
    words = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(GROUPS), behavior="isolated")
    words.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    lines = [" ".join(pair) for pair in itertools.product(WORDS[:12], repeat=2)]
    words.train_from_iterator([*lines, *(["don't they'll WE'VE 1984 123 456 789 12345", TEXT] * 50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=EOS, pad_token=EOS)


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with that vocabulary."""
    words = divided_tokenizer()
    return save(make_hf(gpt2_config(), words), words, tmp_path_factory.mktemp("models") / "divided")


def named(folder: Path, target: Path, name: str, **settings: Any) -> Path:
    """A copy of a folder whose settings name another class of tokenizer."""
    shutil.copytree(folder, target)
    edit_json(target / "tokenizer_config.json", tokenizer_class=name, **settings)
    return target


def ids_of_the_file(folder: Path, text: str) -> list[int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"])
def test_the_file_decides_the_tokens_whatever_class_the_settings_name(name: str, divided: Path, tmp_path: Path) -> None:
    folder = named(divided, tmp_path / name, name, chat_template="{{ messages[0].content }}", model_max_length=64)
    right = ids_of_the_file(folder, TEXT)
    if name in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        # This is the fault: were it mended in transformers, the test would still hold, and this line would say so.
        assert AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False)["input_ids"] != right
    words = load_model(folder).tokenizer
    for text in (TEXT, *TEXTS, *reading.SAMPLES):
        assert words(text, add_special_tokens=False)["input_ids"] == ids_of_the_file(folder, text)
    assert words.decode(right) == TEXT
    assert (words.eos_token, words.eos_token_id) == (EOS, 0)
    assert words.chat_template == "{{ messages[0].content }}"


def test_special_tokens_that_only_the_named_class_knows_are_kept(gpt2_folder: Path, tmp_path: Path) -> None:
    """The folder of the first GPT-2 names no end of text: its class does."""
    folder = shutil.copytree(gpt2_folder, tmp_path / "old")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    words = load_model(folder).tokenizer
    assert (words.eos_token, words.bos_token, words.eos_token_id) == (EOS, EOS, 0)
    assert words(TEXT, add_special_tokens=False)["input_ids"] == ids_of_the_file(gpt2_folder, TEXT)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": EOS}))
    assert load_model(folder).tokenizer.bos_token is None


def test_a_folder_without_the_file_is_read_by_its_class(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "old", ignore=shutil.ignore_patterns("tokenizer.json"))
    record = json.loads((gpt2_folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(record["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in record["merges"]))
    edit_json(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    assert load_model(folder).tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids_of_the_file(gpt2_folder, TEXT)


def test_a_tokenizer_that_still_differs_from_its_file_is_refused(divided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison does not trust the class that is used now either."""
    folder = named(divided, tmp_path / "folder", "GPT2Tokenizer")
    monkeypatch.setattr(reading, "PreTrainedTokenizerFast", GPT2Tokenizer)
    with pytest.raises(UserError, match=r"divides .* into \d+ tokens, but tokenizer\.json into"):
        load_model(folder)


def test_truncation_and_padding_in_the_file_change_no_tokens(divided: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(divided, tmp_path / "folder")
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.enable_truncation(4)
    words.enable_padding(length=9)
    words.save(str(folder / "tokenizer.json"))
    assert load_model(folder).tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids_of_the_file(divided, TEXT)


def test_an_adapter_reads_text_as_its_parent_does(divided: Path, tmp_path: Path) -> None:
    base = named(divided, tmp_path / "base", "GPT2Tokenizer")
    make_adapter(base, tmp_path / "first", ["c_fc"], fan_in_fan_out=True)
    make_adapter(base, tmp_path / "second", ["c_fc"], fan_in_fan_out=True)
    edit_json(tmp_path / "second" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "first"))
    for folder in ("first", "second"):
        model = load_model(tmp_path / folder)
        assert model.tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids_of_the_file(divided, TEXT)


def with_added_token(folder: Path, target: Path, token: str) -> Path:
    """A copy of a folder whose tokenizer has one token more than the model has rows."""
    shutil.copytree(folder, target)
    words = PreTrainedTokenizerFast.from_pretrained(target)
    words.add_tokens([AddedToken(token, special=True)])
    words.save_pretrained(target)
    return target


def test_an_added_token_without_a_row_loads_and_is_refused_in_text(make_folder: Any, tmp_path: Path) -> None:
    """As in Gemma 3's text models, whose tokenizer has the image token of the larger ones."""
    folder = with_added_token(make_folder("gemma"), tmp_path / "gemma", "<image_soft_token>")
    model, plain = load_model(folder), load_model(make_folder("gemma"))
    assert len(model.tokenizer) == model.d_vocab + 1
    expected = capture(plain, list(TEXTS), ["logits"])["logits"]
    assert torch.equal(capture(model, list(TEXTS), ["logits"])["logits"], expected)
    assert generate(model, list(TEXTS), max_new_tokens=5) == generate(plain, list(TEXTS), max_new_tokens=5)
    from interp.evaluation.metrics import perplexity

    for ask in (
        lambda: capture(model, ["hello <image_soft_token>"], ["logits"]),
        lambda: generate(model, ["hello <image_soft_token>"], max_new_tokens=2),
        lambda: perplexity(model, ["hello <image_soft_token> there"]),
    ):
        with pytest.raises(UserError, match=r"holds the token '<image_soft_token>' \(390\), for which the model has no row"):
            ask()


def test_a_padding_token_without_a_row_is_not_used_and_an_end_without_one_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = with_added_token(gpt2_folder, tmp_path / "model", "[PAD]")
    edit_json(folder / "tokenizer_config.json", pad_token="[PAD]")
    model = load_model(folder)
    assert model.tokenizer.pad_token == EOS
    rows = capture(model, [TEXTS[0], TEXTS[1]], ["logits"])["logits"]
    assert bool(rows.isfinite().all())
    edit_json(folder / "tokenizer_config.json", eos_token="[PAD]")
    with pytest.raises(UserError, match=r"names \[PAD\] as its eos_token, but the model has no row for it"):
        load_model(folder)


def test_a_token_added_on_one_side_of_a_pair_is_refused_with_the_command_that_removes_it(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = with_added_token(gpt2_folder, tmp_path / "tuned", "[PAD]")
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    hf = load_model(gpt2_folder).plain_copy()
    hf.resize_token_embeddings(len(words))
    save(hf, words, folder)
    with pytest.raises(UserError, match=r"tuned has 1 token more than base: '\[PAD\]'") as caught:
        ModelPair.load(gpt2_folder, folder)
    assert f"bypass convert {folder} --like {gpt2_folder} --out DIR" in caught.value.fix
    with pytest.raises(UserError, match=r"base has 1 token more than tuned: '\[PAD\]'") as caught:
        ModelPair.load(folder, gpt2_folder)
    assert f"bypass convert {folder} --like {gpt2_folder} --out DIR" in caught.value.fix


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_every_kind_of_model_reads_text_as_its_file_says(kind: str, make_folder: Any) -> None:
    folder = make_folder(kind)
    model: Model = load_model(folder)
    assert model.tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids_of_the_file(folder, TEXT)
