"""The command line from outside: what each command prints, what it writes, and that help needs no library."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from interp import Edit, Model, UserError, generate, load_model
from interp.cli import COMMANDS, app, guarded, with_both_sides
from interp.commands.examples import EXAMPLES
from interp.data.texts import Passage
from interp.directions.probe import fit_probe, probe_for, save_probe
from interp.evaluation.metrics import perplexity
from interp.models.named import NAMED
from interp.neurons.ranking import rank_values
from interp.workbench import Sides
from tests import ROOT
from tests.conftest import CONFIGS, Planted, gpt2_config, make_hf, make_tokenizer, save

Invoke = Callable[..., Any]
PROMPTS = "the quick river\nblorp and\na 🙂 stone\n"


@pytest.fixture(scope="module")
def sides(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny pair whose context holds the passages that ship."""
    config = gpt2_config()
    config.n_positions = 640
    hf = make_hf(config, tokenizer, seed=1)
    root = tmp_path_factory.mktemp("long")
    base = save(hf, tokenizer, root / "base")
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    return str(base), str(save(hf, tokenizer, root / "tuned"))


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in an empty folder that holds prompts.txt; few passages, so that it is quick."""
    import interp.data.texts

    few = interp.data.texts.passages()[:4]
    monkeypatch.setattr("interp.data.texts.passages", lambda kind=None: few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BYPASS_DATA", raising=False)
    (tmp_path / "prompts.txt").write_text(PROMPTS, encoding="utf-8")

    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words and not code else result

    return run


def bypass(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "interp.cli", *words]
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)


def test_help_reads_no_library_that_takes_seconds() -> None:
    code = "import sys, interp.cli; print(*sorted({'torch', 'transformers', 'pandas', 'numpy', 'training', 'app'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_functions_named_like_files_are_the_functions_in_any_order_of_import() -> None:
    code = "import interp.forward.generate, interp.forward.capture; from interp import capture, generate, lens; "
    code += "print(type(capture).__name__, type(generate).__name__, type(lens).__name__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["function", "function", "module"]


@pytest.mark.parametrize("command", [*COMMANDS.values(), "train"])
def test_every_command_explains_itself(command: str, invoke: Invoke) -> None:
    assert "Usage" in invoke(command, "--help").stdout


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_example_of_the_help_has_options_that_the_command_knows(command: str) -> None:
    path = ["pairs", command] if command in ("audit", "watch") else [command]
    shown = " ".join(CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).stdout.split())
    options = typer.main.get_command(app)
    for name in path:
        options = options.commands[name]  # type: ignore[attr-defined]
    known = {word for parameter in options.params for word in (*parameter.opts, *parameter.secondary_opts)}
    for line in EXAMPLES[command]:
        assert line in shown
        words = shlex.split(line)
        assert words[: 1 + len(path)] == ["bypass", *path]
        assert {word for word in words if word.startswith("--")} <= known


def test_the_version_is_that_of_the_package(invoke: Invoke) -> None:
    shown = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert invoke("--version").stdout == f"bypass {shown}\n"


def test_bypass_alone_shows_the_commands(tmp_path: Path) -> None:
    found = bypass(folder=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert all(command in found.stdout for command in COMMANDS.values())


def test_the_real_command_writes_one_line_on_stderr_and_exits_with_2(tmp_path: Path) -> None:
    found = bypass("score", "gone.txt", folder=tmp_path)
    assert (found.returncode, found.stdout, len(found.stderr.splitlines())) == (2, "", 1)


def test_the_real_command_answers_on_stdout_alone(tmp_path: Path, gpt2_folder: Path, gpt2: Model) -> None:
    found = bypass("generate", str(gpt2_folder), "the quick 🙂 river", "--new-tokens", "4", "--json", folder=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert generate(gpt2, ["the quick 🙂 river"], max_new_tokens=4)[0] in json.loads(found.stdout)[0].values()


def test_a_reader_that_leaves_early_is_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    def pipe() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    held = os.dup(1)
    try:
        assert guarded(pipe) == 1
    finally:
        os.dup2(held, 1)
        os.close(held)
    assert capfd.readouterr().err == ""


def test_generate_shows_every_text_with_and_without_the_edit(invoke: Invoke, sides: tuple[str, str]) -> None:
    edit = "scale_keys:1.5,0.3:8"
    found = invoke("generate", "both", "the river", "a stone", "--pair", *sides, "--edit", edit, "--new-tokens", "6", "--json")
    assert [list(row) for row in found] == [["prompt", "prompt_format", "base", "base + edit", "tuned", "tuned + edit"]] * 2
    edits = [Edit.scale_keys([(1, 5), (0, 3)], 8.0)]
    for side, folder in zip(("base", "tuned"), sides, strict=True):
        model = load_model(folder)
        assert [row[side] for row in found] == generate(model, ["the river", "a stone"], max_new_tokens=6)
        assert [row[f"{side} + edit"] for row in found] == generate(model, ["the river", "a stone"], max_new_tokens=6, edits=edits)


def test_profanity_is_masked_for_people_and_raw_for_machines(invoke: Invoke, gpt2_folder: Path) -> None:
    word = "sh" + "it"
    words = ("generate", str(gpt2_folder), f"what {word}", "--new-tokens", "1")
    assert word not in invoke(*words).stdout
    assert word in invoke(*words, "--show-words").stdout
    assert invoke(*words, "--json")[0]["prompt"] == f"what {word}"


def test_evaluate_prints_exactly_the_record_that_the_design_names(invoke: Invoke, sides: tuple[str, str], tmp_path: Path) -> None:
    words = ("evaluate", "tuned", "--pair", *sides, "--prompts", "prompts.txt", "--scorer", "lexicon", "--new-tokens", "4")
    found = invoke(*words, "--csv", "rows.csv", "--json")
    assert list(found) == ["toxicity", "perplexity", "f1", "distinct_2", "n", "settings"]
    assert list(found["toxicity"]) == ["mean", "share_above_half", "interval"]
    assert found["n"] == 3
    assert found["settings"]["model"] == load_model(sides[1]).digest
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["prompt"].tolist() == PROMPTS.splitlines()
    assert "perplexity" in invoke(*words).stdout


def test_sweep_at_strength_nought_changes_nothing_and_grows_with_strength(invoke: Invoke, sides: tuple[str, str], tmp_path: Path) -> None:
    words = ("sweep", "base", "--pair", *sides, "--prompts", "prompts.txt", "--scorer", "lexicon", "--new-tokens", "4")
    edit = ("--edit", "subtract:resid_post.2:value.1.5:10", "--strengths", "0,1,4")
    found = invoke(*words, *edit, "--csv", "sweep.csv", "--json")
    rows = found["rows"]
    assert [row["strength"] for row in rows] == [0.0, 1.0, 4.0]
    assert rows[0]["kl"] == 0.0
    assert 0 < rows[1]["kl"] < rows[2]["kl"]
    alone = invoke("evaluate", "base", "--pair", *sides, "--prompts", "prompts.txt", "--scorer", "lexicon", "--new-tokens", "4", "--json")
    assert rows[0]["perplexity"] == alone["perplexity"]
    assert pd.read_csv(tmp_path / "sweep.csv")["perplexity"].tolist() == pytest.approx([row["perplexity"] for row in rows])


def test_sweep_of_keys_takes_the_factors_themselves(invoke: Invoke, sides: tuple[str, str]) -> None:
    words = ("sweep", "base", "--pair", *sides, "--prompts", "prompts.txt", "--scorer", "lexicon", "--new-tokens", "2", "--json")
    rows = invoke(*words, "--edit", "scale_keys:1.5:10", "--strengths", "1,10")["rows"]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["kl"] > 1e-6


def test_vectors_rank_search_and_explain_the_planted_neuron(invoke: Invoke, planted: Planted) -> None:
    name = f"{planted.layer}.{planted.index}"
    options = ("--model", str(planted.folder), "--json")
    ranked = invoke("vectors", *options, "--like", f"value:{name}", "--top", "2")
    assert (ranked[0]["layer"], ranked[0]["neuron"]) == (planted.layer, planted.index)
    assert ranked[0]["cosine"] == pytest.approx(1.0)
    assert ranked[0]["tokens"].split(" | ")[0] == planted.word.strip()
    assert {"listed", "in_sentences"} <= set(ranked[0])
    plain = ("vectors", "--model", str(planted.folder), "--like", f"value:{name}", "--top", "2")
    assert "tokens by dot product with the unembedding" in invoke(*plain).stdout
    near = invoke(*plain, "--scorer", "lexicon", "--projection", "cosine").stdout.replace("\n", " ")
    assert "tokens by cosine with the centred unembedding" in near
    assert "random value vectors of the same layers: mean" in near
    assert "use one of auto, dot" in invoke(*plain, "--projection", "best", code=2).output
    searched = invoke("vectors", *options, "--search", planted.word.strip())
    assert (searched[0]["layer"], searched[0]["neuron"], searched[0]["rank"]) == (planted.layer, planted.index, 1)
    explained = invoke("vectors", *options, "--neuron", name)
    assert explained[0]["top_tokens"].split(" | ")[0] == planted.word.strip()


def test_lens_of_a_word_ends_in_the_models_own_probability(
    invoke: Invoke, sides: tuple[str, str], tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = invoke("lens", "the quick", "--pair", *sides, "--token", "river", "--json")
    (token,) = tokenizer(" river", add_special_tokens=False)["input_ids"]
    for side, folder in zip(("base", "tuned"), sides, strict=True):
        hf = load_model(folder).hf
        with torch.no_grad():
            chance = hf(torch.tensor([tokenizer("the quick")["input_ids"]])).logits[0, -1].softmax(dim=0)[token]
        assert next(row for row in reversed(rows) if row["side"] == side)["probability"] == pytest.approx(float(chance), rel=1e-4)
    assert invoke("lens", "the quick", "--pair", *sides, "--top", "2").stdout.count("post ") == 3


def test_score_keeps_the_order_of_the_file_and_puts_toxicity_first(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("id,text\n1,what an idiot\n2,a calm river\n3,you moron\n", encoding="utf-8")
    found = invoke("score", "texts.csv", "--scorer", "lexicon", "--json")
    assert [next(iter(row)) for row in found] == ["toxicity"] * 3
    assert [row["toxicity"] for row in found] == [1.0, 0.0, 1.0]


def test_convert_writes_a_folder_that_other_commands_read(invoke: Invoke, sides: tuple[str, str], tmp_path: Path) -> None:
    torch.save({"state": load_model(sides[1]).plain_copy().state_dict()}, tmp_path / "policy.pt")
    assert invoke("convert", "policy.pt", "--like", "base", "--pair", *sides, "--json") == {"folder": "policy"}
    texts = [invoke("generate", name, "the river", "--json") for name in ("./policy", sides[1])]
    assert list(texts[0][0].values()) == list(texts[1][0].values())


def test_doctor_finds_that_capture_is_the_plain_forward(invoke: Invoke) -> None:
    found = {check["name"]: check for check in invoke("doctor", "--json")["checks"]}
    assert found["self check"]["ok"]
    assert found["self check"]["core"]
    assert all(check["ok"] or check["fix"] for check in found.values())


def test_doctor_ends_with_1_when_the_core_is_broken(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise UserError("captured logits differ", "report it")

    monkeypatch.setattr("interp.commands.doctor.self_check", broken)
    assert "the core is broken: self check" in invoke("doctor", code=1).stdout


def test_report_writes_the_page_and_names_it(invoke: Invoke, sides: tuple[str, str], tmp_path: Path) -> None:
    words = ("report", "--pair", *sides, "--only", "a-e8", "--quick", "--scorer", "lexicon", "--prompts", "prompts.txt")
    found = invoke(*words, "--out", "made/report", "--json")
    assert [item["id"] for item in found["experiments"]] == ["A-E8"]
    assert found["page"] == str(Path("made/report/index.html"))
    page = (tmp_path / "made/report/index.html").read_text(encoding="utf-8")
    assert "bypass report --pair" in page
    record = json.loads((tmp_path / "made/report/report.json").read_text(encoding="utf-8"))
    assert [item["verdict"] for item in record["experiments"]] == [item["verdict"] for item in found["experiments"]]
    again = invoke(*words, "--out", "made/report").stdout
    assert "The report is made/report/index.html" in again


def test_a_pairs_own_passages_and_probe_take_the_place_of_those_that_ship(invoke: Invoke, sides: tuple[str, str], tmp_path: Path) -> None:
    base, tuned = (load_model(folder) for folder in sides)
    own = [Passage(f"the {word} river", " sings and walks", "given") for word in ("quick", "sunny", "bitter")]
    lines = [json.dumps({"prompt": p.prompt, "continuation": p.continuation}) for p in own]
    (tmp_path / "own.jsonl").write_text("\n".join(lines), encoding="utf-8")
    texts = [f"{'blorp' if n % 2 else 'the'} {word} {n}" for n, word in enumerate(["snarg", "frabe", "quonk"] * 10)]
    probe = fit_probe(base, texts, [n % 2 for n in range(30)])
    save_probe(probe, tmp_path / "probe")
    files = ("--prompts", "prompts.txt", "--passages", "own.jsonl", "--probe", "probe", "--scorer", "lexicon", "--pair", *sides, "--json")
    found = invoke("evaluate", "tuned", *files, "--edit", "scale_keys:top:3:10")
    keys = rank_values(tuned, probe.direction, top=3).neurons
    assert keys != rank_values(tuned, probe_for(base).direction, top=3).neurons, "the probe given makes no difference"
    edit = Edit.scale_keys(keys, 10.0)
    assert found["settings"]["edits"] == [edit.to_json()]
    assert found["perplexity"] == pytest.approx(perplexity(tuned, [p.text for p in own], edits=[edit]).value, rel=1e-5)
    rows = invoke("vectors", "--top", "3", "--pair", *sides, "--probe", "probe", "--json")
    assert [(row["layer"], row["neuron"]) for row in rows] == rank_values(base, probe.direction, top=3).neurons
    report = invoke("report", "--out", "out", "--quick", "--only", "A-E2", *files)
    (table,) = json.loads((tmp_path / "out/report.json").read_text())["experiments"]
    assert table["settings"]["passages"] == 1, "a quick report reads every third passage"
    assert not report["skipped"]
    wrong = invoke("report", "--out", "two", "--pair", sides[1], sides[0], "--probe", "probe", code=2)
    assert "was fitted on another model" in wrong.stderr


def test_train_runs_the_stages_by_name_in_order(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.cli

    ran: list[tuple[str, str]] = []
    monkeypatch.setattr(training.cli, "run_one", lambda stage, recipe, again: ran.append((stage, recipe.name)))
    invoke("train", "pretrain", "shipped")
    assert ran == [("pretrain", "shipped")]
    invoke("train", "all", "shipped")
    stages = ["corpus", "tokenizer", "pretrain", "continue", "scorer", "probe", "pairs", "dpo", "bundle"]
    assert [stage for stage, _ in ran[1:]] == stages, "those that the recipe has"


@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("generate base Hi --pair smollm2", "generate base Hi --pair smollm2 smollm2"),
        ("generate --pair smollm2 base Hi", "generate --pair smollm2 smollm2 base Hi"),
        ("generate --pair=smollm2 base Hi", "generate --pair smollm2 smollm2 base Hi"),
        ("report --pair smollm2 --quick", "report --pair smollm2 smollm2 --quick"),
        ("generate --pair smollm2 someone/tuned base Hi", "generate --pair smollm2 someone/tuned base Hi"),
        ("generate --pair smollm2 tuned.gguf base Hi", "generate --pair smollm2 tuned.gguf base Hi"),
        ("generate --pair here there base Hi", "generate --pair here there base Hi"),
        ("generate --pair", "generate --pair"),
        ("generate base -- --pair smollm2", "generate base -- --pair smollm2"),
        ("generate base --pair smollm2 -- smollm2 a/b", "generate base --pair smollm2 smollm2 -- smollm2 a/b"),
    ],
)
def test_the_name_of_a_pair_stands_for_both_sides(typed: str, whole: str) -> None:
    assert with_both_sides(typed.split()) == whole.split()


def test_a_folder_after_the_name_of_a_pair_is_its_tuned_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned").mkdir()
    assert with_both_sides(["--pair", "smollm2", "tuned"]) == ["--pair", "smollm2", "tuned"]


def test_a_named_pair_names_its_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = NAMED["smollm2"]
    monkeypatch.setitem(NAMED, "smollm2", replace(named, tuned=tmp_path))
    sides = Sides(("smollm2", "smollm2"))
    assert (sides.named_pair, sides.source("base")) == ("smollm2", "smollm2")
    with pytest.raises(UserError, match="the tuned side of smollm2 is not in"):
        sides.source("tuned")
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert sides.source("tuned") == str(tmp_path)
    assert Sides(("smollm2", "x/y")).named_pair is None


def test_convert_reads_a_gguf_file_and_says_how_far_it_is_from_the_original(invoke: Invoke, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.models.test_gguf import write_gguf

    tokenizer = make_tokenizer()
    hf = make_hf(CONFIGS["llama"](), tokenizer)
    save(hf, tokenizer, tmp_path / "original")
    write_gguf(hf, tokenizer, tmp_path / "small.gguf", "llama")
    output = invoke("convert", "small.gguf", "--like", "original", "--out", "out").output
    assert "written: out" in output
    assert "(32.0 bits a weight)" in output
    assert "same_likeliest_token" in output
    assert "small" in invoke("generate", "small.gguf", "the quick", "--new-tokens", "2").output
    again = invoke("convert", "small.gguf", "--like", "original", "--out", "twice", "--json")
    assert again["rounding"]["weights_error"] == 0
