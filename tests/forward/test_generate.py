"""Continuations: the same with and without a cache, alone and in a batch, in one thread and in many, and after a failure."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from interp import Edit, Model, ModelPair, Sampling, UserError, capture, editing, generate, hooked, stream
from interp.forward.generate import choose, count_cut, generate_tokens, prompt_limit
from interp.forward.resume import blocks
from interp.models.tokens import pad, token_rows, uncut_rows
from tests.conftest import CONTEXT, EOS, TEXTS

PROMPTS = list(TEXTS)
POSITIONS: list[Any] = ["all", "prompt", "generated", "from_last", [0, 2, 9, 14]]


def vector(width: int, seed: int = 0) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def every_op(model: Model, positions: Any) -> dict[str, Edit]:
    long = len(positions) if isinstance(positions, list) else 20
    return {
        "add": Edit.add("resid_mid.1", vector(model.d_model), 2.0, positions),
        "subtract": Edit.subtract("resid_post.2", vector(model.d_model), 3.0, positions),
        "scale": Edit.scale("mlp_post.1", 5.0, list(range(0, model.d_mlp, 2)), positions),
        "scale heads": Edit.scale("z.0", -3.0, None, positions),
        "scale_keys": Edit.scale_keys([(0, i) for i in range(20)] + [(2, 5), (2, 6)], 8.0, positions),
        "set": Edit.set("mlp_pre.1", 4.0, list(range(10)), positions),
        "project_out": Edit.project_out("resid_pre.1", vector(model.d_model), positions),
        "patch": Edit.patch("attn_out.1", 3 * vector(model.d_model), positions),
        "patch by position": Edit.patch("resid_mid.0", vector(long * model.d_model).view(long, -1), positions),
        "logits": Edit.scale("logits", -1.0, None, positions),
        "ln_final": Edit.add("ln_final", vector(model.d_model), 2.0, positions),
    }


@torch.no_grad()
def stepwise(model: Model, edits: list[Edit], *, cache: bool) -> Tensor:
    """Logits of every position of a fixed continuation, fed whole or token by token after the prompt."""
    rows = token_rows(model, PROMPTS)
    tokens = pad([[*row, 7, 300, 21, 64] for row in rows], 0, "left")
    with editing(model, edits, prompt_lengths=[len(row) for row in rows]):
        if not cache:
            return model.hf(**tokens.inputs(), use_cache=False).logits[:, -4:]
        past, found, start = DynamicCache(), [], tokens.ids.shape[1] - 4
        for begin, end in ((0, start), *((start + i, start + i + 1) for i in range(4))):
            inputs = {
                "input_ids": tokens.ids[:, begin:end], "attention_mask": tokens.mask[:, :end].long(),
                "position_ids": tokens.positions[:, begin:end],
            }  # fmt: skip
            found.append(model.hf(**inputs, past_key_values=past, use_cache=True).logits)
        return torch.cat(found[1:], dim=1)


@pytest.mark.oracle
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_a_cache_changes_nothing_under_any_edit_at_any_positions(model: Model, positions: Any) -> None:
    plain, rows = stepwise(model, [], cache=False), token_rows(model, PROMPTS)
    for name, edit in every_op(model, positions).items():
        whole, steps = stepwise(model, [edit], cache=False), stepwise(model, [edit], cache=True)
        torch.testing.assert_close(steps, whole, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        if positions in ("all", "generated", "from_last"):
            assert float((whole - plain).abs().max()) > 1e-3, f"{name} did nothing"
        first, second = (generate_tokens(model, rows, edits=[edit], max_new_tokens=4, cache=cache) for cache in (True, False))
        assert first == second, name


@pytest.mark.oracle
def test_positions_select_prompt_or_continuation(gpt2: Model) -> None:
    rows = [[5, 6, 7]]
    plain = generate_tokens(gpt2, rows, max_new_tokens=6)
    # The largest logit of each sampled position is pressed down: where the edit applies, the token must change.
    forbid = {where: Edit.set("logits", -1e4, [plain[0][0]], where) for where in ("all", "prompt", "generated", "from_last")}
    first = {where: generate_tokens(gpt2, rows, max_new_tokens=6, edits=[edit])[0][0] for where, edit in forbid.items()}
    assert first["generated"] == plain[0][0]
    assert all(first[where] != plain[0][0] for where in ("all", "prompt", "from_last"))
    kept = generate_tokens(gpt2, rows, max_new_tokens=6, edits=[Edit.set("logits", 1e4, [42], "generated")])[0]
    assert kept[0] == plain[0][0]
    assert kept[1:] == [42] * 5


def ending_at(model: Model, ends: list[int] | int) -> Model:
    """A copy of the model whose generation config names these end tokens."""
    copy = Model(model.plain_copy(), model.tokenizer, model.name)
    copy.hf.generation_config.eos_token_id = ends
    return copy


@pytest.mark.oracle
@pytest.mark.parametrize("use_cache", [True, False])
def test_every_end_token_of_the_generation_config_stops_a_row_as_in_hugging_face(model: Model, use_cache: bool) -> None:
    rows = token_rows(model, PROMPTS)
    plain = generate_tokens(model, rows, max_new_tokens=12, stop_at_end=False)
    # Tokens that some rows choose midway, so that rows end at different tokens and places.
    ends = [plain[0][4], plain[1][7]]
    ended = ending_at(model, ends)
    tokens = pad(rows, model.tokenizer.pad_token_id, "left")
    theirs = ended.hf.generate(
        input_ids=tokens.ids, attention_mask=tokens.mask.long(), max_new_tokens=12, do_sample=False, use_cache=use_cache,
        pad_token_id=model.tokenizer.pad_token_id,
    )[:, tokens.ids.shape[1] :].tolist()  # fmt: skip
    expected = [row[: next((at for at, token in enumerate(row) if token in ends), len(row))] for row in theirs]
    ours = generate_tokens(ended, rows, max_new_tokens=12, cache=use_cache)
    assert ours == expected
    assert sum(a != b for a, b in zip(ours, plain, strict=True)) >= 2
    for prompt, row in zip(PROMPTS, ours, strict=True):
        text = ended.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(stream(ended, prompt, max_new_tokens=12)) == text


def test_a_prompt_that_is_too_long_loses_its_beginning(gpt2: Model) -> None:
    long = "the quick river " * 40 + PROMPTS[2]
    limit = prompt_limit(gpt2, 5)
    assert limit == CONTEXT - 5
    assert prompt_limit(gpt2, 5, 8) == 8
    (row,) = uncut_rows(gpt2, [long])
    expected = generate_tokens(gpt2, [row[-limit:]], max_new_tokens=5)
    found = generate(gpt2, [long], max_new_tokens=5, max_prompt_tokens=limit)
    assert found == [gpt2.tokenizer.decode(expected[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)]
    assert "".join(stream(gpt2, long, max_new_tokens=5, max_prompt_tokens=limit)) == found[0]
    assert count_cut(gpt2, [long, PROMPTS[2]], limit) == 1
    assert count_cut(gpt2, [row, row[-limit:]], limit) == 1
    with pytest.raises(UserError, match="leave no room for a prompt"):
        prompt_limit(gpt2, CONTEXT)


@pytest.mark.oracle
@pytest.mark.parametrize("where", ["prompt", "generated", "from_last"])
def test_hugging_faces_own_generate_inside_a_block_meets_the_same_edits(model: Model, where: str) -> None:
    edit = Edit.add("resid_mid.1", vector(model.d_model), 4.0, where)
    rows = token_rows(model, PROMPTS)
    tokens = pad(rows, 0, "left")
    with editing(model, [edit]):
        theirs = model.hf.generate(
            input_ids=tokens.ids, attention_mask=tokens.mask.long(), max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    assert generate_tokens(model, rows, max_new_tokens=8, edits=[edit], stop_at_end=False) == theirs[:, tokens.ids.shape[1] :].tolist()


@torch.no_grad()
def test_sequences_continued_in_turn_keep_their_own_prompts(pair: ModelPair) -> None:
    edit = Edit.add("resid_mid.1", vector(pair.base.d_model), 4.0, "generated")
    prompts = {"base": torch.tensor([[5, 6, 7, 8]]), "tuned": torch.tensor([[9, 10]])}

    def steps(sides: list[str]) -> dict[str, list[Tensor]]:
        caches, found = {side: DynamicCache() for side in sides}, {side: [] for side in sides}
        with editing(pair.base, [edit]), editing(pair.tuned, [edit]):
            for step in range(4):
                for side in sides:
                    ids = prompts[side] if step == 0 else torch.tensor([[20 + step]])
                    found[side].append(pair.sides[side].hf(ids, past_key_values=caches[side], use_cache=True).logits[:, -1])
        return found

    together = steps(["base", "tuned"])
    for side in ("base", "tuned"):
        alone = steps([side])[side]
        assert all(torch.equal(a, b) for a, b in zip(together[side], alone, strict=True))
        lengths = [prompts[side].shape[1]]
        with editing(pair.sides[side], [edit], prompt_lengths=lengths):
            whole = pair.sides[side].hf(torch.cat([prompts[side], torch.tensor([[21, 22, 23]])], dim=1)).logits
        torch.testing.assert_close(torch.stack(alone, dim=1), whole[:, -4:], atol=1e-5, rtol=1e-5)


def test_prompt_lengths_must_match_the_batch(gpt2: Model) -> None:
    with editing(gpt2, [], prompt_lengths=[1, 2]), pytest.raises(UserError, match="2 prompt lengths were given for a batch of 1"):
        gpt2.hf(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=20, top_p=0.9, seed=3)], ids=["greedy", "sampled"])
def test_prompts_read_in_parts_are_continued_as_if_read_together(model: Model, monkeypatch: pytest.MonkeyPatch, sampling: Sampling) -> None:
    rows = [row[:count] for row, count in zip(token_rows(model, PROMPTS), (6, 2, 5, 1, 3), strict=True)]
    edits = [Edit.add("resid_mid.1", vector(model.d_model), 2.0, "prompt"), Edit.scale("mlp_post.2", 3.0, None, "generated")]
    each = Edit.patch("attn_out.1", vector(len(rows) * model.d_model).view(len(rows), 1, -1), [0])
    for some in ([], edits, [each]):
        whole = generate_tokens(model, rows, max_new_tokens=8, edits=some, sampling=sampling, stop_at_end=False)
        read: list[tuple[int, ...]] = []
        handle = blocks(model)[0].register_forward_pre_hook(lambda _, args, read=read: read.append(tuple(args[0].shape[:2])))
        with monkeypatch.context() as patch:
            patch.setattr("interp.forward.generate.PREFILL", 2)
            parts = generate_tokens(model, rows, max_new_tokens=8, edits=some, sampling=sampling, stop_at_end=False)
        handle.remove()
        assert parts == whole
        # Each part is as wide as its longest prompt; after the prompts, one token of every row is read at a time.
        assert read == [(2, 6), (2, 3), (1, 1), *[(5, 1)] * 7]


def test_functions_of_the_callers_own_are_called_once_per_token_with_every_row(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.forward.generate.PREFILL", 2)
    seen: list[int] = []
    with hooked(gpt2, {"resid_post.1": lambda x: seen.append(len(x))}):
        generate(gpt2, PROMPTS, max_new_tokens=3)
    assert seen == [len(PROMPTS)] * 3


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=20, top_p=0.9, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_batch_equals_each_prompt_alone(model: Model, sampling: Sampling, batch_size: int) -> None:
    everything = generate(model, PROMPTS, max_new_tokens=10, sampling=sampling)
    assert generate(model, PROMPTS, max_new_tokens=10, sampling=sampling, batch_size=batch_size) == everything
    assert generate(model, PROMPTS[:1], max_new_tokens=10, sampling=sampling) == everything[:1]
    assert len(set(everything)) == len(everything)


def test_sampling_repeats_with_its_seed_and_differs_with_another(model: Model) -> None:
    def sample(seed: int) -> list[list[int]]:
        return generate_tokens(model, [[5, 6, 7]] * 4, max_new_tokens=10, sampling=Sampling(1.0, seed=seed))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert len({tuple(row) for row in sample(1)}) == 4, "equal prompts drew equal numbers"


def test_sampling_does_not_touch_the_global_random_state(gpt2: Model) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generate(gpt2, PROMPTS[:2], max_new_tokens=3, sampling=Sampling(1.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_follows_the_truncated_distribution() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))

    def shares(sampling: Sampling) -> list[float]:
        drawn = choose(logits.expand(4000, -1), sampling, [torch.Generator().manual_seed(i) for i in range(4000)])
        return [float((drawn == token).float().mean()) for token in range(4)]

    assert shares(Sampling(1.0)) == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
    assert shares(Sampling(1.0, top_k=2)) == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.03)
    assert shares(Sampling(1.0, top_p=0.69)) == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.03)
    assert shares(Sampling(1.0, top_p=0.71)) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0], abs=0.03)
    assert shares(Sampling(0.5)) == pytest.approx([16 / 30, 9 / 30, 4 / 30, 1 / 30], abs=0.03)
    assert shares(Sampling(0.0)) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str
)
def test_impossible_sampling_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampling(**settings)  # type: ignore[arg-type]


def test_pieces_of_a_stream_join_to_the_generated_text(model: Model) -> None:
    for prompt in PROMPTS:
        for sampling in (Sampling(), Sampling(1.3, seed=4)):
            pieces = list(stream(model, prompt, max_new_tokens=25, sampling=sampling))
            assert "".join(pieces) == generate(model, [prompt], max_new_tokens=25, sampling=sampling)[0]


def test_a_character_of_several_tokens_is_streamed_whole(gpt2: Model) -> None:
    text = "a 🙂 é ü🙃!"
    ids = gpt2.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)
    # The logits are set so that position k yields the k-th token of the text.
    edits = [Edit.set("logits", 1e4, [token], [place]) for place, token in enumerate(ids)]
    pieces = list(stream(gpt2, "a", max_new_tokens=len(ids), edits=edits))
    assert "".join(pieces) == text == generate(gpt2, ["a"], max_new_tokens=len(ids), edits=edits)[0]
    assert "\ufffd" not in "".join(pieces)
    assert any("🙂" in piece for piece in pieces)
    cut = list(stream(gpt2, "a", max_new_tokens=4, edits=edits))
    assert "".join(cut) == generate(gpt2, ["a"], max_new_tokens=4, edits=edits)[0]


def test_a_row_ends_at_the_end_of_text_and_others_go_on(gpt2: Model) -> None:
    end = gpt2.tokenizer.eos_token_id
    rows = [[5, 6, 7, 8], [9, 10]]
    edits = [Edit.set("logits", 1e4, [end], [5])]
    whole = generate_tokens(gpt2, rows, max_new_tokens=8, edits=edits, stop_at_end=False)
    assert (whole[0][2], whole[1][4]) == (end, end)
    ended = generate_tokens(gpt2, rows, max_new_tokens=8, edits=edits)
    assert ended == [whole[0][:2], whole[1][:4]]
    assert EOS not in generate(gpt2, ["the quick"], max_new_tokens=8, edits=edits)[0]
    assert list(stream(gpt2, "a", edits=[Edit.set("logits", 1e4, [end])])) == []


@torch.no_grad()
def test_edits_are_gone_after_an_exception_inside_the_block(model: Model) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before, seen = model.hf(ids).logits, []

    def fail_after_a_forward() -> None:
        seen.append(model.hf(ids).logits)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), editing(model, [Edit.set("logits", 3.0)]):
        fail_after_a_forward()
    assert torch.equal(seen[0], torch.full_like(before, 3.0))
    assert torch.equal(model.hf(ids).logits, before)


@torch.no_grad()
def test_an_abandoned_stream_leaks_nothing(model: Model) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before = model.hf(ids).logits
    pieces = stream(model, "the quick", max_new_tokens=20, edits=[Edit.add("resid_mid.1", vector(model.d_model), 9.0)])
    next(pieces)
    assert torch.equal(model.hf(ids).logits, before), "a paused stream edits other forwards"
    pieces.close()  # type: ignore[attr-defined]
    assert torch.equal(model.hf(ids).logits, before)


@torch.no_grad()
def test_nested_blocks_add_their_edits_and_remove_only_their_own(model: Model) -> None:
    ids = torch.tensor([[5, 6, 7]])
    first, second = (Edit.add(f"resid_mid.{layer}", vector(model.d_model, layer), 2.0) for layer in (0, 1))

    def under(*edits: Edit) -> Tensor:
        with editing(model, edits):
            return model.hf(ids).logits

    both, one = under(first, second), under(first)
    with editing(model, [first]):
        with editing(model, [second]):
            assert torch.equal(model.hf(ids).logits, both)
        assert torch.equal(model.hf(ids).logits, one)
        inner = capture(model, [[5, 6, 7]], ["logits"], positions="all", edits=[second])["logits"]
        assert torch.equal(inner, both)
    assert not torch.equal(both, one)
    assert torch.equal(model.hf(ids).logits, under())


def test_edits_apply_in_the_order_given(gpt2: Model) -> None:
    twice, one = Edit.scale("resid_post.2", 2.0), Edit.add("resid_post.2", torch.ones(gpt2.d_model))
    plain = capture(gpt2, ["a"], ["resid_post.2"])["resid_post.2"]
    assert torch.equal(capture(gpt2, ["a"], ["resid_post.2"], edits=[twice, one])["resid_post.2"], plain * 2 + 1)
    assert torch.equal(capture(gpt2, ["a"], ["resid_post.2"], edits=[one, twice])["resid_post.2"], (plain + 1) * 2)


@pytest.mark.oracle
def test_eight_threads_with_different_edits_give_exactly_what_each_gives_alone(model: Model) -> None:
    ids = torch.tensor([token_rows(model, [PROMPTS[2]])[0]])
    edits = [[edit] for edit in every_op(model, "all").values()][:7]
    edits.append([Edit.scale("resid_pre.0", 3.0), Edit.set("mlp_post.2", 1.0, [3])])

    @torch.no_grad()
    def work(number: int) -> tuple[Tensor, Tensor, list[str]]:
        if number >= len(edits):
            return (
                model.hf(ids).logits,
                capture(model, PROMPTS, ["resid_post.2"])["resid_post.2"],
                generate(model, PROMPTS[:2], max_new_tokens=6),
            )
        with editing(model, edits[number]):
            plain = model.hf(ids).logits
            held = capture(model, PROMPTS, ["resid_post.2"])["resid_post.2"]
        return plain, held, generate(model, PROMPTS[:2], max_new_tokens=6, edits=edits[number])

    alone = [work(number) for number in range(12)]
    barrier = threading.Barrier(12)

    def raced(number: int) -> list[tuple[Tensor, Tensor, list[str]]]:
        torch.set_num_threads(1)
        barrier.wait()
        return [work(number) for _ in range(3)]

    with ThreadPoolExecutor(12) as pool:
        for number, rounds in enumerate(pool.map(raced, range(12))):
            for logits, held, texts in rounds:
                assert torch.equal(logits, alone[number][0]), f"thread {number}"
                assert torch.equal(held, alone[number][1]), f"thread {number}"
                assert texts == alone[number][2], f"thread {number}"
    assert len({tuple(result[0].flatten().tolist()) for result in alone}) == 9, "the edits do not differ"


def test_an_empty_list_of_prompts_gives_an_empty_list(gpt2: Model) -> None:
    assert generate(gpt2, []) == []
    assert generate(gpt2, ["a", "the"], max_new_tokens=0) == ["", ""]
    assert list(stream(gpt2, "a", max_new_tokens=0)) == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([""], {}, "text 0 is empty"),
        (["a", ""], {}, "text 1 is empty"),
        ("a", {}, "one string was given"),
        ([3], {}, "of type int"),
        ([None], {}, "of type NoneType"),
        (["a", [1, 2]], {}, "of type list"),
        (["\ud800"], {}, "text 0 is not valid Unicode"),
        (["the river " * 500], {}, "tokens, but the model reads at most 64"),
        (["a"], {"max_new_tokens": CONTEXT}, "do not fit into the model's context of 64"),
        (["a"], {"max_new_tokens": -1}, "max_new_tokens is -1"),
        (["the river"], {"max_prompt_tokens": 0}, "max_tokens is 0"),
        (["a"], {"edits": ["resid_mid"]}, "is not an Edit"),
        (["a"], {"edits": [Edit.add("resid_mid.9", [1.0] * 32)]}, "the model has 3 layers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_prompt_that_cannot_be_continued_is_refused(gpt2: Model, prompts: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(gpt2, prompts, **settings)


@pytest.mark.parametrize(
    ("rows", "message"), [([[]], "empty"), ([[390]], "use ids from 0 to 389"), ([[-1]], "-1"), ([[1] * 65], "at most 64")]
)
def test_rows_of_token_ids_are_checked(gpt2: Model, rows: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate_tokens(gpt2, rows)


@pytest.mark.parametrize("prompt", ["🙂" * 5, "日本語", "\x00\x01\x7f", "\n\n\t", "' OR 1=1 --", EOS, "\u202e\u0301"], ids=ascii)
def test_a_strange_prompt_is_continued(gpt2: Model, prompt: str) -> None:
    assert isinstance(generate(gpt2, [prompt], max_new_tokens=3)[0], str)
