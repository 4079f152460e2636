"""One entry of a .jsonl: a text, a prompt with its completion, or a conversation; every fault of it at once.

Try it: `python -c "from trainers.entries import form; print(form({'prompt': 'Ahoy', 'completion': 'matey!'}))"`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainers.digests import digest_of
from trainers.errors import DatasetError

Kind = Literal["text", "completion", "chat"]
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": …}

WANTED = '"text", "prompt" with "completion", or "messages"'
FORMS = (("text",), ("prompt", "completion"), ("messages",))  # the keys of the three
SAID = ("role", "content")
ROLES = ("system", "user", "assistant")
TURNS = "a system message if any, then user and assistant in turns, the assistant last"
RENAMES = {  # what other tools call them
    "conversations": '"messages" ("from" and "value" in it "role" and "content", human and gpt user and assistant)',
    "conversation": '"messages"',
    "instruction": '"prompt"',
    "question": '"prompt"',
    "input": '"prompt"',
    "output": '"completion"',
    "response": '"completion"',
    "answer": '"completion"',
    "chosen": '"completion"',
    "content": '"text"',
}


@dataclass(frozen=True)
class Document:
    """What is learned from as one piece. `name` is its file and line, for people.

    A text has `text`; a completion has `prompt`, which is only read, and `text`, which is learned; a chat has
    `messages`, of which the first `given` are only read. `heldout` documents measure and are never trained on.
    """

    name: str
    path: Path
    kind: Kind
    text: str = ""
    prompt: str = ""
    messages: tuple[Message, ...] = ()
    given: int = 0
    heldout: bool = False
    repeats: int = 1

    @property
    def digest(self) -> str:
        """sha256 of what it says: not of its name, nor of its place."""
        said = [part for message in self.messages for part in (message["role"], message["content"])]
        return digest_of(self.kind, self.prompt, self.text, str(self.given), *said)

    @property
    def learned(self) -> tuple[str, ...]:
        """The texts in it that are learned: itself, its completion, or what the assistant says."""
        if self.kind != "chat":
            return (self.text,)
        return tuple(one["content"] for one in self.messages[self.given :] if one["role"] == "assistant")


def document(entry: object, name: str, path: Path) -> Document:
    """The document that an entry stands for; a DatasetError lists all that is wrong with it."""
    keys = form(entry)
    values = [entry[key] for key in keys]  # type: ignore[index]
    if keys == ("text",):
        made, faults = Document(name, path, "text", text=values[0]), text_faults(values[0], "text")
    elif keys == ("messages",):
        made, faults = _chat(name, path, (), values[0])
    elif all(isinstance(value, list) for value in values):
        made, faults = _chat(name, path, *values)
    else:
        made = Document(name, path, "completion", prompt=values[0], text=values[1])
        faults = [fault for key, value in zip(keys, values, strict=True) for fault in text_faults(value, key)]
    if faults:
        raise DatasetError(f"{name} can't be used", faults)
    return made


def form(entry: object) -> tuple[str, ...]:
    """The keys that are read of an entry; a key with the value null counts as absent."""
    if not isinstance(entry, dict):
        raise DatasetError("no document", [f'{_called(entry)}, wanted {{"text": …}} or the like'])
    keys = {str(key) for key, value in entry.items() if value is not None}
    found = [one for one in FORMS if keys.issuperset(one)]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(f'"{one[-1]}"' for one in found)
        raise DatasetError("no document", [f"has {both}; keep the one that is to be learned"])
    raise DatasetError("no document", [_unknown(keys)])


def unread(entry: object) -> set[str]:
    """The keys of a sound entry, and of its messages, that nothing reads."""
    if not isinstance(entry, dict):
        return set()
    keys = form(entry)
    messages = [one for key in keys if isinstance(entry[key], list) for one in entry[key]]
    return {*entry, *(f"messages.{key}" for one in messages for key in one)} - {
        *keys,
        *(f"messages.{key}" for key in SAID),
    }


def text_faults(value: object, called: str) -> list[str]:
    """What keeps a value from being a text that can be learned."""
    if not isinstance(value, str):
        return [f'"{called}" is {_called(value)}; wanted a text']
    if not value.strip():
        return [f'empty "{called}"']
    faults = []
    if "\0" in value:
        faults.append(f'"{called}" has a NUL byte at character {value.index(chr(0))}')
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        faults.append(f'"{called}" has half a character (a lone surrogate); write it again as UTF-8')
    return faults


def _unknown(keys: set[str]) -> str:
    has = ", ".join(f'"{key}"' for key in sorted(keys)) or "nothing"
    renames = [
        f'call "{key}" {wanted}' for key, wanted in RENAMES.items() if key in keys and wanted.split('"')[1] not in keys
    ]
    return f"no {WANTED} (it has {has}){'; ' * bool(renames)}{', '.join(renames)}"


def _chat(name: str, path: Path, given: Sequence[Any], said: Any) -> tuple[Document, list[str]]:
    """A conversation of which the messages in `given` are only read."""
    if not isinstance(said, list):
        return Document(name, path, "chat"), [f'"messages" is {_called(said)}; wanted a list']
    whole = [*given, *said]
    faults = [fault for number, one in enumerate(whole, start=1) for fault in _message_faults(one, number)]
    if faults:
        return Document(name, path, "chat"), faults
    messages = tuple({"role": one["role"], "content": one["content"]} for one in whole)
    return Document(name, path, "chat", messages=messages, given=len(given)), _order_faults(messages, len(given))


def _message_faults(message: object, number: int) -> list[str]:
    where = f"message {number}"
    if not isinstance(message, dict):
        return [f'{where} is {_called(message)}; wanted {{"role": …, "content": …}}']
    missing = [f'{where} has no "{key}"' for key in SAID if message.get(key) is None]
    if missing:
        return missing
    role = message["role"]
    faults = [] if role in ROLES else [f"{where} has the role {role!r}; {', '.join(ROLES)} are read"]
    return faults + [f"{where}: {fault}" for fault in text_faults(message["content"], "content")]


def _order_faults(messages: Sequence[Message], given: int) -> list[str]:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles[given:]:
        return ["no assistant turn: nothing to learn from"]
    spoken = roles[1:] if roles[0] == "system" else roles
    wanted = ["user", "assistant"] * (len(spoken) // 2)
    return [] if spoken == wanted else [f"the roles go {', '.join(roles)}; wanted {TURNS}"]


def _called(value: object) -> str:
    """A JSON value's kind, as people say it."""
    names = {str: "a text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
