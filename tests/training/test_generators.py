"""Pair generators against what they claim: PPLM against the procedure written out plainly, a batch against one at a time, and
every file that the stage writes against the models that it came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from interp import Edit, Model, UserError, capture, load_model
from interp.directions.probe import Probe, save_probe
from interp.evaluation.toxicity import LexiconScorer
from interp.forward.generate import Sampling, choose, generate_tokens
from interp.models.tokens import pad
from training import pairs as stage
from training.generators import GENERATORS, generator_named, pplm
from training.generators.file import read_pairs
from training.generators.pplm import Pplm, losses, pplm_tokens, push, read
from training.generators.table import main, run_alone
from training.generators.task import Block, Draft, Generator, Task
from training.pairs import draft_all, make_pairs, records_of, side_perplexity, usable
from training.recipe import DATA_SETTING, Recipe, Section

PROMPTS = ("the quick wintle sings under a river", "blorp and snarg", " a", "never the meldy stone of drith", "hoddle hoddle zimbra")
RAGGED = PROMPTS[:3]
MILD = Pplm(iterations=2, top_k=5, kl_scale=0.05)
FULL = replace(MILD, window=3, decay=True, horizon=2, gamma=0.9, temperature=0.0)


def probe_of(model: Model, seed: int = 1) -> Probe:
    """A random direction for this model, and a bias that is not zero."""
    noise = torch.Generator().manual_seed(seed)
    column = torch.randn(model.d_model, generator=noise)
    return Probe(torch.stack([-column, column], dim=1), column, {}, model.digest, {}, torch.tensor([0.3, -0.3]))


def rows_of(model: Model, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    return model.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def exact(make_folder: Callable[..., Path]) -> Callable[[str], Model]:
    """Models in double precision, in which fifty normed steps do not amplify rounding into another token."""
    made: dict[str, Model] = {}

    def load(kind: str) -> Model:
        return made.setdefault(kind, load_model(make_folder(kind), dtype=torch.float64))

    return load


# PPLM


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The mixed log-probabilities from which PPLM chose, one `batch vocab` a token, as they are made."""
    seen: list[Tensor] = []

    def noting(logits: Tensor, *rest: Any) -> Tensor:
        seen.append(logits.double())
        return choose(logits, *rest)

    monkeypatch.setattr(pplm, "choose", noting)
    return seen


def taken(seen: list[Tensor]) -> Tensor:
    """What was noted since the last time: `pos batch vocab`."""
    found = torch.stack(seen)
    seen.clear()
    return found


@pytest.mark.parametrize(("kind", "options"), [*((kind, MILD) for kind in pplm.SUPPORTED), ("gpt2", FULL)])
def test_a_ragged_batch_gives_token_by_token_what_each_prompt_gives_alone(
    exact: Any, kind: str, options: Pplm, scores: list[Tensor]
) -> None:
    model = exact(kind)
    probe, rows = probe_of(model), rows_of(model, RAGGED)
    assert len({len(row) for row in rows}) == 3
    assert min(map(len, rows)) == 1, "a prompt of one token has no past to push at first"
    together, mixed = pplm_tokens(model, probe, rows, options, new_tokens=5, seed=4), taken(scores)
    for at, row in enumerate(rows):
        assert pplm_tokens(model, probe, [row], options, new_tokens=5, seed=4, numbers=[at]) == [together[at]]
        torch.testing.assert_close(taken(scores)[:, 0], mixed[:, at], rtol=0, atol=1e-5)
    assert together != pplm_tokens(model, probe, rows, replace(options, iterations=0), new_tokens=5, seed=4), "nothing was pushed"


def test_in_single_precision_a_batch_agrees_too(gpt2: Model) -> None:
    probe, rows = probe_of(gpt2), rows_of(gpt2, RAGGED)
    together = pplm_tokens(gpt2, probe, rows, replace(MILD, temperature=0.0), new_tokens=4)
    assert together == [pplm_tokens(gpt2, probe, [row], replace(MILD, temperature=0.0), new_tokens=4)[0] for row in rows]


def plain_pplm(model: Model, probe: Probe, row: list[int], options: Pplm, new: int, seed: int) -> tuple[list[int], Tensor]:
    """PPLM as it is published: one text, everything computed anew at each token, Hugging Face's own cache and positions.

    Returns the tokens, and the log-probabilities they were chosen from up to a constant.
    """
    hf, kept, chosen_from = model.hf, [], []
    hook = hf.transformer.h[-1].register_forward_hook(lambda module, args, output: kept.append(output[0]))
    weights, bias, embed = probe.weights.double(), probe.bias.double(), hf.transformer.wte.weight
    generator = torch.Generator().manual_seed(seed)

    def forward(past: list[tuple[Tensor, Tensor]] | None, **inputs: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        cache = DynamicCache(ddp_cache_data=past) if past else DynamicCache()
        out = hf(**inputs, past_key_values=cache, use_cache=True)
        return out.logits[0, -1], kept.pop(), [(keys, values) for keys, values, *_ in cache]

    ids, past = torch.tensor([row]), None
    for _ in range(new):
        with torch.no_grad():
            plain_logits, residual, plain = forward(None, input_ids=ids)
            past = past or forward(None, input_ids=ids[:, :-1])[2]
        expected = plain_logits.softmax(-1)
        change = [[torch.zeros_like(part) for part in pair] for pair in past]
        for _ in range(options.iterations):
            leaves = [part.requires_grad_() for pair in change for part in pair]
            logits, here, _ = forward([(k + dk, v + dv) for (k, v), (dk, dv) in zip(past, change, strict=True)], input_ids=ids[:, -1:])
            chances = logits.softmax(-1)
            _, soft, _ = forward(plain, inputs_embeds=(chances @ embed)[None, None])
            mean = (residual[:-1].sum(0) + here[-1].detach() + soft[-1]) / (ids.shape[1] + 1)
            loss = functional.cross_entropy((mean @ weights + bias)[None], torch.tensor([1]))
            loss = loss + options.kl_scale * (chances * (chances / expected).log()).sum()
            gradients = torch.autograd.grad(loss, leaves)
            for layer, pair in enumerate(change):
                both = gradients[2 * layer : 2 * layer + 2]
                norm = torch.cat([part.flatten() for part in both]).norm()
                change[layer] = [(part - options.step_size * g / norm**options.gamma).detach() for part, g in zip(pair, both, strict=True)]
        with torch.no_grad():
            logits, _, past = forward([(k + dk, v + dv) for (k, v), (dk, dv) in zip(past, change, strict=True)], input_ids=ids[:, -1:])
        mixed = (logits / options.temperature).softmax(-1) ** options.gm_scale * expected ** (1 - options.gm_scale)
        ids = torch.cat([ids, choose(mixed.log()[None].float(), Sampling(1.0, options.top_k), [generator])[None]], dim=1)
        chosen_from.append(mixed.log())
    hook.remove()
    return ids[0, len(row) :].tolist(), torch.stack(chosen_from)


@pytest.mark.oracle
def test_pplm_is_the_published_procedure(exact: Any, scores: list[Tensor]) -> None:
    model = exact("gpt2")
    options = Pplm(iterations=3, kl_scale=0.2, gm_scale=0.9, temperature=0.8, top_k=7, gamma=0.8, step_size=0.3)
    for row in rows_of(model)[:2]:
        found = pplm_tokens(model, probe_of(model), [row], options, new_tokens=5, seed=0)
        expected, chosen_from = plain_pplm(model, probe_of(model), row, options, 5, 0)
        assert found == [expected]
        torch.testing.assert_close(taken(scores)[:, 0], chosen_from, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def pushed(exact: Any) -> Callable[..., tuple[Any, Any, Tensor, Callable[[Any, Pplm], Tensor]]]:
    """`pushed(options)`: keys and values of a ragged batch before and after one token's steps, the past's mask, and the losses."""
    model = exact("gpt2")
    tokens = pad(rows_of(model, PROMPTS[:2]), 0, "left")

    def run(options: Pplm) -> tuple[Any, Any, Tensor, Callable[[Any, Pplm], Tensor]]:
        with torch.no_grad():
            plain = read(model, [], tokens.mask, ids=tokens.ids)
        past = [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in plain.cache]
        before = (plain.residual * tokens.mask[..., None])[:, :-1].sum(dim=1)
        rest = (plain.cache, tokens.ids[:, -1:], tokens.mask, before, plain.logits.log_softmax(-1))

        def loss(some: Any, other: Pplm) -> Tensor:
            with torch.no_grad():
                return losses(model, probe_of(model), some, *rest, other)

        return past, push(model, probe_of(model), past, *rest, options), tokens.mask[:, :-1], loss

    return run


def change_of(past: Any, after: Any) -> Tensor:
    """`layer key-or-value batch head pos d_head`."""
    return torch.stack([torch.stack([b - a for a, b in zip(*pairs, strict=True)]) for pairs in zip(past, after, strict=True)])


def test_a_step_has_its_length_in_every_row_and_layer_and_leaves_padding_alone(pushed: Any) -> None:
    past, after, mask, _ = pushed(replace(MILD, iterations=1, step_size=0.37))
    change = change_of(past, after)
    assert torch.allclose(change.pow(2).sum(dim=(1, 3, 4, 5)).sqrt(), torch.tensor(0.37, dtype=change.dtype))
    moved = change.abs().sum(dim=(0, 1, 3, 5)) > 0
    assert torch.equal(moved, mask), "all real positions move, no other"


def test_only_the_window_moves_and_with_decay_the_less_the_farther_back(pushed: Any) -> None:
    one = replace(MILD, iterations=1, window=3)
    past, after, mask, _ = pushed(one)
    moved = change_of(past, after).abs().sum(dim=(0, 1, 3, 5)) > 0
    assert mask.shape[1] > 3
    assert moved[0].tolist() == [False] * (mask.shape[1] - 3) + [True] * 3
    falling = change_of(*pushed(replace(one, decay=True))[:2])[..., -3:, :] / change_of(past, after)[..., -3:, :]
    share = (falling / falling[..., 2:, :])[:, :, 0].mean(dim=(0, 1, 2, 4))
    assert share.tolist() == pytest.approx([1 / 3, 2 / 3, 1])


def test_pushing_lowers_the_probes_loss_and_the_kl_term_holds_it_back(pushed: Any) -> None:
    free, held = replace(MILD, iterations=8, kl_scale=0.0), replace(MILD, iterations=8, kl_scale=50.0)
    past, after, _, loss = pushed(free)
    assert bool((loss(after, free) < loss(past, free)).all())

    def kl(some: Any) -> Tensor:
        return loss(some, replace(free, kl_scale=1.0)) - loss(some, free)

    assert torch.allclose(kl(past), torch.zeros(2, dtype=torch.float64), atol=1e-12), "an unmoved past predicts as the plain one"
    assert bool((kl(after) > 1e-3).all())
    assert bool((kl(pushed(held)[1]) < 0.5 * kl(after)).all())


def test_without_steps_or_without_a_share_pplm_is_greedy_decoding(exact: Any) -> None:
    model = exact("gpt2")
    rows, greedy = rows_of(model), replace(MILD, temperature=0.0)
    plain = generate_tokens(model, rows, max_new_tokens=6, stop_at_end=False)
    assert pplm_tokens(model, probe_of(model), rows, replace(greedy, iterations=0), new_tokens=6) == plain
    assert pplm_tokens(model, probe_of(model), rows, replace(greedy, gm_scale=0.0), new_tokens=6) == plain


def test_pplm_says_which_models_it_works_on(gemma: Model) -> None:
    task = task_for(gemma, rows_of(gemma), {"new_tokens": 4})
    with pytest.raises(UserError, match=r"works on models of type gpt2, llama, qwen2, and gemma is of type 'gemma'.*another generator"):
        list(GENERATORS["pplm"].make(task))


# Settings


def task_for(model: Model, rows: list[list[int]], settings: dict[str, Any], seed: int = 5) -> Task:
    return Task(model, rows, settings, seed, LexiconScorer(), lambda: probe_of(model))


def test_the_defaults_are_paper_as_table_9() -> None:
    options = GENERATORS["pplm"].options({})
    assert options.pop("batch") > 1
    assert options == {
        "step_size": 0.4, "temperature": 1.0, "top_k": 10, "iterations": 50, "window": 0, "horizon": 1, "decay": False, "gamma": 1.0,
        "gm_scale": 0.95, "kl_scale": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "table", "says"),
    [
        ("pplm", {"stepsize": 0.1}, r"section \[pairs.pplm\] does not know 'stepsize' \(did you mean 'step_size'\?\).*use step_size"),
        ("pplm", {"iterations": 2.5}, r"sets iterations to 2\.5.*type int"),
        ("pplm", {"decay": 1}, r"sets decay to 1.*type bool"),
        ("pplm", {"gm_scale": 1.2}, r"gm_scale is 1\.2.*0 to 1"),
        ("pplm", {"batch": 0}, r"batch is 0.*1 or more"),
        ("pplm", {"decay": True}, r"decay is on, but no window"),
        ("pplm", 3, r"pairs\.pplm is not a section"),
        ("steering", {"strength": "much"}, r"sets strength to 'much'.*type float"),
        ("steering", {"top_k": -1}, r"top_k is -1"),
        ("file", {}, r"section \[pairs.file\] does not set 'path'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, table: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        GENERATORS[name].options({name: table})


def test_an_unknown_generator_names_those_that_there_are() -> None:
    for name in ("ppml", None, 3):
        with pytest.raises(UserError, match=r"no pair generator .*best-worst, pplm, steering, file"):
            generator_named(name)
    assert {name for name, generator in GENERATORS.items() if generator.uses_probe} == {"pplm", "steering"}


# Steering, best and worst


def test_steering_adds_the_direction_in_lengths_of_the_residual_stream(gpt2: Model) -> None:
    rows = rows_of(gpt2)
    table = {"strength": 1.5, "layer": -2, "temperature": 0.9, "top_k": 20}
    (block,) = GENERATORS["steering"].make(task_for(gpt2, rows, {"new_tokens": 6, "steering": table}))
    site, direction = f"resid_post.{gpt2.n_layers - 2}", probe_of(gpt2).direction
    length = float(capture(gpt2, list(PROMPTS), [site])[site].norm(dim=1).mean())
    edit = Edit.add(site, direction / direction.norm(), 1.5 * length, positions="from_last")
    sampling = Sampling(temperature=0.9, top_k=20, seed=5)
    sides = [generate_tokens(gpt2, rows, max_new_tokens=6, edits=e, sampling=sampling, stop_at_end=False) for e in ((), (edit,))]
    assert [(draft.chosen, draft.rejected) for draft in block.drafts] == list(zip(*sides, strict=True))
    assert sides[0] != sides[1]
    with pytest.raises(UserError, match=r"layer is 9, but gpt2 has 3 layers"):
        list(GENERATORS["steering"].make(task_for(gpt2, rows, {"new_tokens": 6, "steering": {"layer": 9}})))


class CountingScorer:
    """Finds a text the more toxic the more letters "a" it has."""

    name, classes, digest = "counting", ("toxicity",), "counts the letter a"

    def score(self, texts: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({"toxicity": [text.count("a") / 1000 for text in texts]})


def test_best_and_worst_are_the_extremes_of_the_samples(gpt2: Model) -> None:
    settings = {"new_tokens": 8, "samples": 5, "temperature": 1.0, "top_k": 40}
    task = replace(task_for(gpt2, rows_of(gpt2), settings), scorer=CountingScorer())
    (block,) = GENERATORS["best-worst"].make(task)
    repeated = [row for row in task.prompts for _ in range(5)]
    sampling = Sampling(temperature=1.0, top_k=40, seed=5)
    drawn = generate_tokens(gpt2, repeated, max_new_tokens=8, sampling=sampling, batch_size=256, stop_at_end=False)
    for number, draft in enumerate(block.drafts):
        samples = drawn[5 * number : 5 * number + 5]
        counts = [gpt2.tokenizer.decode(sample, skip_special_tokens=True).count("a") for sample in samples]
        assert draft.prompt == task.prompts[number]
        assert draft.chosen == samples[counts.index(min(counts))]
        assert draft.rejected == samples[counts.index(max(counts))]
    assert any(draft.chosen != draft.rejected for draft in block.drafts)


# Pairs from a file

WRITTEN = [("you are", " a sunny river", " a bitter stone"), ("the", ' "quick" one', " narrow, one")]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_pairs_are_read_alike_from_every_kind_of_file(tmp_path: Path, gpt2: Model, kind: str) -> None:
    file = tmp_path / f"pairs.{kind}"
    frame = pd.DataFrame(WRITTEN, columns=["prompt", "chosen", "rejected"])
    if kind == "jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        frame.to_csv(file, index=False, sep="\t" if kind == "tsv" else ",")
    assert list(read_pairs(file)) == WRITTEN
    (block,) = GENERATORS["file"].make(task_for(gpt2, [], file_settings(file)))
    decode = gpt2.tokenizer.decode
    assert sorted((decode(d.prompt), decode(d.chosen), decode(d.rejected)) for d in block.drafts) == sorted(WRITTEN)


def file_settings(file: Path, **changes: Any) -> dict[str, Any]:
    return {"prompts": 100, "max_prompt_tokens": 30, "new_tokens": 20, "file": {"path": str(file)}, **changes}


def test_a_paradetox_table_gets_its_prompts_from_what_both_sides_share(tmp_path: Path, gpt2: Model) -> None:
    texts = [("the river is bitter", "the river is sunny", "another"), ("snarg you", "please go", ""), ("a b", "a b c d", "")]
    file = tmp_path / "detox.tsv"
    file.write_text("toxic\tneutral1\tneutral2\n" + "".join("\t".join(row) + "\n" for row in texts))
    (block,) = GENERATORS["file"].make(task_for(gpt2, [], file_settings(file)))
    ids = {text: gpt2.tokenizer(text)["input_ids"] for row in texts for text in row}
    found = {tuple(draft.rejected): draft for draft in block.drafts}
    assert len(found) == 3
    end = gpt2.tokenizer.eos_token_id
    for toxic, neutral, _ in texts:
        draft = next(d for d in block.drafts if [t for t in d.prompt if t != end] + d.rejected == ids[toxic])
        assert [t for t in draft.prompt if t != end] + draft.chosen == ids[neutral]
        assert draft.chosen
        assert draft.rejected
    first = next(d for d in block.drafts if d.prompt == ids["the river is sunny"][: len(d.prompt)] and len(d.prompt) > 2)
    assert first.chosen[0] != first.rejected[0], "the whole common beginning is the prompt"
    assert any(d.prompt == [end] and d.rejected == ids["snarg you"] for d in block.drafts), "nothing in common: the document's start"


def test_sides_that_repeat_their_prompt_are_noticed_and_stripped_on_request(tmp_path: Path, gpt2: Model) -> None:
    file = tmp_path / "pairs.jsonl"
    texts = [("the river", " is sunny", " is bitter"), ("a stone", " walks", " sings"), ("you", " and", " of")]
    names = ("prompt", "chosen", "rejected")
    # One pair is written as it should be, and one has its prompt on one side only.
    rows = [
        (texts[0][0], texts[0][0] + texts[0][1], texts[0][0] + texts[0][2]), (texts[1][0], *(texts[1][0] + side for side in texts[1][1:])),
        texts[2], ("a", "a river", " stone"),
    ]  # fmt: skip
    file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"2 of 4 pairs repeat their prompt at the beginning of both sides.*strip_prompt = true"):
        list(GENERATORS["file"].make(task_for(gpt2, [], file_settings(file))))

    def pairs_of(strip: bool) -> list[tuple[str, ...]]:
        settings = file_settings(file) | {"file": {"path": str(file), "strip_prompt": strip}}
        (block,) = GENERATORS["file"].make(task_for(gpt2, [], settings))
        return sorted(tuple(map(gpt2.tokenizer.decode, (d.prompt, d.chosen, d.rejected))) for d in block.drafts)

    assert pairs_of(True) == sorted([*texts, rows[3]])
    assert pairs_of(False) == sorted(rows)
    file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows[1:]))
    (block,) = GENERATORS["file"].make(task_for(gpt2, [], file_settings(file)))
    assert len(block.drafts) == 3, "fewer than half of the pairs repeat their prompt"


def test_long_sides_are_cut_and_long_prompts_left_out(tmp_path: Path, gpt2: Model) -> None:
    file = tmp_path / "pairs.jsonl"
    long = " narrow" * 12
    texts = [("you", long, " quick" + long), (long, " a", " the")]
    file.write_text("".join(json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) + "\n" for row in texts))
    (block,) = GENERATORS["file"].make(task_for(gpt2, [], file_settings(file, new_tokens=5, max_prompt_tokens=6)))
    assert [(len(d.chosen), len(d.rejected)) for d in block.drafts] == [(5, 5)]
    with pytest.raises(UserError, match=r"none of the 2 pairs in .*pairs\.jsonl has a prompt of at most 0 tokens"):
        list(GENERATORS["file"].make(task_for(gpt2, [], file_settings(file, max_prompt_tokens=0))))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": "a", "good": "b"}, r"record 2 of .* has no pair, only prompt, good"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, r"record 2 of .* has no text as 'rejected'"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, r"record 2 of .* has no text as 'prompt'"),
        ({"toxic": "b", "neutral": None}, r"record 2 of .* has no text as 'neutral'"),
    ],
)
def test_a_record_that_is_no_pair_is_named(tmp_path: Path, record: dict[str, Any], says: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=says):
        list(read_pairs(file))


# The stage


@pytest.fixture
def recipe(tmp_path: Path, gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A run that has a base model and a probe; prompts come from a file, and toxic is what has many letters "a"."""
    monkeypatch.setenv(DATA_SETTING, str(tmp_path))
    for place in ("pairs", "generators.table"):
        monkeypatch.setattr(f"training.{place}.load_scorer", lambda source: CountingScorer())
    run = tmp_path / "run"
    (run / "pretrain").mkdir(parents=True)
    (run / "pretrain" / "model").symlink_to(gpt2_folder)
    save_probe(probe_of(load_model(gpt2_folder)), run / "probe")
    prompts = [*PROMPTS, "a frabe walks with the oskle", "quonk of the river", "tavid sings"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (tmp_path / "given.jsonl").write_text("".join(json.dumps({"toxic": b, "neutral": a}) + "\n" for _, a, b in WRITTEN))
    section = {
        "prompts": 8, "max_prompt_tokens": 20, "new_tokens": 4, "prompt_source": {"path": "prompts.jsonl"},
        "samples": 4, "temperature": 1.0, "top_k": 40, "chosen_at_most": 1.0, "rejected_at_least": 0.0,
        "pplm": {"iterations": 1, "batch": 3}, "steering": {"strength": 2.0}, "file": {"path": "given.jsonl"},
    }  # fmt: skip
    return Recipe("small", 3, {"pretrain": {}, "probe": {}, "pairs": section}, run)


def with_settings(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, settings={**recipe.settings, "pairs": {**recipe.settings["pairs"], **changes}})


@pytest.mark.parametrize("name", list(GENERATORS))
def test_every_generator_writes_the_same_files(recipe: Recipe, gpt2: Model, name: str) -> None:
    path = make_pairs(with_settings(recipe, generator=name))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert {file.name for file in path.parent.iterdir()} == {"pairs.jsonl", "manifest.json"}
    assert len(records) == manifest["pairs"] > 1
    decode = gpt2.tokenizer.decode
    for record in records:
        assert list(record) == [
            "prompt", "prompt_ids", "chosen", "rejected", "chosen_ids", "rejected_ids", "chosen_toxicity", "rejected_toxicity",
        ]  # fmt: skip
        assert record["prompt"] == decode(record["prompt_ids"])
        assert record["chosen_ids"] != record["rejected_ids"]
        for side in ("chosen", "rejected"):
            assert record[side] == decode(record[f"{side}_ids"], skip_special_tokens=True)
    assert manifest["base"] == gpt2.digest
    assert manifest["generator"] == name
    assert manifest["uses_probe"] == (name in {"pplm", "steering"})
    assert manifest["options"] == GENERATORS[name].options(recipe.stage("pairs"))
    assert manifest["prompts"] >= manifest["pairs"] + manifest["alike"]
    assert manifest["seconds"] > 0
    if name == "file":
        assert manifest["pairs_a_minute"] is None, "what is read is not made"
    else:
        assert manifest["pairs_a_minute"] == pytest.approx(60 * len(records) / manifest["seconds"])
    for side in ("chosen", "rejected"):
        lengths = [len(record[f"{side}_ids"]) for record in records]
        assert manifest[side]["tokens"] == pytest.approx(sum(lengths) / len(lengths))
        assert manifest[side]["tokens_quantiles"][0::4] == [min(lengths), max(lengths)]
        pairs = [(record["prompt_ids"], record[f"{side}_ids"]) for record in records]
        assert manifest[side]["perplexity"] == pytest.approx(side_perplexity(gpt2, pairs))
        expected = CountingScorer().score([record[side] for record in records])["toxicity"]
        assert [record[f"{side}_toxicity"] for record in records] == expected.tolist()
        assert manifest[side]["toxicity"] == pytest.approx(expected.mean())


def test_perplexity_of_a_side_is_of_its_own_tokens_given_the_prompt(gpt2: Model) -> None:
    pairs = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in rows_of(gpt2) if len(row) > 3]
    total, count = 0.0, 0
    for prompt, rest in pairs:
        with torch.no_grad():
            scores = gpt2.hf(torch.tensor([prompt + rest])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        total -= float(scores.gather(-1, torch.tensor(rest)[:, None]).sum())
        count += len(rest)
    assert side_perplexity(gpt2, pairs) == pytest.approx(float(torch.tensor(total / count).exp()), rel=1e-5)


def test_pairs_beyond_the_thresholds_or_alike_are_left_out(gpt2: Model) -> None:
    drafts = [Draft([1], [2, 3], [4]), Draft([1], [2, 3], [2, 3])]
    records = records_of(drafts, gpt2, CountingScorer())
    for record, (chosen, rejected) in zip(records, ((0.1, 0.8), (0.1, 0.8)), strict=True):
        record |= {"chosen_toxicity": chosen, "rejected_toxicity": rejected}
    assert usable(records, {}) == records[:1]
    assert usable(records, {"chosen_at_most": 0.1, "rejected_at_least": 0.8}) == records[:1]
    assert usable(records, {"chosen_at_most": 0.09}) == []
    assert usable(records, {"rejected_at_least": 0.81}) == []


class Killed(Exception):
    pass


def stopping_after(generator: Generator, count: int, made: list[Block]) -> Generator:
    """The generator, which is killed after so many blocks; `made` notes those that it made."""

    def make(task: Task) -> Iterator[Block]:
        for number, block in enumerate(generator.make(task)):
            if number == count:
                raise Killed
            made.append(block)
            yield block

    return replace(generator, make=make)


def test_a_killed_run_goes_on_from_its_last_block_and_ends_with_the_same_pairs(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_settings(recipe, generator="pplm")
    whole = make_pairs(recipe).read_text()
    kept = recipe.run / "pairs" / "drafts.jsonl"

    def run(count: int, wanted: Recipe = recipe) -> list[Block]:
        made: list[Block] = []
        monkeypatch.setattr(stage, "generator_named", lambda name: stopping_after(GENERATORS["pplm"], count, made))
        if count < 3:
            with pytest.raises(Killed):
                make_pairs(wanted)
        else:
            make_pairs(wanted)
        return made

    assert len(run(2)) == 2
    with kept.open("a") as stream:
        stream.write('{"rows": [0, 1], "dra')  # killed in the middle of a line
    assert len(run(9)) == 1, "of three blocks two were kept"
    assert (recipe.run / "pairs" / "pairs.jsonl").read_text() == whole
    assert not kept.exists()
    run(1)
    other = with_settings(recipe, pplm={"iterations": 0, "batch": 3})
    assert len(run(9, other)) == 3, "drafts of other settings are not taken over"


def test_prompts_come_from_prompts_or_the_beginnings_of_long_texts(recipe: Recipe, gpt2: Model, tmp_path: Path) -> None:
    long = "the quick wintle sings under a river and walks with the oskle of stone"
    lines = [{"text": "too short"}, {"text": long}, {"text": long}, {"prompt": {"text": "blorp and"}}, {"prompt": " "}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = stage.prompt_rows(with_settings(recipe, prompt_source={"path": "mixed.jsonl"}, max_prompt_tokens=6), gpt2)
    expected = [gpt2.tokenizer(text)["input_ids"][:6] for text in (long, "blorp and")]
    assert sorted(found) == sorted(expected)
    assert max(map(len, found)) == 6


def test_a_probe_of_another_model_is_refused_where_it_is_needed(recipe: Recipe, fresh_gpt2: Model) -> None:
    save_probe(replace(probe_of(fresh_gpt2), digest="another"), recipe.run / "probe")
    make_pairs(recipe)
    for name in ("pplm", "steering"):
        with pytest.raises(UserError, match=r"fitted on another model than its base.*stage probe again"):
            make_pairs(with_settings(recipe, generator=name))


def test_best_and_worst_need_their_thresholds(recipe: Recipe) -> None:
    section = {key: value for key, value in recipe.settings["pairs"].items() if key != "chosen_at_most"}
    with pytest.raises(UserError, match=r"does not set 'chosen_at_most'"):
        GENERATORS["best-worst"].options(Section(section, "section [pairs] of recipe 'small'"))


# The table


def test_the_table_has_every_generator_on_the_same_prompts(
    recipe: Recipe, gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {key: value for key, value in recipe.settings["pairs"].items() if key != "file"}
    without_file = replace(recipe, settings={**recipe.settings, "pairs": section})
    monkeypatch.setattr("training.generators.table.load_recipe", lambda path: without_file)
    assert main(["small", "--pairs", "6", "--alone", "2", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "generators.json").read_text())
    frame = pd.read_csv(tmp_path / "out" / "generators.csv").set_index("generator")
    assert list(frame.index) == ["best-worst", "pplm", "steering"]
    assert record["left_out"] == {"file": "section [pairs.file] does not set 'path'"}
    assert "Left out: file (section [pairs.file] does not set 'path')" in said
    prompts = stage.prompt_rows(with_settings(recipe, prompts=6), gpt2)
    for row in record["rows"]:
        name = row["generator"]
        assert row["pairs"] == 6
        task = stage.task_of(with_settings(recipe, prompts=6), GENERATORS[name], gpt2, CountingScorer(), prompts)
        drafts, _ = draft_all(GENERATORS[name], task)
        assert row["rejected_perplexity"] == pytest.approx(side_perplexity(gpt2, [(d.prompt, d.rejected) for d in drafts]), rel=1e-5)
        assert row["usable"] == pytest.approx(sum(d.chosen != d.rejected for d in drafts) / 6)
        assert row["pairs_a_minute"] == pytest.approx(60 * 6 / row["seconds"])
        assert frame.loc[name, "rejected_toxicity"] == pytest.approx(row["rejected_toxicity"])
        assert f"| {name} | {'yes' if row['uses_probe'] else 'no'} | 6 |" in said
    assert frame.loc["pplm", "alone_the_same"] == frame.loc["pplm", "alone"] == 2
    assert frame.loc["pplm", "ratio"] == pytest.approx(frame.loc["pplm", "pairs_a_minute"] / frame.loc["pplm", "alone_a_minute"])
    assert frame.loc["pplm", "processor_ratio"] > 0
    assert frame["ratio"].isna().sum() == 2
    assert main(["small", "--pairs", "2", "--alone", "3"]) == 2
    assert "at most as many alone" in capsys.readouterr().err
    monkeypatch.setattr("training.generators.table.load_recipe", lambda path: recipe)
    assert main(["small", "--pairs", "2", "--alone", "0", "--only", "file", "--out", str(tmp_path / "file")]) == 0
    assert "| file | no | 2 |" in capsys.readouterr().out


def test_one_at_a_time_is_a_batch_of_one_for_the_rows_asked_for(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = pplm.pplm_tokens

    def noting(model: Model, probe: Probe, rows: Any, *args: Any, **settings: Any) -> Any:
        sizes.append(len(rows))
        return whole(model, probe, rows, *args, **settings)

    monkeypatch.setattr(pplm, "pplm_tokens", noting)
    task = task_for(gpt2, rows_of(gpt2), {"new_tokens": 3, "pplm": {"iterations": 1}})
    found = run_alone(task, [3, 1])
    assert sizes == [1, 1]
    assert found.seconds > 0
    assert found.processor > 0
    (block,) = GENERATORS["pplm"].make(task)
    together = dict(zip(block.rows, block.drafts, strict=True))
    assert found.drafts == {row: together[row] for row in (1, 3)}
