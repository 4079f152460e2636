"""A gain is weight x block factor x schedule; schedules read back as they were written; nonsense is refused."""

from __future__ import annotations

import math
import random

import pytest

from trainers.errors import AdapterError
from trainers.lora.blocks import PICTURES
from trainers.lora.gains import Gain, Schedule, factor, format_schedule, parse_schedule

TO_Q, PROJ, TEXT = (
    "unet.mid_block.attentions.0.to_q",
    "unet.conv_in",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
)


def test_the_factors_are_multiplied() -> None:
    gain = Gain(0.8, 0.5, {"MID": -2.0, "BASE": 3.0}, ((0.0, 0.0), (0.4, 1.0)))
    assert math.isclose(gain.at(TO_Q, 0.2), 0.8 * -2.0 * 0.5)
    assert math.isclose(gain.at(PROJ, 0.2), 0.8 * 0.5)
    assert gain.at(PROJ, 0.0) == 0.0


def test_the_text_encoder_has_its_own_weight_and_no_schedule() -> None:
    assert Gain(0.8).at(TEXT) == 0.8
    assert Gain(0.8, 0.0).at(TEXT) == 0.0
    late = Gain(0.8, 0.5, {"BASE": 3.0}, ((0.0, 0.0), (1.0, 1.0)))
    assert [late.at(TEXT, place) for place in (0.0, 0.9)] == [1.5, 1.5]
    assert math.isclose(late.at(TO_Q, 0.9), 0.72)


def test_a_row_holds_the_gains_of_all_blocks() -> None:
    gain = Gain(0.5, 2.0, {"OUT03": 0.1, "BASE2": 0.0})
    row = dict(zip(PICTURES, gain.row(), strict=True))
    assert row.pop("OUT03") == 0.05
    assert (row.pop("BASE"), row.pop("BASE2")) == (2.0, 0.0)
    assert set(row.values()) == {0.5}
    assert gain.row(0.0, ("MID", "OUT03", "BASE2")) == [0.5, 0.05, 0.0]


def test_a_language_model_has_layers_and_no_steps() -> None:
    gain = Gain(0.5, 2.0, {"L01": 3.0, "OTHER": 0.0}, ((0.0, 0.0), (1.0, 1.0)))
    layers = [f"model.model.layers.{n}.mlp.up_proj" for n in (0, 1)]
    assert [gain.at(path) for path in (*layers, "model.lm_head")] == [0.5, 1.5, 0.0]
    assert gain.row(0.7, ("L00", "L01", "OTHER")) == [0.5, 1.5, 0.0]
    assert gain.for_pictures == ["a schedule", "a text encoder's weight"]
    assert Gain(0.5, blocks={"L00": 1.0, "MID": 0.0}).for_pictures == ["block MID"]


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ((), {0.0: 1.0, 1.0: 1.0}),
        (((0.3, 2.0),), {0.0: 2.0, 0.3: 2.0, 1.0: 2.0}),
        (((0.0, 0.0), (0.4, 1.0)), {0.0: 0.0, 0.1: 0.25, 0.4: 1.0, 0.9: 1.0}),
        (((0.5, 0.0), (0.5, 1.0)), {0.0: 0.0, 0.49: 0.0, 0.5: 1.0, 0.6: 1.0}),  # a jump
    ],
)
def test_a_schedule_is_linear_between_its_points_and_constant_outside(
    schedule: Schedule, at: dict[float, float]
) -> None:
    assert {place: pytest.approx(factor(schedule, place)) for place in at} == at


def test_schedules_read_back_as_they_were_written() -> None:
    assert parse_schedule(" 0@0, 1@0.4 ") == ((0.0, 0.0), (0.4, 1.0))
    assert parse_schedule("") == ()
    assert format_schedule(((0.0, 0.0), (0.4, 1.0))) == "0@0,1@0.4"
    made = random.Random(0)
    for _ in range(100):
        places = sorted(made.random() for _ in range(made.randrange(5)))
        schedule = tuple((place, made.choice((-1.0, made.random()))) for place in places)
        assert parse_schedule(format_schedule(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x@0,1@y,3", ["'x@0'", "'1@y'", "'3'"]),
        ("1@-0.1,1@1.5", ["-0.1", "1.5"]),
        ("1@0.5,0@0.2", ["0.2 comes after 0.5"]),
        ("1@0.5,0@0.5,1@0.5", ["0.5 stands there 3 times"]),
    ],
)
def test_every_fault_of_a_schedule_is_named(text: str, named: list[str]) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_schedule(text)
    assert len(caught.value.faults) == len(named)
    assert all(part in fault for part, fault in zip(named, caught.value.faults, strict=True))


def test_a_gain_that_makes_no_sense_is_refused_with_all_its_faults() -> None:
    with pytest.raises(AdapterError) as caught:
        Gain(math.nan, math.inf, {"IN99": 1.0, "MID": -math.inf}, ((2.0, 1.0), (0.5, math.nan)))
    faults = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 7
    assert all(
        part in faults for part in ("weight", "text_encoder", "IN99: no such block", "MID", "2.0", "nan", "after")
    )
    assert "IN00 to IN11" in caught.value.next_step
