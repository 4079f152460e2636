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
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import config

if TYPE_CHECKING:
    from studio.desk.engine import Engine

DESK = "desk"
WARM_AFTER = 2.0  # seconds, so that the first page comes first
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
PAGES = {name: f"views/{name}.py" for name in ("generate", "library", "train", "blend", "text")}
REMEMBER = """<script>
const here = new URL(window.location.href), kept = localStorage.getItem("stylora-desk");
if (%s && kept && kept !== "%s") { here.searchParams.set("desk", kept); window.location.replace(here); }
else { localStorage.setItem("stylora-desk", "%s"); }
</script>"""  # a browser that comes back by the bare address finds its desk again


# --- the engine ------------------------------------------------------------------------------------------------------


def options() -> config.Options:
    """What the studio was started with."""
    return config.from_environment()


def engine() -> Engine:
    """The server's one engine, started; shared by all desks."""
    return _engine(options())


@st.cache_resource(max_entries=1, show_spinner="Opening the studio …")
def _engine(asked: config.Options) -> Engine:
    from studio.desk.engine import Engine

    opened = Engine(asked.home, base=asked.base, text_base=asked.text_base)
    opened.start()
    wait = threading.Timer(WARM_AFTER, _warm)
    wait.daemon = True
    wait.start()
    return opened


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


def admitted() -> bool:
    return not options().share or bool(st.session_state.get("admitted"))


def admit() -> None:
    st.session_state["admitted"] = True


# --- drafts ----------------------------------------------------------------------------------------------------------


def _drafts() -> dict[str, Any]:
    if "drafts" not in st.session_state:
        kept = engine().store.get(f"drafts/{desk()}")
        st.session_state["drafts"] = kept if isinstance(kept, dict) else {}
    drafts: dict[str, Any] = st.session_state["drafts"]
    return drafts


def get(name: str, usual: Any = None) -> Any:
    """A copy of what the desk keeps under this name ("generate.prompt"), or the usual."""
    return copy.deepcopy(_drafts().get(name, usual))


def put(name: str, value: Any) -> None:
    """Keep a value that JSON can hold with the desk; None forgets it."""
    drafts = _drafts()
    if drafts.get(name) == value:
        return
    if value is None:
        drafts.pop(name, None)
    else:
        drafts[name] = value
    engine().store.put(f"drafts/{desk()}", drafts)


def bind(name: str, usual: Any, then: Callable[[], None] | None = None) -> dict[str, Any]:
    """Arguments that make a widget show and change a draft: `st.slider("Steps", 1, 100, **bind("generate.steps", 25))`.

    `then` is called after a change.
    """
    return bound(f"w.{name}", get(name, usual), lambda value: put(name, value), then)


def bound(key: str, value: Any, keep: Callable[[Any], None], then: Callable[[], None] | None = None) -> dict[str, Any]:
    """The same for a value that is kept elsewhere: shown is `value`, a change is handed to `keep`."""
    if st.session_state.get(key) != value:  # set only then: what is being typed would jump back
        st.session_state[key] = value

    def changed() -> None:
        keep(st.session_state[key])
        if then:
            then()

    return {"key": key, "on_change": changed}


# --- this session alone ----------------------------------------------------------------------------------------------


def note(name: str, value: Any) -> None:
    """Remember a value for this session alone, not for the next visit."""
    st.session_state[f"note.{name}"] = value


def noted(name: str, usual: Any = None) -> Any:
    return st.session_state.get(f"note.{name}", usual)


def go(page: str, **drafts: Any) -> None:
    """Turn to another page, these drafts of it filled in: `go("train", style="ink")` sets "train.style"."""
    for name, value in drafts.items():
        put(f"{page}.{name}", value)
    st.switch_page(PAGES[page], query_params={DESK: desk()})
