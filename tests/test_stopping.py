"""Asked by a signal, a run's command lets it end its step; asked again, it ends at once; a library's user is let be."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from threading import Thread

import pytest

from trainers import stopping
from trainers.events import Event, Finished, Note, Saved, Started, Step, Stopped

START = Started("ink", "b", "cpu", "fp32", "sdpa", 2, "pictures", 9, 0, {"unet": (1, 9)}, "adamw", (1, 4))
END = Finished("ink.safetensors", "ab", 9, 1.0, {})


def run(steps: int = 9) -> Iterator[Event]:
    """As a session does: it looks after each step."""
    yield Note("2 pictures")
    yield START
    for number in range(1, steps + 1):
        yield Step(number, 0.1, 1e-3, 1.0, 0.5, 4, 4.0, 10)
        if stopping.asked():
            yield Saved(number, "step")
            yield Stopped(number)
            return
    yield Note("written")
    yield END


def follow(at: Callable[[Event], bool], *signs: signal.Signals) -> list[Event]:
    """The events that come while the signals are sent at one of them."""
    seen: list[Event] = []
    with stopping.watched(run()) as told:
        for event in told:
            seen.append(event)
            if at(event):
                for sign in signs:
                    signal.raise_signal(sign)
    return seen


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = [signal.getsignal(sign) for sign in stopping.SIGNALS]
    yield
    assert [signal.getsignal(sign) for sign in stopping.SIGNALS] == before
    assert not stopping.asked()


def at_step(number: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Step) and event.step == number


@pytest.mark.parametrize("sign", stopping.SIGNALS)
def test_the_first_signal_asks(sign: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Event] = []
    with pytest.raises(KeyboardInterrupt, match=r"^stopped after step 2, which is saved$"):
        follow(lambda event: seen.append(event) is None and at_step(2)(event), sign)
    assert seen[-2:] == [Saved(2, "step"), Stopped(2)]
    assert "ctrl-C again stops at once" in capfd.readouterr().err


def test_the_second_ends_at_once() -> None:
    seen: list[Event] = []
    with pytest.raises(KeyboardInterrupt) as caught:
        follow(lambda event: seen.append(event) is None and at_step(2)(event), signal.SIGINT, signal.SIGINT)
    assert str(caught.value) == ""
    assert at_step(2)(seen[-1])


@pytest.mark.parametrize("event", [Note("2 pictures"), END])
def test_before_the_steps_and_after_the_end_it_ends_at_once(event: Event) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        follow(lambda one: one == event, signal.SIGINT)
    assert str(caught.value) == ""


def test_asked_after_the_last_step_the_adapter_is_written_first() -> None:
    """And nothing is begun that would come after it: a batch's next folder, a demo's pictures."""
    seen: list[Event] = []
    with pytest.raises(KeyboardInterrupt, match="after the adapter was written"):
        follow(lambda event: seen.append(event) is None and event == Note("written"), signal.SIGINT)
    assert seen[-1] == END


def test_a_run_that_nobody_stops() -> None:
    assert follow(lambda event: False) == list(run())


def test_a_signal_that_was_ignored_is_ignored_on(capfd: pytest.CaptureFixture[str]) -> None:
    """As a shell begins what is to run in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert follow(at_step(2), signal.SIGINT)[-1] == END
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == ""


def test_in_another_thread_nothing_is_watched() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def look() -> None:
        found.extend(follow(lambda event: signal.getsignal(signal.SIGINT) is not before))

    thread = Thread(target=look)
    thread.start()
    thread.join()
    assert found == list(run())


def test_without_a_command_ctrl_c_is_pythons_own() -> None:
    going = run()
    next(event for event in going if at_step(2)(event))
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert list(going) == list(run())[4:]
