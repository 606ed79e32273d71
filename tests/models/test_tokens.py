"""Text becomes tokens in one place: BOS exactly once and as the tokenizer has it, and a cut that keeps the asked-for end."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from interp import Edit, Model, ModelPair, UserError, capture, generate, load_model, logit_lens
from interp.data.texts import Passage
from interp.evaluation.metrics import f1_of, perplexity
from interp.models.tokens import adds_bos, end_tokens, token_rows, uncut_rows
from tests import ROOT
from tests.conftest import CONFIGS, TEXTS, make_hf, make_tokenizer, save

BOS = "<s>"


def bos_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that begins every text with a BOS token by default, as Llama's and Gemma's do."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": BOS})
    number = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, number)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = bos_tokenizer()
    hf = make_hf(CONFIGS["llama"](), tokenizer, seed=2)
    hf.config.bos_token_id = hf.generation_config.bos_token_id = tokenizer.bos_token_id
    return save(hf, tokenizer, tmp_path_factory.mktemp("models") / "with-bos")


@pytest.fixture(scope="module")
def with_bos(folder: Path) -> Model:
    return load_model(folder, name="with BOS")


def test_a_tokenizer_that_adds_bos_does_so_here_exactly_once(with_bos: Model, gpt2: Model) -> None:
    bos = with_bos.tokenizer.bos_token_id
    assert adds_bos(with_bos)
    assert token_rows(with_bos, list(TEXTS)) == with_bos.tokenizer(list(TEXTS))["input_ids"]
    plain = with_bos.tokenizer(list(TEXTS), add_special_tokens=False)["input_ids"]
    assert token_rows(with_bos, list(TEXTS), bos=False) == plain
    # A text that spells it, such as a rendered chat, gets no second one.
    assert token_rows(with_bos, [BOS + TEXTS[0]]) == [[bos, *plain[0]]] == token_rows(with_bos, [BOS + TEXTS[0]], bos=True)
    # Rows of ids are taken as they are.
    assert token_rows(with_bos, plain) == plain
    assert token_rows(with_bos, plain[:1], bos=True) == [[bos, *plain[0]]]
    assert with_bos.str_tokens("the river")[0] == BOS
    assert not adds_bos(gpt2)
    assert token_rows(gpt2, list(TEXTS)) == gpt2.tokenizer(list(TEXTS))["input_ids"]


def test_a_model_is_loaded_with_or_without_bos_whatever_its_tokenizer_says(folder: Path) -> None:
    plain = load_model(folder, bos=False)
    assert (adds_bos(plain), plain.manifest()["bos"]) == (False, False)
    assert token_rows(plain, ["the river"]) == plain.tokenizer(["the river"], add_special_tokens=False)["input_ids"]
    assert token_rows(plain, ["the river"], bos=True)[0][0] == plain.tokenizer.bos_token_id
    pair = ModelPair.load(folder, folder, bos=False)
    assert not adds_bos(pair.base)
    assert not adds_bos(pair.tuned)


def test_sides_of_which_one_adds_bos_are_refused_until_one_way_is_chosen(folder: Path, with_bos: Model, tmp_path: Path) -> None:
    tokenizer = bos_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    other = save(with_bos.plain_copy(), tokenizer, tmp_path / "without")
    with pytest.raises(UserError, match=r"begin with a BOS token in base and not in tuned.*--bos or --no-bos"):
        ModelPair.load(folder, other)
    assert adds_bos(ModelPair.load(folder, other, bos=True).tuned)


def test_a_tokenizer_without_bos_cannot_add_one(gpt2: Model) -> None:
    with pytest.raises(UserError, match=r"the tokenizer has none.*--no-bos"):
        token_rows(gpt2, ["a"], bos=True)
    with pytest.raises(UserError, match="were to begin with a BOS token, but the tokenizer of copy has none"):
        Model(gpt2.hf, gpt2.tokenizer, "copy", bos=True)


@torch.no_grad()
def test_everything_reads_the_bos_token(with_bos: Model) -> None:
    text = TEXTS[2]
    ids = torch.tensor(with_bos.tokenizer([text])["input_ids"])
    output = with_bos.hf(ids)
    logits = output.logits
    torch.testing.assert_close(capture(with_bos, [text], ["logits"])["logits"], logits[:, -1], atol=2e-6, rtol=1e-5)
    assert logit_lens(with_bos, [text]).tokens == (int(logits[0, -1].argmax()),)
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert perplexity(with_bos, [text]).value == pytest.approx(float(losses.exp()), rel=1e-5)
    theirs = with_bos.hf.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert generate(with_bos, [text], max_new_tokens=5) == [with_bos.tokenizer.decode(theirs, skip_special_tokens=True)]


def test_the_reference_of_a_passage_gets_no_bos_of_its_own(with_bos: Model) -> None:
    river = with_bos.token("river")
    assert uncut_rows(with_bos, [" river" * 6], bos=False) == [[river] * 6]
    always = Edit.set("logits", 1e4, [river])
    assert f1_of(with_bos, [Passage("the stone", " river" * 6, "post")], new_tokens=6, edits=[always])[0] == 1.0


@pytest.mark.oracle
@torch.no_grad()
def test_transformer_lens_and_nnsight_read_the_same_tokens(with_bos: Model) -> None:
    import nnsight

    text = TEXTS[0]
    bridge = with_bos.to_transformer_lens()
    assert bridge.to_tokens(text).tolist() == token_rows(with_bos, [text])
    torch.testing.assert_close(capture(with_bos, [text], ["logits"])["logits"], bridge(text)[:, -1], atol=2e-5, rtol=1e-4)
    traced = with_bos.to_nnsight()
    with traced.trace(text):
        logits = traced.output.logits.save()
    torch.testing.assert_close(capture(with_bos, [text], ["logits"])["logits"], logits[:, -1], atol=2e-5, rtol=1e-4)
    assert nnsight.__version__


def test_a_cut_keeps_the_end_that_is_asked_for_and_the_bos_token(with_bos: Model, gpt2: Model) -> None:
    (row,) = token_rows(with_bos, [TEXTS[2]])
    assert token_rows(with_bos, [TEXTS[2]], max_tokens=4) == [row[:4]]
    assert token_rows(with_bos, [TEXTS[2]], max_tokens=4, keep="last") == [[row[0], *row[-3:]]]
    assert token_rows(with_bos, [TEXTS[2]], max_tokens=1, keep="last") == [row[-1:]]
    (plain,) = token_rows(gpt2, [TEXTS[2]])
    assert token_rows(gpt2, [TEXTS[2]], max_tokens=4, keep="last") == [plain[-4:]]
    assert token_rows(gpt2, [TEXTS[2]], max_tokens=len(plain), keep="last") == [plain]


@pytest.mark.parametrize(
    ("named", "expected"),
    [(5, (5,)), ([7, 5, 7], (7, 5)), (None, None), (50256, None), ([50256, 9], (9,)), ([], None)],
    ids=str,
)
def test_the_generation_config_names_the_end_tokens_or_else_the_tokenizer(gpt2: Model, named: Any, expected: Any) -> None:
    model = Model(gpt2.plain_copy(), gpt2.tokenizer, "copy")
    model.hf.generation_config.eos_token_id = named
    assert end_tokens(model) == (expected if expected is not None else (gpt2.tokenizer.eos_token_id,))


# What calls a tokenizer itself: the words of an option, checks of a tokenizer, and its digest. None of them runs a model on the tokens.
CALLERS = {
    "models/tokens.py", "models/model.py", "models/pair.py", "models/tokenizer.py", "models/digests.py", "models/chat_spans.py",
    # As a trainer divides a pair, which is not as a prompt is read; and one word without special tokens.
    "preferences/tokenise.py", "preferences/answers.py",
}  # fmt: skip


def test_text_becomes_tokens_in_one_place() -> None:
    root = ROOT / "interp"
    # Scorers have tokenizers of their own.
    files = [file for file in root.rglob("*.py") if "evaluation" not in file.parts or file.name == "metrics.py"]

    def calls(file: Path) -> bool:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        functions = [node.func for node in nodes if isinstance(node, ast.Call)]
        return "tokenizer" in {part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in functions}

    assert {file.relative_to(root).as_posix() for file in files if calls(file)} <= CALLERS
    assert calls(root / "models" / "tokens.py")
