"""Chat templates: the tokens are those of transformers, roles are exact, and what a template cannot tell or do is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from interp import Edit, Model, ModelPair, UserError, capture, editing, evaluate, generate, load_model, logit_lens, patch, stream
from interp.evaluation.toxicity import load_scorer
from interp.forward.generate import generate_tokens
from interp.forward.resume import trace
from interp.lens.attribution import attribute, attribute_pair
from interp.models.chat import Chat, ChatTokens, Turn, check_one_template, prompt_format, prompt_rows, render_chat
from interp.models.chat_spans import turn_spans
from interp.models.positions import ROLES
from interp.models.tokens import token_rows
from interp.patching.gradient import gradients
from interp.patching.metrics import LogProbability
from tests.chat_models import CHATML, LLAMA2, chat_folder, chat_model

SYSTEM = "be quick and sunny"
TEXTS = ("the quick wintle sings", " never\nthe stone  ", "hoddle 🙂 café", "a", "river [/I] <|im_end|>")
TURNS: list[Turn] = [
    {"role": "system", "content": SYSTEM}, {"role": "user", "content": " walks with\n"},
    {"role": "assistant", "content": "the oskle"}, {"role": "user", "content": "under a stone"},
]  # fmt: skip


@pytest.fixture(scope="module")
def chatml() -> Model:
    return chat_model(CHATML, "chatml")


@pytest.fixture(scope="module")
def llama2() -> Model:
    return chat_model(LLAMA2, "llama2")


@pytest.fixture(params=["chatml", "llama2"])
def chatty(request: pytest.FixtureRequest) -> Model:
    """A model with each of the two templates."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def chat_pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    root = tmp_path_factory.mktemp("chat pair")
    return ModelPair.load(chat_folder(root / "base"), chat_folder(root / "tuned", noise=0.02))


def at(row: ChatTokens, *roles: str) -> list[int]:
    assert row.roles is not None
    return [place for place, role in enumerate(row.roles) if role in roles]


def said(model: Model, row: ChatTokens, role: str) -> str:
    return model.tokenizer.decode([row.ids[place] for place in at(row, role)])


def vector(model: Model) -> torch.Tensor:
    return 3 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_rendered_tokens_are_those_of_transformers_and_bos_is_there_once_or_as_the_template_says(chatty: Model, system: str | None) -> None:
    rows = prompt_rows(chatty, TEXTS, Chat(system))
    for text, row in zip(TEXTS, rows, strict=True):
        expected = chatty.tokenizer.apply_chat_template(list(Chat(system).turns(text)), add_generation_prompt=True)["input_ids"]
        assert list(row) == expected
        assert list(row).count(chatty.tokenizer.bos_token_id) == (1 if chatty.name == "llama2" else 0)
    # The tokenizer itself would add one.
    assert chatty.tokenizer(TEXTS[0])["input_ids"][0] == chatty.tokenizer.bos_token_id
    assert rows[0].roles is not None
    (once,) = prompt_rows(chatty, TEXTS[:1], Chat(system), bos=True)
    assert list(once).count(chatty.tokenizer.bos_token_id) == 1
    assert once[0] == chatty.tokenizer.bos_token_id
    assert at(once, "template")[0] == 0


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_roles_in_chatml_are_the_tokens_between_the_marks(chatml: Model, system: str | None) -> None:
    """ChatML puts special tokens and line breaks around a turn, so its tokens are those of the turn alone where none merges with them."""
    for text, row in zip(TEXTS, prompt_rows(chatml, TEXTS, Chat(system)), strict=True):
        assert said(chatml, row, "user") == text
        assert said(chatml, row, "system") == (system or "")
        assert at(row, "assistant") == []
        # One stretch each, and the last tokens are the head of the answer.
        assert at(row, "user") == list(range(at(row, "user")[0], at(row, "user")[-1] + 1))
        assert chatml.tokenizer.decode(row.ids[at(row, "user")[-1] + 1 :]) == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_trimmed_turn_is_found_and_a_token_that_it_shares_with_the_template_is_the_turns(llama2: Model) -> None:
    (row,) = prompt_rows(llama2, ["  the river \n"], Chat(SYSTEM))
    # With a system prompt before it, only the end of the turn is trimmed.
    assert said(llama2, row, "user") == "  the river"
    assert said(llama2, row, "system") == SYSTEM
    (row,) = prompt_rows(llama2, [" the river\n"], True)
    # The blank before " the" is the template's: its token holds characters of the turn as well.
    assert said(llama2, row, "user") == " the river"
    assert llama2.tokenizer.decode(row.ids) == "<s>[I] the river [/I]"


def test_the_roles_of_several_turns(chatty: Model) -> None:
    (row,) = render_chat(chatty, [TURNS])
    assert list(row) == chatty.tokenizer.apply_chat_template([dict(turn) for turn in TURNS], add_generation_prompt=True)["input_ids"]
    assert said(chatty, row, "assistant").strip() == "the oskle"
    assert said(chatty, row, "system") == SYSTEM
    assert sorted(place for role in ROLES for place in at(row, role)) == list(range(len(row)))
    assert "walks with" in said(chatty, row, "user")
    assert said(chatty, row, "user").endswith("under a stone")
    assert row[2:5].roles == row.roles[2:5]  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "skeleton", "contents", "expected"),
    [
        ("<a>x </a>", "<a>\ue0000\ue001</a>", ["x "], [(3, 5)]),
        ("<a>x</a>", "<a>\ue0000\ue001</a>", [" x "], [(3, 4)]),
        ("[s]t", "[\ue0001\ue001]\ue0000\ue001", ["t", "s"], [(3, 4), (1, 2)]),
        # Changed by the template, left out, or written twice.
        ("<a>X</a>", "<a>\ue0000\ue001</a>", ["x"], None),
        ("<a></a>", "<a></a>", ["x"], None),
        ("xx", "\ue0000\ue001\ue0000\ue001", ["x"], None),
        # "a" and " b", or "a " and "b".
        ("a b", "\ue0000\ue001\ue0001\ue001", ["a ", " b"], None),
    ],
)
def test_turns_are_found_where_there_is_exactly_one_way(
    text: str, skeleton: str, contents: list[str], expected: list[tuple[int, int]] | None
) -> None:
    assert turn_spans(text, skeleton, contents) == expected


@pytest.mark.parametrize("cache", [True, False])
def test_an_edit_limited_to_a_role_is_the_edit_at_its_tokens(chatty: Model, cache: bool) -> None:
    rows = prompt_rows(chatty, TEXTS, Chat(SYSTEM))
    asked: dict[str, Any] = {"max_new_tokens": 5, "cache": cache, "stop_at_end": False}

    def tokens(positions: Any, batch: Sequence[Any] = rows) -> list[list[int]]:
        return generate_tokens(chatty, batch, edits=[Edit.add("resid_post.1", vector(chatty), positions=positions)], **asked)

    plain = generate_tokens(chatty, rows, **asked)
    for role in ("user", "system", "template"):
        alone = [tokens(at(row, role), [row])[0] for row in rows]
        assert tokens(role) == alone
        assert alone != plain
    assert tokens("assistant") == tokens("generated") != plain
    assert tokens("last") == [tokens([len(row) - 1], [row])[0] for row in rows] != plain


def test_an_edit_of_the_users_tokens_reaches_no_token_before_them(chatml: Model) -> None:
    sites = ["resid_post.1", "resid_post.2"]
    edit = Edit.add("resid_post.1", vector(chatml), positions="user")
    plain, edited = (capture(chatml, TEXTS, sites, positions="all", chat=True, edits=edits) for edits in ((), [edit]))
    for number, row in enumerate(prompt_rows(chatml, TEXTS, True)):
        user = at(row, "user")
        moved = (edited["resid_post.1"] - plain["resid_post.1"])[number, : len(row)]
        expected = torch.zeros_like(moved)
        expected[user] = vector(chatml)
        assert torch.allclose(moved, expected, atol=1e-5)
        later = (edited["resid_post.2"] - plain["resid_post.2"])[number, : len(row)].abs().amax(dim=1)
        assert float(later[: user[0]].max()) < 1e-5 < float(later[user].min())


def test_a_role_is_captured_as_all_tokens_are_with_zeros_elsewhere(chatty: Model) -> None:
    sites = ["resid_post.2", "z.1", "pattern.0"]
    rows = prompt_rows(chatty, TEXTS, Chat(SYSTEM))
    everything = capture(chatty, TEXTS, sites, positions="all", chat=Chat(SYSTEM), batch_size=2)
    for role in ("user", "system", "template"):
        acts = capture(chatty, TEXTS, sites, positions=role, chat=Chat(SYSTEM), batch_size=2)
        assert acts.settings["prompt_format"] == prompt_format(Chat(SYSTEM))
        assert acts.mask is not None
        for number, row in enumerate(rows):
            assert acts.mask[number].nonzero()[:, 0].tolist() == at(row, role)
            for site in ("resid_post.2", "z.1"):
                assert torch.equal(acts[site][number][acts.mask[number]], everything[site][number][acts.mask[number]])
                assert not acts[site][number][~acts.mask[number]].any()
            assert torch.equal(acts["pattern.0"][number][:, acts.mask[number]], everything["pattern.0"][number][:, acts.mask[number]])
    last = capture(chatty, TEXTS, ["resid_post.2"], chat=Chat(SYSTEM))["resid_post.2"]
    assert torch.allclose(last[0], everything["resid_post.2"][0, len(rows[0]) - 1], atol=1e-5)


@pytest.mark.parametrize("text", ["the quick wintle sings", " a stone "])
def test_an_answer_is_what_transformers_generates_on_the_rendered_tokens(chatty: Model, text: str) -> None:
    ids = chatty.tokenizer.apply_chat_template(list(Chat(SYSTEM).turns(text)), add_generation_prompt=True, return_tensors="pt")["input_ids"]
    end = chatty.tokenizer.eos_token_id
    out = chatty.hf.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=end)[0, ids.shape[1] :]
    expected = chatty.tokenizer.decode(out, skip_special_tokens=True)
    assert generate(chatty, [text, "a"], max_new_tokens=8, chat=Chat(SYSTEM))[0] == expected
    assert "".join(stream(chatty, text, max_new_tokens=8, chat=Chat(SYSTEM))) == expected
    assert generate(chatty, [text], max_new_tokens=8)[0] != expected


def test_without_the_switch_text_is_raw(chatml: Model) -> None:
    assert prompt_rows(chatml, TEXTS) == token_rows(chatml, TEXTS)
    assert (prompt_format(False), prompt_format(True)) == ("raw text", "user turns of the model's chat template")
    assert capture(chatml, ["a"], ["resid_post.0"]).settings["prompt_format"] == "raw text"
    edit = Edit.scale("mlp_post.0", 2.0, positions="user")
    for act in (lambda: generate(chatml, ["a"], edits=[edit]), lambda: capture(chatml, ["a"], ["resid_post.0"], edits=[edit])):
        with pytest.raises(UserError, match=r"positions 'user' are asked for, but the text is raw.*chat=True, or --chat"):
            act()


def test_readings_and_patches_are_of_the_rendered_tokens(chat_pair: ModelPair) -> None:
    model, text = chat_pair.base, "the quick wintle sings"
    (row,) = prompt_rows(model, [text], Chat(SYSTEM))
    token = model.token("stone")
    asked: dict[str, Any] = {"chat": Chat(SYSTEM)}
    final = model.hf(torch.tensor([row.ids])).logits[0, -1]
    lens = logit_lens(model, [text], [token], **asked)
    assert float(lens.probabilities[0, -1]) == pytest.approx(float(final.softmax(dim=0)[token]), abs=1e-6)
    attribution = attribute(model, text, token, **asked)
    assert float(attribution.logit) == pytest.approx(float(final[token]), abs=1e-4)
    assert attribution.settings["system"] == SYSTEM
    assert torch.equal(attribute_pair(chat_pair, text, token, **asked).base.logit, attribution.logit)
    metric = LogProbability((token,))
    slopes = gradients(model, text, ["resid_post.0"], metric, **asked)["resid_post.0"]
    assert slopes.shape[1] == len(row)
    by_role = patch(chat_pair, text, metric=metric, positions="user", **asked)
    by_number = patch(chat_pair, text, metric=metric, positions=at(row, "user"), **asked)
    assert [cell.position for cell in by_role.cells[: len(at(row, "user"))]] == at(row, "user")
    assert torch.equal(by_role.values, by_number.values)
    assert len(by_role.tokens) == len(row)
    assert patch(chat_pair, text, metric=metric, positions="last", **asked).cells[0].position == len(row) - 1
    within = patch(model, text, "the quick stone sings", metric=metric, **asked)
    assert float(within.effects.abs().max()) > 0
    with pytest.raises(UserError, match="the positions 'user' are not the same in all prompts"):
        patch(chat_pair, [text, "a stone"], metric=metric, positions="user", **asked)


def test_an_outer_edit_of_a_role_acts_in_runs_that_are_resumed(chat_pair: ModelPair) -> None:
    model = chat_pair.base
    (row,) = prompt_rows(model, ["the quick wintle sings"], True)
    metric, found = LogProbability((model.token("stone"),)), []
    for positions in ("user", at(row, "user")):
        with editing(model, [Edit.add("mlp_out.1", vector(model), positions=positions)]):
            run = trace(model, row, ["mlp_out.1"])
            found.append((run.stream, patch(chat_pair, "the quick wintle sings", metric=metric, chat=True).values))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.allclose(found[0][0], trace(model, row).stream)


def test_toxicity_is_that_of_the_answers_and_an_edit_of_a_role_has_no_perplexity(chatml: Model) -> None:
    from interp.data.texts import Passage

    few = [Passage("the quick", " wintle sings", "test")]
    measured = evaluate(chatml, TEXTS[:2], load_scorer("lexicon"), passages=few, max_new_tokens=4, chat=True)
    assert measured.continuations == generate(chatml, TEXTS[:2], max_new_tokens=4, chat=True)
    assert measured.settings["prompt_format"] == prompt_format(True)
    assert measured.perplexity.value == evaluate(chatml, TEXTS[:2], load_scorer("lexicon"), passages=few).perplexity.value
    edit = Edit.scale("mlp_post.0", 2.0, positions="user")
    with pytest.raises(UserError, match="perplexity and F1 are measured on raw text"):
        evaluate(chatml, TEXTS[:2], load_scorer("lexicon"), passages=few, chat=True, edits=[edit])


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "has no chat template"),
        ("{% for message in messages %}{{ message['content'] }}", "does not take user turns"),
        ("{{ messages[0]['content'] + 1 }}", "does not take user turns"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "does not take user turns"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "does not take user turns"),
        ("hello{% if add_generation_prompt %}!{% endif %}", "leaves out turn 0, of the role user"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template: str | None, problem: str) -> None:
    model = chat_model(template)
    with pytest.raises(UserError, match=problem) as caught:
        generate(model, ["a"], chat=True)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.fix


def test_nothing_that_a_template_brings_is_run(tmp_path: Path) -> None:
    """The ways out of Jinja that are known from templates rendered without a sandbox, in the folder that is loaded."""
    mark = tmp_path / "mark"
    for number, way in enumerate(("cycler.__init__.__globals__", "lipsum.__globals__", "self.__init__.__globals__.__builtins__")):
        call = f"{{{{ {way}['os'].system('touch {mark}') }}}}{{{{ {way}['__import__']('os').system('touch {mark}') }}}}"
        model = load_model(chat_folder(tmp_path / str(number), call + CHATML))
        with pytest.raises(UserError, match="does not take user turns"):
            prompt_rows(model, ["a"], True)
    assert not mark.exists()


def test_a_system_prompt_that_the_template_does_not_take_or_leaves_out_is_refused() -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    silent = CHATML.replace("{{ '<|im_start|>' + message", "{% if message['role'] != 'system' %}{{ '<|im_start|>' + message", 1)
    silent = silent.replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    for template, problem in ((refusing, "System role not supported"), (silent, "leaves out turn 0, of the role system")):
        model = chat_model(template)
        assert generate(model, ["a"], chat=True, max_new_tokens=1)
        with pytest.raises(UserError, match=problem):
            generate(model, ["a"], chat=Chat(SYSTEM))
    model = chat_model(CHATML)
    with pytest.raises(UserError, match=r"conversation 0 has no token that is the system prompt's.*--system"):
        generate(model, ["a"], chat=True, edits=[Edit.scale("mlp_post.0", 2.0, positions="system")])


def test_where_roles_cannot_be_told_prompts_are_read_and_roles_refused() -> None:
    model = chat_model(CHATML.replace("message['content']", "message['content'] | upper"))
    (row,) = prompt_rows(model, ["the stone"], True)
    assert row.roles is None
    assert "THE STONE" in model.tokenizer.decode(row.ids)
    assert generate(model, ["the stone"], chat=True, max_new_tokens=2)
    with pytest.raises(UserError, match="which tokens are the user's cannot be told"):
        capture(model, ["the stone"], ["resid_post.0"], positions="user", chat=True)


def test_sides_of_different_templates_are_not_compared(chatml: Model, llama2: Model) -> None:
    check_one_template([chatml, chatml])
    with pytest.raises(UserError, match="the chat templates of chatml and llama2 differ"):
        check_one_template([chatml, llama2])
    with pytest.raises(UserError, match="the chat templates of chatml and llama2 differ"):
        patch(ModelPair(chatml, llama2), "a", metric=LogProbability((5,)), chat=True)


@pytest.mark.parametrize(
    "turns", [[], [{"role": "tool", "content": "a"}], [{"role": "user"}], [{"role": "user", "content": "\ud800"}]], ids=str
)
def test_turns_that_are_none_are_refused(chatml: Model, turns: list[Any]) -> None:
    with pytest.raises(UserError, match="conversation 0"):
        render_chat(chatml, [turns])


def test_a_conversation_is_never_cut(chatml: Model) -> None:
    (row,) = prompt_rows(chatml, ["a stone"], True)
    assert list(prompt_rows(chatml, ["a stone"], True, max_tokens=len(row))[0]) == list(row)
    with pytest.raises(UserError, match=f"prompt 0 has {len(row)} tokens as a conversation"):
        generate(chatml, ["a stone"], chat=True, max_prompt_tokens=len(row) - 1)
    with pytest.raises(UserError, match="mixed"):
        prompt_rows(chatml, [row, [1, 2]])
    with pytest.raises(UserError, match="no list of texts"):
        prompt_rows(chatml, [[1, 2]], True)
