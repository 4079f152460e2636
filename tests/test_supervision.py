"""The receipt before a training: right counts, and samples whose runs join to what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lms import tokenizer
from tokenizers import decoders

from trainers.entries import document
from trainers.supervision import Shown, receipt
from trainers.tokens import Piece, pieces

TEXT = {"text": "the hen"}
COMPLETION = {"prompt": "the hen", "completion": " in é⚓"}
TALK = [{"role": "user", "content": "Tell."}, {"role": "assistant", "content": "Aye,\nsir!"}]


def made(*entries: dict[str, Any], context: int = 64) -> list[Piece]:
    documents = [document(entry, f"a:{number}", Path("a")) for number, entry in enumerate(entries, start=1)]
    return list(pieces(documents, tokenizer(), context=context, overlap=4).pieces)


def test_counts() -> None:
    found = made(TEXT, COMPLETION, {"text": "the hen " * 30})
    counted = receipt(found, tokenizer())
    assert (counted.documents, counted.pieces) == (3, len(found))
    assert counted.tokens == sum(len(one.encoding["ids"]) for one in found)
    assert counted.supervised == sum(int(one.encoding["supervised"].sum()) for one in found)
    assert receipt([], tokenizer()).samples == ()


def test_samples_show_what_is_learned() -> None:
    shown = receipt(made(TEXT, COMPLETION, {"messages": TALK}), tokenizer()).samples
    assert shown == (
        Shown("a:1", "text", (("<s>", False), ("the hen</s>", True))),
        Shown("a:2", "completion", (("<s>the hen", False), (" in é⚓</s>", True))),
        Shown("a:3", "chat", (("<s><|user|>\nTell.</s>\n<|assistant|>\n", False), ("Aye,\nsir!</s>", True))),
    )


def test_one_of_each_kind_is_shown_then_the_first() -> None:
    found = made(*[TEXT] * 4, COMPLETION, {"messages": TALK})
    names = {count: [one.name for one in receipt(found, tokenizer(), count).samples] for count in (0, 3, 5)}
    assert names == {0: ["a:1", "a:5", "a:6"], 3: ["a:1", "a:5", "a:6"], 5: ["a:1", "a:2", "a:3", "a:5", "a:6"]}


def test_a_letter_spread_over_tokens_is_shown_whole() -> None:
    (piece,) = made({"text": "a⚓b"})  # <s> a 3 bytes b </s>
    supervised = torch.tensor([False, False, False, True, True, True, True])
    cut = Piece(piece.document, {**piece.encoding, "supervised": supervised})
    assert receipt([cut], tokenizer()).samples[0].runs == (("<s>a", False), ("⚓b</s>", True))


def test_spaces_that_a_tokenizer_drops_in_front_are_kept() -> None:
    spaces = tokenizer()
    spaces.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    (piece,) = made(COMPLETION)
    assert receipt([piece], spaces).samples[0].runs[1][0] == " in é⚓</s>"


def test_as_lines() -> None:
    counted = receipt(made({"messages": TALK}, {"text": "x" * 500}, context=1000), tokenizer())
    counts, *lines = counted.as_lines()
    assert counts == f"2 documents in 2 pieces: {counted.tokens} tokens, {counted.supervised} of them learned (98%)"
    assert lines == [
        "a:1 (chat):",
        "<s><|user|>↵\nTell.</s>↵\n<|assistant|>↵\n⟦Aye,↵\nsir!</s>⟧",
        "a:2 (text):",
        f"<s>⟦{'x' * 120} […] {'x' * 116}</s>⟧",
    ]
    drawn = list(counted.as_lines(lambda text, supervised: f"({supervised:d}{text[:3]})"))
    assert drawn[2] == "(0<s>)(1Aye)"
