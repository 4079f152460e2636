"""A Modelfile: what `ollama create NAME -f Modelfile` makes a model of, from a base and an adapter.

Ollama has templates of its own (Go's). The base's chat template (Jinja) is rendered once with marks for what people
say; where it writes the same before and after every turn of a role, that is the Go template.

Try it: python -c "from studio.gguf.modelfile import text; print(text('llama3.2', 'pirate.gguf', ('', '', '')))"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trainers.checkpoint import write_atomically
from trainers.errors import AdapterError

NAME = "Modelfile"
TALKS = (  # a chat, as roles: the template's pieces are taken from the first and must explain the others
    ("system", "user", "assistant", "user"),
    ("user",),
    ("user", "assistant", "user", "assistant", "user"),
)
HINT = (
    "# No TEMPLATE: the base's chat template is too rich to be said here. Ollama knows those of most bases by itself.\n"
)


def write(beside: Path, text: str, overwrite: bool = False) -> Path:
    """Write it next to a file. Raises AdapterError: there is one already."""
    path = beside.with_name(NAME)
    if path.exists() and not overwrite:
        raise AdapterError(f"{path}: exists", next_step="move it, or add --overwrite")
    write_atomically(path, text.encode())
    return path


def text(origin: str, adapter: str | None, template: tuple[str, str, str]) -> str:
    """FROM `origin` (a name in Ollama, or a GGUF's path), ADAPTER, TEMPLATE and PARAMETER stop.

    `template` is (chat template in Jinja, beginning-of-sequence, end-of-sequence).
    """
    lines = f"FROM {origin}\n" + (f"ADAPTER ./{adapter}\n" if adapter else "")
    jinja, bos, eos = template
    turns = pieces(jinja, bos, eos) if jinja else None
    if turns is None:
        return lines + (HINT if jinja else "")
    stop = turns[2].strip() or eos
    return lines + f'TEMPLATE """{go(*turns)}"""\n' + (f'PARAMETER stop "{stop}"\n' if stop else "")


def go(before: str, between: str, after: str, answer: str) -> str:
    """Ollama's template of such turns."""
    return f"{{{{ range .Messages }}}}{before}{{{{ .Role }}}}{between}{{{{ .Content }}}}{after}{{{{ end }}}}{answer}"


def pieces(jinja: str, bos: str, eos: str) -> tuple[str, str, str, str] | None:
    """(before a role's name, between it and the words, after the words, before the answer); None: it isn't so simple.

    The beginning-of-sequence is left out: llama.cpp puts it there itself.
    """
    parts = re.split("«.»", rendered(jinja, bos, eos, TALKS[0]) or "")
    if len(parts) != len(TALKS[0]) + 1:
        return None
    first, joint, *_, last = parts
    before, found, between = first.partition("system")
    after = joint.removesuffix(f"{before}user{between}")
    if not found or after == joint or not last.startswith(after):
        return None
    turns = before, between, after, last.removeprefix(after)
    if any(mark in "".join(turns) for mark in ("{{", "}}", '"')):
        return None
    same = all(rendered(jinja, bos, eos, talk) == _plain(*turns, talk) for talk in TALKS)
    return turns if same else None


def rendered(jinja: str, bos: str, eos: str, talk: Sequence[str]) -> str | None:
    """What a chat template makes of a talk whose turns say «0», «1», …, as transformers renders it; None: it can't."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = re.sub(r"\{%-? *(end)?generation *-?%\}", "", jinja)  # transformers' own tag: it marks, and writes nothing
    rooms = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": role, "content": f"«{turn}»"} for turn, role in enumerate(talk)]
    try:
        made = rooms.from_string(plain).render(
            messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=True
        )
    except TemplateError:  # a syntax error, or the template's own refusal of a role
        return None
    return made.removeprefix(bos)


def _plain(before: str, between: str, after: str, answer: str, talk: Sequence[str]) -> str:
    return "".join(f"{before}{role}{between}«{turn}»{after}" for turn, role in enumerate(talk)) + answer
