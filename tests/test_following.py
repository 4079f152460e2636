"""A run's events as the studio reads them: bit by bit, over stops and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.desk.following import Course, Follower
from trainers import events
from trainers.events import Event


def started(first: int = 0, unit: str = "pictures") -> Event:
    return events.Started("ink", "b", "cpu", "fp32", "sdpa", 4, unit, 10, first, {"unet": (1, 2)}, "adamw", (1, 2))


def step(number: int, seconds: float = 0.5) -> Event:
    return events.Step(number, 1 / number, 1e-4, 1.0, seconds, 4, 40.0, 100)


def tell(file: Path, *told: Event) -> None:
    with file.open("a") as stream:
        stream.writelines(events.to_json(event) + "\n" for event in told)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_of_a_file_that_is_not_there_yet_nothing_is_told(file: Path) -> None:
    assert Follower(file).read() == Course()


def test_it_reads_on_where_it_stopped(file: Path) -> None:
    follower = Follower(file)
    tell(file, events.Note("16 pictures"), events.Busy("encoding", 3, 16))
    assert follower.read().busy == events.Busy("encoding", 3, 16)
    tell(file, started(), step(1), step(2, 1.5))
    course = follower.read()
    assert (course.busy, course.notes, course.step, course.steps) == (None, ("16 pictures",), 2, 10)
    assert course.losses == ((1, 1.0), (2, 0.5))
    assert course.seconds_left == 8 * 1.0  # the median of 0.5 and 1.5
    assert course.speed == 8 / 2.0
    tell(file, events.Validation(2, 0.7, True), events.Preview(2, "p/2.png"), events.Saved(2, "c/2"))
    course = follower.read()
    assert (course.validations, course.previews, course.saved) == (((2, 0.7),), ((2, Path("p/2.png")),), 2)
    assert course == Follower(file).read()  # all at once, as the next server reads it


def test_a_line_cut_short_is_left_for_the_next_time(file: Path) -> None:
    follower = Follower(file)
    line = events.to_json(step(1)) + "\n"
    file.write_text(line[:20])
    assert follower.read().step == 0
    with file.open("a") as stream:
        stream.write(line[20:])
    assert follower.read().step == 1


def test_a_resumed_run_does_some_steps_again(file: Path) -> None:
    follower = Follower(file)
    tell(file, events.Note("n"), started(), *map(step, range(1, 4)), events.Saved(3, "c"), step(4), step(5))
    tell(file, events.Validation(3, 0.3, True), events.Validation(5, 0.2, True), events.Preview(5, "5.png"))
    assert follower.read().step == 5
    with file.open("a") as stream:
        stream.write('{"event": "Step", "st')
    follower.read()
    file.write_bytes(file.read_bytes()[: file.read_bytes().rfind(b"\n") + 1])  # as a resumed run does
    tell(file, events.Note("n"), started(3))
    course = follower.read()
    assert (course.step, course.saved, course.seconds_left, course.notes) == (3, 3, None, ("n",))
    assert [one for one, _ in course.losses] == [1, 2, 3]
    assert (course.validations, course.previews) == (((3, 0.3),), ())
    tell(file, step(4), events.Finished("a", "0f", 10, 5.0, {}))
    assert [one for one, _ in follower.read().losses] == [1, 2, 3, 4]
    assert follower.read().finished == events.Finished("a", "0f", 10, 5.0, {})


def test_a_run_that_was_stopped_does_none_again(file: Path) -> None:
    tell(file, started(), *map(step, range(1, 6)), events.Saved(5, "c"), events.Stopped(5))
    course = Follower(file).read()
    assert (course.step, course.saved) == (5, 5)
    tell(file, started(5))
    assert Follower(file).read().losses == course.losses


def test_strange_lines_and_another_file_do_no_harm(file: Path) -> None:
    follower = Follower(file)
    file.write_text('{"event": "Of tomorrow", "x": 1}\nno JSON\n{"event": "Note"}\n[]\n7\n')
    tell(file, step(7))
    assert follower.read().step == 7
    file.write_text("")
    tell(file, step(1))
    assert follower.read().losses == ((1, 1.0),)


def test_texts_are_counted_by_what_is_learned(file: Path) -> None:
    supervised = events.Supervised(1, 1, 4, 2, [("a.txt", [("Ahoy\u2028", False), ("matey", True)])])
    tell(file, supervised, started(unit="tokens"), step(1))
    course = Follower(file).read()
    assert course.speed == 40 / 0.5
    assert course.supervised == supervised
