"""`--chat` and `--system` in every command that takes prompts: the numbers are those of the functions, and the output says how."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp import Edit, Model, evaluate, generate, logit_lens, patch
from interp.cli import app
from interp.evaluation.toxicity import load_scorer
from interp.lens.attribution import attribute
from interp.models.chat import Chat, prompt_rows
from interp.models.pair import ModelPair
from interp.patching.metrics import LogProbability
from tests.chat_models import chat_folder

Invoke = Callable[..., Any]
PROMPT, SYSTEM = "the quick wintle sings", "be sunny"
AS_TURNS = "user turns of the model's chat template"


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny pair with a chat template, whose context holds the passages that ship."""
    root = tmp_path_factory.mktemp("chat sides")
    return str(chat_folder(root / "base", context=640)), str(chat_folder(root / "tuned", noise=0.02, context=640))


@pytest.fixture(scope="module")
def pair(sides: tuple[str, str]) -> ModelPair:
    return ModelPair.load(*sides)


@pytest.fixture
def base(pair: ModelPair) -> Model:
    return pair.base


@pytest.fixture
def invoke(sides: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command on the pair in an empty folder that holds prompts.txt; few passages, so that it is quick."""
    import interp.data.texts

    few = interp.data.texts.passages()[:3]
    monkeypatch.setattr("interp.data.texts.passages", lambda kind=None: few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na stone\n", encoding="utf-8")

    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*words, "--pair", *sides])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words and not code else result

    return run


def test_generate_answers_the_prompt_as_a_user_turn(invoke: Invoke, pair: ModelPair) -> None:
    (row,) = invoke("generate", "both", PROMPT, "--new-tokens", "4", "--chat", "--system", SYSTEM, "--json")
    expected = {name: generate(model, [PROMPT], max_new_tokens=4, chat=Chat(SYSTEM))[0] for name, model in pair.sides.items()}
    assert row == {"prompt": PROMPT, "prompt_format": f"{AS_TURNS}, after a system prompt", "system": SYSTEM, **expected}
    edit = Edit.scale("mlp_post.1", 9.0, positions="user")
    (row,) = invoke("generate", "base", PROMPT, "--new-tokens", "4", "--chat", "--edit", "scale:mlp_post.1:all:9:user", "--json")
    assert row["base + edit"] == generate(pair.base, [PROMPT], max_new_tokens=4, chat=True, edits=[edit])[0]
    (row,) = invoke("generate", "base", PROMPT, "--new-tokens", "4", "--json")
    assert row == {"prompt": PROMPT, "prompt_format": "raw text", "base": generate(pair.base, [PROMPT], max_new_tokens=4)[0]}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ("generate", "base", PROMPT, "--new-tokens", "2"), ("lens", PROMPT, "--model", "base", "--top", "1"),
        ("attribute", "base", PROMPT, "--token", "stone"), ("patch", PROMPT, "--token", "stone", "--null", "0", "--top", "1"),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_person_is_told_how_prompts_were_read(invoke: Invoke, words: tuple[str, ...], chat: bool) -> None:
    text = invoke(*words, *(["--chat"] if chat else [])).stdout
    assert text.splitlines()[0] == f"prompts read as {AS_TURNS if chat else 'raw text'}"


def test_lens_and_attribution_read_the_token_before_the_answer(invoke: Invoke, base: Model) -> None:
    token = base.token("stone")
    rows = invoke("lens", PROMPT, "--model", "base", "--token", "stone", "--chat", "--json")
    lens = logit_lens(base, [PROMPT], [token], chat=True)
    assert [row["probability"] for row in rows] == pytest.approx(lens.probabilities[0].tolist(), rel=1e-5)
    assert {row["prompt_format"] for row in rows} == {AS_TURNS}
    record = invoke("attribute", "base", PROMPT, "--token", "stone", "--chat", "--json")
    assert record["logit"]["contribution"] == pytest.approx(float(attribute(base, PROMPT, token, chat=True).logit), abs=1e-5)
    assert record["settings"]["base"]["prompt_format"] == AS_TURNS


def test_patching_is_limited_to_the_users_tokens(invoke: Invoke, pair: ModelPair) -> None:
    record = invoke("patch", PROMPT, "--token", "stone", "--positions", "user", "--null", "0", "--chat", "--json")
    metric = LogProbability((pair.base.token("stone"),))
    expected = patch(pair, PROMPT, metric=metric, positions="user", chat=True).to_frame()
    assert [cell["effect"] for cell in record["cells"]] == pytest.approx(expected["effect"].tolist(), abs=1e-6)
    assert record["settings"]["prompt_format"] == AS_TURNS
    (row,) = prompt_rows(pair.base, [PROMPT], True)
    assert {cell["position"] for cell in record["cells"]} == {at for at, role in enumerate(row.roles) if role == "user"}
    paths = invoke("patch", PROMPT, "--token", "stone", "--paths", "mlp.0", "logits", "--chat", "--json")
    assert paths["settings"]["prompt_format"] == AS_TURNS


def test_toxicity_is_measured_on_the_answers(invoke: Invoke, base: Model) -> None:
    files = ("--prompts", "prompts.txt", "--scorer", "lexicon", "--new-tokens", "3")
    record = invoke("evaluate", "base", *files, "--chat", "--csv", "out.csv", "--json")
    assert record["settings"]["prompt_format"] == AS_TURNS
    expected = evaluate(base, [PROMPT, "a stone"], load_scorer("lexicon"), max_new_tokens=3, chat=True)
    assert record["distinct_2"] == pytest.approx(expected.distinct_2, nan_ok=True)
    assert expected.continuations[0][:4] in Path("out.csv").read_text(encoding="utf-8")
    swept = invoke("sweep", "base", *files, "--strengths", "0", "--edit", "scale:mlp_post.1:all:2", "--chat", "--system", SYSTEM, "--json")
    assert (swept["prompt_format"], swept["system"]) == (f"{AS_TURNS}, after a system prompt", SYSTEM)
    refused = invoke("sweep", "base", *files, "--edit", "scale:mlp_post.1:all:2:user", "--chat", code=2)
    assert "perplexity and F1 are measured on raw text" in refused.stderr


def test_a_report_of_answers_says_so_and_is_kept_apart_from_one_of_raw_text(invoke: Invoke, tmp_path: Path) -> None:
    files = ("report", "--prompts", "prompts.txt", "--scorer", "lexicon", "--only", "A-E2", "--quick", "--out", "out", "--json")
    settings = []
    for words in ((), ("--chat", "--system", SYSTEM)):
        told = invoke(*files, *words)
        (table,) = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["experiments"]
        assert not told["skipped"]
        settings.append((told["prompt_format"], table["settings"].get("prompt_format"), table["settings"].get("system")))
    assert settings == [("raw text", None, None), (f"{AS_TURNS}, after a system prompt", f"{AS_TURNS}, after a system prompt", SYSTEM)]
    assert "--chat --system 'be sunny'" in html.unescape((tmp_path / "out/index.html").read_text(encoding="utf-8"))


def test_what_cannot_be_read_as_turns_is_one_line(invoke: Invoke, gpt2_folder: Path, tmp_path: Path) -> None:
    for words, problem in (
        (("generate", "base", PROMPT, "--system", SYSTEM), "--system is given without --chat"),
        (("generate", str(gpt2_folder), PROMPT, "--chat"), "has no chat template"),
        (("generate", "base", PROMPT, "--chat", "--edit", "scale:mlp_post.1:all:2:system"), "has no token that is the system prompt's"),
        (("generate", "base", PROMPT, "--edit", "scale:mlp_post.1:all:2:user"), "but the text is raw"),
    ):
        result = invoke(*words, code=2)
        assert problem in result.stderr
        told = [line for line in result.stderr.splitlines() if "BOS token" not in line]
        assert len(told) == 1
        assert "Fix: " in told[0]
    other = [str(chat_folder(tmp_path / "base", "{{ messages[0]['content'] }}")), str(chat_folder(tmp_path / "tuned"))]
    result = CliRunner().invoke(app, ["generate", "both", PROMPT, "--chat", "--pair", *other])
    assert result.exit_code == 2
    assert "the chat templates of base and tuned differ" in result.stderr
