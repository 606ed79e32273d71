"""The table of sites: what is derived from it, the page made of it, and that nothing else takes a site's name apart."""

from __future__ import annotations

import ast

import pytest
import torch

from interp import Edit, Model, UserError, capture
from interp.forward.resume import resume, trace
from interp.models.architectures import ARCHITECTURES
from interp.models.hooks import Work, working
from interp.models.sites import BETWEEN_BLOCKS, KINDS, PATCHED, Site, layer_of, parse_site, site_kind, sites_page, whole_site
from interp.patching.metrics import LogitDifference
from interp.patching.patch import patch
from tests import ROOT

# Texts with dots that are no sites, by module and by what is taken apart.
DOTTED = {
    ("app.answers.summary", "name"): "a neuron",
    ("app.views.bypass", "name"): "a neuron",
    ("interp.experiments.fingerprint", "module"): "a module",
    ("interp.experiments.fingerprint", "alias.name"): "a module",
    ("interp.models.offloading", "name"): "a parameter",
    ("interp.models.parameters", "name"): "a parameter",
    ("interp.models.parameters", "path"): "a parameter or a module path",
    ("interp.models.states", "name"): "a parameter under the names of wrappers",
    ("interp.patching.paths", "text.strip()"): "a node of a path",
    ("interp.steering.edit_text", "text.strip()"): "a neuron",
    ("training.checkpoint", "key"): "a tensor of an optimiser",
    ("training.grid", "str(value['setting'])"): "a section and a setting",
    ("training.run", "error.name or ''"): "a module",
    ("training.sources", "path.name.removesuffix('.gz').removesuffix('.xz')"): "a file's name",
}


def taken_apart(module: str, source: str) -> list[tuple[str, str]]:
    """Where a text is split at its dots, or compared with the beginning of a site's name: module and expression."""
    breaches = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        value, method = ast.unparse(node.func.value), node.func.attr
        constants = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        splits = method in {"split", "rsplit", "partition", "rpartition"} and constants == ["."]
        begins = method == "startswith" and any(len(text) > 2 and name.startswith(text) for text in constants for name in KINDS)
        layer = method == "endswith" and isinstance(node.args[0], ast.JoinedStr) and constants[:1] == ["."]
        if splits or begins or layer:
            breaches.append((module, value))
    return breaches


def breaches() -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for folder in ("interp", "app", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if module != "interp.models.sites":
                found |= set(taken_apart(module, path.read_text("utf-8")))
    return found


def test_no_site_is_taken_apart_by_hand() -> None:
    assert breaches() - set(DOTTED) == set()


def test_every_exception_is_still_used() -> None:
    assert set(DOTTED) - breaches() == set()


@pytest.mark.parametrize(
    "line",
    [
        "name, _, layer = site.partition('.')", "layer = int(str(site).split('.')[1])", "layer = site.rpartition('.')[2]",
        "wide = site.startswith('mlp_')", "barred = site.startswith(('resid_pre', 'logits'))", "same = site.endswith(f'.{layer}')",
    ],
)  # fmt: skip
def test_the_rule_sees_a_site_taken_apart(line: str) -> None:
    assert len(taken_apart("interp.a", line)) == 1


def test_the_rule_lets_other_texts_be() -> None:
    assert taken_apart("interp.a", "words = text.split()\nown = text.startswith(('/', 'm', 'page'))\nlast = text.endswith('.')") == []


def test_the_page_of_sites_is_the_table() -> None:
    assert (ROOT / "docs" / "sites.md").read_text("utf-8") == sites_page()
    for name, kind in KINDS.items():
        assert f"`{kind.axes}` | {kind.meaning}" in sites_page()
        assert f"`{name}" in sites_page()


def test_every_architecture_taps_the_sites_of_its_family_and_no_others() -> None:
    for architecture in ARCHITECTURES.values():
        assert set(architecture.taps) == {k.name for k in KINDS.values() if k.per_layer and architecture.family in k.families}


def test_sites_stand_in_the_order_in_which_a_forward_meets_them(any_model: Model) -> None:
    met: list[str] = []
    collectors = {site: (lambda value, frame, site=site: met.append(site),) for site in any_model.sites()}
    with torch.no_grad(), working(any_model.hf, Work(collectors=collectors)):
        any_model.hf(torch.tensor([[1, 2, 3]]))
    assert met == any_model.sites()


def test_shapes_and_widths_are_those_of_what_is_captured(any_model: Model) -> None:
    acts = capture(any_model, ["the quick river", "sings"], any_model.sites(), positions="all")
    last = capture(any_model, ["the quick river", "sings"], any_model.sites())
    for name in any_model.sites():
        site = parse_site(name)
        if site.name == "pattern":
            assert acts[name].shape == (2, any_model.n_heads, acts["logits"].shape[1], acts["logits"].shape[1])
            assert last[name].shape == (2, any_model.n_heads, acts["logits"].shape[1])
            continue
        assert acts[name].shape[2:] == last[name].shape[1:] == any_model.shape(site.name)
        assert any_model.width(site.name) == last[name][0].numel()
        assert len(any_model.shape(site.name)) + 2 == len(site.kind.axes.split())


def test_wholes_and_units() -> None:
    assert whole_site("mlp_post") == "mlp_out"
    assert whole_site("resid_mid") == "resid_mid"
    assert {kind.whole_of for kind in KINDS.values()} - {None} <= set(PATCHED)
    assert all(KINDS[kind.whole_of].unit for kind in KINDS.values() if kind.whole_of)


def test_the_earlier_name_of_z_is_read_wherever_a_site_is_named(model: Model) -> None:
    text, other = "the quick wintle sings", "the bitter snarg walks"
    assert parse_site("head_out.2") == Site("z", 2)
    assert site_kind("head_out") is KINDS["z"]
    assert "`z.LAYER` (alias `head_out`)" in sites_page()
    assert model.shape("head_out") == model.shape("z")
    acts = capture(model, [text], ["head_out.1"], units={"head_out.1": [3]})
    assert list(acts) == ["z.1"]
    assert torch.equal(acts["head_out.1"], acts["z.1"])
    assert "head_out.2" not in acts
    edit = Edit.from_json({"op": "set", "site": "head_out.1", "strength": 0.0})
    assert edit == Edit.set("z.1", 0.0)
    maps = [patch(model, text, other, metric=LogitDifference(5, 300), site=site, layers=[1]) for site in ("head_out", "z")]
    assert maps[0].site == "z"
    assert torch.equal(maps[0].values, maps[1].values)
    run = trace(model, [1, 2, 3], ["head_out.1"])
    assert torch.equal(run["head_out.1"], run["z.1"])
    again = resume(run, 0, run.stream[:1], keep=["head_out.1"], transforms={"head_out.1": lambda x, frame: 0 * x})
    assert not bool(again.site("head_out.1").any())


def test_names_are_read_and_refused() -> None:
    assert parse_site("resid_mid.3") == Site("resid_mid", 3) == parse_site(Site("resid_mid", 3))
    assert layer_of("resid_mid.3") == 3
    for text, message in {
        "resid.3": "not a site", "resid_mid": "needs a layer", "resid_mid.x": "needs a layer", "logits.1": "no layer",
        "resid_mid.9": "out of range", "mlp_up.0": "no site",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            parse_site(text, n_layers=4, family="gelu")
    with pytest.raises(UserError, match="has no layer"):
        layer_of("logits")
    with pytest.raises(UserError, match="not a site"):
        site_kind("resid_mid.3")


@torch.no_grad()
def test_the_stream_between_blocks_has_the_name_of_either_side(gpt2: Model) -> None:
    run = trace(gpt2, [5, 6, 7, 8])
    assert {name: KINDS[name].stream for name in BETWEEN_BLOCKS} == {"resid_pre": True, "resid_post": True}
    for layer in range(gpt2.n_layers):
        for name, further in BETWEEN_BLOCKS.items():
            activation = capture(gpt2, [[5, 6, 7, 8]], [f"{name}.{layer}"], positions="all")[f"{name}.{layer}"][0]
            torch.testing.assert_close(run.stream[layer + further], activation, rtol=0, atol=0)
            assert torch.equal(run[f"{name}.{layer}"], run.stream[layer + further])
