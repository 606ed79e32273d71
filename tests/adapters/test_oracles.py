"""What the sites and edits mean, held against raw Hugging Face and forwards written out by hand.

TransformerLens and nnsight are the referees in `test_adapters`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp import Edit, Model, ModelPair, capture, editing, generate, load_model
from interp.models.tokens import pad, token_rows
from tests.conftest import TEXTS, Planted

pytestmark = pytest.mark.oracle
TEXT = TEXTS[2]


def direction(model: Model, seed: int = 1) -> Tensor:
    """A random vector: one of equal entries would vanish in a LayerNorm."""
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))


def ids_of(model: Model, text: str = TEXT) -> Tensor:
    return torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])


@torch.no_grad()
def raw(model: Model, text: str = TEXT) -> dict[str, Tensor]:
    """Every site from a freshly loaded model by hooks of the test's own, straight from the modules' code."""
    assert model.checkpoint is not None
    hf = AutoModelForCausalLM.from_pretrained(model.checkpoint.source, dtype=torch.float32)
    found: dict[str, Tensor] = {}

    def entering(module: Any, name: str) -> None:
        module.register_forward_pre_hook(lambda module, args: found.__setitem__(name, args[0].clone()))

    def leaving(module: Any, name: str) -> None:
        module.register_forward_hook(lambda module, args, out: found.__setitem__(name, (out[0] if isinstance(out, tuple) else out).clone()))

    is_gpt2 = hf.config.model_type == "gpt2"
    for layer, block in enumerate(hf.transformer.h if is_gpt2 else hf.model.layers):
        attention = block.attn if is_gpt2 else block.self_attn
        entering(block, f"resid_pre.{layer}")
        leaving(attention, f"attn_out.{layer}")
        if is_gpt2:
            attention.c_attn.register_forward_hook(
                lambda module, args, out, layer=layer: found.update(
                    {f"{name}.{layer}": part.clone() for name, part in zip("qkv", out.chunk(3, dim=-1), strict=True)}
                )
            )
        else:
            for name in "qkv":
                leaving(attention.get_submodule(f"{name}_proj"), f"{name}.{layer}")
        entering(attention.c_proj if is_gpt2 else attention.o_proj, f"z.{layer}")
        entering(block.ln_2 if is_gpt2 else block.post_attention_layernorm, f"resid_mid.{layer}")
        leaving(block.mlp.c_fc if is_gpt2 else block.mlp.gate_proj, f"mlp_pre.{layer}")
        entering(block.mlp.c_proj if is_gpt2 else block.mlp.down_proj, f"mlp_post.{layer}")
        leaving(block.mlp, f"mlp_out.{layer}")
        leaving(block, f"resid_post.{layer}")
        if not is_gpt2:
            leaving(block.mlp.up_proj, f"mlp_up.{layer}")
            leaving(block.mlp.act_fn, f"mlp_gate.{layer}")
    leaving(hf.transformer.ln_f if is_gpt2 else hf.model.norm, "ln_final")
    out = hf(ids_of(model, text), output_hidden_states=True)
    found["logits"] = out.logits
    # Hugging Face's own list, as a check of the hooks above: the last entry is after the final norm.
    for layer, state in enumerate(out.hidden_states[:-1]):
        assert torch.equal(state, found[f"resid_pre.{layer}"])
    assert torch.equal(out.hidden_states[-1], found["ln_final"])
    # The library's own patterns, from attention written out.
    eager = AutoModelForCausalLM.from_pretrained(model.checkpoint.source, dtype=torch.float32, attn_implementation="eager")
    patterns = eager(ids_of(model, text), output_attentions=True).attentions
    return found | {f"pattern.{layer}": pattern for layer, pattern in enumerate(patterns)}


@pytest.mark.parametrize("text", [TEXT, TEXTS[1], TEXTS[4]])
def test_every_captured_site_equals_raw_hugging_face_exactly(any_model: Model, text: str) -> None:
    expected = raw(any_model, text)
    acts = capture(any_model, [text], any_model.sites(), positions="all")
    assert set(acts) == set(expected)
    for site in acts:
        got = acts[site].flatten(2) if acts[site].shape != expected[site].shape else acts[site]
        assert float((got - expected[site]).abs().max()) <= (1e-6 if site.startswith("pattern.") else 0.0), site
        assert float(got.abs().max()) > 0, site


def test_a_head_is_a_slice_of_what_enters_the_output_projection(any_model: Model) -> None:
    heads = capture(any_model, [TEXT], ["z.1"], positions="all")["z.1"]
    width = any_model.d_attention // any_model.n_heads
    expected = raw(any_model)["z.1"]
    assert heads.shape == (1, expected.shape[1], any_model.n_heads, width)
    for head in range(any_model.n_heads):
        assert torch.equal(heads[:, :, head], expected[..., head * width : (head + 1) * width])


@torch.no_grad()
def test_left_padded_rows_get_their_positions_inside_a_block_of_edits(gpt2: Model) -> None:
    tokens = pad(token_rows(gpt2, list(TEXTS)), 0, "left")
    with editing(gpt2, []):
        bare = gpt2.hf(input_ids=tokens.ids, attention_mask=tokens.mask.long()).logits
    torch.testing.assert_close(bare[:, -1], gpt2.hf(**tokens.inputs()).logits[:, -1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_stopping_early_leaves_the_model_as_it_was(model: Model) -> None:
    before = model.hf(ids_of(model)).logits
    ran: list[int] = []
    block = model.hf.get_submodule(f"{model.architecture.blocks}.1")
    watch = block.register_forward_hook(lambda *_: ran.append(1))
    capture(model, [TEXT], ["resid_post.0"])
    watch.remove()
    assert not ran, "the second block ran although nothing beyond the first was wanted"
    assert torch.equal(model.hf(ids_of(model)).logits, before)
    assert torch.equal(capture(model, [TEXT], ["logits"], positions="all")["logits"], before)


@torch.no_grad()
def logits(model: Model, edits: list[Edit], text: str = TEXT) -> Tensor:
    with editing(model, edits):
        return model.hf(ids_of(model, text)).logits


@torch.no_grad()
def continued(hf: Any, layer: int, resid_mid: Tensor) -> Tensor:
    """Logits from a residual stream between attention and MLP, block by block with the modules' own code."""
    is_gpt2 = hf.config.model_type == "gpt2"
    body = hf.transformer if is_gpt2 else hf.model
    blocks = body.h if is_gpt2 else body.layers
    block = blocks[layer]
    x = resid_mid + block.mlp((block.ln_2 if is_gpt2 else block.post_attention_layernorm)(resid_mid))
    count = x.shape[1]
    causal = torch.full((count, count), float("-inf")).triu(1)[None, None]
    for block in blocks[layer + 1 :]:
        if is_gpt2:
            x = block(x, attention_mask=causal)
        else:
            places = torch.arange(count).unsqueeze(0)
            x = block(x, attention_mask=causal, position_ids=places, position_embeddings=body.rotary_emb(x, places))
    return hf.lm_head(body.ln_f(x) if is_gpt2 else body.norm(x))


@pytest.mark.parametrize("layer", range(3))
def test_adding_at_resid_mid_reaches_both_the_mlp_and_the_skip_connection(model: Model, layer: int) -> None:
    assert model.checkpoint is not None
    fresh = AutoModelForCausalLM.from_pretrained(model.checkpoint.source, dtype=torch.float32)
    vector = direction(model)
    held = raw(model)[f"resid_mid.{layer}"]
    torch.testing.assert_close(continued(fresh, layer, held), logits(model, []), atol=1e-5, rtol=1e-5)
    expected = continued(fresh, layer, held + 1.5 * vector)
    got = logits(model, [Edit.add(f"resid_mid.{layer}", vector, 1.5)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert float((got - logits(model, [])).abs().max()) > 0.01


def test_adding_at_one_position_changes_nothing_before_it(model: Model) -> None:
    vector = direction(model)
    plain, edited = logits(model, []), logits(model, [Edit.add("resid_mid.0", vector, positions=[4])])
    assert torch.equal(plain[:, :4], edited[:, :4])
    assert float((plain[:, 4:] - edited[:, 4:]).abs().amax(dim=-1).min()) > 1e-4


@torch.no_grad()
def test_scaling_keys_equals_scaling_the_weights(model: Model) -> None:
    assert model.checkpoint is not None
    neurons = [(0, 3), (1, 40), (1, 7), (2, 0)]
    other = load_model(model.checkpoint.source)
    for layer, index in neurons:
        other.key_vectors(layer)[index] *= 6.0
    expected = other.hf(ids_of(model)).logits
    got = logits(model, [Edit.scale_keys(neurons, 6.0)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert float((got - logits(model, [])).abs().max()) > 1e-3


@torch.no_grad()
def test_scaling_a_neuron_equals_scaling_its_value_vector(model: Model) -> None:
    assert model.checkpoint is not None
    other = load_model(model.checkpoint.source)
    other.value_vectors(1)[[5, 11]] *= -2.0
    expected = other.hf(ids_of(model)).logits
    torch.testing.assert_close(logits(model, [Edit.scale("mlp_post.1", -2.0, [5, 11])]), expected, atol=1e-5, rtol=1e-5)


def test_an_open_gate_leaves_the_linear_part(llama: Model) -> None:
    with editing(llama, [Edit.set("mlp_gate.1", 1.0)]):
        acts = capture(llama, [TEXT], ["mlp_gate.1", "mlp_up.1", "mlp_post.1"], positions="all")
    assert torch.equal(acts["mlp_gate.1"], torch.ones_like(acts["mlp_gate.1"]))
    assert torch.equal(acts["mlp_post.1"], acts["mlp_up.1"])
    assert torch.equal(acts["mlp_up.1"], raw(llama)["mlp_up.1"])


def test_setting_a_neuron_to_zero_ablates_it_alone(model: Model) -> None:
    acts = capture(model, [TEXT], ["mlp_post.0"], positions="all", edits=[Edit.set("mlp_post.0", 0.0, [2, 9])])["mlp_post.0"]
    expected = raw(model)["mlp_post.0"].clone()
    expected[..., [2, 9]] = 0
    assert torch.equal(acts, expected)


@pytest.mark.parametrize("scale", [1.0, 1e-25])
@pytest.mark.parametrize("site", ["resid_pre.1", "resid_mid.1", "resid_post.1", "attn_out.1", "mlp_post.1", "z.1", "ln_final"])
def test_nothing_is_left_along_a_direction_projected_out(model: Model, site: str, scale: float) -> None:
    along = torch.randn(model.width(site.split(".")[0]), generator=torch.Generator().manual_seed(2))
    plain, edited = (
        capture(model, [TEXT], [site], positions="all", edits=edits)[site].flatten(2)
        for edits in ([], [Edit.project_out(site, along * scale)])
    )
    unit = along / along.norm()
    assert float((plain @ unit).abs().max()) > 1e-2
    assert float((edited @ unit).abs().max()) < 1e-5
    torch.testing.assert_close(plain - edited, (plain @ unit).unsqueeze(-1) * unit, atol=1e-5, rtol=1e-4)


PATCHED = ["resid_pre.1", "resid_mid.1", "resid_post.1", "ln_final", "logits"]


@pytest.mark.parametrize("site", PATCHED)
def test_a_full_patch_from_another_model_reproduces_its_downstream_exactly(pair: ModelPair, site: str) -> None:
    held = capture(pair.tuned, [TEXT], [site], positions="all")[site]
    # Below the patch the base's own weights run, so its downstream weights are made the other side's.
    assert pair.base.checkpoint is not None
    hybrid = load_model(pair.base.checkpoint.source)
    with torch.no_grad():
        for name in ("ln_f", "h.2"):
            hybrid.hf.transformer.get_submodule(name).load_state_dict(pair.tuned.hf.transformer.get_submodule(name).state_dict())
        hybrid.hf.transformer.h[1].load_state_dict(pair.tuned.hf.transformer.h[1].state_dict())
        hybrid.hf.lm_head.weight = torch.nn.Parameter(pair.tuned.unembedding.clone())
    expected, plain = logits(pair.tuned, []), logits(hybrid, [])
    assert torch.equal(logits(hybrid, [Edit.patch(site, held)]), expected)
    assert torch.equal(logits(hybrid, [Edit.patch(site, held[0])]), expected)
    assert not torch.equal(plain, expected)


@pytest.mark.parametrize(
    "site", ["resid_pre.1", "attn_out.0", "z.1", "resid_mid.2", "mlp_pre.0", "mlp_post.1", "mlp_out.2", "ln_final", "logits"]
)
def test_patching_a_models_own_activations_changes_nothing(model: Model, site: str) -> None:
    held = capture(model, [TEXT], [site], positions="all")[site]
    values = held.flatten(2)
    for edit in (Edit.patch(site, values), Edit.patch(site, values[0]), Edit.patch(site, values[0, [1, 3]], positions=[1, 3])):
        assert torch.equal(logits(model, [edit]), logits(model, []))


def test_rows_of_a_patch_stay_with_their_texts_when_batches_are_sorted_by_length(model: Model) -> None:
    texts = [TEXTS[1], TEXTS[2], TEXTS[3], TEXTS[0]]
    values = torch.randn(len(texts), 1, model.d_model, generator=torch.Generator().manual_seed(3))
    together = [Edit.patch("resid_post.0", values, positions=[0])]
    got = capture(model, texts, ["resid_post.0", "resid_post.2"], positions=[0], edits=together, batch_size=3)
    assert torch.equal(got["resid_post.0"], values)
    written = generate(model, texts, edits=together, max_new_tokens=6)
    for row, text in enumerate(texts):
        alone = [Edit.patch("resid_post.0", values[row], positions=[0])]
        expected = capture(model, [text], ["resid_post.2"], positions=[0], edits=alone)["resid_post.2"]
        torch.testing.assert_close(got["resid_post.2"][row : row + 1], expected, atol=1e-5, rtol=1e-5)
        assert written[row] == generate(model, [text], edits=alone, max_new_tokens=6)[0]


@torch.no_grad()
def test_a_copy_of_a_model_is_not_edited_with_the_original(gpt2: Model) -> None:
    twin = copy.deepcopy(gpt2.hf)
    plain = gpt2.hf(ids_of(gpt2)).logits
    edits = [Edit.add("resid_mid.0", direction(gpt2)), Edit.set("logits", 0.0, [1])]
    with editing(gpt2, edits):
        assert torch.equal(twin(ids_of(gpt2)).logits, plain)
    wrapped = Model(twin, gpt2.tokenizer, "copy")
    assert torch.equal(logits(wrapped, edits), logits(gpt2, edits))


def test_wrapping_a_model_twice_applies_an_edit_once(fresh_gpt2: Model) -> None:
    edits = [Edit.add("resid_mid.0", direction(fresh_gpt2))]
    once = logits(fresh_gpt2, edits)
    assert not torch.allclose(once, logits(fresh_gpt2, []))
    assert torch.equal(logits(Model(fresh_gpt2.hf, fresh_gpt2.tokenizer, "again"), edits), once)


def test_the_planted_neuron_fires_on_its_trigger_alone_and_writes_its_word(planted: Planted) -> None:
    model, site = planted.model, f"mlp_post.{planted.layer}"
    text = f"the quick{planted.trigger} sings under a{planted.trigger}"
    acts = capture(model, [text], [site, "logits"], positions="all")
    fired = acts[site][0, :, planted.index]
    at = ids_of(model, text)[0] == planted.trigger_id
    assert int(at.sum()) == 2
    assert float(fired[at].min()) > 4
    assert float(fired[~at].abs().max()) < 0.05
    assert acts["logits"][0].argmax(dim=-1)[at].tolist() == [planted.word_id] * 2
    silenced = capture(model, [text], ["logits"], positions="all", edits=[Edit.set(site, 0.0, [planted.index])])["logits"]
    assert planted.word_id not in silenced[0].argmax(dim=-1)[at].tolist()
    assert int((model.value_vectors(planted.layer)[planted.index] @ model.unembedding.T).argmax()) == planted.word_id
    assert generate(model, [text], max_new_tokens=1) == [planted.word]
