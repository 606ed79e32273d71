"""Bad input, as a table: each row a command, what it must answer, or a right answer where the input only looks bad.

For every bad row: exit code 2, exactly one line on stderr that names the problem and its fix, no traceback, nothing on
stdout, and not one file more or less on disk than before.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from interp.cli import app, quiet
from interp.errors import Notice
from tests.conftest import D_MODEL

Bad = tuple[str, str, str]
# name | command line, in which {x} is a file of `broken` | a piece of the one line
BAD: list[Bad] = [
    ("no such command", "explain everything", "No such command"),
    ("no such option", "doctor --colour", "No such option"),
    ("an option without its value", "score {texts} --scorer", "requires an argument"),
    ("half a pair", "lens hello --pair {base}", "--pair"),
    ("a number that is none", "generate {base} hello --new-tokens many", "valid integer"),
    ("prompts file missing", "evaluate {base} --prompts {gone}", "there is no file"),
    ("prompts file is a folder", "evaluate {base} --prompts {base}", "is a folder"),
    ("prompts file empty", "evaluate {base} --prompts {empty}", "is empty"),
    ("prompts file of blank lines", "evaluate {base} --prompts {blank}", "is empty"),
    ("prompts file binary", "evaluate {base} --prompts {binary}", "NUL byte"),
    ("prompts file in Latin-1", "evaluate {base} --prompts {latin}", "is not UTF-8"),
    ("prompts jsonl with a broken line", "evaluate {base} --prompts {broken_jsonl}", "line 2 is not JSON"),
    ("prompts jsonl without prompt", "evaluate {base} --prompts {no_field}", "no field `prompt`"),
    ("prompts file name beyond any limit", "evaluate {base} --prompts {long_name}", "name too long"),
    ("texts csv without its column", "score {no_column}", "no `text` column"),
    ("texts csv with an open quote", "score {open_quote}", "not valid csv"),
    ("texts csv with a ragged row", "score {ragged}", "has 3 fields"),
    ("texts jsonl with a number as text", "score {number_text}", "`text` is a number"),
    ("scorer unknown", "score {texts} --scorer perspective", "no scorer folder"),
    ("empty prompt", "generate {base} @empty", "is empty"),
    ("empty prompt among others", "generate {base} hello @empty", "text 1 is empty"),
    ("no prompt at all", "generate {base}", "generate needs prompts"),
    ("enormous prompt", "generate {base} @enormous", "reads at most 64"),
    ("no room for the new tokens", "generate {base} hello --new-tokens 100000", "do not fit"),
    ("fewer than no tokens", "generate {base} hello --new-tokens -1", "max_new_tokens is -1"),
    ("temperature NaN", "generate {base} hello --temperature nan", "temperature nan"),
    ("temperature below zero", "generate {base} hello --temperature -1", "temperature -1"),
    ("top-p above one", "generate {base} hello --top-p 1.5", "top_p 1.5"),
    ("empty prompt for the lens", "lens @empty --model {base}", "is empty"),
    ("a lens word of many tokens", "lens hello --model {base} --token antidisestablishmentarianism", "one is needed"),
    ("an empty lens word", "lens hello --model {base} --token @empty", "is empty"),
    ("more lens tokens than there are", "lens hello --model {base} --top 100000", "top 100000"),
    ("model folder missing", "generate {gone} hello", "there is no folder"),
    ("model name empty", "generate @empty hello", "names no model"),
    ("model is a file", "generate {texts} hello", "a model is a folder"),
    ("model folder without config", "generate {no_config} hello", "has no config.json"),
    ("model folder without weights", "generate {no_weights} hello", "holds no weights"),
    ("model folder with a pickle", "generate {pickled} hello", "pickled weights"),
    ("model weights truncated", "generate {truncated} hello", "corrupt or truncated"),
    ("model config is no JSON", "generate {bad_config} hello", "is not readable JSON"),
    ("model without tokenizer", "generate {no_tokenizer} hello", "has no tokenizer files"),
    ("model with a tensor missing", "generate {lacking} hello", "lacks 1 tensors"),
    ("model with NaN weights", "generate {nan_weights} hello", "NaN or infinity"),
    ("sides of different architecture", "generate both hello --pair {base} {llama}", "differ in architecture"),
    ("edit that is none", "generate {base} hello --edit banana", "is not an edit"),
    ("edit with too few parts", "generate {base} hello --edit scale_keys:1.5", "wrong number of parts"),
    ("edit at an unknown site", "generate {base} hello --edit subtract:resid_end.1:value.0.1:1", "is not a site"),
    ("edit at a layer beyond the model", "generate {base} hello --edit subtract:resid_post.9:value.0.1:1", "3 layers"),
    ("edit of a neuron beyond the model", "generate {base} hello --edit scale_keys:0.99999:2", "0.99999 does not exist"),
    ("edit of strength NaN", "generate {base} hello --edit subtract:resid_post.1:value.0.1:nan", "finite number"),
    ("edit of infinite strength", "generate {base} hello --edit scale_keys:0.1:inf", "finite number"),
    ("edit of a strength that is no number", "generate {base} hello --edit scale_keys:0.1:strong", "is not a number"),
    ("edit with an unknown vector", "generate {base} hello --edit add:resid_post.1:kindness:1", "is no vector"),
    ("edit with a vector of another width", "generate {base} hello --edit add:resid_post.1:{short_vector}:1", "2 numbers"),
    ("edit with a vector of words", "generate {base} hello --edit add:resid_post.1:{words_vector}:1", "one list of numbers"),
    ("edit of the top none", "generate {base} hello --edit scale_keys:top:0:2", "names no neurons"),
    ("edits file missing", "generate {base} hello --edit {gone}.json", "cannot read the edits"),
    ("edits file that is no JSON", "generate {base} hello --edit {broken_json}", "is not JSON"),
    ("edits file with an unknown op", "generate {base} hello --edit {unknown_op}", "op is 'polish'"),
    ("edits file with NaN", "generate {base} hello --edit {nan_edit}", "NaN or infinity"),
    ("edits file nested without end", "generate {base} hello --edit {deep_json}", "nested too deeply"),
    ("sweep without an edit", "sweep {base}", "no edit"),
    ("sweep of strengths that are none", "sweep {base} --edit scale_keys:0.1:1 --strengths 1,two", "'two'"),
    ("sweep of strength NaN", "sweep {base} --edit scale_keys:0.1:1 --strengths nan", "'nan'"),
    ("sweep of an edit without strength", "sweep {base} --edit project_out:resid_post.1:value.0.1 --scorer lexicon", "no strength"),
    ("sweep to a folder that is not there", "sweep {base} --edit scale_keys:0.1:1 --csv {gone}/x.csv", "there is no folder"),
    ("csv that is a folder", "score {texts} --csv {base}", "is a folder"),
    ("unknown experiment", "report --only A-E99 --out {out}", "no experiment A-E99"),
    ("report into a file", "report --out {texts}", "is a file"),
    ("report below a file", "report --out {texts}/deep/report", "texts.txt is a file"),
    ("two questions at once", "vectors --search river --neuron 0.1", "different questions"),
    ("neuron that is none", "vectors --model {base} --neuron zero", "is not a neuron"),
    ("neuron beyond the model", "vectors --model {base} --neuron 7.1", "does not exist"),
    ("search for nothing", "vectors --model {base} --search @empty", "is empty"),
    ("search for no token's beginning", "vectors --model {base} --search xyzzyxyzzy", "no token begins"),
    ("the top none", "vectors --model {base} --like value:0.1 --top 0", "top 0"),
    ("policy missing", "convert {gone}.pt --like {base}", "there is no file"),
    ("policy that is no checkpoint", "convert {garbage} --like {base} --out {out}", "damaged"),
    ("policy with numpy metrics", "convert {numpy_policy} --like {base} --out {out}", "numpy values"),
    ("policy without weights", "convert {bare_policy} --like {base} --out {out}", "no weights by name"),
    ("policy like nothing", "convert {garbage} --out {out}", "--like MODEL"),
    ("policy onto a folder that exists", "convert {garbage} --like {base} --out {base}", "exists already"),
    ("unknown training stage", "train everything shipped", "no stage 'everything'"),
    ("unknown recipe", "train corpus {gone}", "no recipe"),
]  # fmt: skip


def copy_of(folder: Path, target: Path, *, without: tuple[str, ...] = ()) -> Path:
    shutil.copytree(folder, target)
    for name in without:
        for file in target.glob(name):
            file.unlink()
    return target


@pytest.fixture(scope="session")
def broken(gpt2_folder: Path, tuned_folder: Path, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every file and folder that the table names."""
    root = tmp_path_factory.mktemp("bad")
    found = {"base": gpt2_folder, "tuned": tuned_folder, "llama": llama_folder, "gone": root / "gone", "out": root / "out"}
    texts: dict[str, tuple[str, str | bytes]] = {
        "texts": ("texts.txt", "a river\na stone\n"),
        "empty": ("empty.txt", ""),
        "blank": ("blank.txt", "\n  \n\t\n"),
        "binary": ("binary.txt", bytes(range(256))),
        "latin": ("latin.txt", "café".encode("latin-1")),
        "broken_jsonl": ("broken.jsonl", '{"prompt": "a"}\n{"prompt": \n'),
        "no_field": ("no_field.jsonl", '{"question": "a"}\n'),
        "number_text": ("number.jsonl", '{"text": 7}\n'),
        "no_column": ("no_column.csv", "a,b\n1,2\n"),
        "open_quote": ("open_quote.csv", 'text\n"never closed\n'),
        "ragged": ("ragged.csv", "text,label\na,b,c\n"),
        "short_vector": ("short.json", "[1.0, 2.0]"),
        "words_vector": ("words.json", '["a", "b"]'),
        "broken_json": ("broken.json", "{"),
        "unknown_op": ("unknown_op.json", '{"op": "polish", "site": "resid_post.1"}'),
        "nan_edit": ("nan.json", json.dumps({"op": "add", "site": "resid_post.1", "values": [float("nan")] * D_MODEL})),
        "deep_json": ("deep.json", "[" * 100_000),
        "garbage": ("garbage.pt", b"\x80\x02 this is not a checkpoint"),
    }
    for key, (name, content) in texts.items():
        found[key] = root / name
        found[key].write_bytes(content.encode() if isinstance(content, str) else content)
    found["long_name"] = root / ("n" * 400 + ".txt")
    found["numpy_policy"], found["bare_policy"] = root / "numpy.pt", root / "bare.pt"
    torch.save({"state": {"w": torch.ones(2)}, "metrics": {"loss": np.float64(0.5)}}, found["numpy_policy"])
    torch.save({"epoch": 3}, found["bare_policy"])

    weights = "model.safetensors"
    found["no_config"] = copy_of(gpt2_folder, root / "no_config", without=("config.json",))
    found["no_weights"] = copy_of(gpt2_folder, root / "no_weights", without=(weights,))
    found["pickled"] = copy_of(gpt2_folder, root / "pickled", without=(weights,))
    torch.save({}, found["pickled"] / "pytorch_model.bin")
    found["no_tokenizer"] = copy_of(gpt2_folder, root / "no_tokenizer", without=("tokenizer*",))
    found["bad_config"] = copy_of(gpt2_folder, root / "bad_config")
    (found["bad_config"] / "config.json").write_text("{", encoding="utf-8")
    found["truncated"] = copy_of(gpt2_folder, root / "truncated")
    whole = (found["truncated"] / weights).read_bytes()
    (found["truncated"] / weights).write_bytes(whole[: len(whole) // 2])
    for key in ("lacking", "nan_weights"):
        found[key] = copy_of(gpt2_folder, root / key)
        tensors = load_file(found[key] / weights)
        if key == "lacking":
            del tensors["transformer.h.1.mlp.c_fc.weight"]
        else:
            tensors["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
        save_file(tensors, found[key] / weights, metadata={"format": "pt"})
    return found


def arguments(line: str, broken: dict[str, Path]) -> list[str]:
    special = {"@empty": "", "@enormous": "river " * 20_000}
    return [special.get(word, word.format(**{name: str(path) for name, path in broken.items()})) for word in line.split()]


def listing(*folders: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.fixture
def invoke(broken: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Any]:
    """Run a command in an empty folder, with its own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.delenv("BYPASS_DEBUG", raising=False)
    return lambda words: CliRunner().invoke(app, words)


@pytest.mark.parametrize(("line", "piece"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_answered_by_one_clear_line(
    line: str, piece: str, broken: dict[str, Path], invoke: Callable[[list[str]], Any], tmp_path: Path
) -> None:
    folders = (broken["out"].parent, broken["base"], broken["tuned"], tmp_path)
    before = listing(*folders)
    result = invoke(arguments(line, broken))
    lines = result.stderr.splitlines()
    assert (result.exit_code, len(lines), result.stdout) == (2, 1, ""), result.output
    assert lines[0].startswith("bypass: ")
    assert piece in lines[0]
    assert "Fix: " in lines[0]
    assert len(lines[0]) < 700
    assert "Traceback" not in result.output
    assert listing(*folders) == before


ODD = {
    "emoji": "the 🙂 river 🏳️‍🌈",
    "Japanese": "川は石の下を歩く",
    "Arabic, right to left": "النهر يمشي تحت الحجر",
    "combining marks": "z̸̢a͎l̶g̨o",
    "control characters": "a\x1b[31mred\x07 river",
    "markup of the terminal library": "[bold]river[/red] [link=x]",
    "only spaces": "   ",
    "a line break": "a river\nand a stone",
    "a hyphen first": "-- river",
}


@pytest.mark.parametrize("prompt", list(ODD.values()), ids=list(ODD))
def test_odd_but_legitimate_prompts_get_a_right_answer(prompt: str, broken: dict[str, Path], invoke: Callable[[list[str]], Any]) -> None:
    words = ["generate", str(broken["base"]), "--new-tokens", "3", "--json", "--", prompt]
    result = invoke(words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)[0]["prompt"] == prompt
    shown = invoke([word for word in words if word != "--json"])
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    assert "\x07" not in shown.stdout


def test_an_enormous_prompt_is_cut_on_request(broken: dict[str, Path], invoke: Callable[[list[str]], Any]) -> None:
    words = ["generate", str(broken["base"]), "--new-tokens", "2", "--json"]
    long, short = (invoke([*words, "--max-prompt-tokens", "5", " river" * count]) for count in (20_000, 5))
    assert long.exit_code == short.exit_code == 0
    answers = [next(value for key, value in json.loads(r.stdout)[0].items() if key != "prompt") for r in (long, short)]
    assert answers[0] == answers[1]


def test_a_text_longer_than_the_scorer_reads_is_scored_whole(tmp_path: Path, invoke: Callable[[list[str]], Any]) -> None:
    pytest.importorskip("detoxify")
    file = tmp_path / "long.jsonl"
    calm, insult = "the river walks under the stone " * 300, "you are a stupid idiot "
    file.write_text("\n".join(json.dumps({"text": text}) for text in (calm, calm + insult * 3)), encoding="utf-8")
    result = invoke(["score", str(file), "--json"])
    scores = json.loads(result.stdout)
    assert next(iter(scores[0])) == "toxicity"
    assert scores[0]["toxicity"] < 0.5 < scores[1]["toxicity"]


def test_a_fault_of_ours_is_one_line_and_a_traceback_only_on_request(
    broken: dict[str, Path], invoke: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **named: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("interp.data.texts.read_texts", fail)
    result = invoke(["score", str(broken["texts"])])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["bypass: ZeroDivisionError: planted (a fault of bypass; BYPASS_DEBUG=1 shows where)"]
    monkeypatch.setenv("BYPASS_DEBUG", "1")
    assert isinstance(invoke(["score", str(broken["texts"])]).exception, ZeroDivisionError)


def test_an_interrupt_ends_with_130(broken: dict[str, Path], invoke: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.data.texts.read_texts", interrupt)
    result = invoke(["score", str(broken["texts"])])
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("bypass: interrupted. Run the same command again")
    assert "Traceback" not in result.output


def test_a_full_disk_is_told_with_its_path(
    broken: dict[str, Path], invoke: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device", "somewhere/result.json")

    monkeypatch.setattr("interp.data.texts.read_texts", fail)
    result = invoke(["score", str(broken["texts"])])
    assert result.exit_code == 2
    line = "bypass: somewhere/result.json: no space is left. Fix: free some and run this again; what is finished is kept."
    assert result.stderr.splitlines() == [line]


def test_a_notice_is_one_line_on_stderr_and_other_warnings_are_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("BYPASS_DEBUG", raising=False)
    with warnings.catch_warnings():
        quiet()
        for _ in range(2):
            warnings.warn("the base was\nnot checked", Notice, stacklevel=1)
        warnings.warn("an argument is old", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == "bypass: the base was not checked\n" * 2
