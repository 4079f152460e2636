"""What the studio says of errors: no flags, no commands, whatever part of stylora they come from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.desk.wording import in_page_words
from studio.desk.work import told
from trainers.errors import AdapterError

ROOT = Path(__file__).parents[1]
COMMANDS = ("commands", "app", "cli.py", "demo.py", "text_demo.py", "given.py", "again.py", "batch.py", "leaves.py")
FLAG = re.compile(r"(?<![\w-])--(?!library|root|port)[a-z]|`stylora (?!app)")  # what `stylora app` takes may be said


def texts(tree: ast.AST) -> Iterator[str]:
    """All texts in a module but its docstrings; a formatted one with … for what is put in."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.JoinedStr():
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            case ast.Constant(value=str(text)):
                yield text
            case _:
                yield from texts(node)


def test_no_error_speaks_the_command_line() -> None:
    files = [file for folder in ("studio", "trainers") for file in (ROOT / folder).rglob("*.py")]
    desks = [file for file in files if not set(file.relative_to(ROOT).parts[1:]) & set(COMMANDS)]
    wording = ROOT / "studio" / "desk" / "wording.py"
    said = {text for file in desks if file != wording for text in texts(ast.parse(file.read_text()))}
    flagged = {text for text in said if FLAG.search(text)}
    assert len(flagged) > 40, "there is something to put into other words"
    left = {text: in_page_words(text) for text in flagged if FLAG.search(in_page_words(text))}
    assert left == {}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("x.png can't be written", "x.png can't be written"),
        ("name another --out", "free some space, or check the folder's rights"),
        ("name another --out, or add --overwrite", "give it another name"),
        ("--out /a/b: exists; name another, or add --overwrite", "out /a/b: exists; give it another name"),
        ("`stylora blend --help`, `stylora resize --help` say what is meant", "put this right, then ask again"),
        (
            "name the base it is for (`--base …`): DoRA is converted with the base's weights; "
            "`stylora check FILE --base …` tells how much of it can be applied",
            "choose the base it is for: DoRA is converted with the base's weights; "
            "Fits in the Library tells how much of it can be applied",
        ),
        ("name one: `--config FOLDER`", "name one: config FOLDER"),
        ("start it again with `stylora app`", "start it again with `stylora app`"),
        ("a prompt with --ar 3:2 -- or none", "a prompt with --ar 3:2 -- or none"),
    ],
)
def test_sayings(said: str, shown: str) -> None:
    assert in_page_words(said) == shown


def test_all_of_an_error_is_told_in_these_words() -> None:
    error = AdapterError("--dtype is 'x'", ["--out a: exists"], "use --device auto")
    assert told(error) == {"what": "dtype is 'x'", "faults": ["out a: exists"], "next_step": "use device auto"}
