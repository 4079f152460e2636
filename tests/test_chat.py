"""chat as a person types it, through a pipe: answers on stdout, all else on stderr, no error ends it."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

import studio.commands.chat
from studio.write import chat
from tests import lms
from tests.texting import styled
from trainers.cli import app

assert studio.commands.chat


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shelf")
    lms.lm("llama", folder / "micro")
    adapter = styled(folder / "micro", folder / "pirate")
    return ["chat", "--base", str(folder / "micro"), "--adapter", f"{adapter}:0.8", "--max-tokens", "6",
            "--top-k", "60"]  # fmt: skip


def talked(words: list[str], *lines: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, words, input="".join(f"{line}\n" for line in lines))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def test_answers_stand_on_stdout_and_seeds_make_them_again(common: list[str]) -> None:
    one = talked(common, "the end", "and then").stdout
    assert one == talked(common, "the end", "and then", "/quit", "more").stdout
    assert one == talked([*common, "--seed", "3"], "/seed 0", "the end", "and then").stdout
    assert one != talked([*common, "--seed", "3"], "the end", "and then").stdout
    twice = talked(common, "the end", "/reset", "/seed 0", "the end").stdout
    half = len(twice) // 2
    assert twice[:half] == twice[half:]


def test_weights_and_what_is_told_first_change_the_answer(common: list[str]) -> None:
    plain = talked(common, "the end").stdout
    assert plain == talked(common, "/weight pirate 0", "/weight A 0.8", "the end").stdout
    assert plain != talked(common, "/weight A 0", "the end").stdout
    assert plain != talked(common, "/system be", "the end").stdout
    assert plain == talked(common, "/system be", "/system", "the end").stdout
    assert talked(common, "/weight A 0.25", "/adapters").stderr.count("A pirate 0.25") == 2
    assert talked([*common[:3]], "/adapters").stderr == "· none\n"


def test_again(common: list[str]) -> None:
    made = talked(common, "the end", "/again")
    other = talked(common, "the end", "/seed 1", "/again")
    assert made.stdout == other.stdout


def test_no_fault_ends_the_talk(common: list[str]) -> None:
    faults = [
        "/again",
        "/nonsense",
        "/weight",
        "/weight Q 1",
        "/weight A x",
        "/seed x",
        f"/seed {2**70}",
        "the " * 99,
        "",
    ]
    made = talked(common, *faults, "the end")
    assert made.stdout == talked(common, "the end").stdout
    for said in ("nothing was asked yet", "/nonsense: no such command", "wanted /weight NAME WEIGHT", "'Q': no such",
                 "seed: got 'x'", "less than 2^63", "nothing can be written"):  # fmt: skip
        assert said in made.stderr


def test_help_names_every_command(common: list[str]) -> None:
    said = talked(common, "/help").stderr
    assert all(word in said for word in (*studio.commands.chat.COMMANDS, "/quit"))


def test_forgetting_is_told(common: list[str]) -> None:
    said = talked(common, *["the end and the end"] * 4).stderr
    assert "the first turns no longer fit the base's context" in said


def test_an_answer_that_is_stopped_is_no_part_of_the_talk(common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ask = chat.Conversation.ask

    def interrupted(self: chat.Conversation, text: str, on_text: Any = None) -> chat.Reply:
        if text == "stop me":
            raise KeyboardInterrupt
        return ask(self, text, on_text)

    monkeypatch.setattr(chat.Conversation, "ask", interrupted)
    made = talked(common, "stop me", "the end")
    assert "stopped" in made.stderr
    assert made.stdout.strip() == talked(common, "the end").stdout.strip()


def test_what_cant_be_talked_with(common: list[str]) -> None:
    assert "wanted a language model" in talked(["chat", "--base", "tiny-sd"], code=1).stderr
    assert "temperature: got -1.0" in talked([*common, "--temperature", "-1"], code=1).stderr
