"""The cells of a patching map: which there are and in which order, what each replaces, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp import Model, UserError
from interp.forward.resume import trace
from interp.patching.cells import chunk_size, layers_of, make_cells, patched_kind, selection
from interp.patching.maps import Cell

ROW = [5, 6, 7]


def test_the_stream_has_a_cell_for_each_layer_and_position(gpt2: Model) -> None:
    cells = make_cells(gpt2, "resid_mid", None, None, None, [3, 3])
    assert cells == tuple(Cell(layer, position) for layer in range(gpt2.n_layers) for position in range(3))
    assert layers_of(cells) == list(range(gpt2.n_layers))


def test_heads_and_neurons_have_a_cell_for_all_positions_unless_positions_are_named(llama: Model) -> None:
    heads = make_cells(llama, "z", None, [1], None, [3, 5])
    assert heads == tuple(Cell(1, None, head) for head in range(llama.n_heads))
    assert len(make_cells(llama, "k", None, [1], None, [3])) == llama.n_kv_heads
    assert len(make_cells(llama, "mlp_post", None, [0], None, [3])) == llama.d_mlp
    # Layer, then unit, then position; layers are sorted, and named once.
    expected = tuple(Cell(layer, position, head) for layer in (0, 2) for head in (3, 1) for position in (2, 0))
    assert make_cells(llama, "z", [2, 0], [2, 0, 2], [3, 1], [3]) == expected


def test_units_as_pairs_belong_to_their_own_layers(gpt2: Model) -> None:
    cells = make_cells(gpt2, "mlp_post", None, None, [(2, 7), (0, 3), (2, 7), (2, 1)], [3])
    assert cells == (Cell(0, None, 3), Cell(2, None, 7), Cell(2, None, 1))


@pytest.mark.parametrize(
    ("site", "positions", "layers", "units", "lengths", "problem"),
    [
        ("resid_post", None, [0, 99], None, [3], "layer 99 does not exist"),
        ("resid_post", None, [], None, [3], "does not exist"),
        ("resid_post", None, None, [0], [3], "has no heads or neurons"),
        ("resid_post", None, None, None, [3, 4], "3 to 4 tokens"),
        ("resid_post", [3], None, None, [3, 4], "the shortest prompt"),
        ("z", None, None, [99], [3], "head .* does not exist"),
        ("mlp_post", None, None, [(0, 1, 2)], [3], "neuron .* does not exist"),
        ("mlp_post", None, None, [], [3], "neuron .* does not exist"),
        ("pattern", None, None, None, [3], "cannot be patched"),
    ],
)
def test_cells_that_the_model_or_the_prompts_lack_are_refused(
    gpt2: Model, site: str, positions: Any, layers: Any, units: Any, lengths: list[int], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        make_cells(gpt2, site, positions, layers, units, lengths)


def test_a_former_name_of_a_site_is_read() -> None:
    assert patched_kind("head_out").name == "z"


def test_a_selection_is_true_exactly_where_its_cell_replaces(gpt2: Model) -> None:
    target = trace(gpt2, ROW)
    stream = selection(target, "resid_post", [Cell(0, 1), Cell(1, None)])
    assert stream.tolist() == [[[False], [True], [False]], [[True], [True], [True]]]
    heads = selection(target, "z", [Cell(0, 2, 1), Cell(1, None, 0)])
    assert heads.shape == (2, 3, gpt2.n_heads, 1)
    assert heads.nonzero().tolist() == [[0, 2, 1, 0], *([1, position, 0, 0] for position in range(3))]
    neurons = selection(target, "mlp_post", [Cell(0, None, 5)])
    assert neurons.shape == (1, 3, gpt2.d_mlp)
    assert neurons.nonzero().tolist() == [[0, position, 5] for position in range(3)]
    assert neurons.dtype == torch.bool


def test_a_batch_of_runs_is_as_large_as_memory_allows_and_never_empty(gpt2: Model) -> None:
    target = trace(gpt2, ROW)
    assert chunk_size(target, 1e-6) == 1
    small, large = chunk_size(target, 8), chunk_size(target, 80)
    assert 10 * small <= large <= 10 * (small + 1)
