"""One entry of a .jsonl: what it is read as, and everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainers.entries import Document, document, form, unread
from trainers.errors import DatasetError

USER, SAYS, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


def read(entry: Any) -> Document:
    return document(entry, "a.jsonl:1", Path("a.jsonl"))


def faults(entry: Any) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        read(entry)
    return caught.value.faults


def test_the_three_forms() -> None:
    assert read({"text": "Ahoy!"}) == Document("a.jsonl:1", Path("a.jsonl"), "text", text="Ahoy!")
    completion = read({"prompt": "Ahoy", "completion": " matey"})
    assert (completion.kind, completion.prompt, completion.text) == ("completion", "Ahoy", " matey")
    chat = read({"messages": [SYSTEM, USER, SAYS]})
    assert (chat.kind, chat.messages, chat.given) == ("chat", (SYSTEM, USER, SAYS), 0)


def test_a_prompt_and_completion_of_messages_is_a_chat_whose_prompt_is_only_read() -> None:
    chat = read({"prompt": [USER, SAYS, USER], "completion": [{**SAYS, "content": "Aye!"}]})
    assert (chat.kind, chat.given, len(chat.messages)) == ("chat", 3, 4)
    assert chat.learned == ("Aye!",)


def test_what_is_learned_of_each_kind() -> None:
    assert read({"text": "Ahoy!"}).learned == ("Ahoy!",)
    assert read({"prompt": "Ahoy", "completion": " matey"}).learned == (" matey",)
    assert read({"messages": [SYSTEM, USER, SAYS, USER, SAYS]}).learned == ("a", "a")


def test_the_digest_is_of_what_is_said_not_of_where() -> None:
    here, there = ({"text": "Ahoy!"}, "a:1", Path("a")), ({"text": "Ahoy!", "source": "x"}, "b:9", Path("b"))
    assert document(*here).digest == document(*there).digest
    others = [{"text": "ahoy"}, {"prompt": "Ahoy", "completion": "!"}, {"prompt": "Aho", "completion": "y!"}]
    chats = [{"messages": [USER, SAYS]}, {"prompt": [USER], "completion": [SAYS]}]
    assert len({read(entry).digest for entry in [{"text": "Ahoy!"}, *others, *chats]}) == 6


def test_null_counts_as_absent_and_keys_that_nothing_reads_are_named() -> None:
    entry = {"text": None, "messages": [{**USER, "name": "Ann"}, SAYS], "prompt": "x", "id": 3}
    assert form(entry) == ("messages",)
    assert unread(entry) == {"text", "prompt", "id", "messages.name"}
    assert unread({"prompt": "a", "completion": "b"}) == set()


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("Ahoy!", 'a text, wanted {"text": …} or the like'),
        ([], 'a list, wanted {"text": …} or the like'),
        ({}, 'no "text", "prompt" with "completion", or "messages" (it has nothing)'),
        ({"text": " \n"}, 'empty "text"'),
        ({"text": 3}, '"text" is a number; wanted a text'),
        ({"text": "a\0b"}, '"text" has a NUL byte at character 1'),
        ({"text": "\ud83d"}, '"text" has half a character (a lone surrogate); write it again as UTF-8'),
        ({"text": "a", "messages": []}, 'has "text" and "messages"; keep the one that is to be learned'),
        ({"prompt": "a", "completion": [SAYS]}, '"completion" is a list; wanted a text'),
        ({"messages": "a"}, '"messages" is a text; wanted a list'),
        ({"messages": []}, "no assistant turn: nothing to learn from"),
        ({"messages": [USER]}, "no assistant turn: nothing to learn from"),
        ({"prompt": [USER, SAYS], "completion": [USER]}, "no assistant turn: nothing to learn from"),
        ({"messages": ["a"]}, 'message 1 is a text; wanted {"role": …, "content": …}'),
        ({"messages": [{"role": "user"}, SAYS]}, 'message 1 has no "content"'),
        ({"messages": [USER, {**SAYS, "content": [{}]}]}, 'message 2: "content" is a list; wanted a text'),
        (
            {"messages": [USER, {**SAYS, "role": "bot"}]},
            "message 2 has the role 'bot'; system, user, assistant are read",
        ),
    ],
)
def test_every_fault_says_what_was_wanted(entry: Any, fault: str) -> None:
    assert faults(entry) == (fault,)


@pytest.mark.parametrize(
    "messages", [[SAYS, USER, SAYS], [USER, USER, SAYS], [USER, SYSTEM, SAYS], [USER, SAYS, USER], [USER, SAYS, SAYS]]
)
def test_user_and_assistant_speak_in_turns(messages: list[dict[str, str]]) -> None:
    (fault,) = faults({"messages": messages})
    assert fault.startswith(
        f"the roles go {', '.join(one['role'] for one in messages)}; wanted a system message if any"
    )


def test_all_faults_of_one_entry_are_found() -> None:
    assert len(faults({"prompt": "", "completion": 1})) == 2
    assert len(faults({"messages": [{"role": "bot", "content": ""}, {}, 3]})) == 5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["instruction", "output"], 'call "instruction" "prompt", call "output" "completion"'),
        (["prompt", "response"], 'call "response" "completion"'),
        (
            ["conversations"],
            'call "conversations" "messages" ("from" and "value" in it "role" and "content", human and',
        ),
        (["title"], '(it has "title")'),
    ],
)
def test_other_tools_keys_are_named_with_the_rename_to_make(keys: list[str], said: str) -> None:
    (fault,) = faults(dict.fromkeys(keys, "x"))
    assert said in fault
    assert ("call" in fault) == ("call" in said)
    assert 'call "prompt"' not in fault
