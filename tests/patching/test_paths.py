"""Path patching against a GPT-2 written out by hand, in which every component's reading can be set apart from the others."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interp import Model, ModelPair, UserError
from interp.evaluation.toxicity import LexiconScorer
from interp.forward.resume import trace
from interp.patching.metrics import ContinuationToxicity, LogitDifference
from interp.patching.patch import patch
from interp.patching.paths import parse_node, path_patch, written_change
from tests.conftest import D_MODEL, N_HEADS, N_LAYERS

pytestmark = pytest.mark.oracle
CLEAN, CORRUPTED = "the quick wintle sings", "the bitter snarg walks"
LOGITS = LogitDifference(5, 300)
WIDTH = D_MODEL // N_HEADS
Written = dict[str, Tensor]


def by_hand(model: Model, text: str, reads: dict[str, Tensor] | None = None) -> tuple[float, Written, Written]:
    """The logit difference, what every component writes, and what every component reads.

    `reads` replaces what a component (`mlp.1`, `logits`) or one input of a head (`head.1.2.q`) reads of the residual stream.
    """
    reads, seen, written = reads or {}, {}, {}
    body = model.hf.transformer
    ids = torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)

    def read(name: str, stream: Tensor) -> Tensor:
        seen[name] = stream
        return reads.get(name, stream)

    def norm(layer: torch.nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, (D_MODEL,), layer.weight, layer.bias, layer.eps)

    stream = written["embed"] = body.wte.weight[ids] + body.wpe.weight[: len(ids)]
    for number, block in enumerate(body.h):
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        start = stream
        stream = stream + block.attn.c_proj.bias
        for head in range(N_HEADS):
            parts = []
            for at, name in enumerate("qkv"):
                columns = slice(at * D_MODEL + head * WIDTH, at * D_MODEL + (head + 1) * WIDTH)
                x = norm(block.ln_1, read(f"head.{number}.{head}.{name}", start))
                parts.append(x @ weight[:, columns] + bias[columns])
            scores = (parts[0] @ parts[1].T / math.sqrt(WIDTH)).masked_fill(future, -math.inf)
            out = scores.softmax(dim=-1) @ parts[2] @ block.attn.c_proj.weight[head * WIDTH : (head + 1) * WIDTH]
            written[f"head.{number}.{head}"] = out
            stream = stream + out
        x = norm(block.ln_2, read(f"mlp.{number}", stream))
        out = F.gelu(x @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh") @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
        written[f"mlp.{number}"] = out
        stream = stream + out
    logits = norm(body.ln_f, read("logits", stream))[-1] @ body.wte.weight.T
    return float(logits[LOGITS.first] - logits[LOGITS.second]), written, seen


@torch.no_grad()
def path_by_hand(target: Model, text: str, source: Model, other: str, sender: str, receiver: str) -> float:
    _, written, seen = by_hand(target, text)
    _, theirs, _ = by_hand(source, other)
    change = theirs[sender] - written[sender]
    names = [f"{receiver}.{name}" for name in "qkv"] if receiver.count(".") == 2 else [receiver]
    return by_hand(target, text, {name: seen[name] + change for name in names})[0]


SENDERS = ["embed", "mlp.0", "mlp.1", "head.0.1", "head.1.3"]
RECEIVERS = ["head.1.2", "head.1.2.q", "head.2.0.k", "head.2.3.v", "mlp.1", "mlp.2", "logits"]


def test_the_hand_written_model_is_the_model(gpt2: Model) -> None:
    with torch.no_grad():
        logits = gpt2.hf(torch.tensor([gpt2.tokenizer(CLEAN)["input_ids"]])).logits[0, -1]
        assert by_hand(gpt2, CLEAN)[0] == pytest.approx(float(logits[5] - logits[300]), abs=1e-5)


def test_every_path_equals_the_forward_written_out_by_hand(gpt2: Model) -> None:
    found = path_patch(gpt2, CLEAN, CORRUPTED, metric=LOGITS, senders=SENDERS, receivers=RECEIVERS)
    paths = 0
    for at, (target, source) in enumerate([(CORRUPTED, CLEAN), (CLEAN, CORRUPTED)]):
        for i, sender in enumerate(found.senders):
            for j, receiver in enumerate(found.receivers):
                value = float(found.values[at, 0, i, j])
                if sender.depth >= receiver.depth:
                    assert math.isnan(value)
                    continue
                paths += 1
                assert value == pytest.approx(path_by_hand(gpt2, target, gpt2, source, str(sender), str(receiver)), abs=1e-5)
    assert paths == 2 * (7 + 7 + 4 + 7 + 5)


def test_paths_between_the_sides_of_a_pair_carry_what_the_other_side_writes(pair: ModelPair) -> None:
    found = path_patch(pair, CLEAN, metric=LOGITS, senders=["mlp.0", "head.0.1"], receivers=["head.1.2.v", "mlp.2", "logits"])
    for at, (target, source) in enumerate([(pair.tuned, pair.base), (pair.base, pair.tuned)]):
        for i, sender in enumerate(found.senders):
            for j, receiver in enumerate(found.receivers):
                expected = path_by_hand(target, CLEAN, source, CLEAN, str(sender), str(receiver))
                assert float(found.values[at, 0, i, j]) == pytest.approx(expected, abs=1e-5)


def test_all_senders_together_make_the_whole_difference_of_the_last_stream(any_model: Model) -> None:
    first, second = (
        trace(any_model, row, [f"{name}.{layer}" for name in ("z", "mlp_out") for layer in range(N_LAYERS)])
        for row in any_model.tokenizer([CLEAN, CORRUPTED], add_special_tokens=False)["input_ids"]
    )
    heads = [f"head.{layer}.{head}" for layer in range(N_LAYERS) for head in range(N_HEADS)]
    senders = ["embed", *heads, *(f"mlp.{layer}" for layer in range(N_LAYERS))]
    total = sum(written_change(first, second, parse_node(text, any_model, sender=True)) for text in senders)
    torch.testing.assert_close(total, second.stream[-1] - first.stream[-1], atol=1e-5, rtol=1e-4)


def test_what_the_first_layer_reads_of_the_embedding_is_all_that_it_reads(model: Model) -> None:
    heads = [f"head.0.{head}" for head in range(N_HEADS)]
    found = path_patch(model, CLEAN, CORRUPTED, metric=LOGITS, senders=["embed"], receivers=heads)
    whole = patch(model, CLEAN, CORRUPTED, metric=LOGITS, site="z", layers=[0])
    torch.testing.assert_close(found.values[:, 0, 0], whole.values[:, 0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("which", "columns"), [("q", slice(24, 32)), ("k", slice(8, 16)), ("v", slice(8, 16))])
def test_grouped_queries_take_the_heads_own_columns_and_the_groups_keys_and_values(llama: Model, which: str, columns: slice) -> None:
    plain = llama.plain_copy()
    module = plain.get_submodule(f"model.layers.0.self_attn.{which}_proj")
    kept: list[Tensor] = []

    def hook(_: Any, args: Any, output: Tensor) -> Tensor:
        kept.append(output)
        output = output.clone()
        output[..., columns] = kept[0][..., columns]
        return output

    clean, corrupted = llama.tokenizer([CLEAN, CORRUPTED], add_special_tokens=False)["input_ids"]
    handle = module.register_forward_hook(hook)
    with torch.no_grad():
        plain(torch.tensor([clean]))
        logits = plain(torch.tensor([corrupted])).logits[0, -1]
    handle.remove()
    found = path_patch(llama, CLEAN, CORRUPTED, metric=LOGITS, senders=["embed"], receivers=[f"head.0.3.{which}"])
    assert float(found.values[0, 0, 0, 0]) == pytest.approx(float(logits[5] - logits[300]), abs=2e-6)


def test_the_model_is_as_before_and_results_are_saved(gpt2: Model, tmp_path) -> None:
    before = by_hand(gpt2, CLEAN)[0]
    names = [name for name, _ in gpt2.hf.named_modules()]
    found = path_patch(gpt2, CLEAN, CORRUPTED, metric=LOGITS, senders=["embed", "mlp.1"], receivers=["head.2.0.q", "mlp.1", "logits"])
    assert [name for name, _ in gpt2.hf.named_modules()] == names
    assert by_hand(gpt2, CLEAN)[0] == before
    top = found.top(3)
    assert top["effect"].abs().is_monotonic_decreasing
    assert f"{top['sender'][0]} → {top['receiver'][0]}" in found.figure().caption
    record = json.loads(found.save(tmp_path / "paths").read_text())
    assert len(record["table"]["rows"]) == 2 * 2 * 3
    assert record["settings"]["senders"] == ["embed", "mlp.1"]


@pytest.mark.parametrize(
    ("senders", "receivers", "message"),
    [
        (["head.0"], ["logits"], "not a sender"), (["logits"], ["mlp.1"], "not a sender"), (["head.0.1.q"], ["logits"], "not a sender"),
        (["embed"], ["embed"], "not a receiver"), (["mlp.7"], ["logits"], "does not exist"), (["head.0.9"], ["logits"], "does not exist"),
        (["mlp.2"], ["mlp.1"], "no path"), (["embed"], ["head.1.1.z"], "not a receiver"),
    ],
)  # fmt: skip
def test_nodes_that_do_not_exist_are_refused(gpt2: Model, senders: list[str], receivers: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        path_patch(gpt2, CLEAN, CORRUPTED, metric=LOGITS, senders=senders, receivers=receivers)


def test_a_continuation_is_no_metric_for_a_path(gpt2: Model) -> None:
    with pytest.raises(UserError, match="own forward"):
        path_patch(gpt2, CLEAN, CORRUPTED, metric=ContinuationToxicity(LexiconScorer()), senders=["embed"], receivers=["logits"])
