"""The wheel alone, unpacked in an empty folder, has all that `stylora demo` needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "sample_data" / "bases" / "tiny-sd" / "model_index.json"
INSIDE = "trainers/sample_data"
MOST_BYTES = 53_000_000

pytestmark = pytest.mark.skipif(not INDEX.exists(), reason=f"the embedded base isn't made yet: no {INDEX}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    result = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (made,) = folder.glob("stylora-*.whl")
    return made


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_the_code_a_base_a_style_and_the_judge(wheel: Path) -> None:
    names = names_in(wheel)
    source = [path for package in ("trainers", "studio") for path in (ROOT / package).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in source} <= names
    assert f"{INSIDE}/judge.safetensors" in names
    for part in ("model_index.json", "tokenizer", "text_encoder", "unet", "vae", "scheduler"):
        assert any(name.startswith(f"{INSIDE}/bases/tiny-sd/{part}") for name in names), part
    for part in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert f"{INSIDE}/bases/tiny-lm/{part}" in names
    for part in ("train", "heldout", "chat"):
        assert f"{INSIDE}/text/pirate/{part}.jsonl" in names
    pictures = {name for name in names if name.startswith(f"{INSIDE}/styles/ink/") and name.endswith(".png")}
    assert len(pictures) == 16
    assert {name.removesuffix(".png") + ".txt" for name in pictures} <= names


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trainers", "studio"}
    styles = {name.split("/")[3] for name in names_in(wheel) if name.startswith(f"{INSIDE}/styles/")}
    assert styles == {"ink"}
    texts = {name.split("/")[3] for name in names_in(wheel) if name.startswith(f"{INSIDE}/text/")}
    assert texts == {"pirate"}
    assert wheel.stat().st_size < MOST_BYTES


def test_demo_runs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    unpacked, empty = tmp_path / "unpacked", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)

    def run(code: str, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(unpacked)}
        command = [sys.executable, "-c", code, *arguments]
        result = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    where = run("import studio, trainers.samples as s; print(studio.__file__, s.__file__, s.sample_data())")
    assert all(Path(path).is_relative_to(unpacked) for path in where.split())
    run("from studio.cli import main; main()", "demo", "--steps", "2", "--out", "out")
    for name in ("before_after.png", "report.json"):
        assert (empty / "out" / name).stat().st_size > 0
    assert list((empty / "out").glob("**/*.safetensors"))
