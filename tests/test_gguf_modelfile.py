"""A Modelfile's template says of every talk what the base's own chat template says, or there is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from studio.gguf.modelfile import HINT, TALKS, pieces, rendered, text, write
from trainers.errors import AdapterError

TINY = (Path(__file__).resolve().parents[1] / "sample_data/bases/tiny-lm/chat_template.jinja").read_text()
TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = "{% for message in messages %}" + TURN + "{% endfor %}" + OPEN
NAME = "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}" + NAME + "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
)
GREETED = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}" + CHATML
)
GEMMA = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
INST = "{% for m in messages %}{{ '[INST] ' + m['content'] if m['role'] == 'user' else m['content'] }}{% endfor %}"


def in_go(template: str, talk: tuple[str, ...]) -> str:
    """What Ollama makes of a template that is one loop over .Messages."""
    found = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template, re.S)
    assert found
    turns = (found[1].replace("{{ .Role }}", role).replace("{{ .Content }}", f"«{n}»") for n, role in enumerate(talk))
    return "".join(turns) + found[2]


@pytest.mark.parametrize(("jinja", "stop"), [(TINY, "</s>"), (CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>")])
def test_the_template_says_the_same(jinja: str, stop: str) -> None:
    made = text("base", "pirate.gguf", (jinja, "<s>", "</s>"))
    found = re.fullmatch(
        r'FROM base\nADAPTER \./pirate\.gguf\nTEMPLATE """(.*)"""\nPARAMETER stop "(.*)"\n', made, re.S
    )
    assert found
    assert found[2] == stop
    for talk in TALKS:
        assert in_go(found[1], talk) == rendered(jinja, "<s>", "</s>", talk)


@pytest.mark.parametrize(
    "jinja", [GREETED, GEMMA, INST, "{% if %}", "{{ messages }}", "no turns", TINY.replace("|>", '"')]
)
def test_what_cannot_be_said_is_left_to_ollama(jinja: str) -> None:
    assert pieces(jinja, "<s>", "</s>") is None
    assert text("./merged.gguf", None, (jinja, "<s>", "</s>")) == "FROM ./merged.gguf\n" + HINT


def test_no_template_no_hint() -> None:
    assert text("llama3.2", None, ("", "", "")) == "FROM llama3.2\n"


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", "one")
    with pytest.raises(AdapterError, match="exists"):
        write(tmp_path / "b.gguf", "two")
    assert path.read_text() == "one"
    assert write(tmp_path / "b.gguf", "two", overwrite=True).read_text() == "two"
