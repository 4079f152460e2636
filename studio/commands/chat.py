"""The command chat: a talk with a language model and any adapters, from a terminal or a pipe.

`stylora chat --base tiny-lm --adapter runs/pirate:0.8`; `printf 'How do I get to the mill?\\n' | stylora chat`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.texts import PANEL, MaxTokens, Penalty, System, Temperature, TopK, TopP, aside, load
from trainers.cli import app
from trainers.console import escape, say
from trainers.errors import ConfigError, StyloraError

if TYPE_CHECKING:
    from studio.write.chat import Conversation


@app.command(rich_help_panel=PANEL)
def chat(
    base: Annotated[
        str, typer.Option(help="tiny-lm, or a transformers folder or hub id whose tokenizer has a chat template")
    ] = "tiny-lm",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="FILE[:WEIGHT]",
            help="adapter file, run or PEFT folder; may be repeated; more of it after FILE, in any order: "
            ":0.8 :blocks=L00-L03=0.5 :name=NAME",
        ),
    ] = None,
    system: System = None,
    seed: Annotated[int | None, typer.Option(help="of the first answer; the next has seed + 1; default 0")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: Penalty = None,
    partial: Annotated[
        bool | None,
        typer.Option("--partial", help="use adapters of which only a part fits the base", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
) -> None:
    """Talk with a language model and any adapters, whose weights may change as the talk goes on: /help in it."""
    from studio.write import recipe as recipes
    from studio.write.chat import Conversation

    flags = {"base": base, "adapter": adapter or [], "system": system, "seed": seed, "max_tokens": max_tokens,
             "temperature": temperature, "top_p": top_p, "top_k": top_k, "repetition_penalty": repetition_penalty,
             "partial": partial, "prompt": "", "chat": True}  # fmt: skip
    asked = recipes.read(None, {key: value for key, value in flags.items() if value is not None})
    talk = Conversation(load(asked, device))
    if sys.stdin.isatty():
        say(f"[bold]{escape(Path(base).name)}[/]: say something; /help tells the commands, /quit ends it")
    while (line := _line()) not in (None, "/quit", "/exit"):
        try:
            _do(talk, line or "")
        except StyloraError as error:
            aside([error.what, *error.faults, *([error.next_step] if error.next_step else [])])
        except KeyboardInterrupt:
            typer.echo()
            aside(["stopped; what was asked is no part of the talk"])


def _line() -> str | None:
    """What a person types, or the next line of a pipe; None where there is no more."""
    on_terminal = sys.stdin.isatty()
    try:
        return input("> " if on_terminal else "").strip()
    except (EOFError, KeyboardInterrupt):
        typer.echo("" if not on_terminal else "\n", nl=False)
        return None


def _do(talk: Conversation, line: str) -> None:
    """What a line wants: an answer, or a command. Raises ConfigError where there is no such command."""
    word, _, rest = line.partition(" ")
    if not line:
        return
    if not line.startswith("/"):
        _answer(talk, line)
    elif word in COMMANDS:
        COMMANDS[word].run(talk, rest.strip())
    else:
        raise ConfigError(f"{word}: no such command", next_step="/help tells those there are")


def _answer(talk: Conversation, question: str | None) -> None:
    """Stream the answer, to the last question again where there is none; say what is lost of it, and of the talk."""
    answer = talk.again(_stream) if question is None else talk.ask(question, _stream)
    typer.echo()
    lost = "the first turns no longer fit the base's context: it reads the last"
    aside([f"{lost} {len(talk.turns) - talk.forgotten}"] if answer.forgotten else [])
    aside(["the answer ends where the base's context does"] if answer.ending == "context" else [])


def _stream(piece: str) -> None:
    typer.echo(piece, nl=False)


# --- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """What stands behind its word, what it does."""

    behind: str
    about: str
    run: Callable[[Conversation, str], None]


def _weight(talk: Conversation, rest: str) -> None:
    from trainers.lora.blocks import to_number

    name, _, text = rest.rpartition(" ")
    weight = to_number(text)
    if not name or weight is None:
        raise ConfigError("wanted /weight NAME WEIGHT", next_step="such as /weight A 0.5; /adapters tells the names")
    talk.weigh(name.strip(), weight)
    _adapters(talk, "")


def _adapters(talk: Conversation, _: str) -> None:
    from trainers.lora.blocks import number_text

    uses = talk.recipe.adapters
    aside([f"{chr(ord('A') + k)} {use.title} {number_text(use.gain.weight)}" for k, use in enumerate(uses)] or ["none"])


def _system(talk: Conversation, rest: str) -> None:
    talk.change(replace(talk.recipe, system=rest))
    aside([f"told first: {rest}" if rest else "nothing is told first"])


def _seed(talk: Conversation, rest: str) -> None:
    if not rest.isdecimal():
        raise ConfigError(f"seed: got {rest!r}, wanted a whole number", next_step="write /seed 7")
    talk.change(replace(talk.recipe, seed=int(rest)))
    talk.redraw()
    aside([f"the next answer has seed {rest}"])


def _reset(talk: Conversation, _: str) -> None:
    talk.reset()
    aside(["nothing has been said"])


def _help(_: Conversation, __: str) -> None:
    words = {f"{word} {command.behind}".strip(): command.about for word, command in COMMANDS.items()}
    aside([f"{usage:<22} {about}" for usage, about in {**words, "/quit": "end; so does the end of the input"}.items()])


COMMANDS = {
    "/weight": Command("NAME WEIGHT", "another weight for an adapter, told by name or letter", _weight),
    "/adapters": Command("", "the adapters and their weights", _adapters),
    "/system": Command("TEXT", "what the base is told first; without TEXT nothing", _system),
    "/seed": Command("NUMBER", "the seed of the next answer", _seed),
    "/again": Command("", "another answer to the last question", lambda talk, _: _answer(talk, None)),
    "/reset": Command("", "begin anew; weights stay", _reset),
    "/help": Command("", "these lines", _help),
}
