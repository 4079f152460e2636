"""Adapters of the past, found by what is in them: under another name, in the bin, replaced by another of their name."""

from __future__ import annotations

from pathlib import Path

import pytest
from shelves import CROSS, style

from studio.desk import recall
from studio.desk.library import Library
from studio.desk.store import Store
from studio.draw.use import Use
from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, digest, save_dora


@pytest.fixture
def library(tmp_path: Path) -> Library:
    style().save(tmp_path / "ink.safetensors")
    found = Library(tmp_path, Store(tmp_path / ".studio" / "studio.db"))
    found.refresh()
    return found


def found(library: Library, table: recall.Table, ids: dict[str, str] | None = None) -> list[str]:
    tables = recall.updated([table], library.home / ".studio" / "pictures", library, ids or {}, None)
    return [table["file"] for table in tables]


def test_a_renamed_file_is_found_by_any_of_its_digests(library: Library) -> None:
    (entry,) = library.cards()
    was, sha256 = str(entry.path), digest(entry.path)
    ids = recall.ids([Use(entry.path), Use(Path("/elsewhere/x.safetensors"))], library)
    assert ids == {was: entry.id}
    now = str(library.rename(entry.id, "tusche").path)
    tables = [
        {"file": "../../ink.safetensors", key: value} for key, value in (("digest", entry.id), ("sha256", sha256))
    ]
    for table, known in ((tables[0], {}), (tables[1], {}), ({"file": was}, ids)):
        assert found(library, table, known) == [now]
    with pytest.raises(AdapterError, match="ink: was ink"):
        found(library, {"file": was})


def test_an_adapter_with_dora_is_found_by_its_file(library: Library) -> None:
    path = save_dora(library.home / "dora", style(2), {CROSS: style().pairs[CROSS].up.new_ones(4)})
    library.refresh()
    entry = next(entry for entry in library.cards() if entry.name == "dora")
    table = {"file": str(path), "digest": "of what it is with its base", "sha256": digest(path)}
    now = str(library.rename(entry.id, "other").path)
    assert found(library, table) == [now]


def test_another_of_the_same_name_is_not_taken_for_it(library: Library) -> None:
    (entry,) = library.cards()
    ids = recall.ids([Use(entry.path)], library)
    library.remove(entry.id)
    style(3).save(entry.path)
    library.refresh()
    for table in ({"file": str(entry.path)}, {"file": str(entry.path), "digest": entry.id}):
        missing: list[str] = []
        assert recall.updated([table | {"name": "Ink"}], Path("/"), library, ids, missing) == []
        assert missing == ["Ink"]
    assert found(library, {"file": str(entry.path)}) == [str(entry.path)], "nothing is known of what it was"


def test_files_outside_the_library_stay(library: Library, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = Adapter(style(5).pairs).save(tmp_path_factory.mktemp("elsewhere") / "far.safetensors")
    assert found(library, {"file": str(path), "digest": "abc"}) == [str(path)]


def test_a_broken_file_is_no_adapter_to_be_found(library: Library) -> None:
    (library.home / "bad.safetensors").write_bytes(b"nonsense")
    library.refresh()
    assert recall.ids([Use(library.home / "bad.safetensors")], library) == {}
