"""`hooked`: one's own functions at sites act where they are put, in the block, in this thread, and nowhere else."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import Edit, Model, UserError, capture, editing, generate, hooked
from tests.conftest import TEXTS

ALL = list(TEXTS)
SITES = ["resid_post.*", "logits"]


def logits(model: Model, texts: list[str] = ALL) -> Tensor:
    return capture(model, texts, ["logits"])["logits"]


@pytest.mark.parametrize("site", ["resid_pre.1", "head_out.1", "resid_mid.1", "mlp_pre.1", "mlp_post.1", "resid_post.1", "ln_final"])
def test_a_function_does_what_the_edit_does_that_says_the_same(any_model: Model, site: str) -> None:
    plain = logits(any_model)
    with hooked(any_model, {site: lambda x: 0.5 * x}):
        own = logits(any_model)
    with editing(any_model, [Edit.scale(site, 0.5)]):
        torch.testing.assert_close(own, logits(any_model), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(own, plain, atol=1e-3)
    assert torch.equal(logits(any_model), plain)


def test_a_plain_torch_hook_gives_the_same_logits(gpt2: Model) -> None:
    (ids,) = (torch.tensor([gpt2.tokenizer(ALL[0], add_special_tokens=False)["input_ids"]]),)
    hf = gpt2.plain_copy()
    hf.transformer.h[1].register_forward_hook(lambda module, args, output: output * 0.5)
    with hooked(gpt2, {"resid_post.1": lambda x: x * 0.5}), torch.no_grad():
        torch.testing.assert_close(gpt2.hf(ids).logits, hf(ids).logits, atol=1e-6, rtol=1e-6)


def test_looking_changes_nothing_and_sees_what_capture_gives(model: Model) -> None:
    seen: list[Tensor] = []
    plain = logits(model, ALL[:1])
    with hooked(model, {"mlp_post.2": lambda x: seen.append(x.clone())}):
        assert torch.equal(logits(model, ALL[:1]), plain)
    assert torch.equal(seen[0], capture(model, ALL[:1], ["mlp_post.2"], positions="all")["mlp_post.2"])


def test_the_frame_tells_positions_with_a_cache_as_without(gpt2: Model) -> None:
    vector = torch.randn(gpt2.d_model, generator=torch.Generator().manual_seed(0))

    def late(x: Tensor, frame: Any) -> Tensor:
        return x + 3 * vector * (frame.real & (frame.positions >= 4)).unsqueeze(-1)

    with hooked(gpt2, {"resid_post.0": late}):
        own = generate(gpt2, ALL, max_new_tokens=6)
    edit = Edit.add("resid_post.0", vector, 3.0, positions=list(range(4, 60)))
    assert own == generate(gpt2, ALL, max_new_tokens=6, edits=[edit])
    assert own != generate(gpt2, ALL, max_new_tokens=6)


def test_functions_and_edits_act_in_the_order_of_their_blocks(gpt2: Model) -> None:
    def site() -> Tensor:
        return capture(gpt2, ALL, ["resid_post.1"])["resid_post.1"]

    plain, one = site(), torch.ones(gpt2.d_model)
    with hooked(gpt2, {"resid_post.1": lambda x: 2 * x}), editing(gpt2, [Edit.add("resid_post.1", one)]):
        torch.testing.assert_close(site(), 2 * plain + 1)
    with editing(gpt2, [Edit.add("resid_post.1", one)]), hooked(gpt2, {"resid_post.*": lambda x: x, "resid_post.1": lambda x: 2 * x}):
        torch.testing.assert_close(site(), 2 * (plain + 1))


def test_an_exception_ends_the_block_as_well(gpt2: Model) -> None:
    plain = logits(gpt2)
    with pytest.raises(ZeroDivisionError), hooked(gpt2, {"resid_post.1": lambda x: 0 * x}):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), hooked(gpt2, {"resid_post.1": lambda x: x * (1 // 0)}):
        logits(gpt2)
    assert torch.equal(logits(gpt2), plain)


def test_threads_do_not_see_one_anothers_functions(gpt2: Model) -> None:
    plain, factors = logits(gpt2), [0.0, 0.5, 1.0]
    alone = []
    for factor in factors:
        with hooked(gpt2, {"resid_post.1": lambda x, factor=factor: factor * x}):
            alone.append(logits(gpt2))
    inside = threading.Barrier(len(factors))
    results: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        with hooked(gpt2, {"resid_post.1": lambda x: factors[number] * x}):
            inside.wait()
            results[number] = [logits(gpt2) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(factors))]
    for thread in threads:
        thread.start()
    own = logits(gpt2)
    for thread in threads:
        thread.join()
    assert torch.equal(own, plain)
    for number, expected in enumerate(alone):
        assert all(torch.equal(value, expected) for value in results[number])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x: x[:, :1], r"was given \[1, 2, 32\] float32 on cpu and returned \[1, 1, 32\]"),
        (lambda x: x.double(), "returned .* float64"),
        (lambda x: 3, "returned int"),
        (lambda: None, "cannot be called with an activation"),
        (lambda x, hook: x, "cannot be called with an activation"),
        ("double", "is not a function"),
    ],
)
def test_functions_that_cannot_be_are_refused(gpt2: Model, function: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem), hooked(gpt2, {"resid_post.1": function}):
        capture(gpt2, ["the river"], ["logits"])


def test_an_unknown_site_is_refused_and_a_function_written_in_c_is_not(gpt2: Model) -> None:
    with pytest.raises(UserError, match="is not a site"), hooked(gpt2, {"resid_past.1": torch.relu}):
        pass
    with hooked(gpt2, {"resid_post.1": torch.relu}):
        assert float(capture(gpt2, ALL, ["resid_post.1"])["resid_post.1"].min()) == 0


def test_nnsight_says_that_it_cannot_run_a_function_of_ones_own(gpt2: Model) -> None:
    from interp.adapters import run

    with hooked(gpt2, {"resid_post.1": torch.relu}), pytest.raises(UserError, match=r"a function of your own is active at resid_post\.1"):
        run(gpt2, ["the river"], sites=["logits"], engine="nnsight")
