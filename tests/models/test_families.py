"""Every family that loads: logits, sites, identities, edits and generation, against Hugging Face's plain model and by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp import Edit, Model, capture, editing, hooked
from interp.forward.generate import generate_tokens
from interp.forward.resume import resume, trace
from interp.models.architectures import ARCHITECTURES
from interp.models.tokens import Tokens, pad, token_rows
from interp.models.unembed import unembed
from interp.models.weights import frozen_norm, mlp_norm, output_projection, written_values
from interp.neurons.ranking import rank_values, values_at
from interp.neurons.vocabulary import build_index, top_tokens
from tests import ROOT
from tests.conftest import TEXTS
from tests.models.families import FAMILIES, TRAITS, UNKNOWN_TO_LENS, WINDOW, Family, Traits, by_hand

pytestmark = pytest.mark.oracle
ALL = list(TEXTS)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, families: Callable[[str], Family]) -> Family:
    return families(request.param)


@pytest.fixture(scope="module")
def rows(family: Family) -> list[list[int]]:
    """The texts as tokens: of four lengths, the longest far beyond the window."""
    rows = token_rows(family.model, ALL)
    assert len({len(row) for row in rows}) == 4
    assert max(map(len, rows)) > 2 * WINDOW
    return rows


def test_every_architecture_is_among_these_families() -> None:
    assert set(FAMILIES) == set(TRAITS) == set(ARCHITECTURES)


def test_the_page_of_models_names_these_families_and_what_is_special_to_each() -> None:
    lines = [line for line in (ROOT / "docs" / "models.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    table = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    assert [name for name, *_ in table] == list(ARCHITECTURES)
    for name, _, special, lens, nnsight in table:
        traits = TRAITS[name]
        assert (lens, nnsight) == ("no" if name in UNKNOWN_TO_LENS else "yes", "yes")
        said = {
            "a sliding window": any(traits.windows), "a sliding window in every layer": all(traits.windows),
            "without rotary embedding": None in traits.ropes, "norms of queries and keys": traits.norms_heads,
            "norms behind attention and MLP": traits.norms_writes, "scaled embedding": traits.scaled_embedding,
            "capped scores and logits": traits.cap is not None, "capped": traits.final_cap is not None,
            "learned positions": ARCHITECTURES[name].positions is not None,
        }  # fmt: skip
        assert {words: words in special for words in said} == said, name


@torch.no_grad()
def test_logits_are_hugging_faces_under_left_right_and_no_padding(family: Family, rows: list[list[int]]) -> None:
    alone = [family.plain(torch.tensor([row])).logits[0] for row in rows]
    for row, expected in zip(rows, alone, strict=True):
        assert torch.equal(family.model.hf(torch.tensor([row])).logits[0], expected)
    captured = capture(family.model, ALL, ["logits"], positions="all")["logits"]
    last = capture(family.model, ALL, ["logits"])["logits"]
    for side in ("left", "right"):
        tokens = pad(rows, 0, side)
        logits = family.model.hf(**tokens.inputs()).logits
        assert torch.equal(logits, family.plain(**tokens.inputs()).logits)
        for number, expected in enumerate(alone):
            torch.testing.assert_close(logits[number][tokens.mask[number]], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(captured[number, : len(expected)], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(last[number], expected[-1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_site_is_the_one_computed_by_hand(family: Family, rows: list[list[int]]) -> None:
    sites = family.model.sites()
    acts, last = (capture(family.model, ALL, sites, positions=positions) for positions in ("all", "last"))
    for number, row in enumerate(rows):
        expected = by_hand(family, row)
        assert set(expected) == set(sites)
        for site, value in expected.items():
            got, end = acts[site][number].double(), last[site][number].double()
            if site.startswith("pattern"):
                # Keys beyond the text have no weight.
                assert not bool(got[:, :, len(row) :].any())
                value, got, end = value.transpose(0, 1), got[..., : len(row)].transpose(0, 1), end[:, : len(row)]
            torch.testing.assert_close(got[: len(row)], value, atol=2e-5, rtol=1e-4, msg=lambda text, site=site: f"{site}: {text}")
            torch.testing.assert_close(end, value[-1], atol=2e-5, rtol=1e-4, msg=lambda text, site=site: f"last {site}: {text}")


@torch.no_grad()
def test_what_layers_write_adds_up_to_the_stream_and_the_last_stream_makes_the_logits(family: Family) -> None:
    model = family.model
    acts = capture(model, ALL, model.sites(), positions="all")
    mask = acts.mask
    assert mask is not None
    stream = acts["resid_pre.0"]
    for layer in range(model.n_layers):
        torch.testing.assert_close(acts[f"resid_pre.{layer}"], stream, atol=1e-5, rtol=1e-5)
        stream = stream + acts[f"attn_out.{layer}"]
        torch.testing.assert_close(acts[f"resid_mid.{layer}"], stream, atol=1e-5, rtol=1e-5)
        stream = stream + acts[f"mlp_out.{layer}"]
        torch.testing.assert_close(acts[f"resid_post.{layer}"], stream, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unembed(model, stream)[mask], acts["logits"][mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.final_norm.forward(stream)[mask], acts["ln_final"][mask], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_heads_and_neurons_weighted_by_what_they_write_make_what_layers_write(family: Family) -> None:
    model = family.model
    acts = capture(model, ALL, model.sites())
    for layer in range(model.n_layers):
        weights, bias = output_projection(model, layer)
        raw = torch.einsum("bhd,hdm->bm", acts[f"z.{layer}"].double(), weights) + bias
        wrote = raw * frozen_norm(model, layer, "attn_out", raw)
        torch.testing.assert_close(wrote.float(), acts[f"attn_out.{layer}"], atol=1e-5, rtol=1e-4)
        raw = acts[f"mlp_post.{layer}"].double() @ model.value_vectors(layer).double() + model.value_bias(layer)
        wrote = raw * frozen_norm(model, layer, "mlp_out", raw)
        torch.testing.assert_close(wrote.float(), acts[f"mlp_out.{layer}"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_neuron_by_itself_writes_along_its_value_vector_as_it_reaches_the_stream(family: Family) -> None:
    model, neuron = family.model, 7
    alone = [Edit.set("mlp_post.1", 0.0), Edit.set("mlp_post.1", 2.0, [neuron])]
    written = capture(model, ALL, ["mlp_out.1"], edits=alone)["mlp_out.1"]
    vector = written_values(model, 1)[neuron]
    if family.traits.norms_writes:
        torch.testing.assert_close(torch.cosine_similarity(written, vector, dim=-1), torch.ones(len(ALL)))
        assert float(torch.cosine_similarity(vector, model.value_vectors(1)[neuron], dim=0)) < 0.999, "the gain turns it"
    else:
        torch.testing.assert_close(written - model.value_bias(1), 2 * vector.expand(len(ALL), -1), atol=1e-5, rtol=1e-4)
    # What ranks, names and subtracts value vectors uses them as they are written.
    assert torch.equal(values_at(model, [(1, neuron)])[0], vector)
    best = rank_values(model, vector, top=1)
    assert best.neurons == [(1, neuron)]
    torch.testing.assert_close(best.norms[0], vector.norm())
    words = top_tokens(model, vector, top=3).ids[0]
    torch.testing.assert_close(torch.as_tensor(build_index(model, top=3).ids[model.d_mlp + neuron]).long(), words.long())


@torch.no_grad()
def test_keys_read_the_normed_stream_and_make_the_neurons_activations(family: Family) -> None:
    model = family.model
    acts = capture(model, ALL, model.sites())
    for layer in range(model.n_layers):
        read = mlp_norm(model, layer).forward(acts[f"resid_mid.{layer}"])
        pre = read @ model.key_vectors(layer).T + model.key_biases(layer)
        torch.testing.assert_close(pre, acts[f"mlp_pre.{layer}"], atol=1e-5, rtol=1e-4)
        if model.family == "glu":
            assert model.architecture.up is not None
            bias = model.projection_bias(layer, model.architecture.up)
            up = read @ model.up_vectors(layer).T + (0 if bias is None else bias)
            torch.testing.assert_close(up, acts[f"mlp_up.{layer}"], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(acts[f"mlp_gate.{layer}"] * up, acts[f"mlp_post.{layer}"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_final_gain_is_what_the_final_norm_multiplies_by(family: Family) -> None:
    model = family.model
    last = capture(model, ALL, [f"resid_post.{model.n_layers - 1}", "ln_final", "logits"])
    x = last[f"resid_post.{model.n_layers - 1}"].double()
    if model.architecture.norm == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    scaled = x / (x.square().mean(dim=-1, keepdim=True) + (1e-5 if model.architecture.norm == "layer" else 1e-6)).sqrt()
    bias = getattr(model.final_norm, "bias", None)
    expected = scaled.float() * model.final_gain + (0 if bias is None else bias)
    torch.testing.assert_close(expected, last["ln_final"], atol=1e-5, rtol=1e-4)
    cap = family.traits.final_cap
    logits = last["ln_final"] @ model.unembedding.T
    torch.testing.assert_close(logits if cap is None else cap * (logits / cap).tanh(), last["logits"], atol=1e-5, rtol=1e-4)


def direction(width: int, seed: int = 1) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def part(hf: PreTrainedModel, layer: int, gpt2: str, other: str) -> Any:
    """A module of a block by its name in GPT-2 and in the others, read past the table of architectures."""
    is_gpt2 = hf.config.model_type == "gpt2"
    return hf.get_submodule(f"transformer.h.{layer}.{gpt2}" if is_gpt2 else f"model.layers.{layer}.{other}")


def inputs_of(module: Any) -> Tensor:
    """A projection's matrix, one row per input: a view, however it is stored."""
    return module.weight.T if isinstance(module, nn.Linear) else module.weight


def subtract_from_bias(module: Any, vector: Tensor, start: int = 0) -> None:
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros(inputs_of(module).shape[1]))
    module.bias[start : start + len(vector)] -= vector


def scale_a_neuron(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    inputs_of(part(twin, 1, "mlp.c_proj", "mlp.down_proj"))[[5, 11]] *= -2.0
    return Edit.scale("mlp_post.1", -2.0, [5, 11])


def scale_a_key(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    for layer, index in ((0, 3), (1, 40)):
        inputs_of(part(twin, layer, "mlp.c_fc", "mlp.gate_proj"))[:, index] *= 6.0
    return Edit.scale_keys([(0, 3), (1, 40)], 6.0)


def ablate_a_head(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    columns = list(range(2 * model.d_head, 3 * model.d_head))
    inputs_of(part(twin, 0, "attn.c_proj", "self_attn.o_proj"))[columns] = 0.0
    return Edit.set("z.0", 0.0, columns)


def subtract_from_values(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    width = model.width("v")
    subtract_from_bias(part(twin, 1, "attn.c_attn", "self_attn.v_proj"), 1.5 * direction(width), 2 * width if model.family == "gelu" else 0)
    return Edit.subtract("v.1", direction(width), 1.5)


def subtract_from_heads(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    """What is taken from a value is taken from the output of each head that reads it, since a pattern's weights sum to 1."""
    subtract_from_values(model, twin, traits)
    each = direction(model.width("v")).view(model.n_kv_heads, model.d_head).repeat_interleave(model.n_heads // model.n_kv_heads, dim=0)
    return Edit.subtract("z.1", each.flatten(), 1.5)


def subtract_from_the_embedding(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    vector = direction(model.d_model)
    twin.get_output_embeddings().weight = nn.Parameter(twin.get_output_embeddings().weight.clone())
    twin.get_input_embeddings().weight -= 1.5 * vector / (32**0.5 if traits.scaled_embedding else 1.0)
    return Edit.subtract("resid_pre.0", vector, 1.5)


def scale_what_is_written(model: Model, twin: PreTrainedModel, traits: Traits, site: str, gpt2: str, other: str, norm: str) -> Edit:
    """Where a norm follows, its gain is what scales what is added to the residual stream."""
    if traits.norms_writes:
        gain = part(twin, 1, "", norm).weight
        gain.copy_(3.0 * (gain + traits.norm_offset) - traits.norm_offset)
    else:
        projection = part(twin, 1, gpt2, other)
        inputs_of(projection).mul_(3.0)
        if projection.bias is not None:
            projection.bias.mul_(3.0)
    return Edit.scale(site, 3.0)


def scale_attention(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    return scale_what_is_written(model, twin, traits, "attn_out.1", "attn.c_proj", "self_attn.o_proj", "post_attention_layernorm")


def scale_the_mlp(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    return scale_what_is_written(model, twin, traits, "mlp_out.1", "mlp.c_proj", "mlp.down_proj", "post_feedforward_layernorm")


def subtract_after_the_final_norm(model: Model, twin: PreTrainedModel, traits: Traits) -> Edit:
    vector = direction(model.d_model)
    subtract_from_bias(twin.get_output_embeddings(), 1.5 * twin.get_output_embeddings().weight @ vector)
    return Edit.subtract("ln_final", vector, 1.5)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        scale_a_neuron, scale_a_key, ablate_a_head, subtract_from_values, subtract_from_heads, subtract_from_the_embedding,
        scale_attention, scale_the_mlp, subtract_after_the_final_norm,
    ],
)  # fmt: skip
def test_an_edit_equals_the_same_change_of_the_weights(family: Family, rows: list[list[int]], change: Callable[..., Edit]) -> None:
    twin, tokens = copy.deepcopy(family.plain), pad(rows, 0, "left")
    edit = change(family.model, twin, family.traits)
    plain, expected = logits(family.plain, tokens), logits(twin, tokens)
    with editing(family.model, [edit]):
        edited = logits(family.model.hf, tokens)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-4)
    assert float((edited - plain).abs().max()) > 1e-3, "an edit that changes nothing tests nothing"


def test_adding_to_the_stream_is_the_same_wherever_it_is_added(family: Family) -> None:
    """What is added to what a layer writes is added to the stream behind it: the next norm reads it, and so does the skip connection."""
    vector = direction(family.model.d_model)
    same = {"resid_mid.1": ["attn_out.1"], "resid_post.0": ["mlp_out.0", "resid_pre.1"]}
    for site, others in same.items():
        expected, *got = (
            capture(family.model, ALL, ["logits"], positions="all", edits=[Edit.add(at, vector, 1.5)])["logits"] for at in (site, *others)
        )
        for each in got:
            torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-4)


def test_a_pattern_that_is_changed_is_what_mixes_the_values(family: Family) -> None:
    model = family.model
    with hooked(model, {"pattern.1": lambda pattern: torch.eye(pattern.shape[-1]).expand_as(pattern)}):
        acts = capture(model, ALL, ["v.1", "z.1"], positions="all")
    own = acts["v.1"].repeat_interleave(model.n_heads // model.n_kv_heads, dim=2)
    torch.testing.assert_close(acts["z.1"], own, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def logits(hf: PreTrainedModel, tokens: Tokens) -> Tensor:
    """The logits at the tokens that are not padding."""
    return hf(**tokens.inputs()).logits[tokens.mask]


@torch.no_grad()
def test_greedy_continuations_of_a_left_padded_batch_are_hugging_faces(family: Family, rows: list[list[int]]) -> None:
    tokens, end = pad(rows, 0, "left"), family.model.tokenizer.eos_token_id
    written = family.plain.generate(
        tokens.ids, attention_mask=tokens.mask.long(), max_new_tokens=8, do_sample=False, pad_token_id=end, eos_token_id=end
    )[:, tokens.ids.shape[1] :].tolist()  # fmt: skip
    expected = [row[: row.index(end)] if end in row else row for row in written]
    assert len({tuple(row) for row in expected}) > 1
    assert generate_tokens(family.model, rows, max_new_tokens=8) == expected
    assert generate_tokens(family.model, rows, max_new_tokens=8, cache=False) == expected
    edits = [Edit.add("resid_mid.1", direction(family.model.d_model), 0.5, positions="from_last")]
    edited = generate_tokens(family.model, rows, max_new_tokens=8, edits=edits)
    assert edited == generate_tokens(family.model, rows, max_new_tokens=8, edits=edits, cache=False) != expected


@torch.no_grad()
@pytest.mark.parametrize("start", [0, 1, 6])
def test_a_run_resumed_at_a_position_under_a_change_is_the_whole_forward_with_that_edit(
    family: Family, rows: list[list[int]], start: int
) -> None:  # fmt: skip
    model, row, vector = family.model, max(rows, key=len), direction(family.model.d_model)
    run = trace(model, row)
    hidden = run.stream[1, start:].clone()
    hidden[[0, -3]] += vector
    resumed = resume(run, 1, hidden.unsqueeze(0), start=start).logits[0]
    edits = [Edit.add("resid_pre.1", vector, positions=[start, len(row) - 3])]
    expected, plain = (capture(model, [row], ["logits"], edits=applied)["logits"][0] for applied in (edits, []))
    torch.testing.assert_close(resumed, expected, atol=1e-5, rtol=1e-4)
    assert float((expected - plain).abs().max()) > 1e-3
