"""Modules have the block labels people's tools use, and lists of factors by label read back as they were written."""

from __future__ import annotations

import random

import pytest

from trainers.errors import AdapterError
from trainers.lora.blocks import GROUPS, LABELS, PICTURES, block_of, format_blocks, order, parse_blocks


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("unet.conv_in", "IN00"),
        ("unet.down_blocks.0.attentions.0.proj_in", "IN01"),
        ("unet.down_blocks.0.downsamplers.0.conv", "IN03"),
        ("unet.down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q", "IN08"),
        ("unet.down_blocks.3.resnets.1.conv1", "IN11"),
        ("unet.mid_block.attentions.0.proj_out", "MID"),
        ("unet.up_blocks.0.resnets.0.conv1", "OUT00"),
        ("unet.up_blocks.1.attentions.2.proj_in", "OUT05"),
        ("unet.up_blocks.1.upsamplers.0.conv", "OUT05"),
        ("unet.up_blocks.3.attentions.2.proj_in", "OUT11"),
        ("unet.up_blocks.9.attentions.2.proj_in", "OTHER"),
        ("unet.time_embedding.linear_1", "OTHER"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "BASE"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "BASE2"),
        ("model.model.layers.0.self_attn.q_proj", "L00"),
        ("model.model.layers.31.mlp.experts.3.gate_proj", "L31"),
        ("model.model.decoder.layers.7.fc1", "L07"),
        ("model.transformer.h.11.attn.c_attn", "L11"),
        ("model.transformer.blocks.127.ffn.up_proj", "L127"),
        ("model.model.layers.128.self_attn.q_proj", "OTHER"),
        ("model.lm_head", "OTHER"),
    ],
)
def test_a_module_lies_in_the_block_that_kohyas_users_know(path: str, label: str) -> None:
    assert block_of(path) == label


def test_labels_are_ordered_as_the_data_goes() -> None:
    assert sorted(set(LABELS), key=order) == list(LABELS)
    assert sorted(["?", "OTHER", "OUT00", "IN11", "BASE2"], key=order) == ["BASE2", "IN11", "OUT00", "OTHER", "?"]


def test_labels_ranges_and_groups_are_read() -> None:
    assert parse_blocks("") == {}
    assert parse_blocks(" mid = -0.5 ,BASE=0") == {"BASE": 0.0, "MID": -0.5}
    assert parse_blocks("IN10-OUT01=2") == dict.fromkeys(("IN10", "IN11", "MID", "OUT00", "OUT01"), 2.0)
    assert parse_blocks("l00-l02 = 0.5") == {"L00": 0.5, "L01": 0.5, "L02": 0.5}
    assert parse_blocks("L126-OTHER=2") == {"L126": 2.0, "L127": 2.0, "OTHER": 2.0}
    assert parse_blocks("OUT10-OTHER=2") == {"OUT10": 2.0, "OUT11": 2.0, "OTHER": 2.0}
    assert parse_blocks("OUT=0.25") == dict.fromkeys(GROUPS["OUT"], 0.25)
    found = parse_blocks("IN=0.5,IN03=1")
    assert found.pop("IN03") == 1
    assert found == {label: 0.5 for label in GROUPS["IN"] if label != "IN03"}


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ({}, ""),
        ({"MID": 0.0, "IN00": 1.0}, "IN00=1,MID=0"),
        (dict.fromkeys(PICTURES, 0.1), "BASE=0.1,BASE2=0.1,IN=0.1,MID=0.1,OUT=0.1,OTHER=0.1"),
        ({**dict.fromkeys(GROUPS["L"], 0.1), "OTHER": 0.0}, "L=0.1,OTHER=0"),
        (dict.fromkeys(GROUPS["L"][2:6], 0.5), "L02-L05=0.5"),
        ({"IN01": 1.0, "IN02": 1.0, "IN04": 1.0}, "IN01-IN02=1,IN04=1"),
        ({"OUT03": 1 / 3}, "OUT03=0.3333333333333333"),
    ],
)
def test_a_list_is_written_short(blocks: dict[str, float], text: str) -> None:
    assert format_blocks(blocks) == text


def test_what_is_written_reads_back_the_same() -> None:
    made = random.Random(0)
    for _ in range(200):
        blocks = {label: made.choice((0.5, -1.0, made.random())) for label in LABELS if made.random() < 0.6}
        assert parse_blocks(format_blocks(blocks)) == blocks


def test_every_entry_that_cannot_be_read_is_named() -> None:
    with pytest.raises(AdapterError) as caught:
        parse_blocks("IN12=1,MID,OUT05-OUT01=nan,MID=2,IN=1,OUT01-L03=1,")
    faults = "\n".join(caught.value.faults)
    assert all(part in faults for part in ("'IN12'", "'MID'", "'OUT05-OUT01'", "'OUT01-L03'", "'nan'", "''"))
    assert "'MID=2'" not in faults
    assert "OUT00 to OUT11" in caught.value.next_step
    with pytest.raises(AdapterError, match="override") as caught:
        parse_blocks("IN03=1,IN=2")
    assert len(caught.value.faults) == 1
