"""Continuations as the app streams them: interp's own answers, whoever else speaks at the same time and under whatever edits."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from app import continuations
from app.continuations import EditedModel, cached, continuation_cache, continue_together
from app.model_queue import model_queue
from interp import Edit, Model, ModelPair, Sampling, UserError, generate

PROMPTS = ("the quick wintle sings", "a quonk", "blorp and snarg", "never the meldy stone")
GREEDY = Sampling()


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    continuation_cache.clear()
    yield
    continuation_cache.clear()


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads that change as often as they can, so that whatever they share shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def edits_of(number: int, model: Model) -> tuple[Edit, ...]:
    """A different edit of every kind for each session."""
    generator = torch.Generator().manual_seed(number)
    vector = torch.randn(model.d_model, generator=generator)
    layer = number % model.n_layers
    return (
        (Edit.scale_keys([(layer, number), (layer, 30 + number)], 60.0),),
        (Edit.add(f"resid_post.{layer}", vector, 1.5, "generated"),),
        (Edit.project_out(f"resid_mid.{layer}", vector),),
        (Edit.set(f"mlp_post.{layer}", 4.0, list(range(number, number + 12))),),
        (Edit.scale(f"attn_out.{layer}", -3.0), Edit.subtract("resid_post.0", vector)),
        (),
        (Edit.add(f"resid_mid.{layer}", vector, -2.0, "prompt"),),
        (Edit.scale_keys([(0, 5)], -90.0), Edit.scale("mlp_out.1", 2.5)),
    )[number]


def silent(place: int, text: str, ended: bool) -> None:
    pass


@pytest.mark.parametrize("together", [False, True], ids=["in-turns", "all-at-the-same-time"])
def test_eight_sessions_at_once_each_hear_what_interp_says_under_their_own_edits(
    pair: ModelPair, impatient: None, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Edits are kept apart by the hooks themselves, so it must hold without the queue as well, which only shares the machine."""
    if together:
        monkeypatch.setattr(model_queue, "turn", nullcontext)
    sessions = range(8)
    prompts = [PROMPTS[number % len(PROMPTS)] for number in sessions]
    sampling = [GREEDY if number % 2 else Sampling(temperature=0.8, top_p=0.9, seed=number) for number in sessions]
    held = [edits_of(number, pair.tuned) for number in sessions]
    expected = [
        [
            generate(model, [prompts[number]], max_new_tokens=8, edits=edits, sampling=sampling[number])[0]
            for model, edits in ((pair.base, ()), (pair.tuned, ()), (pair.tuned, held[number]))
        ]
        for number in sessions
    ]
    changed = [texts[2] for number, texts in enumerate(expected) if held[number] and texts[2] != texts[1]]
    assert len(changed) == len(set(changed)) == 7, "every edit must change the text, each in its own way, for this test to mean anything"
    found: dict[int, list[str]] = {}
    grown: dict[int, list[list[str]]] = {number: [[], [], []] for number in sessions}
    start = threading.Barrier(len(sessions))

    def session(number: int) -> None:
        voices = [EditedModel(pair.base), EditedModel(pair.tuned), EditedModel(pair.tuned, held[number])]

        def grow(place: int, text: str, ended: bool) -> None:
            grown[number][place].append(text)

        start.wait(60)
        found[number] = continue_together(voices, prompts[number], new_tokens=8, sampling=sampling[number], on_text=grow)

    threads = [threading.Thread(target=session, args=(number,)) for number in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[number] for number in sessions] == expected
    # What was seen on the way is the text as it grew, and nobody else's.
    for number, place in itertools.product(sessions, range(3)):
        assert all(expected[number][place].startswith(text) for text in grown[number][place])
        assert grown[number][place][-1] == expected[number][place]
    assert model_queue.generating == 0


def test_sessions_take_turns_token_by_token(pair: ModelPair) -> None:
    """Nobody gets two tokens while somebody else who waits gets none."""
    order: list[int] = []
    start = threading.Barrier(4)

    def session(number: int) -> None:
        voice = EditedModel(pair.tuned, edits_of(number, pair.tuned))
        start.wait(60)
        continue_together([voice], PROMPTS[number], new_tokens=10, sampling=GREEDY, on_text=lambda *call: order.append(number))

    with model_queue.turn():
        threads = [threading.Thread(target=session, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        pause = threading.Event()
        while model_queue.length < 5:
            pause.wait(0.005)
    for thread in threads:
        thread.join(120)
    assert set(order[:4]) == set(range(4)), "all four are heard before anyone is heard twice"


def test_columns_of_one_session_grow_side_by_side_and_report_their_end(pair: ModelPair) -> None:
    calls: list[tuple[int, str, bool]] = []
    voices = [EditedModel(pair.base), EditedModel(pair.tuned)]
    texts = continue_together(voices, PROMPTS[0], new_tokens=6, sampling=GREEDY, on_text=lambda *call: calls.append(call))
    assert texts == [generate(model, [PROMPTS[0]], max_new_tokens=6)[0] for model in (pair.base, pair.tuned)]
    assert [place for place, _, _ in calls[:4]] == [0, 1, 0, 1]
    assert [(text, place) for place, text, ended in calls if ended] == [(texts[0], 0), (texts[1], 1)]


def test_what_was_said_once_is_answered_without_the_models(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = edits_of(0, pair.tuned)
    first = continue_together([EditedModel(pair.tuned, edits)], PROMPTS[1], new_tokens=5, sampling=GREEDY, on_text=silent)
    monkeypatch.setattr(continuations, "stream", lambda *a, **k: pytest.fail("the model was asked again"))
    calls: list[tuple[int, str, bool]] = []
    same = EditedModel(pair.tuned, edits_of(0, pair.tuned))
    again = continue_together([same], PROMPTS[1], new_tokens=5, sampling=GREEDY, on_text=lambda *call: calls.append(call))
    assert again == first
    assert calls == [(0, first[0], True)]


def test_another_question_is_never_answered_by_what_was_said_before(pair: ModelPair) -> None:
    voice, edits = EditedModel(pair.tuned, edits_of(0, pair.tuned)), edits_of(1, pair.tuned)
    continue_together([voice], PROMPTS[0], new_tokens=5, sampling=GREEDY, on_text=silent)
    assert cached(voice, PROMPTS[0], 5, GREEDY) is not None
    assert cached(voice, PROMPTS[0], 6, GREEDY) is None
    assert cached(voice, PROMPTS[1], 5, GREEDY) is None
    assert cached(voice, PROMPTS[0], 5, Sampling(temperature=0.5)) is None
    assert cached(EditedModel(pair.tuned), PROMPTS[0], 5, GREEDY) is None
    assert cached(EditedModel(pair.tuned, edits), PROMPTS[0], 5, GREEDY) is None
    assert cached(EditedModel(pair.base, voice.edits), PROMPTS[0], 5, GREEDY) is None


def test_a_session_that_goes_away_gives_its_seat_back_and_leaves_no_half_text(pair: ModelPair) -> None:
    class Gone(Exception):
        pass

    def leave(place: int, text: str, ended: bool) -> None:
        raise Gone

    voice = EditedModel(pair.tuned, edits_of(0, pair.tuned))
    with pytest.raises(Gone):
        continue_together([voice], PROMPTS[0], new_tokens=5, sampling=GREEDY, on_text=leave)
    assert model_queue.generating == 0
    assert cached(voice, PROMPTS[0], 5, GREEDY) is None
    # The edit of who left acts on nobody.
    after = continue_together([EditedModel(pair.tuned)], PROMPTS[0], new_tokens=5, sampling=GREEDY, on_text=silent)
    assert after == generate(pair.tuned, [PROMPTS[0]], max_new_tokens=5)


def test_a_full_room_and_what_does_not_fit_are_refused_and_keep_no_seat(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="reads at most 64"):
        continue_together([EditedModel(pair.base)], "blorp " * 80, new_tokens=5, sampling=GREEDY, on_text=silent)
    assert model_queue.generating == 0
    monkeypatch.setattr(model_queue, "limit", 0)
    with pytest.raises(UserError, match="people are generating"):
        continue_together([EditedModel(pair.base)], PROMPTS[0], new_tokens=5, sampling=GREEDY, on_text=silent)


def test_only_so_much_is_kept(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation_cache, "size", 2)
    for prompt in PROMPTS:
        continue_together([EditedModel(pair.base)], prompt, new_tokens=2, sampling=GREEDY, on_text=silent)
    assert [cached(EditedModel(pair.base), prompt, 2, GREEDY) is None for prompt in PROMPTS] == [True, True, False, False]
