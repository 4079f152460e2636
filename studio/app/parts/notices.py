"""What went wrong and what was done, in words: errors with every fault and a next step, toasts, empty states.

Try it: python -c "from studio.app.parts.notices import *; print(in_words({'what': 'no such base', 'faults': []}))"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import streamlit as st

from studio.app import state
from studio.desk.wording import in_page_words
from trainers.errors import StyloraError

Asked = ParamSpec("Asked")


@contextmanager
def told() -> Iterator[None]:
    """Show a StyloraError raised within as an error on the page."""
    try:
        yield
    except StyloraError as error:
        show_error(error)


def safely(do: Callable[Asked, object]) -> Callable[Asked, None]:
    """What a button does (`on_click=safely(remove)`, or as a decorator): a StyloraError is told above the page."""

    @wraps(do)
    def done(*args: Asked.args, **kwargs: Asked.kwargs) -> None:
        try:
            do(*args, **kwargs)
        except StyloraError as error:
            state.fault(error)

    return done


def show_error(error: StyloraError | Mapping[str, Any]) -> None:
    """An error, or a job's error as the store keeps it: what, faults, next_step."""
    st.error(in_words(error), icon=":material/error:")


def in_words(error: StyloraError | Mapping[str, Any]) -> str:
    """As Markdown that shows what people and files are called as it is written."""
    facts = vars(error) if isinstance(error, StyloraError) else error
    lines = [f"**{said(facts.get('what', 'it did not work'))}**"]
    lines += [f"- {said(fault)}" for fault in facts.get("faults") or ()]
    if step := facts.get("next_step"):
        lines += ["", f"Next: {said(step)}"]
    return "\n".join([lines[0], "", *lines[1:]] if len(lines) > 1 else lines)


def said(text: object) -> str:
    """A text of an error, without the command line's flags."""
    return plain(in_page_words(str(text)))


def plain(text: object) -> str:
    """Text whose signs Markdown leaves alone."""
    return "".join("\\" + sign if sign in r"\`*_{}[]()<>#+-!|~$:" else sign for sign in str(text)).replace("\n", " ")


def table(rows: Mapping[str, str]) -> None:
    """Names and values below each other."""
    lines = [f"| {plain(name)} | {plain(value)} |" for name, value in rows.items()]
    st.markdown("\n".join(["| | |", "|:--|:--|", *lines]))


def notes(result: Mapping[str, Any] | None) -> None:
    """What a person should know of what a job did, from its result."""
    for note in (result or {}).get("notes", ()):
        st.caption(f":material/info: {plain(note)}")


def aside(texts: Iterable[str]) -> None:
    """Notes of little weight, in one line."""
    if found := [plain(text) for text in texts]:
        st.caption(f":material/info: {' · '.join(found)}")


def toast(text: str) -> None:
    """Say that something was done, at the next run of the page: a rerun would swallow it now."""
    state.note("toasts", [*state.noted("toasts", []), text])


def say_toasts() -> None:
    for text in state.noted("toasts", []):
        st.toast(plain(text), icon=":material/check_circle:")
    state.note("toasts", [])


def empty(title: str, text: str, icon: str = ":material/auto_awesome:") -> None:
    """An empty state: what will be here, and how to begin; buttons go below it."""
    st.markdown(f"### {icon} {title}")
    st.markdown(text)
