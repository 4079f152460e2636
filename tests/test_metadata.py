"""Names and spellings of the header entries other tools read."""

from __future__ import annotations

import json

import pytest

from trainers.errors import AdapterError
from trainers.lora.metadata import kohya_metadata, modelspec_metadata, tag_counts, thumbnail_of, trigger_of


def test_kohya_entries_have_their_names_and_are_all_strings() -> None:
    entries = kohya_metadata(
        base_version="sd_v1",
        rank=16,
        alpha=8.0,
        name="ink",
        seed=7,
        steps=300,
        unet_lr=2e-4,
        resolution=(512, 768),
        pictures=16,
        tag_frequency={"10_ink": {"boat": 2, "a house": 1}},
        dataset_dirs={"10_ink": {"n_repeats": 10, "img_count": 16}},
        base_digest="ab" * 32,
    )
    assert all(isinstance(value, str) for value in entries.values())
    wanted = {
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "16",
        "ss_network_alpha": "8.0",
        "ss_network_args": "{}",
        "ss_output_name": "ink",
        "ss_unet_lr": "0.0002",
        "ss_resolution": "(512, 768)",
        "ss_num_train_images": "16",
        "ss_new_sd_model_hash": "ab" * 32,
    }
    assert wanted.items() <= entries.items()
    assert json.loads(entries["ss_tag_frequency"]) == {"10_ink": {"a house": 1, "boat": 2}}
    assert json.loads(entries["ss_dataset_dirs"]) == {"10_ink": {"img_count": 16, "n_repeats": 10}}


def test_what_was_not_given_is_left_out_and_no_clock_speaks() -> None:
    entries = kohya_metadata(base_version="sd_v2_v", rank=4, alpha=4)
    assert entries["ss_v2"] == "True"
    assert not [key for key in entries if "started" in key or "finished" in key or "seed" in key]
    assert entries == kohya_metadata(base_version="sd_v2_v", rank=4, alpha=4)


def test_zero_is_said_and_not_left_out() -> None:
    assert kohya_metadata(base_version="sd_v1", rank=4, alpha=4, seed=0, noise_offset=0.0)["ss_seed"] == "0"


@pytest.mark.parametrize(
    ("base_version", "architecture"),
    [
        ("sd_v1", "stable-diffusion-v1/lora"),
        ("sd_v2", "stable-diffusion-v2-512/lora"),
        ("sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_modelspec_has_its_required_entries(base_version: str, architecture: str) -> None:
    entries = modelspec_metadata(base_version=base_version, title="Ink", resolution=(640, 512))
    assert entries["modelspec.sai_model_spec"] == "1.0.1"
    assert entries["modelspec.architecture"] == architecture
    assert (entries["modelspec.implementation"] == "diffusers") is not base_version.startswith("sdxl")
    assert (entries["modelspec.title"], entries["modelspec.resolution"]) == ("Ink", "640x512")


def test_modelspec_optional_entries() -> None:
    entries = modelspec_metadata(
        base_version="sd_v1", title="Ink", trigger="inkstyle", prediction="v_prediction", clip_skip=2,
        tags=["ink", "hatching"], thumbnail=b"\xff\xd8jpeg",
    )  # fmt: skip
    assert entries["modelspec.trigger_phrase"] == "inkstyle"
    assert entries["modelspec.prediction_type"] == "v"
    assert entries["modelspec.encoder_layer"] == "2"
    assert entries["modelspec.tags"] == "ink, hatching"
    assert entries["modelspec.thumbnail"] == "data:image/jpeg;base64,/9hqcGVn"
    assert "modelspec.date" not in entries


def test_unknown_base_and_prediction_are_both_named() -> None:
    with pytest.raises(AdapterError) as caught:
        modelspec_metadata(base_version="flux", title="Ink", prediction="flow")
    assert ["'flux'" in caught.value.faults[0], "'flow'" in caught.value.faults[1]] == [True, True]


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '{"a": {"b": "c"}}'])
def test_broken_tags_are_no_tags(text: str) -> None:
    assert tag_counts({"ss_tag_frequency": text}) == {}
    assert trigger_of({"ss_tag_frequency": "{}", "ss_dataset_dirs": text}) == ""


def test_tags_that_all_captions_share_are_the_trigger_where_none_is_said() -> None:
    tags = {"10_ink": {"ink style": 2, "a cat": 1, "a dog": 1}, "1_more": {"ink style": 1, "a cat": 1}}
    folders = {"10_ink": {"n_repeats": 10, "img_count": 2}, "1_more": {"n_repeats": 1, "img_count": 1}}
    head = {"ss_tag_frequency": json.dumps(tags), "ss_dataset_dirs": json.dumps(folders)}
    assert trigger_of(head) == "ink style"
    assert trigger_of(head | {"modelspec.trigger_phrase": "inkstyle"}) == "inkstyle"
    assert trigger_of({"ss_tag_frequency": head["ss_tag_frequency"]}) == ""
    same = {"a": {"1girl": 5, "solo": 5, "hat": 5, "tree": 5}}
    alike = {"ss_tag_frequency": json.dumps(same), "ss_dataset_dirs": '{"a": {"img_count": 5}}'}
    assert trigger_of(alike) == ""  # a subject in keywords


def test_a_thumbnail_may_be_of_another_kind_than_the_standards() -> None:
    assert thumbnail_of({"modelspec.thumbnail": "data:image/png;base64,/9g="}) == b"\xff\xd8"
    assert thumbnail_of({"modelspec.thumbnail": "data:image/png;base64,?"}) is None
    assert thumbnail_of({"modelspec.thumbnail": "https://example.org/ink.png"}) is None
