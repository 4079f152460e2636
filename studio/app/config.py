"""What the studio is started with: its own options (by environment) and Streamlit's settings, the theme among them.

Try it: python -c "from studio.app.config import *; print(settings(Options(Path('~/stylora')), 8501)['server.address'])"
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.errors import ConfigError

PASSWORD = "STYLORA_PASSWORD"  # the environment variable that holds it, never a flag: flags are seen by all users
SHORTEST_PASSWORD = 8
LARGEST_UPLOAD = 1024  # MB
LARGEST_SHARED = 256  # MB, where others send them: a file is held in memory until the page has taken it
MAIN = Path(__file__).with_name("main.py")
LOCAL, EVERYWHERE = "127.0.0.1", "0.0.0.0"
HOME = Path("~/stylora")

LIGHT = {
    "primaryColor": "#b8472d", "backgroundColor": "#fbfaf7", "secondaryBackgroundColor": "#f1eee8",
    "textColor": "#26221d", "borderColor": "#ddd7cc", "linkColor": "#9c3a23", "codeBackgroundColor": "#f1eee8",
    "chartCategoricalColors": ["#b8472d", "#2c6e8f", "#7a8b3a", "#8a5a9e", "#c79a2e"],
}  # fmt: skip
DARK = {
    "primaryColor": "#c9542f", "backgroundColor": "#17161a", "secondaryBackgroundColor": "#222127",
    "textColor": "#ece8e1", "borderColor": "#3a3841", "linkColor": "#f0987a", "codeBackgroundColor": "#222127",
    "chartCategoricalColors": ["#e57b58", "#6fb3d2", "#b5c46a", "#bf94d1", "#e6c065"],
}  # fmt: skip
BOTH = {
    "font": "sans-serif", "headingFont": "serif", "baseRadius": "10px", "baseFontSize": 15,
    "headingFontSizes": ["1.9rem", "1.45rem", "1.2rem", "1.05rem", "1rem", "0.9rem"], "showWidgetBorder": True,
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The studio's own: its home folder, the bases it begins with, whether others may come in, and further folders.

    Adapters, pictures and texts are taken from the home folder and from these `roots`, from nowhere else.
    """

    home: Path
    base: str = "tiny-sd"
    text_base: str = "tiny-lm"
    share: bool = False
    roots: tuple[Path, ...] = ()

    def to_environment(self) -> dict[str, str]:
        """For the process that runs the pages."""
        return {
            "STYLORA_HOME": str(self.home), "STYLORA_BASE": self.base, "STYLORA_TEXT_BASE": self.text_base,
            "STYLORA_SHARE": "1" if self.share else "", "STYLORA_ROOTS": json.dumps([str(root) for root in self.roots]),
        }  # fmt: skip


def from_environment(environment: Mapping[str, str] = os.environ) -> Options:
    """The reverse of `to_environment`; the usual where nothing is said."""
    usual = Options(HOME)
    return Options(
        Path(environment.get("STYLORA_HOME") or usual.home).expanduser(),
        environment.get("STYLORA_BASE") or usual.base,
        environment.get("STYLORA_TEXT_BASE") or usual.text_base,
        bool(environment.get("STYLORA_SHARE")),
        tuple(Path(root) for root in json.loads(environment.get("STYLORA_ROOTS") or "[]")),
    )


def largest(options: Options, wanted: int = LARGEST_UPLOAD) -> int:
    """MB that an upload may have: what its kind of file takes, and less where others come in."""
    return min(wanted, LARGEST_SHARED if options.share else LARGEST_UPLOAD)


def settings(options: Options, port: int) -> dict[str, Any]:
    """Streamlit's options by their names."""
    themes: dict[str, Mapping[str, Any]] = {"theme": BOTH, "theme.light": LIGHT, "theme.dark": DARK}
    return {
        "server.address": EVERYWHERE if options.share else LOCAL,
        "server.port": port,
        "server.headless": True,  # the command opens the browser itself, and Streamlit says nothing of its own
        "server.enableXsrfProtection": True,
        "server.enableCORS": True,
        "server.fileWatcherType": "none",  # it would import every submodule of torch
        "server.runOnSave": False,
        "server.maxUploadSize": largest(options),
        "server.enableStaticServing": False,
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": True,
        "logger.level": "error",
        "runner.magicEnabled": False,
        "global.disableWidgetStateDuplicationWarning": True,  # state.bound gives both on purpose
        "runner.postScriptGC": False,  # a full collection after each run, four times a second, starves the drawing
        **{f"{section}.{name}": value for section, theme in themes.items() for name, value in theme.items()},
    }


def check(options: Options, port: int, password: str) -> None:
    """Raises ConfigError: shared without a password worth the name, a root that isn't there, or the port is taken."""
    if options.share and len(password) < SHORTEST_PASSWORD:
        why = f"{PASSWORD} has {len(password)} characters" if password else f"{PASSWORD} is not set"
        raise ConfigError(
            f"--share lets others in, which needs a password: {why}",
            next_step=f"{PASSWORD}='at least {SHORTEST_PASSWORD} characters' stylora app --share",
        )
    if gone := [str(root) for root in options.roots if not root.is_dir()]:
        raise ConfigError("--root: no such folder", gone, "name folders that are there")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: not taken by closed lines
        try:
            probe.bind((EVERYWHERE if options.share else LOCAL, port))
        except OSError as error:
            raise ConfigError(
                f"port {port}: {(error.strerror or str(error)).lower()}",
                next_step=f"the studio may be open already: http://{LOCAL}:{port}; or use another: --port {port + 1}",
            ) from error


def serve(options: Options, port: int, password: str) -> None:
    """Serve the pages until the process is told to stop; behind the door where others may come in."""
    import streamlit as st  # half a second
    from starlette.middleware import Middleware

    from studio.app.parts.door import Door

    os.environ.update(options.to_environment())
    door = [Middleware(Door, password=password)] if options.share else []
    with suppress(KeyboardInterrupt):  # ctrl-C is the usual end
        st.App(MAIN, middleware=door).run(config=settings(options, port))
