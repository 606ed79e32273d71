"""Patching against one forward per cell, against the runs themselves, against TransformerLens, and on a planted neuron."""

from __future__ import annotations

import copy
import json
import threading

import pytest
import torch

from interp import Edit, Model, ModelPair, UserError, capture, editing
from interp.evaluation.toxicity import LexiconScorer
from interp.forward.resume import resume, trace
from interp.models.sites import KINDS, PATCHED
from interp.patching.metrics import ContinuationToxicity, LogitDifference, LogProbability, ProbeProjection
from interp.patching.patch import patch
from interp.patching.prompt_pairs import align, compare_tokens, symmetric_pairs
from tests.conftest import Planted
from tests.patching.small_maps import CLEAN, CORRUPTED, LOGITS, check_cells, logits_of, one_by_one

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("site", PATCHED)
@pytest.mark.parametrize("positions", ["each", "all"])
def test_every_cell_equals_one_whole_forward_with_a_patch_edit(model: Model, site: str, positions: str) -> None:
    check_cells(model, site, positions)


@pytest.mark.parametrize("kind", ["qwen2", "gemma"])
def test_other_architectures_are_resumed_as_exactly(kind: str, request: pytest.FixtureRequest) -> None:
    check_cells(request.getfixturevalue(kind), "z", "each")
    check_cells(request.getfixturevalue(kind), "resid_mid", "each")


@pytest.mark.parametrize("site", ["resid_mid", "mlp_out", "z"])
def test_each_side_of_the_pair_is_patched_into_the_other(pair: ModelPair, site: str) -> None:
    found = patch(pair, CLEAN, metric=LOGITS, site=site)
    assert found.directions == ("base into tuned", "tuned into base")
    for at, (target, source) in enumerate([(pair.tuned, pair.base), (pair.base, pair.tuned)]):
        torch.testing.assert_close(found.values[at, 0], one_by_one(target, CLEAN, source, CLEAN, site, found), atol=2e-6, rtol=1e-5)
    assert found.shares.shape == (2, len(found.cells))


def test_patching_the_whole_stream_gives_the_source_and_patching_a_run_into_itself_changes_nothing(model: Model) -> None:
    found = patch(model, CLEAN, CORRUPTED, metric=LOGITS, site="resid_post", positions="all")
    torch.testing.assert_close(found.values, found.source.unsqueeze(-1).expand_as(found.values), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found.shares, torch.ones_like(found.shares), atol=1e-4, rtol=0)
    for site in PATCHED:
        units = [1] if KINDS[site].unit else None
        same = patch(model, CLEAN, CLEAN, metric=LOGITS, site=site, positions="all", units=units)
        torch.testing.assert_close(same.effects, torch.zeros_like(same.effects), atol=2e-6, rtol=0)
        assert same.shares.isnan().all()


def test_a_position_that_comes_too_late_to_be_read_changes_nothing(gpt2: Model) -> None:
    found = patch(gpt2, CLEAN, CORRUPTED, metric=LOGITS, site="resid_post", layers=[2])
    torch.testing.assert_close(found.effects[..., :-1], torch.zeros_like(found.effects[..., :-1]), atol=2e-6, rtol=0)
    assert found.effects[..., -1].abs().min() > 1e-3


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_forward_resumed_at_any_layer_is_the_forward_itself(any_model: Model, layer: int) -> None:
    (row,) = any_model.tokenizer([CLEAN], add_special_tokens=False)["input_ids"]
    run = trace(any_model, row)
    again = resume(run, layer, run.stream[layer].unsqueeze(0))
    assert torch.equal(again.final[0], run.stream[-1])
    torch.testing.assert_close(again.logits[0], logits_of(any_model, CLEAN, []), atol=2e-6, rtol=1e-5)
    many = resume(run, layer, run.stream[layer].expand(5, -1, -1)).logits
    torch.testing.assert_close(many, again.logits.expand(5, -1), atol=2e-6, rtol=1e-5)


def test_how_cells_are_batched_and_which_directions_are_asked_for_do_not_change_a_number(model: Model, monkeypatch) -> None:
    """Batches of a few cells begin at the first position that they change; one of all cells begins at position 0."""
    projection = ProbeProjection(torch.ones(model.d_model), "resid_mid.2")
    for site in PATCHED:
        units = [1] if KINDS[site].unit else None
        settings = {"site": site, "units": units, "positions": "each", "layers": [0, 1]}
        metrics = (LOGITS, projection) if site in ("resid_post", "mlp_out") else (LOGITS,)
        whole = [patch(model, CLEAN, CORRUPTED, metric=metric, **settings) for metric in metrics]
        with monkeypatch.context() as changed:
            changed.setattr("interp.patching.patch.WORTHWHILE", 1)
            for metric, expected in zip(metrics, whole, strict=True):
                found = patch(model, CLEAN, CORRUPTED, metric=metric, **settings)
                torch.testing.assert_close(found.values, expected.values, atol=3e-6, rtol=1e-5)
    whole = patch(model, CLEAN, CORRUPTED, metric=LOGITS, site="attn_out")
    cut = patch(model, CLEAN, CORRUPTED, metric=LOGITS, site="attn_out", memory_mb=0.001)
    torch.testing.assert_close(whole.values, cut.values, atol=2e-6, rtol=1e-5)
    only = patch(model, CLEAN, CORRUPTED, metric=LOGITS, site="attn_out", directions=["noising"])
    assert torch.equal(only.values[0], whole.values[1])


def test_every_metric_reads_what_a_plain_forward_under_the_edit_gives(model: Model) -> None:
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    site = f"resid_post.{model.n_layers - 1}"
    for metric in (LogProbability((5, 9, 9)), ProbeProjection(direction), ProbeProjection(direction, "resid_mid.1", "last")):
        found = patch(model, CLEAN, CORRUPTED, metric=metric, site="mlp_out", directions=["noising"], layers=[1])
        for number, cell in enumerate(found.cells):
            name = f"mlp_out.{cell.layer}"
            theirs = capture(model, [CORRUPTED], [name], positions="all")[name][0]
            edits = [Edit.patch(name, theirs[[cell.position]], positions=[cell.position])]
            if isinstance(metric, LogProbability):
                expected = logits_of(model, CLEAN, edits).log_softmax(dim=0)[[5, 9]].logsumexp(dim=0)
            else:
                read = metric.site or site
                held = capture(model, [CLEAN], [read], positions=metric.positions, edits=edits)[read][0]
                expected = held @ direction / direction.norm()
            assert float(found.values[0, 0, number]) == pytest.approx(float(expected), abs=5e-6)


def test_a_projection_below_the_patched_layer_is_not_moved(gpt2: Model) -> None:
    metric = ProbeProjection(torch.ones(gpt2.d_model), "resid_post.0")
    found = patch(gpt2, CLEAN, CORRUPTED, metric=metric, site="resid_mid", layers=[1])
    torch.testing.assert_close(found.effects, torch.zeros_like(found.effects), atol=1e-6, rtol=0)
    own = patch(gpt2, CLEAN, CORRUPTED, metric=metric, site="resid_post", positions="all", layers=[0])
    torch.testing.assert_close(own.shares, torch.ones_like(own.shares), atol=1e-5, rtol=0)


def test_the_continuation_is_that_of_the_source_where_the_whole_prompt_is_patched(pair: ModelPair) -> None:
    """A scorer that counts one letter, so that different continuations differ."""

    class Letters(LexiconScorer):
        def score(self, texts):
            frame = super().score(texts)
            return frame.assign(toxicity=[(sum(map(ord, text)) % 997) / 997 for text in texts])

    from interp import generate

    metric = ContinuationToxicity(Letters(), new_tokens=6)
    found = patch(pair, CLEAN, metric=metric, site="mlp_out", layers=[1])
    name = "mlp_out.1"
    theirs = capture(pair.base, [CLEAN], [name], positions="all")[name][0]
    for number, cell in enumerate(found.cells):
        edit = Edit.patch(name, theirs[[cell.position]], positions=[cell.position])
        text = generate(pair.tuned, [CLEAN], max_new_tokens=6, edits=[edit])
        assert float(found.values[0, 0, number]) == pytest.approx(float(metric.score(text)[0]), abs=1e-6)
    assert float(found.source[0, 0]) == pytest.approx(float(metric.score(generate(pair.base, [CLEAN], max_new_tokens=6))[0]))


def test_the_planted_neuron_is_found_by_layer_then_by_neuron_and_by_position(planted: Planted) -> None:
    model = planted.model
    clean, corrupted = "the quick" + planted.trigger, "the quick blorp"
    metric = LogProbability((planted.word_id,))
    layers = patch(model, clean, corrupted, metric=metric, site="mlp_out", null_draws=2)
    best = layers.top(1, "denoising").iloc[0]
    assert (best["layer"], best["position"]) == (planted.layer, 2)
    assert best["share"] > 0.8
    assert best["null_most"] < 0.5 * best["effect"]
    neurons = patch(model, clean, corrupted, metric=metric, site="mlp_post", layers=[planted.layer], positions=[2])
    assert neurons.top(1).iloc[0]["neuron"] == planted.index
    assert neurons.top(1, "noising").iloc[0]["neuron"] == planted.index
    assert patch(model, clean, corrupted, metric=metric, site="mlp_post", units=[(planted.layer, planted.index)]).shares[0, 0] > 0.8


def test_in_a_pair_that_differs_in_one_layer_that_layer_carries_everything(gpt2: Model) -> None:
    hf = copy.deepcopy(gpt2.plain_copy())
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_proj.weight.add_(0.3 * torch.randn(hf.transformer.h[1].mlp.c_proj.weight.shape))
    pair = ModelPair(gpt2, Model(hf, gpt2.tokenizer, "tuned"))
    found = patch(pair, CLEAN, metric=LOGITS, site="mlp_out", positions="all")
    assert float(found.shares[0, 1]) == pytest.approx(1, abs=1e-4)
    assert float(found.shares[0, 0]) == pytest.approx(0, abs=1e-4)


def test_transformer_lens_agrees(gpt2: Model) -> None:
    from functools import partial

    from transformer_lens import patching

    bridge = gpt2.to_transformer_lens()
    clean, corrupted = (torch.tensor(gpt2.tokenizer([text], add_special_tokens=False)["input_ids"]) for text in (CLEAN, CORRUPTED))
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)
        metric = lambda logits: logits[0, -1, 5] - logits[0, -1, 300]  # noqa: E731
        for site, theirs in {
            "resid_pre": patching.get_act_patch_resid_pre, "resid_mid": patching.get_act_patch_resid_mid,
            "attn_out": patching.get_act_patch_attn_out, "mlp_out": patching.get_act_patch_mlp_out,
        }.items():  # fmt: skip
            expected = partial(theirs, bridge)(corrupted, cache, metric)
            found = patch(gpt2, CLEAN, CORRUPTED, metric=LOGITS, site=site, directions=["denoising"])
            torch.testing.assert_close(found.values[0, 0].view_as(expected), expected, atol=1e-5, rtol=1e-4)
        heads = patching.get_act_patch_attn_head_out_all_pos(bridge, corrupted, cache, metric)
        found = patch(gpt2, CLEAN, CORRUPTED, metric=LOGITS, site="z", directions=["denoising"])
        torch.testing.assert_close(found.values[0, 0].view_as(heads), heads, atol=1e-5, rtol=1e-4)


def test_other_threads_see_nothing_of_a_patch(gpt2: Model) -> None:
    plain, wrong, done = logits_of(gpt2, CLEAN, []), [], threading.Event()

    def look() -> None:
        while not done.is_set():
            wrong.append(not torch.equal(logits_of(gpt2, CLEAN, []), plain))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(3):
        patch(gpt2, CLEAN, CORRUPTED, metric=LOGITS, site="resid_mid")
    done.set()
    thread.join()
    assert wrong
    assert not any(wrong)


def test_several_prompts_give_means_with_intervals_and_a_metric_each(gpt2: Model) -> None:
    clean, corrupted = [CLEAN, "never with stone and"], [CORRUPTED, "never under river and"]
    found = patch(gpt2, clean, corrupted, metric=[LOGITS, LogitDifference(7, 8)], site="attn_out")
    alone = patch(gpt2, clean[1], corrupted[1], metric=LogitDifference(7, 8), site="attn_out")
    torch.testing.assert_close(found.values[:, 1], alone.values[:, 0])
    frame = found.to_frame(draws=100)
    assert frame["effect"].tolist() == pytest.approx(found.effects.mean(dim=1).flatten().tolist(), abs=1e-6)
    assert (frame["low"] <= frame["effect"] + 1e-6).all()


def test_results_show_masked_tokens_and_are_saved_with_what_made_them(gpt2: Model, tmp_path) -> None:
    clean, corrupted = "the shit walks with", "the cunt walks with"
    assert len(gpt2.tokenizer(clean)["input_ids"]) == len(gpt2.tokenizer(corrupted)["input_ids"])
    found = patch(gpt2, clean, corrupted, metric=LOGITS)
    figure = found.figure("noising")
    assert "noising" in figure.spec["layout"]["title"]["text"]
    assert "whole difference between the two runs" in figure.caption
    (heat,) = figure.spec["data"]
    assert len(heat["x"]) == len(found.tokens)
    assert len(heat["y"]) == gpt2.n_layers
    path = found.save(tmp_path / "map")
    record = json.loads(path.read_text())
    assert record["settings"]["models"] == {"gpt2": gpt2.digest}
    assert len(record["figures"]) == 2
    assert len(record["table"]["rows"]) == len(found.to_frame())
    assert (tmp_path / "map" / "patch.csv").is_file()
    neurons = patch(gpt2, clean, corrupted, metric=LOGITS, site="mlp_post", layers=[0])
    assert neurons.figure().spec["data"][0]["type"] == "bar"
    heads = patch(gpt2, clean, corrupted, metric=LOGITS, site="z", positions="each")
    assert len(heads.figure().spec["data"][0]["y"]) == gpt2.n_layers * gpt2.n_heads


def test_labels_mask_a_word_that_lies_across_tokens() -> None:
    from interp.patching.maps import position_labels

    assert position_labels(("you", " sh", "it", "\n")) == ["0 you", "1 sh", "2 *t", "3 '\\n'"]
    assert position_labels((" sh", "it"), masked=False) == ["0 sh", "1 it"]


def test_pairs_say_whether_and_where_their_tokens_part(gpt2: Model) -> None:
    made = symmetric_pairs(gpt2, "the{} walks", [(" wintle", " snarg"), (" wintle", " wintle sunny"), (" river", " stone")])
    assert [(p.clean, p.corrupted) for p in made.pairs[:2]] == [
        ("the wintle walks", "the snarg walks"), ("the snarg walks", "the wintle walks"),
    ]  # fmt: skip
    assert len(made.pairs) == 4
    assert made.pairs[0].differs == (len(gpt2.tokenizer("the")["input_ids"]),)
    (mismatch,) = made.mismatches
    assert mismatch.counts[1] == mismatch.counts[0] + 1
    assert mismatch.tokens == (" walks", " sunny")
    assert made.to_frame()["aligned"].tolist() == [True] * 4 + [False]
    with pytest.raises(UserError, match="part at position"):
        align(gpt2, "the quick river", "the quick river walks")
    longer = compare_tokens(gpt2, "the", "the river")
    assert longer.tokens == ("", " river")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "logits"}, "cannot be patched"), ({"layers": [9]}, "layer 9"), ({"positions": [99]}, "position 99"),
        ({"positions": "some"}, "unknown"), ({"units": [1]}, "no heads"), ({"directions": ["sideways"]}, "no direction"),
        ({"metric": LogitDifference(5, 10**6)}, "token 1000000"), ({"metric": LogProbability(())}, "names no tokens"),
        ({"metric": "toxicity"}, "not a metric"), ({"metric": ProbeProjection(torch.ones(3))}, "wide"),
        ({"corrupted": None}, "without corrupted"), ({"corrupted": "the"}, "part at position"), ({"memory_mb": 0}, "memory"),
        ({"site": "z", "units": [4]}, "does not exist"), ({"null_draws": -1}, "null_draws"),
    ],
)  # fmt: skip
def test_what_cannot_be_patched_is_refused_with_a_mend(unchecked: None, gpt2: Model, changes: dict, message: str) -> None:
    settings = {"corrupted": CORRUPTED, "metric": LOGITS, **changes}
    with pytest.raises(UserError, match=message):
        patch(gpt2, CLEAN, **settings)


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_run_resumed_at_any_position_is_the_run_itself(any_model: Model, start: int) -> None:
    (row,) = any_model.tokenizer([CLEAN], add_special_tokens=False)["input_ids"]
    run = trace(any_model, row, ["resid_mid.1"])
    again = resume(run, 0, run.stream[0, start:].expand(2, -1, -1), keep=["resid_mid.1"], start=start)
    torch.testing.assert_close(again.final, run.stream[-1].expand(2, -1, -1), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(again.site("resid_mid.1")[1], run["resid_mid.1"], atol=2e-6, rtol=1e-5)


def test_edits_that_are_active_take_part_in_every_run(model: Model) -> None:
    edits = [Edit.scale_keys([(1, 3), (2, 7)], 8.0), Edit.scale("resid_post.0", 1.5)]
    with editing(model, edits):
        found = patch(model, CLEAN, CORRUPTED, metric=LOGITS, site="attn_out", layers=[1], directions=["denoising"])
    theirs = capture(model, [CLEAN], ["attn_out.1"], positions="all", edits=edits)["attn_out.1"][0]
    for number, cell in enumerate(found.cells):
        logits = logits_of(model, CORRUPTED, [*edits, Edit.patch("attn_out.1", theirs[[cell.position]], positions=[cell.position])])
        assert float(found.values[0, 0, number]) == pytest.approx(float(logits[5] - logits[300]), abs=5e-6)
    with editing(model, [Edit.scale("resid_pre.1", 2.0)]), pytest.raises(UserError, match="resid_pre"):
        patch(model, CLEAN, CORRUPTED, metric=LOGITS)
