"""Only the parts of one adapter come out of an upload, into the folder that was named, never more than is allowed."""

from __future__ import annotations

import errno
import io
import stat
import zipfile
from pathlib import Path

import pytest

from studio.desk import arrivals
from studio.desk.arrivals import copied, unpacked
from trainers.errors import AdapterError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def packed(*names: str | zipfile.ZipInfo) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, "four")
    return made.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize("root", ["", "ink/", "a/b/ink/", "./"])
@pytest.mark.parametrize("parts", [[""], ["unet/", "text_encoder/"]])
def test_one_adapter_comes_out(tmp_path: Path, root: str, parts: list[str]) -> None:
    wanted = [f"{part}{file}" for part in parts for file in (CONFIG, TENSORS)]
    more = ["README.md", "deep/er/model.py", "__MACOSX/._adapter_config.json", f"{TENSORS}.bak"]
    place = unpacked("a/../My ink.ZIP", packed(*(root + name for name in wanted + more)), tmp_path)
    assert place == tmp_path / "My ink"
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {f"My ink/{name}" for name in wanted}


@pytest.mark.parametrize(
    "name",
    [f"../{TENSORS}", f"/etc/{TENSORS}", f"..\\{TENSORS}", f"C:\\{TENSORS}", f"a/../../{TENSORS}", link(TENSORS)],
)
def test_nothing_comes_out_where_a_name_leads_elsewhere(tmp_path: Path, name: str | zipfile.ZipInfo) -> None:
    with pytest.raises(AdapterError, match="lead out of its folder"):
        unpacked("x.zip", packed(CONFIG, name), tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_lies_is_no_way_round_the_limit(tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, "{}")
        archive.writestr(TENSORS, bytes(5_000_000))
    lying = made.getvalue().replace((5_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with pytest.raises(AdapterError, match="too large for an adapter"):
        unpacked("x.zip", made.getvalue(), tmp_path, largest=1_000_000)
    with pytest.raises(AdapterError, match="no sound zip"):
        unpacked("x.zip", lying, tmp_path, largest=1_000_000)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 100


@pytest.mark.parametrize("name", ["x", "x.ckpt", "x.pt", ".safetensors", "x.zip.exe", "", "a\u202e\x00.png"])
def test_other_kinds_are_told_what_is_wanted(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="no adapter by its name") as refusal:
        unpacked(name, b"", tmp_path)
    assert refusal.value.what.isprintable()
    assert ".safetensors" in refusal.value.next_step


def test_a_copy_holds_the_adapter_alone(tmp_path: Path) -> None:
    (folder := tmp_path / "ink").mkdir()
    for name in (CONFIG, TENSORS, "optimizer.pt"):
        (folder / name).write_text(name)
    (aside := tmp_path / "aside").mkdir()
    copy = copied(folder, aside, [tmp_path])
    assert {path.name: path.read_text() for path in copy.iterdir()} == {CONFIG: CONFIG, TENSORS: TENSORS}
    with pytest.raises(AdapterError, match="too large"):
        copied(folder, aside, [tmp_path], largest=10)
    (folder / TENSORS).unlink()
    with pytest.raises(AdapterError, match="can't be copied"):
        copied(folder, aside, [tmp_path])


def test_a_full_disk_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (folder := tmp_path / "ink").mkdir()
    for name in (CONFIG, TENSORS):
        (folder / name).write_text(name)
    monkeypatch.setattr(arrivals.shutil, "copyfileobj", full)
    for take in (
        lambda: unpacked("ink.safetensors", b"x", tmp_path),
        lambda: unpacked("ink 2.zip", packed(CONFIG, TENSORS), tmp_path),
        lambda: copied(folder, tmp_path / "aside", [tmp_path]),
    ):
        with pytest.raises(AdapterError, match=r"ink.*: can't be copied|ink.* can't be written") as refusal:
            take()
        assert refusal.value.faults == ("No space left on device",)
        assert "space" in refusal.value.next_step
