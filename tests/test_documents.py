"""A folder of texts: which documents it holds, which are held out, and every fault of it at once."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from trainers.documents import holds_texts, kinds_said, read, sound
from trainers.errors import ConfigError, DatasetError

STYLES = Path(__file__).parents[1] / "sample_data" / "text"
CHAT = {"messages": [{"role": "user", "content": "Tell it."}, {"role": "assistant", "content": "Aye!"}]}


def write(path: Path, text: str = "Ahoy!") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def lines(path: Path, entries: Iterable[Any]) -> Path:
    return write(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def texts(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"text": f"Text number {number}."} for number in range(first, first + count)]


@pytest.mark.parametrize("style", ["herald", "nursery", "pirate", "telegram"])
def test_the_sample_styles_are_sound(style: str) -> None:
    reading = sound(read(STYLES / style), STYLES / style)
    assert kinds_said(reading.training) == "240 texts, 160 chats"
    assert kinds_said(reading.heldout) == "40 texts"
    assert reading.notes == (
        "440 documents: 160 chats from chat.jsonl; 40 texts from heldout.jsonl (held out); 240 texts from train.jsonl",
    )


def test_a_plain_file_is_one_document_and_folders_are_read_with_theirs(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "\ufeff\n  One,\r\n\r\n  two.\r\n\n")
    write(tmp_path / "a.MD", "# Three")
    write(tmp_path / "more" / "deep" / "c.txt", "Four")
    write(tmp_path / ".hidden" / "d.txt")
    write(tmp_path / ".e.txt")
    reading = read(tmp_path, repeats=3)
    assert [(one.name, one.text) for one in reading.documents] == [
        ("a.MD", "# Three"),
        ("b.txt", "  One,\n\n  two."),
        ("more/deep/c.txt", "Four"),
    ]
    assert {one.repeats for one in reading.documents} == {3}
    assert reading.notes[0] == "3 documents: 1 text from .md files; 2 texts from .txt files"


def test_lines_of_different_kinds_may_stand_in_one_file(tmp_path: Path) -> None:
    mixed = [{"text": "Ahoy!"}, {"prompt": "a", "completion": "b"}, CHAT]
    file = lines(tmp_path / "a.jsonl", mixed)
    write(file, file.read_text() + '\n{"text": "a\u2028b"}')  # U+2028 ends no line of JSON
    write(tmp_path / "b.json", json.dumps(mixed[:2]).replace("Ahoy", "Avast"))
    documents = read(tmp_path).documents
    names = ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "a.jsonl:5", "b.json:entry 1", "b.json:entry 2"]
    assert [one.name for one in documents] == names
    assert kinds_said(documents) == "3 texts, 2 completions, 1 chat"


def test_a_file_may_be_asked_for_by_itself(tmp_path: Path) -> None:
    file = lines(tmp_path / "heldout.jsonl", texts(3))
    reading = read(file)
    assert (len(reading.training), reading.heldout, reading.faults) == (3, (), ())
    assert read(write(tmp_path / "readme.md")).documents[0].name == "readme.md"


@pytest.mark.parametrize(
    "name", ["heldout.jsonl", "Test.jsonl", "validation.jsonl", "val/a.jsonl", "eval/deep/a.jsonl"]
)
def test_files_and_folders_called_so_are_held_out(tmp_path: Path, name: str) -> None:
    lines(tmp_path / "train.jsonl", texts(20))
    lines(tmp_path / name, texts(3, first=20))
    reading = read(tmp_path)
    assert {one.name for one in reading.heldout} == {f"{name}:{line}" for line in (1, 2, 3)}
    assert len(reading.training) == 20


def test_a_share_is_held_out_by_what_the_texts_say(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", texts(200))
    before = {one.text for one in read(tmp_path).heldout}
    assert 8 <= len(before) <= 35
    assert read(tmp_path).notes[1] == f"{len(before)} of 200 are held out, chosen by what they say"
    shuffled = texts(300)
    random.Random(1).shuffle(shuffled)
    lines(tmp_path / "a.jsonl", shuffled)  # a hundred more, in another order: none of the old ones moves
    assert {one.text for one in read(tmp_path).heldout} & {entry["text"] for entry in texts(200)} == before
    assert before < {one.text for one in read(tmp_path, heldout=0.3).heldout}


@pytest.mark.parametrize(("count", "share", "least", "most"), [(10, 0.001, 1, 1), (10, 0.9999, 9, 9), (9, 0.5, 0, 0)])
def test_at_least_one_of_ten_is_held_out_and_never_all(
    tmp_path: Path, count: int, share: float, least: int, most: int
) -> None:
    lines(tmp_path / "a.jsonl", texts(count))
    assert least <= len(read(tmp_path, heldout=share).heldout) <= most


def test_nothing_is_held_out_in_silence(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", texts(9))
    few = "no texts are held out: 9 are too few; put some into heldout.txt to measure what is learned"
    assert read(tmp_path).notes[1] == few
    assert read(tmp_path, heldout=0).notes[1] == "no texts are held out"
    for share in (-0.1, 1.0, 7):
        with pytest.raises(ConfigError):
            read(tmp_path, heldout=share)


def test_held_out_texts_that_are_trained_on_measure_nothing(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", [*texts(12), texts(1)[0]])
    lines(tmp_path / "heldout.jsonl", [{"text": "New."}, texts(4)[3]])
    reading = read(tmp_path)
    assert [one.text for one in reading.heldout] == ["New."]
    assert reading.notes[1:] == (
        "1 held-out texts are trained on, too, so they aren't held out: heldout.jsonl:2 is train.jsonl:4",
        "1 texts stand here more than once and count as often: train.jsonl:1 = train.jsonl:13",
    )


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{**entry, "id": 1} for entry in texts(2)])
    for name in ("README.md", "b.pdf", "deep/c.docx"):
        write(tmp_path / name)
    notes = read(tmp_path).notes
    assert notes[2:] == ('keys that aren\'t read: "id" (2)', "not read: README.md, b.pdf, deep/c.docx")
    for number in range(9):
        write(tmp_path / f"{number}.pdf")
    assert read(tmp_path).notes[3] == "not read: 1 .docx, 1 .md, 10 .pdf"


def test_every_fault_of_every_file_is_found_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "x"}\n{"text": \n\n[1]\n{"text": ""}\n{"instruction": "x"}')
    write(tmp_path / "b.txt", " \n")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    write(tmp_path / "d.md", "a\0b")
    write(tmp_path / "e.jsonl", "\n")
    write(tmp_path / "f.json", '{"text": "x"}')
    write(tmp_path / "g.json", "[")
    reading = read(tmp_path)
    unknown = 'no "text", "prompt" with "completion", or "messages" (it has "instruction")'
    assert reading.faults == (
        "a.jsonl:2: not JSON (Expecting value at column 10)",
        'a.jsonl:4: a list, wanted {"text": …} or the like',
        'a.jsonl:5: empty "text"',
        f'a.jsonl:6: {unknown}; call "instruction" "prompt"',
        "b.txt: empty file",
        "c.txt: not UTF-8 (byte 0xe9 at 3); save it as UTF-8",
        'd.md: "text" has a NUL byte at character 1',
        "e.jsonl: empty file",
        "f.json: not a list of entries; make it one, or move the file away",
        "g.json: not JSON (Expecting value at line 1)",
    )
    assert len(reading.documents) == 1
    with pytest.raises(DatasetError) as caught:
        sound(reading, tmp_path)
    assert caught.value.faults == reading.faults


def test_folders_without_texts(tmp_path: Path) -> None:
    kinds = ".txt .md .jsonl .json"
    assert read(tmp_path / "no").faults == (f"{tmp_path}/no: no such file or folder",)
    assert read(tmp_path).faults == (f"{tmp_path}: no texts: the folder is empty; put texts in it ({kinds})",)
    write(tmp_path / "a.pdf")
    assert read(tmp_path).faults == (f"{tmp_path}: no texts ({kinds} are read); found 1 .pdf",)
    assert "not a kind of text that is read" in read(tmp_path / "a.pdf").faults[0]
    lines(tmp_path / "test.jsonl", texts(3))
    assert read(tmp_path).faults == (f"{tmp_path}: every text is held out, none is left to learn from; rename a file",)


def test_links_that_lead_back_are_read_once(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    (tmp_path / "again").symlink_to(tmp_path)
    assert [one.name for one in read(tmp_path).documents] == ["a.txt"]


def test_a_folder_of_pictures_with_captions_holds_no_texts(tmp_path: Path) -> None:
    assert not holds_texts(tmp_path)
    assert holds_texts(write(tmp_path / "a.txt"))
    assert holds_texts(tmp_path)
    write(tmp_path / "a.png")
    assert not holds_texts(tmp_path)
    assert holds_texts(STYLES / "pirate")
    assert not holds_texts(STYLES.parent / "styles" / "ink")
