"""What a finished run says of itself, in the adapter's header and in report.json, is true and names no place."""

from __future__ import annotations

import getpass
import io
import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from training import adapter, config_for, pictures, train

from trainers import events, run
from trainers.bases import find
from trainers.config import TrainConfig
from trainers.events import Event, Finished, Started, Step
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import digest


@dataclass(frozen=True)
class Done:
    """A finished run: 3 pictures of its own, 1 in a class folder that counts twice, 5 steps of 4."""

    config: TrainConfig
    told: list[Event]
    header: dict[str, str]
    report: dict[str, Any]

    def one(self, kind: type) -> Any:
        (event,) = [event for event in self.told if isinstance(event, kind)]
        return event


@pytest.fixture(scope="module")
def done(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    place = tmp_path_factory.mktemp("secret-place")
    data = pictures(place / "my pictures", 3)
    pictures(data / "2_blue boat", 1, captions=False, first=5)
    settings = {"train.steps": 5, "dataset.trigger": "sks", "objective.noise_offset": 0.1, "lora.alpha": 3.0}
    config = config_for(tiny_base, data, place / "runs" / "ink", settings | {"name": "tiny ink"})
    told = train(config)
    with safe_open(run.adapter_path(config), framework="pt") as file:
        header = dict(file.metadata())
    return Done(config, told, header, json.loads((config.out / "report.json").read_text()))


def test_kohyas_entries(done: Done, tiny_base: Path) -> None:
    wanted = {
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "3.0",
        "ss_output_name": "tiny ink",
        "ss_sd_model_name": "tiny-base",
        "ss_new_sd_model_hash": StableDiffusion(find(str(tiny_base))).digest("unet"),
        "ss_seed": "3",
        "ss_steps": "5",
        "ss_epoch": "4",  # 20 exposures, 5 an epoch
        "ss_learning_rate": "0.01",
        "ss_unet_lr": "0.01",
        "ss_text_encoder_lr": "0.002",
        "ss_optimizer": "adamw8bit",
        "ss_lr_scheduler": "cosine",
        "ss_resolution": "(16, 16)",
        "ss_num_train_images": "4",
        "ss_min_snr_gamma": "5.0",
        "ss_noise_offset": "0.1",
        "ss_mixed_precision": "no",
    }
    assert {key: done.header.get(key) for key in wanted} == wanted
    assert json.loads(done.header["ss_dataset_dirs"]) == {
        "1_my pictures": {"n_repeats": 1, "img_count": 3},
        "2_blue boat": {"n_repeats": 2, "img_count": 1},
    }
    tags = json.loads(done.header["ss_tag_frequency"])
    assert tags["1_my pictures"] == {"sks": 3, "a red house": 1, "a blue boat": 1, "a green tree": 1, "by the sea": 3}
    assert tags["2_blue boat"] == {"sks": 1, "blue boat": 1}
    assert json.loads(done.header["ss_bucket_info"]) == {"buckets": {"0": {"resolution": [16, 16], "count": 4}}}


def test_modelspecs_entries(done: Done) -> None:
    wanted = {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-v1/lora",
        "implementation": "diffusers",
        "title": "tiny ink",
        "resolution": "16x16",
        "trigger_phrase": "sks",
        "prediction_type": "epsilon",
    }
    assert {key: done.header.get(f"modelspec.{key}") for key in wanted} == wanted
    assert re.fullmatch(r"0x[0-9a-f]{64}", done.header["modelspec.hash_sha256"])
    picture = Image.open(io.BytesIO(adapter(done.config).info.thumbnail or b""))
    assert (picture.format, picture.size) == ("JPEG", (256, 256))
    assert len(picture.getcolors(100_000) or []) > 100


def test_styloras_own_entries(done: Done) -> None:
    own = {key: value for key, value in done.header.items() if key.startswith("stylora.")}
    assert own.keys() == {"stylora.version", "stylora.base_digest", "stylora.data_digest", "stylora.config"}
    assert own["stylora.base_digest"] == done.header["ss_new_sd_model_hash"]
    assert re.fullmatch("[0-9a-f]{64}", own["stylora.data_digest"])
    settings = json.loads(own["stylora.config"])
    assert settings["base"] == "tiny-base"
    assert settings["lora"] == done.config.lora.model_dump(exclude={"dora"})
    assert settings["optim"] == done.config.optim.model_dump()
    assert settings["train"] == {"steps": 5, "batch": 4, "precision": "auto"}


def test_the_header_names_no_place_no_person_and_no_time(done: Done) -> None:
    text = json.dumps({key: value for key, value in done.header.items() if key != "modelspec.thumbnail"})
    for secret in (
        "secret-place",
        "runs",
        str(Path.home()),
        str(Path.cwd()),
        socket.gethostname(),
        "stylora-test-cache",
    ):
        assert secret not in text
    assert f'"{getpass.getuser()}"' not in text
    assert not re.search(r'[" ]/\w|20\d\d-\d\d|started_at|finished_at', text)


def test_the_report(done: Done) -> None:
    steps = [event for event in done.told if isinstance(event, Step)]
    facts = done.report
    path = run.adapter_path(done.config)
    assert (facts["name"], facts["base"], facts["adapter"]) == ("tiny ink", done.config.base, "tiny ink.safetensors")
    assert facts["sha256"] == digest(path)
    assert (facts["steps"], facts["pictures"], facts["exposures_per_picture"]) == (5, 4, [4, 8])
    assert (facts["device"], facts["precision"], facts["processes"]) == ("cpu", "fp32", 1)
    assert facts["loss_first_tenth"] == steps[0].loss
    assert facts["loss_last_tenth"] == steps[-1].loss
    assert facts["pictures_per_second"] == pytest.approx(20 / facts["seconds"], rel=0.1)
    assert facts["peak_memory_bytes"] > 50_000_000
    assert facts["data_digest"] == done.header["stylora.data_digest"]
    pairs = adapter(done.config).pairs
    for part, (trained, total) in facts["parameters"].items():
        own = [pair for name, pair in pairs.items() if name.startswith(f"{part}.")]
        assert trained == sum(pair.down.numel() + pair.up.numel() for pair in own) > 0
        assert total > 10 * trained / 2
    numbers = sum(trained for trained, _ in facts["parameters"].values())
    gaps = 256 * 2 * len(pairs)  # each tensor begins a block of its own
    assert 2 * numbers < facts["optimizer_state_bytes"] < 2.1 * (numbers + gaps) + 10_000


def test_the_first_and_last_events_say_what_the_report_says(done: Done) -> None:
    started, finished = done.one(Started), done.one(Finished)
    assert (started.name, started.samples, started.steps, started.first_step) == ("tiny ink", 4, 5, 0)
    assert started.exposures == (4, 8)
    assert {part: list(pair) for part, pair in started.parameters.items()} == done.report["parameters"]
    assert finished.report == done.report
    assert (finished.path, finished.sha256) == (str(run.adapter_path(done.config)), done.report["sha256"])


def test_the_events_file_holds_what_was_told(done: Done) -> None:
    lines = (done.config.out / "events.jsonl").read_text().splitlines()
    assert [events.from_json(line) for line in lines] == done.told


def test_the_plot_is_there(done: Done) -> None:
    with Image.open(done.config.out / "loss.png") as plot:
        assert plot.size == (960, 420)


def test_the_file_is_the_same_wherever_the_training_is_started_from(
    done: Done, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--data .`, a relative base and another run folder: nothing of it may come into the file."""
    monkeypatch.chdir(done.config.data)
    base = Path("..", *[".."] * (len(done.config.data.parts) - 2), *tiny_base.parts[1:])
    settings = done.config.model_dump(exclude={"data", "out", "base"})
    again = TrainConfig(**settings, data=Path(), out=Path("../elsewhere"), base=str(base))
    train(again)
    there = Path("../elsewhere/tiny ink.safetensors").read_bytes()
    assert there == run.adapter_path(done.config).read_bytes()
    read = run.read_config(Path("../elsewhere"))
    monkeypatch.chdir("/")  # resumed from here, it still finds everything
    assert read.data == done.config.data.resolve()
    assert (Path(read.base) / "model_index.json").is_file()
