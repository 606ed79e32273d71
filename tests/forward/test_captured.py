"""How captured activations are read: layers in one go, keys of every form, stacks, and what a miss says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import Captured, Model, Site, UserError, capture, gradients, load_captured, patch
from interp.models.architectures import ARCHITECTURES
from interp.models.hooks import install
from interp.models.sites import expand_sites
from tests.conftest import TEXTS, gpt2_config, make_hf

ALL = list(TEXTS)


def test_a_star_names_every_layer_and_a_range_some_in_the_order_given(model: Model) -> None:
    acts = capture(model, ALL, ["resid_post.*", "mlp_post.1-2", "logits", "resid_post.0"])
    assert list(acts) == ["resid_post.0", "resid_post.1", "resid_post.2", "mlp_post.1", "mlp_post.2", "logits"]
    for name, value in acts.items():
        torch.testing.assert_close(value, capture(model, ALL, [name])[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("resid_past.*", "is not a site"),
        ("resid_post.1-3", "out of range: the model has 3 layers"),
        ("resid_post.0-999999999999", "out of range"),
        ("resid_post.2-1", "run backwards"),
        ("resid_post.-1", "needs a layer"),
        ("resid_post.1-", "needs a layer"),
        ("resid_post", "needs a layer"),
        ("logits.*", "has no layer"),
        ("mlp_gate.*", "no site 'mlp_gate'"),
    ],
)
def test_patterns_that_name_nothing_are_refused(pattern: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        expand_sites([pattern], n_layers=3, family="gelu")


def test_a_site_is_read_by_its_name_by_name_and_layer_and_as_a_value(gpt2: Model) -> None:
    acts = capture(gpt2, ALL, ["resid_post.*", "logits"])
    assert acts["resid_post.2"] is acts["resid_post", 2]
    assert acts["resid_post.2"] is acts[Site("resid_post", 2)]
    assert acts[Site("logits")] is acts["logits"]
    assert ("resid_post", 2) in acts
    assert ("resid_mid", 2) not in acts


def test_a_stack_is_in_the_order_of_the_layers_whatever_the_order_of_capture(gpt2: Model, tmp_path) -> None:
    acts = capture(gpt2, ALL, ["resid_post.2", "resid_post.0", "resid_post.1"], positions="all")
    stack = acts.stack("resid_post")
    assert stack.shape == (3, len(ALL), acts["resid_post.0"].shape[1], gpt2.d_model)
    for layer in range(3):
        assert torch.equal(stack[layer], acts["resid_post", layer])
    assert torch.equal(acts.stack("resid_post", layers=[2, 0]), stack[[2, 0]])
    assert torch.equal(load_captured(acts.save(tmp_path / "acts")).stack("resid_post"), stack)


def test_a_folder_that_was_written_under_an_earlier_name_of_a_site_is_read(gpt2: Model, tmp_path: Path) -> None:
    acts = capture(gpt2, ALL, ["z.*"])
    earlier = Captured({name.replace("z.", "head_out."): value for name, value in acts.tensors.items()}, "last", None, acts.settings)
    again = load_captured(earlier.save(tmp_path / "acts"))
    assert list(again) == list(acts)
    for name in ("z.1", "head_out.1"):
        assert torch.equal(again[name], acts["z.1"])
    assert torch.equal(again.stack("z"), acts.stack("head_out"))


def test_a_stack_with_layers_missing_is_refused(gpt2: Model) -> None:
    acts = capture(gpt2, ALL, ["resid_post.0-1", "logits"])
    for arguments, problem in [
        (("resid_post",), "layers 2 were not captured"),
        (("resid_post", [0, 2]), "layers 2 were not captured"),
        (("resid_mid",), "layers 0, 1, 2 were not captured"),
        (("resid_post", []), "cannot be stacked"),
        (("logits",), "has no layers"),
        (("resid_past",), "is not a site"),
    ]:
        with pytest.raises(UserError, match=problem):
            acts.stack(*arguments)
    with pytest.raises(UserError, match="layers 1 were not captured"):
        Captured({"resid_post.0": torch.zeros(1, 2), "resid_post.2": torch.zeros(1, 2)}, "last").stack("resid_post")


def test_a_miss_tells_another_layer_from_another_site_from_no_site(gpt2: Model) -> None:
    acts = capture(gpt2, ALL, ["resid_post.0", "resid_post.2", "logits"])
    with pytest.raises(UserError, match=r"resid_post\.1 was not captured, but other layers .*resid_post: layers 0, 2"):
        acts["resid_post.1"]
    with pytest.raises(UserError, match=r"'resid_mid\.0' was not captured.*use one of resid_post\.0, resid_post\.2, logits"):
        acts["resid_mid", 0]
    with pytest.raises(UserError, match=r"'resid_past\.0' is not a site"):
        acts["resid_past.0"]


def test_a_site_that_fires_twice_in_one_forward_is_refused(fresh_gpt2: Model) -> None:
    block = fresh_gpt2.hf.transformer.h[0]
    once = block.forward

    def twice(hidden, *args, **kwargs):
        return once(once(hidden, *args, **kwargs), *args, **kwargs)

    block.forward = twice
    assert capture(fresh_gpt2, ["the river"], ["resid_pre.0", "resid_post.0"]).keys() == {"resid_pre.0", "resid_post.0"}
    # A site is seen to fire twice also where it is the only one, or the last.
    for site in ("attn_out.0", "pattern.0", "resid_mid.0", "mlp_out.0"):
        with pytest.raises(UserError, match=rf"{site} fires twice in one forward"):
            capture(fresh_gpt2, ["the river"], ["resid_pre.0", site])
    with pytest.raises(UserError, match=r"mlp_out\.0 fires twice in one forward"):
        gradients(fresh_gpt2, "the river", ["mlp_out.0"], lambda logits: logits[:, 0])
    with pytest.raises(UserError, match=r"mlp_post\.0 fires twice in one forward"):
        capture(fresh_gpt2, ["the river"], ["mlp_post.0", "resid_post.0"])
    with pytest.raises(UserError, match=r"(mlp_out|resid_mid)\.0 fires twice in one forward"):
        patch(fresh_gpt2, "the river", "the stone", metric=lambda logits: logits[:, 0], site="mlp_out", layers=[0])


@pytest.mark.parametrize(("module", "site"), [("h.2.mlp", "mlp_out.2"), ("ln_f", "ln_final")])
def test_a_module_of_the_end_that_runs_twice_is_refused(fresh_gpt2: Model, module: str, site: str) -> None:
    part = fresh_gpt2.hf.transformer.get_submodule(module)
    parent = fresh_gpt2.hf.transformer.get_submodule(module.rpartition(".")[0])

    class Twice(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return part(part(x))

    setattr(parent, module.rpartition(".")[2], Twice())
    with pytest.raises(UserError, match=rf"{site} fires twice in one forward"):
        capture(fresh_gpt2, ["the river"], [site])


@pytest.mark.parametrize(
    ("sites", "modules"),
    [
        (["resid_pre.0", "mlp_out.0"], ["transformer.h.0"]),
        (["resid_mid.1"], ["transformer.h.0", "transformer.h.1"]),
        (["ln_final"], ["transformer.h.0", "transformer.h.1", "transformer.h.2", "transformer.ln_f"]),
    ],
)
def test_the_forward_stops_where_the_block_of_the_last_site_is_left(gpt2: Model, sites: list[str], modules: list[str]) -> None:
    ran: list[str] = []

    def note(name: str) -> Any:
        return lambda module, args, output: ran.append(name)

    names = [f"transformer.{name}" for name in ("h.0", "h.1", "h.2", "ln_f")] + ["lm_head"]
    handles = [gpt2.hf.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        capture(gpt2, ["the river"], sites)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == modules


def test_a_model_whose_blocks_share_modules_is_refused(tokenizer) -> None:
    hf = make_hf(gpt2_config(), tokenizer)
    hf.transformer.h[2].mlp = hf.transformer.h[0].mlp
    with pytest.raises(UserError, match=r"mlp_\w+\.0 and mlp_\w+\.2 are one and the same module"):
        install(hf, ARCHITECTURES["gpt2"], {})
