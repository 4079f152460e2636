"""Certificates: sums, shares, the way into a header and back, the chart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.blend.certificate import KEY, Certificate, Row, chart, of_header, save_chart, summed
from trainers.errors import AdapterError, RunError

LAYERS = {
    "unet.up_blocks.1.attentions.2.proj_in": Row(4, 1.0, 0.0, 0.0),
    "unet.mid_block.attentions.0.proj_in": Row(2, 3.0, 1.0, 1.25),
    "unet.mid_block.attentions.0.proj_out": Row(8, 6.0, 0.0, 1 / 3),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": Row(1, 0.0, 0.0, 0.0),
}
FACTS = {"method": "svd", "adapters": [{"name": "ink", "weight": 0.6}, {"name": "neon", "weight": -1.0}]}
WHOLE = Certificate(FACTS, LAYERS)


def test_rows_add_up_per_block_in_the_order_of_the_picture() -> None:
    blocks = WHOLE.blocks()
    assert list(blocks) == ["BASE", "MID", "OUT05"]
    middle = blocks["MID"]
    assert (middle.modules, middle.ranks, middle.energy) == (2, "2 to 8", 10.0)
    assert (middle.share, middle.in_file) == (0.9, pytest.approx(1 - (1.25 + 1 / 3) / 10))
    assert (blocks["OUT05"].ranks, WHOLE.total.modules, WHOLE.total.ranks) == ("4", 4, "1 to 8")
    assert summed([summed([LAYERS[path]]) for path in LAYERS]) == WHOLE.total


def test_a_layer_without_energy_has_lost_nothing() -> None:
    assert (WHOLE.blocks()["BASE"].share, WHOLE.blocks()["BASE"].in_file) == (1.0, 1.0)


def test_it_comes_back_from_a_header() -> None:
    back = of_header({KEY: WHOLE.text()})
    assert back.facts == FACTS
    assert back.parts == "0.6 ink - 1 neon"
    assert back.layers["unet.mid_block.attentions.0.proj_out"].missed == 0.333333333333
    assert back.text() == WHOLE.text()
    assert json.loads(WHOLE.text())["total"]["kept"] == 10.0


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"total": 1, "layers": {"a": [1]}}', '{"total": 1, "layers": 2}']
)
def test_what_is_no_certificate_is_told(text: str | None) -> None:
    with pytest.raises(AdapterError, match="certificate"):
        of_header({} if text is None else {KEY: text})


def test_the_chart_is_drawn_whole_or_not_at_all(tmp_path: Path) -> None:
    assert chart(WHOLE).size[0] == 960
    save_chart(WHOLE, tmp_path / "new" / "kept.png")
    assert (tmp_path / "new" / "kept.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        save_chart(WHOLE, tmp_path / "file" / "kept.png")
