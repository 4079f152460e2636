"""What the pages remember, and how they reach the engine: the only file with session_state, caches and query params.

A desk is a person at a browser: a token in the page's address, so that a reload finds its pictures again. What is typed
and moved is a *draft*: it is kept with the desk in the store and survives a reload and a restart.

Try it: `stylora app`, then move a slider and reload the page.
"""

from __future__ import annotations

import copy
import re
import secrets
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx

from studio.app import config
from trainers.errors import StyloraError

if TYPE_CHECKING:
    from streamlit.runtime.uploaded_file_manager import UploadedFile

    from studio.desk.engine import Engine

DESK = "desk"
WARM_AFTER = 2.0  # seconds, so that the first page comes first
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
PAGES = {name: f"views/{name}.py" for name in ("generate", "library", "train", "blend", "text")}
REMEMBER = """<script>{
const here = new URL(window.location.href), kept = localStorage.getItem("stylora-desk");
if (%s && kept && kept !== "%s") { here.searchParams.set("desk", kept); window.location.replace(here); }
else { localStorage.setItem("stylora-desk", "%s"); }
}</script>"""  # a browser that comes back by the bare address finds its desk again


# --- the engine ------------------------------------------------------------------------------------------------------


def options() -> config.Options:
    """What the studio was started with."""
    return config.from_environment()


_opened: dict[config.Options, Engine] = {}  # not in Streamlit's cache, which any browser can have cleared
_opening = threading.Lock()


def engine() -> Engine:
    """The server's one engine, started; shared by all desks."""
    asked = options()
    with _opening:
        if asked not in _opened:
            with st.spinner("Opening the studio …"):
                _opened[asked] = _open(asked)
        return _opened[asked]


def _open(asked: config.Options) -> Engine:
    from studio.desk.engine import Engine

    opened = Engine(
        asked.home, base=asked.base, text_base=asked.text_base, roots=asked.roots, shared=asked.share
    )  # fmt: skip
    opened.start()
    wait = threading.Timer(WARM_AFTER, _warm)
    wait.daemon = True
    wait.start()
    return opened


def close() -> None:
    """Close the engine; it is opened anew when it is asked for."""
    with _opening:
        while _opened:
            _opened.popitem()[1].close()


def _warm() -> None:
    """Import what drawing takes, while the first page is being read; the models themselves wait for a job."""
    import_module("studio.desk.drawing")


# --- the desk --------------------------------------------------------------------------------------------------------


def desk() -> str:
    """This person's token; a new one where the address has none."""
    if DESK not in st.session_state:
        asked = st.query_params.get(DESK, "")
        st.session_state["fresh"] = not TOKEN.fullmatch(asked)
        st.session_state[DESK] = secrets.token_urlsafe(16) if st.session_state["fresh"] else asked
    return str(st.session_state[DESK])


def sit_down() -> None:
    """Keep the desk in the address, also after a change of page, and in the browser; once in each run."""
    token = desk()
    if st.query_params.get(DESK) != token:
        st.query_params[DESK] = token
    if not st.session_state.get("seated"):
        st.session_state["seated"] = True
        fresh = "true" if st.session_state["fresh"] else "false"
        with st.container(key="desk_keeper"):
            st.html(REMEMBER % (fresh, token, token), unsafe_allow_javascript=True)


# --- drafts ----------------------------------------------------------------------------------------------------------


def _drafts() -> dict[str, Any]:
    """All of the desk as this session knows them; each has a row of its own, which two tabs may change in turn."""
    if "drafts" not in st.session_state:
        kept = engine().store.under(_row(""))
        st.session_state["drafts"] = {key.removeprefix(_row("")): value for key, value in kept.items()}
    drafts: dict[str, Any] = st.session_state["drafts"]
    return drafts


def _row(name: str) -> str:
    return f"drafts/{desk()}/{name}"


def get(name: str, usual: Any = None) -> Any:
    """A copy of what the desk keeps under this name ("generate.prompt"), or the usual."""
    return copy.deepcopy(_drafts().get(name, usual))


def put(name: str, value: Any) -> None:
    """Keep a value that JSON can hold with the desk; None forgets it. What can't be stored lasts as the page does."""
    drafts = _drafts()
    if drafts.get(name) == value:
        return
    try:
        if value is None:
            drafts.pop(name, None)
            engine().store.drop(_row(name))
        else:
            drafts[name] = value
            engine().store.put(_row(name), value)
    except StyloraError as error:
        fault(error)


def bind(name: str, usual: Any, among: Iterable[Any] | None = None, shown: str = "value") -> dict[str, Any]:
    """Arguments that make a widget show and change a draft: `st.slider("Steps", 1, 100, **bind("generate.steps", 25))`.

    `among` are the options of a selectbox or radio, `shown` is what the widget calls its first value else.
    """
    return bound(f"w.{name}", get(name, usual), lambda value: put(name, value), among, shown)


def bound(
    key: str, value: Any, keep: Callable[[Any], None], among: Iterable[Any] | None = None, shown: str = "value"
) -> dict[str, Any]:
    """The same for a value that is kept elsewhere: shown is `value`, a change is handed to `keep`.

    The widget is also given its value as the first one it has. A run that a quick person interrupts may never reach the
    browser, what it set is lost then, and the browser would send back the least value or the first option.
    A StyloraError is told on the page; raised from a callback, it would leave the page empty.
    """
    if st.session_state.get(key) != value:  # set only then: what is being typed would jump back
        st.session_state[key] = value

    def changed() -> None:
        try:
            keep(st.session_state[key])
        except StyloraError as error:
            fault(error)

    if among is None:
        return {"key": key, "on_change": changed, shown: value}
    options = list(among)
    return {"key": key, "on_change": changed, "index": options.index(value) if value in options else 0}


# --- this session alone ----------------------------------------------------------------------------------------------


def note(name: str, value: Any) -> None:
    """Remember a value for this session alone, not for the next visit."""
    st.session_state[f"note.{name}"] = value


def noted(name: str, usual: Any = None) -> Any:
    return st.session_state.get(f"note.{name}", usual)


def fault(error: StyloraError) -> None:
    """Have an error told above the page, which goes on."""
    note("faults", [*noted("faults", []), error])


def faults() -> list[StyloraError]:
    """Those of this run, once."""
    told: list[StyloraError] = noted("faults", [])
    note("faults", [])
    return told


def upload_key(name: str) -> str:
    """The key of an uploader; a new one after `forget_uploads`, which empties it."""
    return f"{name}.{noted(name, 0)}"


def forget_uploads(name: str, files: Iterable[UploadedFile]) -> None:
    """Let go of the files of an uploader that were read: Streamlit holds them in memory until the page is closed."""
    note(name, noted(name, 0) + 1)
    context = get_script_run_ctx()
    if context and isinstance(held := context.uploaded_file_mgr, MemoryUploadedFileManager):
        for file in files:
            held.remove_file(context.session_id, file.file_id)


def go(page: str, **drafts: Any) -> None:
    """Turn to another page, these drafts of it filled in: `go("train", style="ink")` sets "train.style"."""
    for name, value in drafts.items():
        put(f"{page}.{name}", value)
    st.switch_page(PAGES[page], query_params={DESK: desk()})
