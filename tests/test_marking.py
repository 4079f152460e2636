"""Which tokens of a document count in the loss, under the chat templates that bases of today come with."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lms import TEMPLATE, tokenizer
from tokenizers import normalizers, processors

from trainers.entries import Document, document
from trainers.errors import DatasetError
from trainers.marking import ASKED_OTHERWISE, BY_TURN, ENDS_INSIDE, REACHES_BACK, Marked, Marker, runs_of

HEAD = "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
ANSWERS = "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}"
CHATML = HEAD + "{{ m['content'] + eos_token + '\\n' }}{% endfor %}" + ASK  # Qwen 2.5 and many others
GEMMA = "{{ bos_token }}" + HEAD + "{{ m['content'] | trim + eos_token + '\\n' }}{% endfor %}" + ASK
LLAMA2 = (  # a begin-of-sequence for each turn of the user, no generation prompt, a space before the answer
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # Qwen 3: only the last turn keeps its thoughts
    HEAD + "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + eos_token + '\\n' }}{% endfor %}" + ASK
)
MARKS_LAST = HEAD + "{% if loop.last %}" + ANSWERS + "{% else %}{{ m['content'] + eos_token + '\\n' }}{% endif %}"
TEMPLATES = {"ours": TEMPLATE, "chatml": CHATML, "gemma": GEMMA, "llama2": LLAMA2}
TALK = ("Ahoy the ship", "Avast, the wind rests.", "Whither then? ", "t' th' sea — ⚓!")


def marker(template: str | None = TEMPLATE, supervise: Any = "auto", trims: bool = False) -> Marker:
    made = tokenizer()
    made.chat_template = template
    if trims:  # GPT-2 and Llama 3: the letters of a token are given without the spaces around them
        made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return Marker(made, supervise)


def of(entry: dict[str, Any]) -> Document:
    return document(entry, "a.jsonl:1", Path("a.jsonl"))


def chat(*said: str, system: str = "") -> Document:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
    return of({"messages": [{"role": "system", "content": system}] * bool(system) + messages})


def one(marker: Marker, document: Document) -> Marked:
    (marked,) = marker.mark(document)
    assert len(marked.ids) == len(marked.supervised)
    assert not marked.supervised[0]
    return marked


def learned(marker: Marker, marked: Marked) -> list[str]:
    """The supervised runs, as text."""
    return [marker.tokenizer.decode(list(marked.ids[first:stop])) for first, stop in runs_of(marked.supervised)]


def fault(marker: Marker, document: Document) -> str:
    with pytest.raises(DatasetError) as caught:
        marker.mark(document)
    (found,) = caught.value.faults
    return found


def test_a_text_counts_whole_and_ends_once() -> None:
    m = marker()
    marked = one(m, of({"text": "Ahoy!"}))
    assert m.tokenizer.decode(list(marked.ids)) == "<s>Ahoy!</s>"
    assert marked.supervised == (False, *[True] * 6)
    assert one(m, of({"text": "Ahoy!</s>"})) == marked
    m.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert one(m, of({"text": "Ahoy!"})) == marked
    completed = one(m, of({"prompt": "Ahoy", "completion": "!"}))
    assert (learned(m, completed), completed.remarks) == (["!</s>"], ())


def test_a_tokenizer_without_begin_of_sequence_gets_none() -> None:
    m = marker(trims=True)
    marked = one(m, of({"text": "Ahoy!"}))
    assert m.tokenizer.decode(list(marked.ids)) == "Ahoy!</s>"
    assert marked.supervised == (False, *[True] * 5)


def test_a_doubled_begin_of_sequence_is_a_fault() -> None:
    wanted = "doubled begin-of-sequence: the text has <s> in it; take it out"
    for entry in ({"text": "<s>Ahoy!"}, {"text": "a <s>b"}, {"prompt": "<s>a", "completion": "b"}):
        assert fault(marker(), of(entry)) == wanted
    said = fault(marker("{{ bos_token }}" + GEMMA), chat("a", "b"))
    assert said == "doubled begin-of-sequence: the base's chat template writes <s> twice"


def test_one_token_for_begin_and_end_is_no_doubled_begin() -> None:
    m = marker(trims=True)  # as GPT-2 has it
    m.tokenizer.bos_token = m.tokenizer.eos_token
    m = Marker(m.tokenizer)
    assert one(m, of({"text": "Ahoy!"})).ids[-1] == m.eos
    assert "doubled" in fault(m, of({"text": "</s></s>a"}))


def test_an_end_of_sequence_inside_a_text_is_remarked() -> None:
    assert one(marker(), of({"text": "a</s>b"})).remarks == (ENDS_INSIDE,)
    m = marker()
    m.tokenizer.eos_token = None
    assert "no end-of-sequence token" in fault(Marker(m.tokenizer), of({"text": "a"}))


@pytest.mark.parametrize("trims", [False, True])
def test_of_a_completion_what_follows_the_prompt_counts(trims: bool) -> None:
    m = marker(trims=trims)
    whole = m.tokenizer("Say on the shore").input_ids
    marked = one(m, of({"prompt": "Say", "completion": " on the shore"}))
    assert list(marked.ids) == [*whole, m.eos]
    assert (learned(m, marked), marked.remarks) == ([" on the shore</s>"], ())


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize(("prompt", "completion", "run"), [("Say ", "the", " the</s>"), ("Say t", "he", " the</s>")])
def test_a_token_that_reaches_over_the_border_counts(trims: bool, prompt: str, completion: str, run: str) -> None:
    m = marker(trims=trims)
    marked = one(m, of({"prompt": prompt, "completion": completion}))
    assert (learned(m, marked), marked.remarks) == ([run], (REACHES_BACK,))


@pytest.mark.parametrize("trims", [False, True])
def test_any_cut_of_any_text_joins_to_the_same_tokens(trims: bool) -> None:
    m, dice = marker(trims=trims), random.Random(5)
    for _ in range(60):
        text = "x" + "".join(dice.choices(["the", " ", "  ", "\n", "a", "é", "⚓", "in", "ere"], k=9)) + "."
        cut = dice.randrange(1, len(text))
        marked = one(m, of({"text": text}))
        if not (text[:cut].strip() and text[cut:].strip()):
            continue
        parts = one(m, of({"prompt": text[:cut], "completion": text[cut:]}))
        assert parts.ids == marked.ids
        (run,) = learned(m, parts)
        assert run.removesuffix("</s>").endswith(text[cut:])
        assert parts.remarks or run == text[cut:] + "</s>"


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_each_assistant_turn_counts_with_the_token_that_ends_it(template: str, trims: bool) -> None:
    m = marker(template, trims=trims)
    for talk in (chat(*TALK), chat(*TALK[:2], system="Be brief." if template is not LLAMA2 else "")):
        marked = one(m, talk)
        assert [run.strip().replace(" </s>", "</s>") for run in learned(m, marked)] == [
            text + "</s>" for text in talk.learned
        ]
        assert marked.remarks == ()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_tokens_are_those_that_the_base_is_asked_with(template: str) -> None:
    m = marker(template)
    marked = one(m, chat(*TALK))
    messages = list(chat(*TALK).messages)
    assert list(marked.ids) == m.tokenizer.apply_chat_template(messages)["input_ids"]
    for turn, (first, _) in zip((1, 3), runs_of(marked.supervised), strict=True):
        asked = m.tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True)["input_ids"]
        assert list(marked.ids[:first]) == asked


def test_turns_in_the_prompt_are_only_read() -> None:
    messages = list(chat(*TALK).messages)
    for template in TEMPLATES.values():
        m = marker(template)
        (run,) = learned(m, one(m, of({"prompt": messages[:3], "completion": messages[3:]})))
        assert run.strip().startswith(TALK[3])


def test_a_template_that_writes_the_last_turn_otherwise_gives_a_piece_a_turn() -> None:
    m = marker(THINKING)
    made = m.mark(chat(*TALK))
    assert [learned(m, marked) for marked in made] == [
        [f"<think>\n\n</think>\n\n{text}</s>"] for text in (TALK[1], TALK[3])
    ]
    assert [marked.remarks for marked in made] == [(BY_TURN,)] * 2
    assert TALK[1] in m.tokenizer.decode(list(made[1].ids))
    assert one(m, chat(*TALK[:2])).remarks == ()


def test_marks_that_leave_turns_out_are_not_trusted() -> None:
    m = marker(MARKS_LAST + "{% endfor %}" + ASK)
    assert learned(m, one(m, chat(*TALK))) == [TALK[1] + "</s>", TALK[3] + "</s>"]


def test_an_end_of_turn_that_is_not_learned_is_a_fault() -> None:
    outside = CHATML.replace(
        "{{ m['content'] + eos_token", "{% generation %}{{ m['content'] }}{% endgeneration %}{{ eos_token"
    )
    only_answers = outside.replace(
        "{% generation %}", "{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}{% generation %}"
    )
    never = CHATML.replace(" + eos_token", "")
    for template in (only_answers.replace("{% endgeneration %}", "{% endgeneration %}{% endif %}"), never):
        assert fault(marker(template), chat(*TALK)).startswith("unsupervised end-of-turn: ")


def test_templates_that_cannot_be_learned_by() -> None:
    assert "no chat template; take a base that has one" in fault(marker(None), chat("a", "b"))
    assert "refuses it: no jokes" in fault(marker("{{ raise_exception('no jokes') }}"), chat("a", "b"))
    skewed = CHATML.replace("{{ '<|assistant|>\\n' }}", "{{ '<|assistant|>\\n<think>' }}")
    assert "doesn't begin the assistant's turn with its generation prompt" in fault(marker(skewed), chat("a", "b"))
    m = marker()
    m.tokenizer = SimpleNamespace(is_fast=False)
    assert "can only be taught texts" in fault(m, chat("a", "b"))


def test_a_template_that_asks_otherwise_than_it_marks_is_remarked() -> None:
    skewed = TEMPLATE.replace("'\\n<|assistant|>\\n'", "'\\n<|assistant|> '")
    assert one(marker(skewed), chat("a", "b")).remarks == (ASKED_OTHERWISE,)


def test_all_but_the_first_token_count_if_all_is_asked_for() -> None:
    for entry in ({"text": "a b"}, {"prompt": "a", "completion": "b"}, {"messages": list(chat("a", "b").messages)}):
        marked = one(marker(supervise="all"), of(entry))
        assert all(marked.supervised[1:])


def test_nothing_to_learn_is_a_fault() -> None:
    m = marker(trims=True)
    m.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    assert fault(m, of({"text": "xx"})) == "no supervised tokens: nothing to learn from"


def test_runs() -> None:
    assert runs_of([False, True, True, False, True]) == [(1, 3), (4, 5)]
    assert runs_of([True]) == [(0, 1)]
    assert runs_of([]) == runs_of([False]) == []
