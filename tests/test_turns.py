"""Whose turn it is: desks one after the other, the jobs of each in order."""

from __future__ import annotations

from studio.desk.turns import Turns


def taken(turns: Turns) -> list[int]:
    found = []
    while (job := turns.take()) is not None:
        found.append(job)
    return found


def test_desks_take_turns_and_a_desk_keeps_its_order() -> None:
    turns = Turns()
    for desk, job in [("ann", 1), ("ann", 2), ("ann", 3), ("bob", 4), ("bob", 5), ("eve", 6)]:
        turns.add(desk, job)
    assert turns.order() == [1, 4, 6, 2, 5, 3]
    assert taken(turns) == [1, 4, 6, 2, 5, 3]
    assert turns.take() is None


def test_who_comes_later_waits_for_nobody_who_had_a_turn() -> None:
    turns = Turns()
    for job in range(5):
        turns.add("ann", job)
    assert turns.take() == 0
    turns.add("bob", 9)
    assert taken(turns) == [9, 1, 2, 3, 4]


def test_a_new_wish_takes_the_place_of_the_old_one() -> None:
    turns = Turns()
    for job in (1, 2, 3):
        turns.add("ann", job)
    turns.add("ann", 8, instead_of=2)
    turns.add("ann", 9, instead_of=7)  # which isn't there
    assert turns.order() == [1, 8, 3, 9]


def test_jobs_can_be_dropped() -> None:
    turns = Turns()
    turns.add("ann", 1)
    turns.add("bob", 2)
    assert turns.drop(1)
    assert not turns.drop(1)
    assert taken(turns) == [2]
