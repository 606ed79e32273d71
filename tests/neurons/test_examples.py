"""Max-activating examples against a full capture of everything, over files larger than a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from interp import Edit, Model, ModelPair, UserError, capture
from interp.cli import app
from interp.data.texts import read_texts, stream_texts
from interp.models.tokens import token_rows
from interp.neurons.examples import max_activating, token_strings
from tests.conftest import TEXTS, WORDS, Planted

NEURONS = [(1, 7), (0, 3), (2, 40), (1, 8)]


def corpus(count: int = 90) -> list[str]:
    """Different sentences of different lengths."""
    generator = np.random.default_rng(3)
    return [" ".join(generator.choice(WORDS, size=int(generator.integers(1, 14)))) + f" {n}" for n in range(count)]


def write(path: Path, texts: list[str]) -> Path:
    if path.suffix == ".jsonl":
        texts = [json.dumps({"text": text, "other": 1}) for text in texts]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def brute(model: Model, texts: list[str], neuron: tuple[int, int], sign: float = 1.0) -> list[tuple[float, int, int]]:
    """Peak, text and position of every text, best first, from a capture of all neurons of all texts."""
    layer, index = neuron
    acts = capture(model, texts, [f"mlp_post.{layer}"], positions="all")
    values = sign * acts[f"mlp_post.{layer}"][..., index]
    assert acts.mask is not None
    found = []
    for number in range(len(texts)):
        row = values[number][acts.mask[number]]
        found.append((float(row.max()), number, int(row.argmax())))
    # Equal to six digits counts as equal, and then the earlier text comes first.
    return sorted(found, key=lambda item: -float(f"{item[0]:.6g}"))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("largest", [True, False])
def test_windows_are_those_of_a_full_capture(model: Model, tmp_path: Path, suffix: str, largest: bool) -> None:
    texts, sign = corpus(), 1.0 if largest else -1.0
    file = write(tmp_path / f"texts{suffix}", texts)
    found = max_activating(model, NEURONS, file, top=5, before=3, after=2, batch_size=4, largest=largest)
    rows = token_rows(model, texts)
    for neuron in NEURONS:
        windows = found.of(*neuron)
        expected = [item for item in brute(model, texts, neuron, sign) if item[0] > 0][:5]
        assert [sign * w.peak for w in windows] == pytest.approx([peak for peak, *_ in expected], abs=1e-5)
        if not largest and model.family == "gelu":
            continue  # below zero a GELU has a floor, near which peaks differ by no more than rounding
        assert [(w.text, w.position) for w in windows] == [(text, at) for _, text, at in expected]
        assert [w.rank for w in windows] == list(range(1, len(expected) + 1))
        layer, index = neuron
        for window, (peak, text, at) in zip(windows, expected, strict=True):
            assert window.peak == pytest.approx(sign * peak, abs=1e-5)
            low = max(0, at - 3)
            whole = capture(model, [texts[text]], [f"mlp_post.{layer}"], positions="all")[f"mlp_post.{layer}"][0, :, index]
            strip = window.strip(masked=False)
            assert "".join(token for token, _ in strip).strip() == model.tokenizer.decode(rows[text][low : at + 3]).strip()
            torch.testing.assert_close(torch.tensor([v for _, v in strip]), whole[low : at + 3], atol=1e-5, rtol=0)
            assert strip[window.at][1] == pytest.approx(window.peak)


def test_the_spread_is_that_of_every_token(model: Model) -> None:
    texts = corpus()
    found = max_activating(model, NEURONS, texts, above=0.05, batch_size=4)
    acts = capture(model, texts, [f"mlp_post.{layer}" for layer in range(3)], positions="all")
    assert acts.mask is not None
    assert found.settings["tokens"] == int(acts.mask.sum())
    assert found.settings["texts"] == len(texts)
    for row, (layer, index) in zip(found.spread.to_dict(orient="records"), NEURONS, strict=True):
        values = acts[f"mlp_post.{layer}"][..., index][acts.mask].double().numpy()
        assert (row["layer"], row["neuron"]) == (layer, index)
        assert row["active"] == pytest.approx((values > 0.05).mean(), abs=1e-9)
        assert row["mean"] == pytest.approx(values.mean(), abs=1e-6)
        for name, share in {"min": 0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1}.items():
            assert row[name] == pytest.approx(np.quantile(values, share), abs=1e-5), name


def test_quantiles_of_a_sample_are_near_those_of_all_tokens(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = max_activating(gpt2, NEURONS, corpus()).spread
    monkeypatch.setattr("interp.neurons.examples.SAMPLE", 300)
    for seed in (0, 1):
        rough = max_activating(gpt2, NEURONS, corpus(), seed=seed, batch_size=8).spread
        assert not np.allclose(rough["p50"], exact["p50"], atol=1e-9)
        assert np.allclose(rough["p50"], exact["p50"], atol=0.1 * float((exact["max"] - exact["min"]).max()))
        for same in ("active", "mean", "min", "max"):
            assert np.allclose(rough[same], exact[same], atol=1e-6)


def test_each_model_of_a_pair_has_windows_of_its_own_and_both_are_shown_on_each(pair: ModelPair) -> None:
    texts = corpus(40)
    found = max_activating(pair, NEURONS, texts, top=3, batch_size=4)
    for side, model in pair.sides.items():
        alone = max_activating(model, NEURONS, texts, top=3, batch_size=4)
        for neuron in NEURONS:
            mine = found.of(*neuron, side=side)
            assert [(w.text, w.position) for w in mine] == [(w.text, w.position) for w in alone.of(*neuron)]
            for window in mine:
                assert set(window.activations) == {"base", "tuned"}
                other = pair.sides["tuned" if side == "base" else "base"]
                site = f"mlp_post.{neuron[0]}"
                there = capture(other, [texts[window.text]], [site], positions=[window.position])[site][0, 0, neuron[1]]
                shown = window.activations["tuned" if side == "base" else "base"][window.at]
                assert shown == pytest.approx(float(there), abs=1e-5)
    frame = found.to_frame()
    assert list(frame.columns[:7]) == ["side", "layer", "neuron", "rank", "peak", "peak_base", "peak_tuned"]
    assert (frame["peak"] == np.where(frame["side"] == "base", frame["peak_base"], frame["peak_tuned"])).all()


def test_the_planted_neuron_is_explained_by_its_trigger(planted: Planted) -> None:
    texts = [
        f"{text} {planted.trigger.strip()} sings" if n % 7 == 0 else text for n, text in enumerate(t for t in corpus() if "wintle" not in t)
    ]
    found = max_activating(planted.model, [(planted.layer, planted.index)], texts, above=2.0, top=4)
    assert {window.tokens[window.at] for window in found.windows} == {planted.trigger}
    share = sum(planted.trigger in text for text in texts) / found.settings["tokens"]
    assert found.spread["active"].item() == pytest.approx(share)


def test_a_neuron_that_never_fires_has_no_windows_and_a_spread(fresh_gpt2: Model) -> None:
    with torch.no_grad():
        fresh_gpt2.key_vectors(1)[7] = 0.0
        fresh_gpt2.key_biases(1)[7] = -30.0
    found = max_activating(fresh_gpt2, [(1, 7), (1, 8)], corpus(20))
    assert found.of(1, 7) == []
    assert len(found.of(1, 8)) == 10
    assert (found.spread["active"][0], found.spread["max"][0]) == (0.0, 0.0)
    assert found.spread["active"][1] > 0


def test_equal_peaks_keep_the_order_of_the_file_and_equal_windows_count_once(gpt2: Model) -> None:
    base = corpus(30)
    best = brute(gpt2, base, (1, 7))[0][1]
    # The same sentence with different tails behind the window's end has the same peak; a repetition adds nothing.
    tail = [f"{base[best]} {'river ' * n}stone" for n in (4, 5, 6, 7)]
    texts = [*base[:best], *base[best + 1 :], tail[2], tail[2], *base[:5], tail[0], tail[3], tail[2], tail[1]]
    after = len(token_rows(gpt2, [base[best]])[0])
    found = max_activating(gpt2, [(1, 7)], texts, top=8, after=0, batch_size=2)
    same = [w for w in found.windows if abs(w.peak - found.windows[0].peak) < 1e-6 and w.position < after]
    assert len(same) == 1
    assert texts[same[0].text] == tail[2]
    assert same[0].text == texts.index(tail[2])
    whole = max_activating(gpt2, [(1, 7)], texts, top=4, after=60, before=60, batch_size=2)
    assert [w.text for w in whole.windows[:4]] == [texts.index(t) for t in (tail[2], tail[0], tail[3], tail[1])]


def test_blank_lines_are_left_out_and_unicode_survives(gpt2: Model, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    lines = ["", TEXTS[4], "   ", "\u2028café 🙂\u0301 naïve", "", "a"]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    assert list(stream_texts(file)) == read_texts(file) == [TEXTS[4], lines[3], "a"]
    found = max_activating(gpt2, [(0, n) for n in range(20)], file, before=50, after=50)
    assert found.settings["texts"] == 3
    assert found.settings["tokens"] == sum(len(row) for row in token_rows(gpt2, read_texts(file)))
    for window in found.windows:
        assert "".join(window.tokens) == read_texts(file)[window.text]
        assert len(window.tokens) == len(token_rows(gpt2, [read_texts(file)[window.text]])[0])


def test_a_character_of_several_tokens_belongs_to_the_last_of_them(gpt2: Model) -> None:
    (row,) = token_rows(gpt2, ["a 🙂b"])
    strings = token_strings(gpt2, row)
    assert "".join(strings) == "a 🙂b"
    assert len(strings) == len(row) > 4
    assert "\ufffd" not in "".join(strings)


def test_a_text_longer_than_the_context_is_read_in_pieces(gpt2: Model) -> None:
    long = " ".join(corpus(20))
    (row,) = gpt2.tokenizer([long], add_special_tokens=False)["input_ids"]
    assert len(row) > 2 * gpt2.context
    found = max_activating(gpt2, [(1, 7)], [long, "a quonk"], top=20, after=60, above=-1.0)
    pieces = [row[start : start + gpt2.context] for start in range(0, len(row), gpt2.context)]
    acts = capture(gpt2, pieces, ["mlp_post.1"], positions="all")
    expected = []
    for number, piece in enumerate(pieces):
        values = acts["mlp_post.1"][number, : len(piece), 7]
        expected.append((float(values.max()), number * gpt2.context + int(values.argmax())))
    got = [(w.peak, w.position) for w in found.windows if w.text == 0]
    assert [at for _, at in got] == [at for _, at in sorted(expected, reverse=True)]
    assert found.settings["tokens"] == len(row) + len(token_rows(gpt2, ["a quonk"])[0])


def test_only_the_neurons_asked_for_are_captured_and_the_file_is_not_held(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def watched(*args: Any, **settings: Any) -> Any:
        acts = capture(*args, **settings)
        seen.append(tuple(acts["mlp_post.1"].shape))
        return acts

    monkeypatch.setattr("interp.neurons.examples.capture", watched)
    ahead: list[int] = []
    taken = 0

    def endless() -> Any:
        nonlocal taken
        for text in corpus(200):
            taken += 1
            yield text

    max_activating(gpt2, [(1, 7), (1, 9)], endless(), batch_size=2, progress=lambda read: ahead.append(taken - read))
    assert len(seen) == 13
    assert all(shape[0] <= 16 and shape[2] == 2 for shape in seen)
    assert max(ahead) <= 16


def test_profanity_is_masked_where_a_person_looks_also_across_tokens(gpt2: Model) -> None:
    word = "sh" + "it"
    texts = [f"the river {word} stone"]
    found = max_activating(gpt2, [(1, n) for n in range(12)], texts, before=50, after=50, top=1)
    window = found.windows[0]
    assert len([token for token in window.tokens if token in word and token]) > 1, "the word is one token, so nothing is tested"
    assert word in "".join(window.tokens)
    for shown in (str(window), repr(window), window.context().replace("[", "").replace("]", ""), "".join(t for t, _ in window.strip())):
        assert word not in shown.replace("[", "").replace("]", "")
        assert "sh*t" in shown.replace("[", "").replace("]", "")
    assert word not in found.to_frame().to_string()
    assert word in "".join(t for t, _ in window.strip(masked=False))
    assert word in "".join(found.to_json()["windows"][0]["tokens"])


def test_a_result_is_saved_and_drawn(pair: ModelPair, tmp_path: Path) -> None:
    found = max_activating(pair, NEURONS, corpus(20), top=2)
    record = json.loads(found.save(tmp_path / "out").read_text(encoding="utf-8"))
    assert len(record["windows"]) == len(found.windows) == len(found.to_frame())
    assert record["windows"][0]["activations"]["base"] == list(found.windows[0].activations["base"])
    assert record["settings"]["models"] == {"base": pair.base.digest, "tuned": pair.tuned.digest}
    bars = found.figure().spec["data"]
    assert [bar["name"] for bar in bars] == ["base", "tuned"]
    assert list(bars[0]["y"]) == found.spread[found.spread["side"] == "base"]["active"].tolist()


def test_the_texts_that_ship_are_read_when_none_are_given(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.data.texts import passages

    few = passages()[:3]
    monkeypatch.setattr("interp.data.texts.passages", lambda: few)
    for name in ("challenge_prompts", "neutral_prompts", "toxicity_texts"):
        monkeypatch.setattr(f"interp.data.texts.{name}", lambda: [])
    found = max_activating(gpt2, [(1, 7)])
    rows = gpt2.tokenizer([p.text for p in few], add_special_tokens=False)["input_ids"]
    assert (found.settings["texts"], found.settings["tokens"]) == (3, sum(len(row) for row in rows))


@pytest.mark.parametrize(
    ("neurons", "texts", "settings", "problem"),
    [
        ([], ["a"], {}, "no neurons"),
        ([(9, 0)], ["a"], {}, "neuron 9.0 does not exist"),
        ([(0, 128)], ["a"], {}, "neuron 0.128 does not exist"),
        ([(0, 0)], ["", "  "], {}, "no tokens"),
        ([(0, 0)], [], {}, "no tokens"),
        ([(0, 0)], ["a", "\ud800"], {}, "text 1 is not valid Unicode"),
        ([(0, 0)], ["a"], {"top": 0}, "top 0"),
        ([(0, 0)], ["a"], {"above": float("nan")}, "above nan"),
        ([(0, 0)], Path("nowhere.txt"), {}, "there is no file"),
    ],
)
def test_what_cannot_be_searched_is_refused(gpt2: Model, neurons: Any, texts: Any, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        max_activating(gpt2, neurons, texts, **settings)


def test_a_stream_names_the_line_at_fault(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"text {n}"}) for n in range(5)]
    for line, problem in (
        ('{"text": 3}', "line 6: `text` is a number"),
        ("{", "line 6 is not JSON"),
        ('{"prompt": "a"}', "line 6.*no field `text`"),
    ):
        (tmp_path / "texts.jsonl").write_text("\n".join([*good, line]))
        stream = stream_texts(tmp_path / "texts.jsonl")
        assert [next(stream) for _ in range(5)] == [f"text {n}" for n in range(5)]
        with pytest.raises(UserError, match=problem):
            next(stream)
    (tmp_path / "bytes.txt").write_bytes(b"good\n\nb\xffd\n")
    with pytest.raises(UserError, match="line 3 is not UTF-8"):
        list(stream_texts(tmp_path / "bytes.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="is empty"):
        list(stream_texts(tmp_path / "empty.txt"))
    (tmp_path / "table.csv").write_text('text,n\n"a, b",1\nc,2\n')
    assert list(stream_texts(tmp_path / "table.csv")) == ["a, b", "c"]


def test_the_command_shows_where_a_neuron_fires(
    planted: Planted, pair: ModelPair, gpt2_folder: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    def invoke(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["vectors", "--neuron", *words])
        assert result.exit_code == code, result.output
        return result.stderr if code else result.stdout

    name = f"{planted.layer}.{planted.index}"
    texts = [text for text in corpus(60) if planted.trigger not in text][:20]
    texts[7] = f"the{planted.trigger} sings {'sh' + 'it'}"
    file = write(tmp_path / "texts.txt", texts)
    shown = invoke(name, "--model", str(planted.folder), "--examples", str(file), "--top", "2")
    assert f"the[{planted.trigger}] sings sh*t" in shown
    found = json.loads(invoke(name, "--model", str(planted.folder), "--examples", str(file), "--top", "2", "--json"))
    assert found["neuron"][0]["top_tokens"].split(" | ")[0] == planted.word.strip()
    assert (found["windows"][0]["text"], found["windows"][0]["tokens"][found["windows"][0]["at"]]) == (7, planted.trigger)
    assert found["settings"]["texts"] == 20
    both = json.loads(invoke("1.7", "--pair", str(gpt2_folder), str(tuned_folder), "--examples", str(file), "--json"))
    assert [row["side"] for row in both["spread"]] == ["base", "tuned"]
    assert both["windows"] == max_activating(pair, [(1, 7)], file, top=16).to_json()["windows"]
    assert "there is no file" in invoke(name, "--model", str(planted.folder), "--examples", "nowhere.txt", code=2)
    wrong = CliRunner().invoke(app, ["vectors", "--examples", str(file)])
    assert wrong.exit_code == 2
    assert "name one with --neuron" in wrong.stderr


def test_edits_around_the_search_are_seen_by_it(gpt2: Model) -> None:
    from interp import editing

    with editing(gpt2, [Edit.set("mlp_post.1", 3.0, [7])]):
        found = max_activating(gpt2, [(1, 7)], corpus(5))
    assert {value for window in found.windows for _, value in window.strip()} == {3.0}
