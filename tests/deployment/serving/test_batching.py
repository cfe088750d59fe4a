"""Units of many requests run together and come back to their owners; nobody waits for ever, nothing grows."""

import threading
import time
import weakref
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest

from bmscale.deployment.serving import batching
from bmscale.deployment.serving.batching import Batcher, BatchLimits, Closed, Overloaded, TooLong, Unit
from bmscale.errors import BadInput


class Model:
    """Answers with what it was given, in capitals; holds still while `may_run` is not set."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[str]]] = []
        self.may_run = threading.Event()
        self.running = threading.Event()

    def __call__(self, key: Any, payloads: list[str]) -> list[str]:
        self.batches.append((key, payloads))
        self.running.set()
        assert self.may_run.wait(20)
        if any("poison" in payload for payload in payloads):
            raise ValueError("poison")
        return [payload.upper() for payload in payloads]


def units(*texts: str, slots: int = 10, key: str = "") -> list[Unit]:
    return [Unit(text, slots, key) for text in texts]


@pytest.fixture
def model() -> Model:
    return Model()


def start(model: Model, **limits: Any) -> Batcher:
    return Batcher("m", model, BatchLimits(**{"max_batch_slots": 100, "max_wait_seconds": 0.0, **limits}))


def hold(batcher: Batcher, model: Model) -> Any:
    """Have a batch of one unit running, so that what comes next waits."""
    first = batcher.submit(units("first"))
    assert model.running.wait(20)
    return first


def test_what_waits_is_run_together_and_returned_in_order(model):
    batcher = start(model)
    hold(batcher, model)
    futures = [batcher.submit(units(f"a{n}", f"b{n}")) for n in range(4)]
    model.may_run.set()
    assert [future.result(20) for future in futures] == [[f"A{n}", f"B{n}"] for n in range(4)]
    batcher.close()
    assert model.batches[1:] == [("", ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"])]
    assert (batcher.waiting_slots, batcher.waiting_units) == (0, 0)


def test_company_is_waited_for(model):
    model.may_run.set()
    batcher = start(model, max_wait_seconds=5.0, max_batch_slots=30)
    begun = time.monotonic()
    wait([batcher.submit(units(text)) for text in ("a", "b", "c")], 20)
    assert time.monotonic() - begun < 4  # full before the time was over
    assert [payloads for _, payloads in model.batches] == [["a", "b", "c"]]
    batcher.close()


def test_a_long_text_gives_way_to_short_ones(model):
    batcher = start(model, max_batch_slots=40)
    hold(batcher, model)
    long = batcher.submit(units(*(f"long{n}" for n in range(40))))
    short = [batcher.submit(units(f"short{n}")) for n in range(4)]
    model.may_run.set()
    assert [future.result(20) for future in short] == [[f"SHORT{n}"] for n in range(4)]
    assert long.result(20) == [f"LONG{n}" for n in range(40)]
    batcher.close()
    # All four short ones are in the first two batches after the one that was running, beside parts of the long one.
    assert sum(text.startswith("short") for _, batch in model.batches[1:3] for text in batch) == 4
    assert max(len(batch) for _, batch in model.batches) == 4


def test_a_batch_has_one_key_and_sizes_that_are_alike(model):
    batcher = start(model, max_batch_slots=3000)
    hold(batcher, model)
    done = [batcher.submit(units(text, key=key)) for text, key in (("a", "x"), ("b", "y"), ("c", "x"))]
    done += [batcher.submit(units("wide", slots=1100, key="x")), batcher.submit(units("d", slots=60, key="x"))]
    model.may_run.set()
    assert not wait(done, 20).not_done
    batcher.close()
    assert model.batches[1:] == [("x", ["a", "c", "d"]), ("y", ["b"]), ("x", ["wide"])]


def test_width_counts_for_all_of_a_batch(model):
    batcher = start(model, max_batch_slots=100)
    hold(batcher, model)
    done = [batcher.submit([Unit(text, slots)]) for text, slots in (("a", 20), ("b", 40), ("c", 40), ("d", 20))]
    model.may_run.set()
    assert not wait(done, 20).not_done
    batcher.close()
    assert [len(batch) for _, batch in model.batches[1:]] == [2, 2]


def test_one_slot_switches_batching_off(model):
    batcher = start(model, max_batch_slots=1)
    hold(batcher, model)
    done = [batcher.submit(units("a", "b")), batcher.submit(units("c"))]
    model.may_run.set()
    assert not wait(done, 20).not_done
    batcher.close()
    assert all(len(batch) == 1 for _, batch in model.batches)


def test_a_full_queue_refuses_and_says_when(model):
    batcher = start(model, max_queue_slots=50)
    hold(batcher, model)
    held = batcher.submit(units("a", "b", "c", "d"))
    with pytest.raises(Overloaded) as refused:
        batcher.submit(units("e", "f"))
    assert refused.value.retry_after >= 1
    fits = batcher.submit(units("g"))
    model.may_run.set()
    assert [held.result(20), fits.result(20)] == [["A", "B", "C", "D"], ["G"]]
    # Alone, a request may be larger than the queue: its own limits bound it.
    assert batcher.submit(units(*"abcdefgh")).result(20) == list("ABCDEFGH")
    batcher.close()


def test_what_is_cancelled_leaves_the_queue(model):
    batcher = start(model, max_queue_slots=50)
    hold(batcher, model)
    gone = batcher.submit(units("gone", "gone"))
    stays = batcher.submit(units("stays"))
    assert gone.cancel()
    assert (batcher.waiting_slots, batcher.waiting_units) == (10, 1)
    model.may_run.set()
    assert stays.result(20) == ["STAYS"]
    with pytest.raises(CancelledError):
        gone.result(20)
    batcher.close()
    assert "gone" not in str(model.batches)


def test_cancelled_while_it_runs(model):
    batcher = start(model)
    first = hold(batcher, model)
    assert first.cancel()
    model.may_run.set()
    assert batcher.submit(units("next")).result(20) == ["NEXT"]
    batcher.close()


def test_one_that_fails_spoils_no_other(model, caplog):
    batcher = start(model)
    hold(batcher, model)
    bad = batcher.submit(units("fine", "poison", "poison"))
    good = batcher.submit(units("good", "better"))
    model.may_run.set()
    assert good.result(20) == ["GOOD", "BETTER"]
    with pytest.raises(ValueError, match="poison"):
        bad.result(20)
    assert batcher.submit(units("later")).result(20) == ["LATER"]
    batcher.close()


def test_nothing_of_a_failed_batch_is_held_while_its_units_are_tried_alone():
    class Tensor:
        pass

    alive: list[int] = []
    held: list[weakref.ref[Tensor]] = []
    ready = threading.Event()

    def run(key: Any, payloads: list[str]) -> list[str]:
        ready.wait(20)
        alive.append(sum(one() is not None for one in held))
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        if len(payloads) > 1:
            raise MemoryError
        return payloads

    batcher = Batcher("m", run, BatchLimits(max_batch_slots=100, max_wait_seconds=0.1))
    future = batcher.submit(units("a", "b", "c"))
    ready.set()
    assert future.result(20) == ["a", "b", "c"]
    batcher.close()
    assert alive == [0, 0, 0, 0]


def test_closing_finishes_what_was_accepted(model):
    batcher = start(model, max_wait_seconds=10.0)
    futures = [batcher.submit(units(f"a{n}")) for n in range(25)]
    model.may_run.set()
    batcher.close()
    assert [future.result(0) for future in futures] == [[f"A{n}"] for n in range(25)]
    with pytest.raises(Closed):
        batcher.submit(units("late"))


def test_many_threads_and_each_gets_its_own(model):
    model.may_run.set()
    batcher = start(model, max_wait_seconds=0.001)
    wrong: list[str] = []

    def ask(name: str) -> None:
        for number in range(40):
            texts = [f"{name}-{number}-{part}" for part in range(number % 4)]
            if batcher.submit(units(*texts)).result(20) != [text.upper() for text in texts]:
                wrong.append(f"{name} {number}")

    threads = [threading.Thread(target=ask, args=(f"t{n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert not wrong
    assert max(len(batch) for _, batch in model.batches) > 1


@pytest.mark.parametrize("limits", [{"max_batch_slots": 0}, {"max_queue_slots": 0}, {"max_wait_seconds": -1.0}])
def test_bounds_that_leave_no_room(limits):
    with pytest.raises(BadInput, match=f"{next(iter(limits))}: must be"):
        BatchLimits(**limits)


class Clock:
    """A model that takes 20 ms for a batch, and the time by which it does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.batches = 0

    def monotonic(self) -> float:
        return self.now

    def __call__(self, key: Any, payloads: list[str]) -> list[str]:
        self.now += 0.02
        self.batches += 1
        return payloads


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(batching, "time", clock)
    return clock


def test_what_cannot_be_done_in_time_is_not_begun(clock):
    batcher = Batcher("m", clock, BatchLimits(max_batch_slots=100, max_wait_seconds=0.0))
    texts = ["x"] * 10_000  # 20 s, but that is not known yet
    assert len(batcher.submit(units("x"), 0.001).result(20)) == 1  # too small to say anything
    assert len(batcher.submit(units("x"), 0.001).result(20)) == 1
    assert len(batcher.submit(units(*texts[:20])).result(20)) == 20  # two full batches
    begun = clock.batches
    with pytest.raises(TooLong) as refused:
        batcher.submit(units(*texts), 5.0)
    assert refused.value.seconds == pytest.approx(20)
    assert clock.batches == begun
    assert len(batcher.submit(units(*texts[:100]), 0.3).result(20)) == 100
    clock.now += 100  # by then the machine may be faster
    batcher.submit(units(*texts), 5.0).cancel()
    batcher.close()


def test_what_turns_out_to_be_too_long_ends_after_its_first_batches(clock):
    """Of a request of which nothing is known it shows after two batches, of one that may be faster than others after
    its first."""
    batcher = Batcher("m", clock, BatchLimits(max_batch_slots=100, max_wait_seconds=0.0))
    for batches in (2, 1):
        begun = clock.batches
        future = batcher.submit(units(*["x"] * 600), 1.0)
        with pytest.raises(TooLong):
            future.result(20)
        assert clock.batches == begun + batches
        assert (batcher.waiting_slots, batcher.waiting_units) == (0, 0)
    batcher.close()


def test_short_texts_say_nothing_of_long_ones(clock):
    """A clock of 50 batches a second, of one unit each: 10,000 slots a second of long ones, 500 of short ones."""
    batcher = Batcher("m", clock, BatchLimits(max_batch_slots=1, max_wait_seconds=0.0))
    long = units(*["x"] * 100, slots=200)  # 2 s

    def ask(work: list[Unit], seconds: float) -> int:
        return len(batcher.submit(work, seconds).result(20))

    assert ask(units(*["x"] * 50), 5.0) == 50
    assert ask(long, 4.5) == 100  # of which nothing is known
    with pytest.raises(TooLong):
        ask(long, 0.9)
    assert ask(units(*["x"] * 50), 5.0) == 50
    assert ask(long, 4.5) == 100  # the fastest of the minute is not forgotten for many that were slower
    clock.now += 62
    assert ask(units(*["x"] * 50), 5.0) == 50
    assert ask(long, 4.5) == 100
    assert len(batcher._full_batches._seconds) <= 61
    batcher.close()


def test_work_beside_the_batches_counts_in_the_queue(model):
    batcher = start(model, max_queue_slots=50)
    with batcher.beside(45):
        with pytest.raises(Overloaded), batcher.beside(10):
            pass
        with pytest.raises(Overloaded):
            batcher.submit(units("a"))
    model.may_run.set()
    assert batcher.submit(units("a")).result(20) == ["A"]
    batcher.close()
    with pytest.raises(Closed), batcher.beside(1):
        pass


def test_a_batch_that_nobody_waits_for_can_end_early():
    going = threading.Event()
    steps: list[int] = []

    def run(key: Any, payloads: list[str]) -> list[str]:
        while "long" in payloads:
            going.set()
            batcher.check_wanted()
            steps.append(1)
            time.sleep(0.001)
        return payloads

    batcher = Batcher("m", run, BatchLimits(max_batch_slots=100, max_wait_seconds=0.1))
    futures = [batcher.submit(units("long")), batcher.submit(units("too"))]
    assert going.wait(20)
    batcher.check_wanted()  # in another thread it does nothing
    futures[0].cancel()
    time.sleep(0.05)
    held = len(steps)
    time.sleep(0.05)
    assert len(steps) > held  # the other one still waits
    futures[1].cancel()
    assert batcher.submit(units("next")).result(20) == ["next"]
    batcher.close()
