"""Each setting is written once, with a legal default, its meaning and its limits."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainers.leaves import by_key, leaves
from trainers.settings import LoraConfig, Settings


def test_every_setting_says_what_it_means_and_takes() -> None:
    for leaf in leaves():
        assert leaf.description, leaf.key
        assert leaf.type_text, leaf.key
        assert leaf.required == (leaf.key in {"data", "out"})


def test_defaults_pass_their_own_limits() -> None:
    sections = {leaf.section for leaf in leaves() if leaf.section}
    defaults = {s: {leaf.name: leaf.default for leaf in leaves() if leaf.section == s} for s in sections}
    bare = {"data": "a", "out": "b"}
    assert Settings.model_validate(bare | defaults) == Settings.model_validate(bare)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("lora.rank", "int >= 1"),
        ("optim.lr", "number > 0 or none"),
        ("lora.dropout", "number >= 0, < 1"),
        ("dataset.resolution", "int >= 32, multiple of 8 or none"),
        ("adapter.format", "kohya|diffusers|peft"),
        ("train.preview_prompts", "list of texts"),
    ],
)
def test_limits_are_shown_as_they_are_checked(key: str, text: str) -> None:
    assert by_key()[key].type_text == text


def test_unset_settings_follow_others() -> None:
    lora = LoraConfig(rank=9)
    assert (lora.full_alpha, lora.text_encoder_rank, lora.text_encoder_alpha) == (9.0, 4, 4.0)
    assert LoraConfig(rank=1).text_encoder_rank == 1
    assert LoraConfig(rank=16, alpha=4, text_rank=8).text_encoder_alpha == 2.0  # the same alpha / rank


@pytest.mark.parametrize("value", ["red", "#fff", "#ggffff", "ffffff", "#ffffff\n"])
def test_colours(value: str) -> None:
    with pytest.raises(ValidationError, match="a colour such as"):
        Settings.model_validate({"data": "a", "out": "b", "dataset": {"background": value}})


@pytest.mark.parametrize("targets", ["attentoin", "to_(q", "", [], ["to_q", ""]])
def test_targets_that_cannot_be_meant(targets: str | list[str]) -> None:
    with pytest.raises(ValidationError):
        LoraConfig(targets=targets)


def test_targets_are_a_preset_or_patterns() -> None:
    assert LoraConfig(targets="attention+ff").targets == "attention+ff"
    assert LoraConfig(targets=r"attn2\.to_[qk]$").targets == [r"attn2\.to_[qk]$"]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LoraConfig().rank = 4
