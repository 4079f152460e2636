"""Documents as pieces: every supervised token counts once, however they are cut, and every fault is named once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lms import tokenizer
from transformers import AutoTokenizer

from trainers.documents import read
from trainers.entries import Document, document
from trainers.errors import DatasetError
from trainers.tokens import Piece, Tokenized, pieces, sound

SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"
LONG = "the cat in the hat and the hen on the wall, " * 5


def of(*entries: dict[str, Any]) -> list[Document]:
    return [document(entry, f"a.jsonl:{number}", Path("a.jsonl")) for number, entry in enumerate(entries, start=1)]


def chat(*said: str) -> dict[str, Any]:
    return {
        "messages": [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    }


def learned(made: Tokenized) -> list[int]:
    """The supervised tokens of all pieces, in order."""
    return [token for one in made.pieces for token in one.encoding["ids"][one.encoding["supervised"]].tolist()]


def ids(piece: Piece) -> list[int]:
    return list(map(int, piece.encoding["ids"]))


def test_what_a_piece_is() -> None:
    documents = of({"text": "the hen"}, {"prompt": "the", "completion": " hen"})
    made = sound(pieces(documents, tokenizer(), context=64))
    assert [one.document for one in made.pieces] == documents
    for one in made.pieces:
        assert (one.encoding["ids"].dtype, one.encoding["supervised"].dtype) == (torch.int64, torch.bool)
        assert one.encoding["ids"].shape == one.encoding["supervised"].shape
        assert not one.encoding["supervised"][0]
    assert (made.faults, made.notes) == ((), ())


@pytest.mark.parametrize("entry", [{"text": LONG}, {"prompt": LONG, "completion": LONG}, chat("a", LONG, "b", LONG)])
@pytest.mark.parametrize(("context", "overlap"), [(32, 0), (32, 1), (16, 7), (16, 14), (50, 25)])
@pytest.mark.parametrize("begins", [True, False])
def test_every_supervised_token_counts_once(entry: dict[str, Any], context: int, overlap: int, begins: bool) -> None:
    cutter = tokenizer()
    if not begins:
        cutter.bos_token = None
        cutter.backend_tokenizer.post_processor = None
        cutter.chat_template = cutter.chat_template.replace("{{- bos_token }}", "")
    whole = pieces(of(entry), cutter, context=10_000)
    cut = sound(pieces(of(entry), cutter, context=context, overlap=overlap))
    assert len(whole.pieces) == 1
    assert len(cut.pieces) > 1
    assert learned(cut) == learned(whole)
    assert max(len(ids(one)) for one in cut.pieces) == context
    assert all(ids(one)[0] == 0 for one in cut.pieces) == begins
    assert all(one.encoding["supervised"].any() and not one.encoding["supervised"][0] for one in cut.pieces)


def test_windows_read_the_overlap_again() -> None:
    overlap = 6
    made = pieces(of({"text": LONG}), tokenizer(), context=20, overlap=overlap)
    for before, after in zip(made.pieces, made.pieces[1:], strict=False):
        assert ids(before)[-overlap:] == ids(after)[1 : 1 + overlap]
        supervised = after.encoding["supervised"].tolist()
        assert supervised == [False] * (1 + overlap) + [True] * (len(supervised) - 1 - overlap)
    count = len(made.pieces)
    cut = f"1 are longer than the 20 tokens that are read at once: cut into {count} pieces that overlap by 6 tokens"
    assert made.notes == (cut,)


def test_windows_without_anything_to_learn_are_left_out() -> None:
    made = pieces(of({"prompt": LONG, "completion": " the end"}), tokenizer(), context=20, overlap=6)
    assert len(made.pieces) == 1
    assert made.notes[1].endswith(" of these pieces have nothing to learn and are left out")


def test_an_overlap_without_room_for_anything_new_is_a_fault_where_it_matters() -> None:
    documents = of({"text": LONG}, {"text": "the hen"})
    for overlap in (15, 64):
        made = pieces(documents, tokenizer(), context=16, overlap=overlap)
        wanted = f"a.jsonl:1: longer than 16 tokens, and windows that overlap by {overlap} hold nothing new"
        assert made.faults == (wanted,)
    assert pieces(documents[1:], tokenizer(), context=16, overlap=64).faults == ()


def test_all_faults_at_once_each_with_its_documents() -> None:
    bare = tokenizer()
    bare.chat_template = None
    documents = of(chat("a", "b"), {"text": "<s>a"}, *[chat(str(number), "b") for number in range(4)], {"text": "é"})
    made = pieces(documents, bare, context=64, vocabulary=max(bare("é").input_ids))
    no_template, doubled, unknown = made.faults
    assert no_template.startswith("a.jsonl:1, a.jsonl:3, a.jsonl:4 and 2 more: a chat, but the base's tokenizer has no")
    assert doubled.startswith("a.jsonl:2: doubled begin-of-sequence")
    assert unknown.startswith("a.jsonl:7: tokens outside the base's vocabulary of ")
    assert made.pieces == ()
    with pytest.raises(DatasetError) as caught:
        sound(made)
    assert caught.value.faults == made.faults


def test_remarks_become_notes() -> None:
    made = pieces(of({"prompt": "a ", "completion": "the"}, {"text": "a</s>b"}), tokenizer(), context=64)
    assert [note.partition(":")[0] for note in made.notes] == ["a.jsonl", "a.jsonl"]
    assert "end the prompt without a space" in made.notes[0]
    assert "inside the text" in made.notes[1]


def test_all_tokens_count_if_all_is_asked_for() -> None:
    (piece,) = pieces(of(chat("a", "b")), tokenizer(), context=64, supervise="all").pieces
    assert piece.encoding["supervised"].tolist() == [False] + [True] * (len(ids(piece)) - 1)


def test_a_style_is_read_with_the_embedded_base_in_no_time() -> None:
    cutter = AutoTokenizer.from_pretrained(SAMPLE_DATA / "bases" / "tiny-lm")
    documents = read(SAMPLE_DATA / "text" / "pirate").documents
    begin = time.process_time()
    made = sound(pieces(documents, cutter, context=512, vocabulary=len(cutter)))
    assert time.process_time() - begin < 3  # 0.3 s on a quiet machine
    assert len(made.pieces) == len(documents) == 440
    assert made.notes == ()
    for one in made.pieces:
        run = cutter.decode(one.encoding["ids"][one.encoding["supervised"]])
        assert run == one.document.learned[0] + "</s>"
