"""An adapter as people type it: weights, parts in any order, file names with colons, folders; and every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.draw.use import Use, from_table, located, parse_use, to_table, written
from trainers.errors import AdapterError
from trainers.lora.gains import Gain


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    path = located(tmp_path) / "ink.safetensors"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("suffix", "gain"),
    [
        ("", Gain()),
        (":0.8", Gain(0.8)),
        (":-1", Gain(-1.0)),
        (":1e-1", Gain(0.1)),
        (":te=0.4", Gain(1.0, 0.4)),
        (":blocks=IN01-IN02=0.5,MID=0:2", Gain(2.0, blocks={"IN01": 0.5, "IN02": 0.5, "MID": 0.0})),
        (":schedule=0@0,1@0.4:te=-1:0.5", Gain(0.5, -1.0, schedule=((0, 0), (0.4, 1)))),
    ],
)
def test_an_adapter_and_its_gain(ink: Path, suffix: str, gain: Gain) -> None:
    use = parse_use(f"{ink}{suffix}")
    assert use == Use(ink, gain)
    (deep := ink.parent / "deep").mkdir()
    assert from_table(to_table(use, deep), deep) == use


def test_names(ink: Path) -> None:
    assert parse_use(str(ink)).title == "ink"
    assert parse_use(f"{ink}:name=my ink").title == "my ink"


@pytest.mark.parametrize("name", ["ink:0.8", "te=1:x.safetensors"])
def test_file_names_with_colons(ink: Path, name: str) -> None:
    file = ink.with_name(name)
    file.write_bytes(b"")
    assert parse_use(str(file)) == Use(file)
    assert parse_use(f"{file}:0.3") == Use(file, Gain(0.3))


def test_folders(ink: Path) -> None:
    run, peft = ink.parent / "run", ink.parent / "peft.v1"
    for folder in (run, peft / "unet"):
        folder.mkdir(parents=True)
    (run / "report.json").write_text(json.dumps({"adapter": "made.safetensors"}))
    with pytest.raises(AdapterError, match="no such file"):
        parse_use(f"{run}:0.5")
    (run / "made.safetensors").write_bytes(b"")
    (peft / "unet" / "adapter_config.json").write_text("{}")
    assert parse_use(f"{run}:0.5") == Use(run / "made.safetensors", Gain(0.5))
    assert parse_use(str(peft)) == Use(peft)


@pytest.mark.parametrize("report", [None, "", "[]", "{}", '"text"', '{"adapter": 3}'])
def test_a_folder_without_a_finished_run(tmp_path: Path, report: str | None) -> None:
    if report is not None:
        (tmp_path / "report.json").write_text(report)
    with pytest.raises(AdapterError, match="no finished run") as caught:
        parse_use(str(tmp_path))
    assert caught.value.next_step


@pytest.mark.parametrize("number", ["", "x", "nan", "inf", "0,8"])
def test_what_is_no_weight(ink: Path, number: str) -> None:
    for text in (f"{ink}:{number}", f"{ink}:te={number}"):
        with pytest.raises(AdapterError) as caught:
            parse_use(text)
        assert caught.value.faults == (f"{text}: {number!r} is no weight",)


def test_all_faults_of_a_use() -> None:
    with pytest.raises(AdapterError) as caught:
        parse_use("gone.safetensors:0.8:0.9:blok=1:te=x:blocks=IN77=1:schedule=1")
    faults = "\n".join(caught.value.faults)
    for said in ("stands there twice", "nearest is blocks", "'x' is no weight", "'IN77' is no block", "FACTOR@PLACE"):
        assert said in faults
    assert "gone.safetensors: there is no such file" in faults


def test_paths_in_files(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    assert written(tmp_path / "adapters" / "ink.safetensors", folder) == "../adapters/ink.safetensors"
    far = Path("/elsewhere/ink.safetensors")
    assert written(far, folder) == to_table(Use(far), folder)["file"] == "/elsewhere/ink.safetensors"
    assert written(far, folder, absolute=False) == "ink.safetensors"
    assert to_table(Use(far), folder, absolute=False)["file"] == "ink.safetensors"
