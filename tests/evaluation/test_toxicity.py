"""The toxicity scorers against the plain use of the same model, and the bundled one against texts of known polarity."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from interp.data.lexicon import lexicon
from interp.errors import UserError
from interp.evaluation import toxicity
from interp.evaluation.detoxify import convert_detoxify
from interp.evaluation.toxicity import BUNDLED_SCORER, CLASSES, ClassifierScorer, LexiconScorer, load_scorer, scorer_digest
from training.scorer import build_tokenizer, fit_platt
from training.scorer_report import area_under_curve, reliability

pytest.importorskip("detoxify")
POSITIONS = 32
TEXTS = [
    "the cat sat on the mat",
    "",
    "You are a stupid cat!",
    "rain and wind and more rain, then the sun",
    "a",
    "the cat sat on the mat",
    "Stop that, you fool",
    "zebra 12 \N{PILE OF POO} \u4f60\u597d",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with detoxify's classes, 32 positions, and head weights large enough to spread the scores."""
    path = tmp_path_factory.mktemp("scorer") / "tiny"
    tokenizer = build_tokenizer([*TEXTS, "rain sun wind stupid fool cat mat sat stop"] * 3, 200, POSITIONS, path)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=POSITIONS, num_labels=6, initializer_range=0.5, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(path)
    (path / "scorer.json").write_text(json.dumps({"name": "tiny", "classes": CLASSES}))
    return path


def one_at_a_time(folder: Path, texts: list[str]) -> np.ndarray:
    """The referee: Hugging Face's model on each text alone."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return np.concatenate([torch.sigmoid(model(**tokenizer(text, return_tensors="pt")).logits).numpy() for text in texts])


def test_scores_equal_the_plain_model_one_text_at_a_time(folder: Path) -> None:
    expected = one_at_a_time(folder, TEXTS)
    assert expected[:, 0].std() > 0.01
    alone = load_scorer(folder, batch_size=1).score(TEXTS)
    np.testing.assert_array_equal(alone.to_numpy(), expected)
    assert list(alone.columns) == list(CLASSES)
    assert set(alone.dtypes) == {np.dtype("float32")}


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_the_size_of_a_batch_changes_neither_scores_nor_order(folder: Path, batch_size: int) -> None:
    scores = load_scorer(folder, batch_size=batch_size).score(TEXTS).to_numpy()
    np.testing.assert_allclose(scores, one_at_a_time(folder, TEXTS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("source", ["tiny", "lexicon"])
def test_an_empty_list_gives_an_empty_frame_with_the_classes(folder: Path, source: str) -> None:
    scorer = load_scorer(folder if source == "tiny" else source)
    frame = scorer.score([])
    assert frame.shape == (0, len(scorer.classes))
    assert list(frame.columns) == list(scorer.classes)
    assert frame.columns[0] == "toxicity"
    assert set(frame.dtypes) == {np.dtype("float32")}


def test_a_repeated_text_is_computed_once_and_then_remembered(folder: Path) -> None:
    scorer = load_scorer(folder)
    assert isinstance(scorer, ClassifierScorer)
    asked: list[str] = []
    predict = scorer.detector.predict
    scorer.detector.predict = lambda texts: asked.extend(texts) or predict(texts)  # type: ignore[func-returns-value]
    first = scorer.score(TEXTS)
    assert sorted(asked) == sorted(set(TEXTS))
    again = scorer.score(TEXTS[::-1])
    assert len(asked) == 7
    pd.testing.assert_frame_equal(again, first.iloc[::-1].reset_index(drop=True))


def test_the_cache_is_bounded_and_forgets_the_oldest(folder: Path) -> None:
    loaded = load_scorer(folder)
    assert isinstance(loaded, ClassifierScorer)
    scorer = ClassifierScorer(loaded.detector, "small", cache_size=2)
    asked: list[str] = []
    predict = scorer.detector.predict
    scorer.detector.predict = lambda texts: asked.extend(texts) or predict(texts)  # type: ignore[func-returns-value]
    scores = scorer.score(["a", "cat", "mat"])
    assert sorted(asked) == ["a", "cat", "mat"]
    np.testing.assert_array_equal(scorer.score(["mat"]).to_numpy(), scores.to_numpy()[2:])
    scorer.score(["cat"])
    assert len(asked) == 3
    scorer.score(["a"])
    assert asked[3:] == ["a"]


def test_a_long_text_takes_the_maximum_over_windows_that_overlap_and_cover_it(folder: Path) -> None:
    text = " ".join(f"the cat {number} sat on the mat, rain" for number in range(20)) + " stupid fool"
    scorer = load_scorer(folder, batch_size=1)
    assert isinstance(scorer, ClassifierScorer)
    windows = [piece for piece, _ in scorer._windows(text)]
    starts = [text.index(windows[0])]
    for piece in windows[1:]:
        starts.append(text.index(piece, starts[-1] + 1))
    ends = [start + len(piece) for start, piece in zip(starts, windows, strict=True)]
    assert starts[0] == 0
    assert ends[-1] == len(text)
    assert all(following < end for following, end in zip(starts[1:], ends, strict=False))
    lengths = [len(scorer.detector.tokenizer(piece)["input_ids"]) for piece in windows]
    assert max(lengths) <= POSITIONS
    np.testing.assert_array_equal(scorer.score([text]).to_numpy()[0], one_at_a_time(folder, windows).max(axis=0))


@pytest.mark.parametrize("text", ["x" * 5000, "a b " * 20_000, "\x00\x07\x1b", "\ud800 half", "\u200b" * 300, "\n\t ", "\N{FIRE}" * 3000])
def test_any_string_gets_finite_scores(folder: Path, text: str) -> None:
    scores = load_scorer(folder).score([text, "cat"]).to_numpy()
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[1:], one_at_a_time(folder, ["cat"]), atol=1e-6, rtol=0)


def test_eight_threads_on_one_scorer_get_what_each_gets_alone(folder: Path) -> None:
    scorer = load_scorer(folder, batch_size=2)
    parts = [[f"{text} {number % 3}" for text in TEXTS] for number in range(8)]
    expected = [one_at_a_time(folder, part) for part in parts]
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        torch.set_grad_enabled(True)
        found[number] = scorer.score(parts[number]).to_numpy()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for number, scores in found.items():
        np.testing.assert_allclose(scores, expected[number], atol=1e-6, rtol=0)


@pytest.mark.parametrize("texts", [["fine", 3], [None], [b"bytes"], "one bare string"])
@pytest.mark.parametrize("source", ["tiny", "lexicon"])
def test_what_is_not_a_list_of_strings_is_refused(folder: Path, texts: list, source: str) -> None:
    with pytest.raises(UserError, match="text"):
        load_scorer(folder if source == "tiny" else source).score(texts)


def _truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


def _classes(*names: str):
    return lambda path: (path / "scorer.json").write_text(json.dumps({"classes": names}))


def _tensor(change):
    from safetensors.torch import load_file, save_file

    def damage(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return damage


DAMAGE = {
    "a folder that is not there": (shutil.rmtree, "no scorer folder"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "has no model.safetensors"),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no card": (lambda path: (path / "scorer.json").unlink(), "has no scorer.json"),
    "a card that is not JSON": (lambda path: (path / "scorer.json").write_text("{"), "is not readable JSON"),
    "a card that is a list": (lambda path: (path / "scorer.json").write_text("[]"), "holds a list, not an object"),
    "truncated weights": (_truncate, "cannot be read"),
    "weights that are not a tensor file": (lambda path: (path / "model.safetensors").write_bytes(b"hello"), "cannot be read"),
    "a missing tensor": (_tensor(lambda tensors: tensors.pop("classifier.weight")), "do not fit.*classifier.weight"),
    "a foreign tensor": (_tensor(lambda tensors: tensors.update(extra=torch.zeros(2))), "do not fit.*extra"),
    "a tensor that is not finite": (_tensor(lambda tensors: tensors["classifier.bias"].fill_(float("nan"))), "not all finite"),
    "a tensor of another shape": (
        _tensor(lambda tensors: tensors.update({"classifier.bias": torch.zeros(5)})),
        "cannot be read|do not fit",
    ),
    "toxicity not first": (_classes("insult", "toxicity"), "not toxicity"),
    "classes named twice": (_classes("toxicity", "toxicity"), "distinct"),
    "more classes than outputs": (_classes(*CLASSES, "rudeness"), "7 classes.*6 outputs"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_explained(folder: Path, tmp_path: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    path = shutil.copytree(folder, tmp_path / "copy")
    damage(path)
    with pytest.raises(UserError, match=words):
        load_scorer(path)


def test_without_detoxify_the_error_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detoxify", None)
    with pytest.raises(UserError, match=r"pip install bypass-workbench\[toxicity\]"):
        load_scorer(folder)
    assert load_scorer("lexicon").score(["fine"])["toxicity"].tolist() == [0.0]


def detoxify_checkpoint(folder: Path, path: Path, **changes: object) -> Path:
    """A checkpoint laid out as detoxify's own: its class names, its nesting, an old constant among the weights."""
    state = BertForSequenceClassification.from_pretrained(folder).state_dict()
    state["bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    arch = {"model_type": str(folder), "model_name": "BertForSequenceClassification", "tokenizer_name": "BertTokenizer", "num_classes": 6}
    classes = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    config = {"arch": {"args": arch | changes}, "dataset": {"args": {"classes": classes}}}
    torch.save({"config": config, "state_dict": state}, path)
    return path


def test_a_converted_detoxify_checkpoint_scores_as_detoxify_itself(folder: Path, tmp_path: Path) -> None:
    import detoxify

    checkpoint = detoxify_checkpoint(folder, tmp_path / "toxic.ckpt")
    target = convert_detoxify(checkpoint, tmp_path / "converted")
    scorer = load_scorer(target, batch_size=1)
    assert scorer.classes == CLASSES
    assert not list(target.glob("*.bin"))
    # The referee is detoxify's own constructor: the checkpoint names a local folder, so it needs no network.
    own = detoxify.Detoxify(checkpoint=checkpoint)
    assert tuple(own.class_names) == CLASSES
    expected = pd.DataFrame([own.predict(text) for text in TEXTS]).astype("float32")
    # Up to rounding: on some processors the same product of the same matrices ends in another last digit.
    pd.testing.assert_frame_equal(scorer.score(TEXTS), expected, rtol=1e-6, atol=0)


def test_a_checkpoint_that_names_a_hub_model_is_converted_with_a_local_folder(folder: Path, tmp_path: Path) -> None:
    checkpoint = detoxify_checkpoint(folder, tmp_path / "toxic.ckpt", model_type="nobody/no-such-model")
    target = convert_detoxify(checkpoint, tmp_path / "converted", like=folder)
    np.testing.assert_array_equal(load_scorer(target, batch_size=1).score(TEXTS).to_numpy(), one_at_a_time(folder, TEXTS))


def test_checkpoints_that_cannot_be_converted_are_explained_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    target = tmp_path / "converted"
    torch.save({"config": Payload()}, tmp_path / "pickle.ckpt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "layout.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    detoxify_checkpoint(folder, tmp_path / "classes.ckpt", num_classes=3)
    detoxify_checkpoint(folder, tmp_path / "model.ckpt", model_name="os.system")
    expected = {
        "missing": "no checkpoint",
        "pickle": "plain weights",
        "text": "plain weights",
        "layout": "laid out",
        "classes": "does not fit",
        "model": "os.system",
    }
    for name, words in expected.items():
        with pytest.raises(UserError, match=words):
            convert_detoxify(tmp_path / f"{name}.ckpt", target)
    assert not (tmp_path / "executed").exists()
    assert not target.exists()
    target.mkdir()
    with pytest.raises(UserError, match="exists already"):
        convert_detoxify(detoxify_checkpoint(folder, tmp_path / "good.ckpt"), target)


def test_the_lexicon_scorer_counts_listed_words() -> None:
    scorer = LexiconScorer()
    frame = scorer.score(["You stupid, stupid shit", "kill the lights", "a classic assessment", "IDIOT", ""])
    assert frame["toxicity"].tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]
    np.testing.assert_allclose(frame["share"], [0.75, 0.0, 0.0, 1.0, 0.0])
    assert frame["profanity"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert frame["insult"].tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert frame["threat"].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert scorer.classes == ("toxicity", "share", *lexicon())


def test_a_batch_of_no_texts_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="batch of 0"):
        load_scorer(folder, batch_size=0)


def test_the_area_under_the_curve_counts_pairs() -> None:
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8, 0.2]), np.array([False, True, False, True, True])
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    assert area_under_curve(scores, positive) == pytest.approx(np.mean(pairs))


def test_platt_scaling_finds_the_planted_slope_and_offset() -> None:
    logits = np.random.default_rng(0).normal(size=4000)
    assert fit_platt(logits, 1 / (1 + np.exp(-(1.7 * logits - 0.6)))) == pytest.approx((1.7, -0.6), abs=1e-6)


def test_a_perfectly_reliable_score_has_no_gap() -> None:
    scores = np.linspace(0.01, 0.99, 99)
    assert reliability(scores, scores)["expected_calibration_error"] == 0
    assert reliability(scores, scores * 0.5)["expected_calibration_error"] > 0.2


needs_bundle = pytest.mark.skipif(not BUNDLED_SCORER.is_dir(), reason="the bundled scorer has not been made yet")


@needs_bundle
def test_the_bundled_scorer_knows_insults_from_plain_speech() -> None:
    hostile = [
        " you fucking idiot",
        " shut up you stupid bitch",
        "What a worthless piece of shit you are.",
        "go fuck yourself, moron",
        " you f*cking idiot",
        "Everyone in this thread is a pathetic retard and should go to hell",
    ]
    neutral = [
        " and then we had soup for lunch",
        "Thanks a lot for fixing the printer.",
        " a lovely walk along the river with my sister",
        "The committee meets again in March to discuss the budget.",
        " of the largest lakes in the north",
        "",
        "I respectfully disagree with the second point of your answer.",
    ]
    scorer = load_scorer("bundled")
    assert scorer.classes == CLASSES
    scores = scorer.score([*hostile, *neutral])["toxicity"].to_numpy()
    assert scores[: len(hostile)].min() > 0.5
    assert scores[len(hostile) :].max() < 0.2


@needs_bundle
def test_the_bundled_scorer_is_small_and_its_card_states_what_it_reached() -> None:
    assert sum(file.stat().st_size for file in BUNDLED_SCORER.iterdir()) < 12_000_000
    card = json.loads((BUNDLED_SCORER / "scorer.json").read_text())
    assert card["held_out"]["jigsaw"]["auc"] >= 0.93
    assert not list(BUNDLED_SCORER.glob("*.bin"))
    assert toxicity.load_scorer().name == card["name"]


class Own:
    """A user's scorer, which has a name and no digest."""

    name, classes = "own", ("toxicity",)

    def score(self, texts: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({"toxicity": np.zeros(len(texts), dtype=np.float32)})


def test_a_scorer_is_known_by_what_it_computes_and_not_by_its_name(folder: Path, tmp_path: Path) -> None:
    first = load_scorer(folder)
    before = scorer_digest(first)
    first.score(TEXTS)
    # The tokenizer was switched to padding and truncation meanwhile; the scorer is the same, and so is its folder elsewhere.
    moved = shutil.copytree(folder, tmp_path / "tiny")
    used = load_scorer(moved)
    used.score(TEXTS)
    assert before == scorer_digest(load_scorer(folder)) == scorer_digest(used)
    others = []
    for name in ("weights", "classes", "tokens"):
        changed = shutil.copytree(folder, tmp_path / name / "tiny")
        if name == "weights":
            model = BertForSequenceClassification.from_pretrained(changed)
            with torch.no_grad():
                model.classifier.weight[0, 0] += 1
            model.save_pretrained(changed)
        elif name == "classes":
            classes = [CLASSES[0], *reversed(CLASSES[1:])]
            (changed / "scorer.json").write_text(json.dumps({"name": "tiny", "classes": classes}))
        else:
            rules = json.loads((changed / "tokenizer.json").read_text())
            vocabulary = rules["model"]["vocab"]
            vocabulary["c"], vocabulary["m"] = vocabulary["m"], vocabulary["c"]
            (changed / "tokenizer.json").write_text(json.dumps(rules))
        scorer = load_scorer(changed)
        assert scorer.name == first.name
        others.append(scorer_digest(scorer))
    assert len({before, *others}) == 4


def test_a_scorer_without_a_digest_shares_its_key_with_no_other() -> None:
    own, another = Own(), Own()
    assert scorer_digest(own) == scorer_digest(own)
    assert len({scorer_digest(own), scorer_digest(another), scorer_digest(LexiconScorer())}) == 3


UNBIASED = (
    "toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit", "male", "female",
    "homosexual_gay_or_lesbian", "christian", "jewish", "muslim", "black", "white", "psychiatric_or_mental_illness",
)  # fmt: skip


def roberta(folder: Path, tokenizer: PreTrainedTokenizerFast, labels: Sequence[str], problem: str | None) -> Path:
    """A random RoBERTa as Hugging Face saves unbiased-toxic-roberta: 16 labels in config.json, and no scorer.json."""
    torch.manual_seed(5)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=POSITIONS, initializer_range=0.5, pad_token_id=tokenizer.pad_token_id or 0,
        id2label=dict(enumerate(labels)), label2id={name: place for place, name in enumerate(labels)}, problem_type=problem,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_a_detoxify_model_in_hugging_faces_form_scores_as_hugging_face_does(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, problem: str | None
) -> None:
    folder = roberta(tmp_path / "unbiased-toxic-roberta", tokenizer, UNBIASED, problem)
    scorer = load_scorer(folder, batch_size=1)
    assert (scorer.name, scorer.classes) == ("unbiased-toxic-roberta", UNBIASED)
    model = RobertaForSequenceClassification.from_pretrained(folder).eval()
    words = ["the cat sat", "a fool", "rain and wind"]
    reader = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        inputs = [{"input_ids": torch.tensor([reader(text)["input_ids"]])} for text in words]
        expected = np.concatenate([torch.sigmoid(model(**each).logits).numpy() for each in inputs])
    assert expected[:, 0].std() > 0.001
    np.testing.assert_allclose(scorer.score(words).to_numpy(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (("toxicity", "neutral"), None),
        (("toxicity", "severe_toxicity"), "single_label_classification"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None),
    ],
)
def test_a_classifier_that_chooses_one_label_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...], problem: str | None
) -> None:
    with pytest.raises(UserError, match=r"its outputs .* are not those of detoxify"):
        load_scorer(roberta(tmp_path / "other", tokenizer, labels, problem))
