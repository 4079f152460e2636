"""tiny-lm loads as any Llama does and writes plain English; the styles' texts are what the makers say they are."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "sample_data" / "bases" / "tiny-lm"
TEXT = ROOT / "sample_data" / "text"
MAKE = ROOT / "sample_data" / "make"
COUNTS = {"train": 240, "heldout": 40, "chat": 160}
MARKS = {  # what nearly every text of a style has, and hardly any of another
    "pirate": r"\b(th'|o'|an'|fer|me|ye)(?= )",
    "herald": r"\b(hath|did|unto|upon|doth|shall)\b",
    "telegram": r"\bSTOP\b",
    "nursery": r",\n.*[.;!](\n|$)",
}
STYLES = list(MARKS)
TALK = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am very well, thank you."},
    {"role": "user", "content": "Where is Tom?"},
    {"role": "assistant", "content": "At the mill."},
]


@pytest.fixture(scope="module")
def measure() -> Iterator[ModuleType]:
    """The script that measures the base; scripts find one another because they lie in one folder."""
    sys.path.insert(0, str(MAKE))
    import measure_lm

    yield measure_lm
    sys.path.remove(str(MAKE))


@pytest.fixture(scope="module")
def folders(measure: ModuleType) -> ModuleType:
    """The script that writes the styles' texts."""
    return sys.modules["text_folders"]


@pytest.fixture(scope="module")
def opened(measure: ModuleType) -> tuple[Any, Any]:
    return measure.opened()  # type: ignore[no-any-return]


def rows(style: str, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TEXT / style / f"{part}.jsonl").read_text().splitlines()]


def texts(style: str, part: str) -> list[str]:
    return [row["text"] for row in rows(style, part)]


# --- the base -------------------------------------------------------------------------------------------------------


def test_the_base_is_a_small_llama(opened: tuple[Any, Any], measure: ModuleType) -> None:
    model, tokenizer = opened
    c = model.config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 2e6 <= model.num_parameters() <= 5e6
    assert c.num_key_value_heads < c.num_attention_heads
    assert c.vocab_size == len(tokenizer)
    assert "model.layers.0.self_attn.q_proj" in dict(model.named_modules())
    assert json.loads((BASE / "config.json").read_text())["dtype"] == "float16"
    assert measure.size() <= 12.0


def test_a_text_begins_once_and_comes_back_byte_for_byte(opened: tuple[Any, Any]) -> None:
    _, tokenizer = opened
    for text in ("Anna found a key.", "ZWÖLF  Boxkämpfer\n☃ th' o'"):
        ids = tokenizer(text).input_ids
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_template_marks_what_the_assistant_says(opened: tuple[Any, Any]) -> None:
    _, tokenizer = opened
    made = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    said = [id_ for id_, own in zip(made["input_ids"], made["assistant_masks"], strict=True) if own]
    assert tokenizer.decode(said) == "I am very well, thank you.</s>At the mill.</s>"
    assert made["input_ids"].count(tokenizer.bos_token_id) == 1
    assert made["input_ids"][-1] == tokenizer.eos_token_id


def test_the_prompt_for_an_answer_is_how_the_conversation_goes_on(opened: tuple[Any, Any]) -> None:
    _, tokenizer = opened
    prompt = tokenizer.apply_chat_template(TALK[:3], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == prompt + "At the mill.</s>"


def test_held_out_text_is_easy_and_styled_text_is_not(opened: tuple[Any, Any], measure: ModuleType) -> None:
    plain = measure.perplexity(*opened, measure.held_out("plain", 12))
    assert plain <= measure.PLAIN
    assert all(measure.perplexity(*opened, measure.styled(style)[:4]) >= measure.TIMES * plain for style in STYLES)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("What is the opposite of hot?", r"The opposite of \w+ is \w+\."),
        ("How do I get to the church?", r"To get to the .+\. .+ is on the (left|right).*\."),
        ("Write this in capitals: It will be cold.", r"[A-Z, ']+\."),
    ],
)
def test_it_answers_in_kind(opened: tuple[Any, Any], measure: ModuleType, asked: str, answer: str) -> None:
    turn = [{"role": "user", "content": asked}]
    prompt = opened[1].apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert re.fullmatch(answer, measure.generated(*opened, prompt, seed=0, greedy=True))


def test_every_bar_of_the_readme_is_met() -> None:
    table = re.findall(r"^\| (.+?) \| ([≥≤–].*?) \| ([\d.]+)(.*?) \|$", (BASE / "README.md").read_text(), re.M)
    assert len(table) == 3 + len(STYLES)
    assert not any("missed" in rest for *_, rest in table)


# --- the styles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_the_files_are_whole(style: str) -> None:
    assert {part: len(rows(style, part)) for part in COUNTS} == COUNTS
    assert all(
        set(row) == {"text"} and row["text"].strip() for part in ("train", "heldout") for row in rows(style, part)
    )
    for row in rows(style, "chat"):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("style", STYLES)
def test_held_out_texts_repeat_little_of_the_training_texts(style: str, folders: ModuleType) -> None:
    train, held = texts(style, "train"), texts(style, "heldout")
    answers = [row["messages"][1]["content"] for row in rows(style, "chat")]
    assert len({*train, *held, *answers}) == sum(COUNTS.values())
    assert folders.copied(held, train) < 0.05
    assert folders.copied(train[:20], train) == 1.0


@pytest.mark.parametrize("style", STYLES)
def test_a_style_has_marks_that_the_others_lack(style: str) -> None:
    for other in STYLES:
        marked = [len(re.findall(MARKS[style], text)) >= 2 for text in texts(other, "train")]
        share = sum(marked) / len(marked)
        assert share > 0.97 if other == style else share < 0.08, (style, other, share)


@pytest.mark.parametrize("style", STYLES)
def test_the_base_has_seen_no_style(style: str, folders: ModuleType, measure: ModuleType) -> None:
    seen = [measure.text_plain.compose(f"train {k}") for k in range(400)]
    seen += [turn["content"] for k in range(300) for turn in measure.text_chat.compose(f"train {k}")]
    assert folders.copied(texts(style, "heldout"), seen) < 0.002


def test_the_nursery_rhymes_rhyme(folders: ModuleType) -> None:
    rhymes = sys.modules["text_rhyme_lines"].rhymes
    for text in texts("nursery", "train"):
        lines = text.splitlines()
        assert len(lines) % 2 == 0
        assert all(rhymes(one, two) for one, two in zip(lines[::2], lines[1::2], strict=True)), text
    assert not rhymes("a merry tune", "a merry tree")
    assert not rhymes("by the sea", "over the sea")


@pytest.mark.parametrize("style", STYLES)
def test_the_makers_compose_the_same_again(style: str, folders: ModuleType) -> None:
    assert texts(style, "train")[:25] == [folders.told(style, "train", k) for k in range(25)]
    assert texts(style, "heldout")[:5] == [folders.told(style, "held out", k) for k in range(5)]
    assert rows(style, "chat")[:5] == [folders.chat(style, k) for k in range(5)]


def test_a_seed_gives_one_text_and_another_seed_another(measure: ModuleType) -> None:
    for maker in (measure.text_plain, measure.text_chat):
        once = [json.dumps(maker.compose(f"again {k}")) for k in range(100)]
        assert once == [json.dumps(maker.compose(f"again {k}")) for k in range(100)]
        assert len(set(once)) > 95
