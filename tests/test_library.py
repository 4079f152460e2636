"""The library shows what lies in its folder, keeps what is removed, takes in nothing that is broken or misplaced."""

from __future__ import annotations

import errno
import io
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from shelves import files_in, picture, style, voice, zipped

from studio.desk import cards
from studio.desk.library import Changes, Library
from studio.desk.rows import Fit
from studio.desk.store import Store
from studio.merge.weights import open_base
from trainers.errors import AdapterError, ConfigError, RunError
from trainers.lora.adapter import Adapter, content_digest, save_dora
from trainers.lora.pair import LoraPair


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def shelf(home: Path) -> Iterator[Library]:
    store = Store(home / ".studio" / "studio.db")
    yield Library(home, store)
    store.close()


# --- looking ---------------------------------------------------------------------------------------------------------


def test_what_lies_in_the_folder_is_shown(home: Path, shelf: Library) -> None:
    style(thumbnail=picture()).save(home / "ink.safetensors")
    voice().save(home / "pirate", "peft")
    (home / "odd.SAFETENSORS").write_bytes(b"junk")
    (home / "empty").mkdir()
    (home / ".hidden.safetensors").write_bytes(b"junk")
    assert (shelf.refresh(), shelf.refresh()) == (Changes(new=3), Changes())
    ink, odd, pirate = shelf.cards()
    assert (ink.name, ink.family, ink.kind, ink.base_name) == ("ink", "sd1", "pictures", "tiny-sd")
    assert (ink.trigger, ink.title, ink.rank, ink.header_tags) == ("inkstyle", "Ink drawings", 2, {"line art": 3})
    assert ink.id == content_digest(Adapter.load(ink.path))
    assert (ink.path, ink.size, ink.error) == (home / "ink.safetensors", ink.path.stat().st_size, None)
    assert (pirate.name, pirate.family, pirate.kind, pirate.base_name) == ("pirate", "lm", "text", "tiny-lm")
    assert (odd.name, odd.size, odd.kind, odd.facts) == ("odd", 4, "", None)
    assert odd.error is not None
    assert odd.error["what"] == "odd.SAFETENSORS: not a whole safetensors file"
    assert odd.error["faults"]
    assert odd.error["next_step"] == "get the file again"


def test_an_unchanged_file_is_not_read_again(home: Path, shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = cards.read_card
    monkeypatch.setattr(cards, "read_card", lambda path: read.append(Path(path).name) or real(path))
    style(1).save(home / "a.safetensors")
    voice().save(home / "b", "peft")
    (home / "c.safetensors").write_bytes(b"junk")
    shelf.refresh()
    shelf.rename(shelf.cards("a")[0].id, "d")
    shelf.restore(shelf.remove(shelf.cards("b")[0].id).id)
    shelf.refresh()
    assert sorted(read) == ["a.safetensors", "b", "c.safetensors"]
    style(2).save(home / "d.safetensors")
    (home / "c.safetensors").unlink()
    (home / "b" / "adapter_config.json").write_text("{")
    assert shelf.refresh() == Changes(changed=2, gone=1)
    assert [(entry.name, entry.error is None) for entry in shelf.cards()] == [("b", False), ("d", True)]


def test_any_file_may_be_broken(home: Path, shelf: Library) -> None:
    style().save(home / "whole.safetensors")
    whole, noise = (home / "whole.safetensors").read_bytes(), torch.Generator().manual_seed(0)
    for number in range(40):
        broken = bytearray(whole)
        for place in torch.randint(0, 400, (1 + number % 4,), generator=noise).tolist():
            broken[place] = int(torch.randint(0, 256, (), generator=noise))
        (home / f"{number}.safetensors").write_bytes(broken)
    (home / "link.safetensors").symlink_to(home / "nowhere")
    (home / "folder.safetensors").mkdir()
    (home / "half").mkdir()
    (home / "half" / "adapter_config.json").write_text("{}")
    assert shelf.refresh() == Changes(new=43)
    names = {name for entry in shelf.cards() for name in (entry.path.name, *entry.copies)}
    assert names == {path.name for path in home.iterdir()} - {".studio", "folder.safetensors"}
    assert all(entry.error for entry in shelf.cards() if entry.name in ("link", "half"))


def test_search(home: Path, shelf: Library) -> None:
    style(1).save(home / "Ink.safetensors")
    style(2, trigger="neonstyle").save(home / "neon.safetensors")
    voice().save(home / "pirate", "peft")
    shelf.refresh()
    shelf.set_tags(shelf.cards("neon")[0].id, ["Night", "city"])

    def names(*query: str, **wanted: str | list[str]) -> list[str]:
        return [entry.name for entry in shelf.cards(*query, **wanted)]  # type: ignore[arg-type]

    assert names() == ["Ink", "neon", "pirate"]
    assert (names("NEONsty"), names("line drawings"), names("tiny-lm")) == (["neon"], ["Ink", "neon"], ["pirate"])
    assert (names("night drawings"), names("night pirate")) == (["neon"], [])
    assert (names(tags=["night"]), names(tags=["line art", "CITY"]), names(tags=["x"])) == (["neon"], ["neon"], [])
    assert (names(family="lm"), names(base="Tiny-SD"), names("ink", family="lm")) == (["pirate"], ["Ink", "neon"], [])


def test_tags_and_pictures_belong_to_the_numbers_not_to_the_name(home: Path, shelf: Library) -> None:
    style(thumbnail=picture("red")).save(home / "ink.safetensors")
    shelf.refresh()
    (ink,) = shelf.cards()
    assert shelf.set_tags(ink.id, ["a", "a", " b "]).tags == ("a", "b")
    shelf.set_thumbnail(ink.id, picture("blue", "PNG"))
    shown = shelf.thumbnail(ink.id)
    (home / "ink.safetensors").rename(home / "elsewhere.safetensors")
    style(thumbnail=None, trigger="other").save(home / "copy.safetensors")
    assert shelf.refresh() == Changes(new=2, gone=1)
    (same,) = shelf.cards()
    assert (same.id, same.name, same.copies, same.tags) == (ink.id, "copy", ("elsewhere.safetensors",), ("a", "b"))
    assert same.added == ink.added
    assert shelf.thumbnail(ink.id) == shown


def test_thumbnails(home: Path, shelf: Library) -> None:
    style(1, thumbnail=picture("red")).save(home / "ink.safetensors")
    style(2, thumbnail=b"no picture").save(home / "odd.safetensors")
    shelf.refresh()
    ink, odd = shelf.cards()

    def pixel() -> tuple[int, ...]:
        with Image.open(io.BytesIO(shelf.thumbnail(ink.id) or b"")) as shown:
            assert (shown.format, max(shown.size) <= 512) == ("JPEG", True)
            return tuple(round(value / 255) for value in shown.getpixel((0, 0)))  # type: ignore[union-attr]

    assert (pixel(), shelf.thumbnail(odd.id)) == ((1, 0, 0), None)
    shelf.set_thumbnail(ink.id, picture("blue", "PNG", (2000, 100)))
    assert pixel() == (0, 0, 1)
    for wrong in (b"", b"<svg/>", picture(kind="BMP"), picture()[:200]):
        with pytest.raises(AdapterError, match="the picture can't be read"):
            shelf.set_thumbnail(ink.id, wrong)
    assert pixel() == (0, 0, 1)
    shelf.set_thumbnail(ink.id, None)
    assert pixel() == (1, 0, 0)
    for ask in (shelf.thumbnail, shelf.entry, shelf.download, shelf.rename, shelf.restore):
        with pytest.raises(AdapterError, match="this adapter isn't"):
            ask(*("../../etc/passwd", "x")[: 1 + (ask == shelf.rename)])


# --- changing --------------------------------------------------------------------------------------------------------


def test_rename_remove_restore(home: Path, shelf: Library) -> None:
    for number, name in enumerate(("ink", "pen")):
        style(number).save(home / f"{name}.safetensors")
    voice().save(home / "pirate", "peft")
    shelf.refresh()
    ink, pen, pirate = shelf.cards()
    bytes_before = ink.path.read_bytes()
    assert shelf.rename(ink.id, "../pen.safetensors").path == home / "pen-2.safetensors"
    assert shelf.rename(pirate.id, "pen").path == home / "pen"
    assert shelf.rename(ink.id, "pen-2").name == "pen-2"
    shelf.set_tags(ink.id, ["kept"])
    removed = shelf.remove(ink.id)
    assert (shelf.cards("kept"), shelf.removed()) == ([], [removed])
    assert removed.path.relative_to(home).parts[:2] == (".studio", "bin")
    style(5).save(home / "pen-2.safetensors")
    shelf.refresh()
    back = shelf.restore(ink.id)
    assert (back.path, back.tags, back.path.read_bytes()) == (home / "pen-2-2.safetensors", ("kept",), bytes_before)
    assert (shelf.removed(), list((home / ".studio" / "bin").iterdir())) == ([], [])
    shelf.remove(pen.id)
    shelf.remove(shelf.cards("pen", family="lm")[0].id)
    assert [entry.id for entry in shelf.removed()] == [pirate.id, pen.id]
    assert (shelf.empty_bin(), shelf.removed()) == (2, [])
    assert files_in(home) == {"pen-2.safetensors", "pen-2-2.safetensors"}


def test_both_of_two_removed_copies_come_back(home: Path, shelf: Library) -> None:
    data = style().save(home / "ink.safetensors").read_bytes()
    shelf.refresh()
    (ink,) = shelf.cards()
    for _ in range(2):
        shelf.add_file("ink.safetensors", data)
        shelf.remove(ink.id)
    last, first = shelf.removed()
    assert (first.id, first.name) == (last.id, last.name)
    assert shelf.restore(first.id, first.path).path == home / "ink.safetensors"
    assert shelf.removed() == [last]
    shelf.restore(last.id, last.path)
    assert files_in(home) == {"ink.safetensors", "ink-2.safetensors"}
    with pytest.raises(AdapterError, match="isn't in the bin"):
        shelf.restore(last.id, last.path)


def test_what_is_replaced_lies_in_the_bin(home: Path, shelf: Library) -> None:
    style(1).save(home / "mix.safetensors")
    style(1).save(home / "a twin.safetensors")
    voice().save(home / "voice", "peft")
    before = (home / "mix.safetensors").read_bytes()
    with shelf.replacing("mix.safetensors"):
        assert not (home / "mix.safetensors").exists()
        style(2).save(home / "mix.safetensors")
    shelf.refresh()
    (old,) = shelf.removed()
    assert (old.name, old.path.read_bytes()) == ("mix", before)
    assert [entry.name for entry in shelf.cards()] == ["a twin", "mix", "voice"]
    with pytest.raises(KeyError), shelf.replacing("voice"):
        raise KeyError
    assert (home / "voice" / "adapter_config.json").is_file()
    with shelf.replacing("new.safetensors"):
        style(3).save(home / "new.safetensors")
    assert len(shelf.removed()) == 1


def test_one_is_added_while_the_shelf_is_looked_at(home: Path, shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(read: Callable[[], object]) -> Callable[[], object]:
        def reading() -> object:
            found = read()
            monkeypatch.undo()
            style(2).save(home / "neon.safetensors")
            shelf.refresh()
            return found

        return reading

    style(1).save(home / "ink.safetensors")
    shelf.refresh()
    for name in ("adapters", "notes"):  # whichever is read first
        monkeypatch.setattr(shelf.store, name, slow(getattr(shelf.store, name)))
    assert [entry.name for entry in shelf.cards()] == ["ink"]
    assert [entry.name for entry in shelf.cards()] == ["ink", "neon"]


def test_a_full_disk_is_told(home: Path, shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    data = style().save(home / "ink.safetensors").read_bytes()
    shelf.refresh()
    (ink,) = shelf.cards()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        for change in (lambda: shelf.add_file("x.safetensors", data), lambda: shelf.remove(ink.id)):
            with pytest.raises(AdapterError, match="can't be written") as refusal:
                change()
            assert refusal.value.faults == ("No space left on device",)
        with pytest.raises(RunError, match="can't be written"):
            Library(home, shelf.store)
    assert shelf.refresh() == Changes()
    assert shelf.cards() == [ink]


def test_the_bin_may_be_deleted_by_hand(home: Path, shelf: Library) -> None:
    style().save(home / "ink.safetensors")
    shutil.rmtree(home / ".studio" / "bin")
    assert shelf.refresh() == Changes(new=1)
    shelf.remove(shelf.cards()[0].id)
    assert [entry.name for entry in shelf.removed()] == ["ink"]


def test_the_disk_is_believed(home: Path, shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    style().save(home / "ink.safetensors")
    shelf.refresh()
    (ink,) = shelf.cards()
    with monkeypatch.context() as patch:
        patch.setattr(shelf.store, "put_adapter", lambda row: 1 / 0)  # killed after the move, before the index
        with pytest.raises(ZeroDivisionError):
            shelf.remove(ink.id)
    shelf.refresh()
    assert (shelf.cards(), [entry.id for entry in shelf.removed()]) == ([], [ink.id])
    assert shelf.restore(ink.id) == ink


def test_a_broken_file_can_be_put_away(home: Path, shelf: Library) -> None:
    (home / "bad.safetensors").write_bytes(b"junk")
    shelf.refresh()
    (bad,) = shelf.cards()
    assert shelf.remove(bad.id).id == bad.id
    shelf.refresh()
    assert shelf.restore(bad.id).name == "bad"
    assert shelf.fits(bad.id, "tiny-sd").why == "bad.safetensors: not a whole safetensors file"


# --- taking in -------------------------------------------------------------------------------------------------------


def test_what_is_downloaded_can_be_uploaded(home: Path, shelf: Library, tmp_path: Path) -> None:
    data = style().save(tmp_path / "x.safetensors").read_bytes()
    ink = shelf.add_file("C:\\My: ink?.SafeTensors", data)
    assert (ink.path, ink.id) == (
        home / "My- ink.safetensors",
        content_digest(Adapter.load(tmp_path / "x.safetensors")),
    )
    voice().save(tmp_path / "p", "peft")
    (tmp_path / "p" / "evil.py").write_text("1 / 0")
    pirate = shelf.add_file("pirate.zip", zipped(tmp_path / "p", "deep/in/pirate/"))
    assert files_in(home) == {"My- ink.safetensors", "pirate/adapter_config.json", "pirate/adapter_model.safetensors"}
    assert shelf.refresh() == Changes()
    assert shelf.add_file("again.safetensors", data) == ink
    for entry in (ink, pirate):
        name, stream = shelf.download(entry.id)
        with stream:
            packed = stream.read()
        shelf.remove(entry.id)
        assert shelf.add_file(name, packed) == replace(entry, added=entry.added)


def test_several_components_in_one_zip(shelf: Library, tmp_path: Path) -> None:
    text = {"text_encoder.text_model.encoder.layers.0.mlp.fc1": LoraPair(torch.ones(1, 768), torch.ones(3, 1), 2.0)}
    both = Adapter(style().pairs | text, style().info)
    both.save(tmp_path / "both", "peft")
    entry = shelf.add_file("both.zip", zipped(tmp_path / "both"))
    assert set((entry.facts or {})["modules"]) == {"unet", "text_encoder"}


def test_nothing_is_left_of_what_is_refused(home: Path, shelf: Library, tmp_path: Path) -> None:
    good = style().save(tmp_path / "x.safetensors").read_bytes()
    voice().save(tmp_path / "p", "peft")
    whole = zipped(tmp_path / "p")
    config = (tmp_path / "p" / "adapter_config.json").read_bytes()
    two = io.BytesIO()
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("a/adapter_config.json", config)
        archive.writestr("b/adapter_config.json", config)
    slip = io.BytesIO()
    with zipfile.ZipFile(slip, "w") as archive:
        archive.writestr("adapter_config.json", config)
        archive.writestr("../../evil/adapter_model.safetensors", good)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter_config.json", config)
        archive.writestr("adapter_model.safetensors", bytes(3_000_000))
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for number in range(1001):
            archive.writestr(str(number), "")
    shelf.largest = 1_000_000
    for name, data, says in (
        ("x.safetensors", good[:-1], "x.safetensors: not a whole safetensors file"),
        ("x.safetensors", b"", "x.safetensors: not a whole safetensors file"),
        ("x.ckpt", good, "x.ckpt: no adapter by its name"),
        ("../.safetensors", good, "no adapter by its name"),
        ("x.safetensors", bytes(1_000_001), "too large for an adapter"),
        ("p.zip", whole[:-9], "p.zip: no sound zip"),
        ("p.zip", whole.replace(b"PK\x03\x04", b"PK\x03\x05"), "p.zip: no sound zip"),
        ("p.zip", zipped(tmp_path / "p" / "adapter_config.json"), "p.zip: no adapter_config.json in it"),
        ("p.zip", two.getvalue(), "several adapters in it"),
        ("p.zip", slip.getvalue(), "lead out of its folder"),
        ("p.zip", bomb.getvalue(), "too large for an adapter"),
        ("p.zip", many.getvalue(), "1001 files in it"),
    ):
        with pytest.raises(AdapterError, match=says) as refusal:
            shelf.add_file(name, data)
        assert str(home) not in str(refusal.value)
        assert refusal.value.next_step
    assert (files_in(home), shelf.cards(), shelf.refresh()) == (set(), [], Changes())
    assert list((home / ".studio" / "uploads").iterdir()) == []


def test_only_paths_inside_the_roots_are_taken(home: Path, shelf: Library, tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (runs := tmp_path / "runs" / "ink").mkdir(parents=True)
    other = style(3).save(outside / "other.safetensors")
    style(4).save(runs / "ink.safetensors")
    (runs / "report.json").write_text('{"adapter": "ink.safetensors"}')
    shelf = Library(home, shelf.store, [tmp_path / "runs"])
    entry = shelf.add_path(runs)
    assert entry.path == home / "ink.safetensors"
    assert shelf.add_path(runs / "ink.safetensors", "again") == entry  # it is here already
    (runs / "link.safetensors").symlink_to(other)
    voice().save(runs / "peft", "peft")
    (runs / "peft" / "adapter_model.safetensors").unlink()
    (runs / "peft" / "adapter_model.safetensors").symlink_to(other)
    for path in (other, runs / ".." / ".." / "outside" / "other.safetensors", runs / "link.safetensors", runs / "peft"):
        with pytest.raises(AdapterError, match="outside of the folders"):
            shelf.add_path(path)
    (runs / "report.json").write_text(f'{{"adapter": "{other}"}}')
    with pytest.raises(AdapterError, match="outside of the folders"):
        shelf.add_path(runs)
    with pytest.raises(AdapterError, match="outside of the folders"):
        shelf.add_path(tmp_path / "nothing")  # nor is it told what there is elsewhere
    assert files_in(home) == {"ink.safetensors"}


def test_paths_as_people_type_them(home: Path, shelf: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "runs").mkdir()
    style().save(home / "runs" / "ink.safetensors")
    monkeypatch.chdir(tmp_path)
    assert shelf.add_path(Path("runs/ink.safetensors")).path == home / "ink.safetensors"
    for odd in ("~nobody1/x", "x" * 300, "a\0b"):
        with pytest.raises(ConfigError, match="can't be a path"):
            shelf.add_path(Path(odd))
        fit = shelf.fits(shelf.cards()[0].id, odd)
        assert (fit.whole, "can't be a path" in fit.why) == (False, True)


def all_at_once(work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_uploads_of_eight_at_once_each_get_a_place(home: Path, shelf: Library, tmp_path: Path) -> None:
    many = [style(n).save(tmp_path / f"{n}.safetensors").read_bytes() for n in range(8)]
    all_at_once(lambda number: shelf.add_file("ink.safetensors", many[number]))
    names = {"ink.safetensors", *(f"ink-{n}.safetensors" for n in range(2, 9))}
    assert files_in(home) == names
    assert sorted(entry.path.read_bytes() for entry in shelf.cards()) == sorted(many)
    same = style(9).save(tmp_path / "same.safetensors").read_bytes()
    all_at_once(lambda number: shelf.add_file("same.safetensors", same))
    assert files_in(home) == names | {"same.safetensors"}


# --- fitting ---------------------------------------------------------------------------------------------------------


def test_what_fits_a_base_and_why_not(home: Path, shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = open_base("tiny-sd").shapes
    first, second = [path for path in shapes if path.endswith("attn2.to_k")][:2]
    out, into = shapes[first]
    fitting = LoraPair(torch.ones(1, into), torch.ones(out, 1), 1.0)
    wide = LoraPair(torch.ones(1, into * 2), torch.ones(shapes[second][0], 1), 1.0)
    Adapter({first: fitting}).save(home / "whole.safetensors")
    Adapter({first: fitting, second: wide}).save(home / "part.safetensors")
    voice().save(home / "voice", "peft")
    save_dora(home / "dora", Adapter({first: fitting}), {first: torch.ones(out)})
    shelf.refresh()
    dora, part, voiced, whole = (entry.id for entry in shelf.cards())
    assert shelf.fits(whole, "tiny-sd") == Fit(True, 1.0, "")
    partly = shelf.fits(part, "tiny-sd")
    share = out / (out + 2 * shapes[second][0])
    assert (partly.whole, partly.share) == (False, pytest.approx(share))
    assert partly.why == f"{share:.0%} of its strength acts on this base, the rest can't be applied"
    assert "made for" in partly.faults[0]
    assert shelf.fits(dora, "tiny-sd").whole
    other = shelf.fits(voiced, "tiny-sd")
    assert (other.whole, other.share) == (False, 0.0)
    assert other.why.startswith("made for another base, a language model")
    nowhere = shelf.fits(whole, "no/such/base")
    assert (nowhere.whole, nowhere.share) == (False, 0.0)
    assert nowhere.why == "no/such/base isn't on this machine yet, so nothing is known about it"
    with monkeypatch.context() as patch:
        patch.setattr(cards, "fit", lambda *rest: 1 / 0)  # it isn't looked at again
        assert shelf.fits(part, "tiny-sd") == partly


def test_a_shelf_of_known_files_needs_no_torch(home: Path, shelf: Library) -> None:
    style(thumbnail=picture()).save(home / "ink.safetensors")
    shelf.refresh()
    (ink,) = shelf.cards()
    shelf.fits(ink.id, "tiny-sd")
    code = f"""
import sys
from studio.desk.library import *
shelf = Library(Path({str(home)!r}), Store(Path({str(shelf.store.path)!r})))
assert shelf.refresh() == Changes()
(ink,) = shelf.cards()
assert shelf.thumbnail(ink.id) and shelf.fits(ink.id, "tiny-sd") and shelf.remove(ink.id)
assert "torch" not in sys.modules and "streamlit" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
