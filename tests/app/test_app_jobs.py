"""Turns at the models and long jobs: order, refusal, cancel, failure, and what is kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from app.jobs import Job, Runner, Step, key_of
from app.model_queue import ModelQueue
from interp import UserError

# Nothing below waits this long unless it hangs.
PATIENCE = 60


def eventually(what: Callable[[], bool]) -> None:
    """Wait for another thread, which says nothing when it gets there."""
    pause = threading.Event()
    for _ in range(PATIENCE * 200):
        if what():
            return
        pause.wait(0.005)
    raise AssertionError("this never became true")


class Gate:
    """Work that stops at its one step until it is let through."""

    def __init__(self, result: Any = None) -> None:
        self.entered, self.opened, self.result = threading.Event(), threading.Event(), result

    def __call__(self, step: Step) -> Any:
        step("at the gate", 1, 2)
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        step("through it", 2, 2)
        return self.result


def over(job: Job) -> Job:
    eventually(lambda: job.over)
    return job


def test_turns_come_in_the_order_of_asking() -> None:
    queue, order, waiting = ModelQueue(), [], []

    def ask(number: int) -> None:
        with queue.turn():
            order.append(number)

    with queue.turn():
        for number in range(6):
            thread = threading.Thread(target=ask, args=(number,))
            thread.start()
            waiting.append(thread)
            # The next one asks only once this one stands in the line.
            eventually(lambda expected=number + 2: queue.length == expected)
        assert order == []
    for thread in waiting:
        thread.join(PATIENCE)
    assert order == list(range(6))


def test_whoever_had_a_turn_stands_behind_everyone_who_waits() -> None:
    queue, order = ModelQueue(), []
    started = threading.Barrier(3)

    def ask(name: str) -> None:
        started.wait(PATIENCE)
        for _ in range(20):
            with queue.turn():
                order.append(name)
                # Give up a turn only while the other one waits for it, until the other one is through.
                eventually(lambda: queue.length > 1 or order.count("a" if name == "b" else "b") == 20)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    started.wait(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert order in (["a", "b"] * 20, ["b", "a"] * 20)


def test_one_holds_the_models_at_a_time_whatever_happens_in_a_turn() -> None:
    queue, inside, most = ModelQueue(), [0], [0]

    def work(number: int) -> None:
        for step in range(25):
            try:
                with queue.turn():
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    if (step + number) % 3 == 0:
                        inside[0] -= 1
                        raise ValueError("a fault inside a turn")
                    inside[0] -= 1
            except ValueError:
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert most == [1]
    assert not queue.length


def test_who_stops_waiting_leaves_the_line_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = ModelQueue()
    wait = queue._changed.wait
    monkeypatch.setattr(queue._changed, "wait", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with queue.turn(), pytest.raises(KeyboardInterrupt), queue.turn():
        pytest.fail("this turn was never its turn")
    monkeypatch.setattr(queue._changed, "wait", wait)
    with queue.turn():
        assert queue.length == 1


def test_a_full_room_is_refused_with_a_sentence_and_a_seat_is_given_back() -> None:
    queue = ModelQueue(limit=2)
    with queue.admit(), queue.admit():
        assert queue.generating == 2
        with pytest.raises(UserError, match="2 people are generating"), queue.admit():
            pytest.fail("there were two seats")
    assert queue.generating == 0
    with pytest.raises(ZeroDivisionError), queue.admit():
        raise ZeroDivisionError
    assert queue.generating == 0


def test_jobs_run_one_at_a_time_in_the_order_of_asking_and_keep_their_results() -> None:
    runner, order = Runner(), []
    gate = Gate("first")

    def work(number: int) -> Callable[[Step], int]:
        def run(step: Step) -> int:
            order.append(number)
            return number

        return run

    first = runner.start("a", "first", gate)
    assert gate.entered.wait(PATIENCE)
    later = [runner.start(f"b{number}", "later", work(number)) for number in range(4)]
    assert first.state == "running"
    assert (first.phrase, first.share) == ("at the gate", 0.5)
    assert [job.state for job in later] == ["waiting"] * 4
    assert [runner.ahead(job) for job in (first, *later)] == [0, 1, 2, 3, 4]
    gate.opened.set()
    assert [over(job).result for job in (first, *later)] == ["first", 0, 1, 2, 3]
    assert order == [0, 1, 2, 3]
    assert [runner.find(job.key) for job in later] == later
    assert all(job.state == "done" for job in later)


def test_the_same_question_is_the_same_job_and_is_worked_on_once() -> None:
    runner, count = Runner(), []

    def work(step: Step) -> int:
        count.append(1)
        return len(count)

    job = runner.start("key", "title", work)
    assert runner.start("key", "title", work) is job
    assert over(job).result == 1
    assert runner.start("key", "title", work) is job
    assert count == [1]
    assert key_of("sweep", 1, "a", [2.0]) == key_of("sweep", 1, "a", [2.0]) != key_of("sweep", 1, "a", [2.5])


def test_a_line_that_is_full_is_refused_with_a_sentence() -> None:
    runner, gate = Runner(waiting=1), Gate()
    running = runner.start("a", "runs", gate)
    assert gate.entered.wait(PATIENCE)
    waits = runner.start("b", "waits", lambda step: None)
    with pytest.raises(UserError, match="1 jobs are waiting already"):
        runner.start("c", "too many", lambda step: None)
    assert runner.find("c") is None
    assert runner.start("b", "asked again", lambda step: None) is waits
    gate.opened.set()
    assert over(running).state == over(waits).state == "done"


def test_a_job_that_waits_can_be_cancelled_and_is_never_begun() -> None:
    runner, gate, begun = Runner(), Gate(), []
    running = runner.start("a", "runs", gate)
    assert gate.entered.wait(PATIENCE)
    waits = runner.start("b", "waits", lambda step: begun.append(1))
    after = runner.start("c", "after it", lambda step: "after")
    runner.cancel("b")
    assert waits.state == "cancelled"
    assert runner.ahead(after) == 1
    gate.opened.set()
    assert over(after).result == "after"
    assert over(running).state == "done"
    assert begun == []


def test_a_job_that_runs_is_cancelled_at_its_next_step_and_can_be_asked_for_anew() -> None:
    runner, gate = Runner(), Gate("kept")
    job = runner.start("a", "runs", gate)
    assert gate.entered.wait(PATIENCE)
    runner.cancel("a")
    assert job.state == "running", "work is left at a step, not in the middle of one"
    gate.opened.set()
    assert over(job).state == "cancelled"
    assert job.result is None
    again = runner.start("a", "runs", gate)
    assert again is not job
    assert over(again).result == "kept"
    runner.cancel("a")
    assert again.state == "done", "what is over cannot be cancelled"


@pytest.mark.parametrize("error", [UserError("the layer is missing", "name another"), RuntimeError("a secret path /somewhere/x")])
def test_a_job_that_fails_tells_one_line_and_the_next_one_runs(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner()

    def work(step: Step) -> None:
        raise error

    with caplog.at_level(logging.ERROR, "app.jobs"):
        job = over(runner.start("a", "fails", work))
    assert job.state == "failed"
    assert isinstance(job.problem, UserError)
    assert "\n" not in job.problem.problem
    known = isinstance(error, UserError)
    assert (job.problem is error) == known
    assert "secret" not in str(job.problem)
    assert ("secret" in caplog.text) == (not known), "whoever runs the app finds a fault of ours in its log"
    assert over(runner.start("b", "works", lambda step: 5)).result == 5
    assert over(runner.start("a", "works now", lambda step: 6)).result == 6


def test_finished_jobs_are_forgotten_one_by_one_and_those_that_wait_never() -> None:
    runner = Runner(kept=3)
    for number in range(5):
        over(runner.start(f"k{number}", "short", lambda step, number=number: number))
    assert runner.find("k0") is None
    assert runner.find("k1") is None
    assert [runner.find(f"k{number}").result for number in (2, 3, 4)] == [2, 3, 4]  # type: ignore[union-attr]


def test_time_left_is_unknown_until_something_is_done_and_then_goes_by_what_was() -> None:
    job = Job("key", "title", lambda step: None, state="running", started=100.0)
    assert job.left(110.0) is None
    job.step("a", 1, 4)
    assert job.left(110.0) == 30.0
    job.step("b", 4, 4)
    assert (job.left(110.0), job.share) == (0.0, 1.0)
