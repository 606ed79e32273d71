"""Activations while a text is continued, against a full capture of every step."""

from __future__ import annotations

import pytest
import torch

from interp import Edit, Model, capture, editing
from interp.errors import UserError
from interp.forward.generate import generate_tokens
from interp.neurons.activations import forced_neurons, watch_neurons

NEURONS = [(2, 5), (0, 3), (2, 1), (1, 7)]
ROWS = [[5, 9, 14, 3, 8], [7], [22, 6, 6]]


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


def by_steps(model: Model, edits: tuple[Edit, ...] = ()) -> torch.Tensor:
    """Each prompt by itself, every step a new forward of everything so far."""
    found = torch.zeros(len(ROWS), 4, len(NEURONS))
    for number, prompt in enumerate(ROWS):
        row = list(prompt)
        for step in range(4):
            with editing(model, edits, prompt_lengths=[len(prompt)]):
                for place, (layer, index) in enumerate(NEURONS):
                    found[number, step, place] = capture(model, [row], [f"mlp_post.{layer}"])[f"mlp_post.{layer}"][0, index]
                logits = capture(model, [row], ["logits"])["logits"][0]
            row.append(int(logits.argmax()))
    return found


def test_watched_neurons_equal_a_full_capture_of_every_step(model: Model) -> None:
    watched = watch_neurons(model, ROWS, NEURONS, max_new_tokens=4, batch_size=2)
    torch.testing.assert_close(watched.values, by_steps(model), atol=1e-5, rtol=1e-4)
    assert watched.tokens == generate_tokens(model, ROWS, max_new_tokens=4, stop_at_end=False)


def test_edits_act_on_what_is_watched(model: Model) -> None:
    edits = (Edit.scale_keys([(0, 3), (1, 7)], 4.0),)
    plain, edited = (watch_neurons(model, ROWS, NEURONS, max_new_tokens=4, edits=some).values for some in ((), edits))
    assert not torch.allclose(plain, edited, atol=1e-3)
    torch.testing.assert_close(edited, by_steps(model, edits), atol=1e-5, rtol=1e-4)


def test_forcing_a_models_own_tokens_gives_what_was_watched(model: Model) -> None:
    watched = watch_neurons(model, ROWS, NEURONS, max_new_tokens=4)
    forced = forced_neurons(model, ROWS, watched.tokens, NEURONS)
    torch.testing.assert_close(forced.values, watched.values, atol=1e-5, rtol=1e-4)
    other = [[token + 1 for token in row] for row in watched.tokens]
    # The first step reads the prompt alone; from the second on, other tokens give other activations.
    changed = forced_neurons(model, ROWS, other, NEURONS).values
    torch.testing.assert_close(changed[:, 0], watched.values[:, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(changed[:, 1:], watched.values[:, 1:], atol=1e-4)


def test_the_frame_names_prompt_step_and_neuron(model: Model) -> None:
    watched = watch_neurons(model, ROWS, NEURONS, max_new_tokens=4)
    frame = watched.to_frame().set_index(["prompt", "step", "layer", "neuron"])["activation"]
    assert len(frame) == watched.values.numel()
    assert frame[2, 3, 1, 7] == pytest.approx(float(watched.values[2, 3, 3]))


@pytest.mark.parametrize("neurons", [[], [(0, 10_000)], [(9, 0)]])
def test_neurons_that_do_not_exist_are_refused(model: Model, neurons: list[tuple[int, int]]) -> None:
    with pytest.raises(UserError):
        watch_neurons(model, ROWS, neurons)


def test_continuations_of_different_lengths_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match="equally long"):
        forced_neurons(model, ROWS, [[1, 2], [3], [4, 5]], NEURONS)
