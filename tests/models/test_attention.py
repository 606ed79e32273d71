"""Queries, keys, values and patterns: identities of attention, edits at slices of a fused projection, and what is left alone."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from einops import einsum, repeat
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from interp import Edit, Model, UserError, capture, editing, hooked, load_model
from interp.models.attention import attention_weights
from interp.models.hooks import Work, working
from interp.models.tokens import token_rows
from tests.conftest import TEXTS

pytestmark = pytest.mark.oracle
ALL = list(TEXTS)


def wide(model: Model, part: Tensor) -> Tensor:
    """Keys or values, once for each head of their group."""
    return repeat(part, "batch pos kv_head d_head -> batch pos (kv_head group) d_head", group=model.n_heads // model.n_kv_heads)


def forward(model: Model, text: str, work: Work) -> Tensor:
    with torch.no_grad(), working(model.hf, work):
        return model.hf(torch.tensor(token_rows(model, [text]))).logits


def test_patterns_are_causal_sum_to_one_and_mix_values_into_z(any_model: Model) -> None:
    layer = 1
    acts = capture(any_model, ALL, [f"pattern.{layer}", f"v.{layer}", f"z.{layer}"], positions="all")
    pattern, mask = acts[f"pattern.{layer}"], acts.mask
    assert mask is not None
    assert float(pattern.triu(1).abs().max()) == 0
    assert float(pattern.min()) >= 0
    torch.testing.assert_close(pattern.sum(dim=-1), repeat(mask.float(), "batch pos -> batch head pos", head=any_model.n_heads))
    values = wide(any_model, acts[f"v.{layer}"])
    z = einsum(pattern, values, "batch head pos key, batch key head d -> batch pos head d")
    torch.testing.assert_close(z[mask], acts[f"z.{layer}"][mask], atol=1e-6, rtol=1e-5)


def test_without_rotary_embedding_queries_and_keys_make_the_pattern(gpt2: Model) -> None:
    acts = capture(gpt2, [ALL[2]], ["q.2", "k.2", "pattern.2"], positions="all")
    scores = einsum(acts["q.2"], acts["k.2"], "batch pos head d, batch key head d -> batch head pos key") / gpt2.d_head**0.5
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    torch.testing.assert_close(scores.masked_fill(~causal, -torch.inf).softmax(dim=-1), acts["pattern.2"], atol=1e-6, rtol=1e-5)


def test_the_last_row_and_named_rows_are_those_of_the_whole_pattern_for_texts_of_any_length(any_model: Model) -> None:
    whole = capture(any_model, ALL, ["pattern.1"], positions="all", batch_size=2)["pattern.1"]
    lengths = [len(row) for row in token_rows(any_model, ALL)]
    last = capture(any_model, ALL, ["pattern.1"], batch_size=2)["pattern.1"]
    torch.testing.assert_close(last, torch.stack([whole[i, :, n - 1] for i, n in enumerate(lengths)]), atol=1e-6, rtol=1e-5)
    some = capture(any_model, ALL, ["pattern.1"], positions=[[n - 1, 0] for n in lengths])["pattern.1"]
    torch.testing.assert_close(some[:, :, 0], last, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(some[:, :, 1], whole[:, :, 0], atol=1e-6, rtol=1e-5)


def test_a_pattern_spilled_to_disk_is_the_one_in_memory(gpt2: Model, tmp_path: Any) -> None:
    sites = ["pattern.0", "resid_mid.0"]
    held, spilled = capture(gpt2, ALL, sites, positions="all"), capture(gpt2, ALL, sites, positions="all", spill=tmp_path / "acts")
    for site in sites:
        assert torch.equal(held[site], spilled[site])


def test_asking_for_patterns_changes_no_other_number(any_model: Model) -> None:
    others = [site for site in any_model.sites() if not site.startswith("pattern")]
    plain, beside = capture(any_model, ALL, others, positions="all"), capture(any_model, ALL, any_model.sites(), positions="all")
    for site in others:
        assert torch.equal(plain[site], beside[site]), site


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_patterns_are_read_and_changed_however_attention_is_computed(model: Model, implementation: str) -> None:
    assert model.checkpoint is not None
    other = load_model(model.checkpoint.source)
    other.hf.set_attn_implementation(implementation)
    expected = capture(model, ALL, ["pattern.1"], positions="all")["pattern.1"]
    torch.testing.assert_close(capture(other, ALL, ["pattern.1"], positions="all")["pattern.1"], expected, atol=1e-6, rtol=1e-5)
    # Every token attends to itself alone, so that each head's output is its own value.
    alone = Work(transforms={"pattern.1": (lambda x, frame: torch.eye(x.shape[-1]).expand_as(x),)})
    found: dict[str, Tensor] = {}
    reads = {site: (lambda x, frame, site=site: found.__setitem__(site, x.clone()),) for site in ("v.1", "z.1")}
    changed = forward(other, ALL[2], alone.plus(Work(collectors=reads)))
    torch.testing.assert_close(found["z.1"], wide(other, found["v.1"]), atol=1e-6, rtol=1e-5)
    assert float((changed - forward(other, ALL[2], Work())).abs().max()) > 1e-3
    same = Work(transforms={"pattern.1": (lambda x, frame: x * 1,)})
    torch.testing.assert_close(forward(other, ALL[2], same), forward(other, ALL[2], Work()), atol=1e-5, rtol=1e-5)


def test_a_kernel_that_hides_its_weights_is_named(fresh_gpt2: Model) -> None:
    def hidden(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return value.transpose(1, 2), None

    AttentionInterface.register("hidden", hidden)
    fresh_gpt2.hf.config._attn_implementation = "hidden"
    with pytest.raises(UserError, match=r"pattern\.0 cannot be read"):
        capture(fresh_gpt2, ["the quick"], ["pattern.0"])
    assert capture(fresh_gpt2, ["the quick"], ["z.0"])["z.0"].shape == (1, fresh_gpt2.n_heads, fresh_gpt2.d_head)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("masked", ["none", "causal", "bool", "float"])
def test_the_weights_are_those_that_torchs_kernel_reads_values_with(grouped: bool, masked: str) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=draw) for heads in (4, 2 if grouped else 4, 2 if grouped else 4))
    drawn = torch.randn(2, 1, 5, 5, generator=draw)
    mask = {"bool": drawn > -0.5, "float": drawn}.get(masked)
    weights = attention_weights(query, key, mask, masked == "causal", 0.3)
    expected = scaled_dot_product_attention(query, key, value, mask, is_causal=masked == "causal", scale=0.3, enable_gqa=grouped)
    got = weights @ value.repeat_interleave(2 if grouped else 1, dim=1)
    torch.testing.assert_close(got, expected.nan_to_num(), atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_scaling_a_head_equals_scaling_its_columns_of_the_projection(model: Model, site: str) -> None:
    assert model.checkpoint is not None
    other, layer, width = load_model(model.checkpoint.source), 1, model.d_head
    path = other.architecture.qkv[0] if len(other.architecture.qkv) == 1 else other.architecture.qkv["qkv".index(site)]
    start = "qkv".index(site) * model.d_attention if len(other.architecture.qkv) == 1 else 0
    columns = slice(start + width, start + 2 * width)
    other.projection(layer, path)[:, columns] *= -2.0
    bias = other.projection_bias(layer, path)
    if bias is not None:
        bias[columns] *= -2.0
    edit = Edit.scale(f"{site}.{layer}", -2.0, list(range(width, 2 * width)))
    got = capture(model, ALL, ["logits"], edits=[edit])["logits"]
    torch.testing.assert_close(got, capture(other, ALL, ["logits"])["logits"], atol=1e-5, rtol=1e-5)
    assert float((got - capture(model, ALL, ["logits"])["logits"]).abs().max()) > 1e-3


@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_patching_a_models_own_queries_keys_and_values_changes_nothing(model: Model, site: str) -> None:
    values = capture(model, [ALL[2]], [f"{site}.1"], positions="all")[f"{site}.1"].flatten(2)
    plain, patched = (capture(model, [ALL[2]], ["logits"], edits=edits)["logits"] for edits in ([], [Edit.patch(f"{site}.1", values)]))
    assert torch.equal(plain, patched)


def test_threads_that_read_patterns_leave_the_others_alone(gpt2: Model) -> None:
    ids, wrong, done = torch.tensor(token_rows(gpt2, [ALL[2]])), [], threading.Event()
    with torch.no_grad():
        plain = gpt2.hf(ids).logits
    expected = capture(gpt2, ALL, ["pattern.1"], positions="all")["pattern.1"]

    def look() -> None:
        while not done.is_set():
            with torch.no_grad():
                wrong.append(not torch.equal(gpt2.hf(ids).logits, plain))

    thread = threading.Thread(target=look)
    thread.start()
    got = [capture(gpt2, ALL, ["pattern.1"], positions="all")["pattern.1"] for _ in range(5)]
    done.set()
    thread.join()
    assert wrong
    assert not any(wrong)
    assert all(torch.equal(one, expected) for one in got)


def test_a_forward_that_is_left_by_an_exception_leaves_nothing_behind(gpt2: Model) -> None:
    def fail(x: Tensor, frame: Any) -> None:
        raise ValueError("stop here")

    plain = forward(gpt2, ALL[2], Work())
    for site in ("pattern.1", "z.1"):
        work = Work(collectors={"pattern.1": (lambda x, frame: None,)}).plus(Work(collectors={site: (fail,)}))
        with pytest.raises(ValueError, match="stop here"):
            forward(gpt2, ALL[2], work)
        assert not torch._C._len_torch_function_stack()
    assert torch.equal(forward(gpt2, ALL[2], Work()), plain)


def test_a_forward_that_is_interrupted_leaves_the_kernel_as_it_was(gpt2: Model) -> None:
    def interrupt(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    plain = forward(gpt2, ALL[2], Work())
    with hooked(gpt2, {"pattern.1": lambda x: x * 1}):
        with pytest.raises(KeyboardInterrupt), hooked(gpt2, {"pattern.0": lambda x: x * 0, "z.0": interrupt}):
            gpt2.hf(torch.tensor(token_rows(gpt2, [ALL[2]])))
        assert not torch._C._len_torch_function_stack()
    torch.testing.assert_close(torch.nn.functional.softmax(torch.zeros(2), dim=0), torch.tensor([0.5, 0.5]))
    assert torch.equal(forward(gpt2, ALL[2], Work()), plain)


def test_what_a_pattern_cannot_do_is_refused_with_a_reason(gpt2: Model) -> None:
    with pytest.raises(UserError, match="no mean over positions"):
        capture(gpt2, ALL, ["pattern.1"], positions="mean")
    with pytest.raises(UserError, match=r"units are given for pattern\.1"):
        capture(gpt2, ALL, ["pattern.1"], units={"pattern.1": [0]})
    with pytest.raises(UserError, match=r"cannot act at pattern\.1"), editing(gpt2, [Edit.scale("pattern.1", 2.0)]):
        pass
    with pytest.raises(UserError, match="as wide as the text"):
        gpt2.width("pattern")
