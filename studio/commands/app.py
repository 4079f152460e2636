"""The command that opens the studio in the browser: app.

Try it: `stylora app`
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Annotated

import typer

from studio.app import config
from trainers.cli import app
from trainers.console import escape, say
from trainers.errors import ConfigError

PANEL = "Studio"
PATIENCE = 30.0  # seconds until the browser is no longer opened


@app.command("app", rich_help_panel=PANEL)
def studio(
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the address in the browser")] = 8501,
    library: Annotated[
        Path,
        typer.Option(metavar="DIR", help="folder of your adapters; the studio keeps its own things in .studio there"),
    ] = config.HOME,
    base: Annotated[
        str, typer.Option(help="base to begin with: tiny-sd, sd15, a folder, a file or a hub id")
    ] = "tiny-sd",
    text_base: Annotated[str, typer.Option(help="language model to begin with")] = "tiny-lm",
    root: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="a further folder that files may be taken from; may be given again"),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help=f"let other machines in, with the password in {config.PASSWORD}")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open the page in the browser")] = True,
) -> None:
    """Open the studio: draw, collect, train, blend and write with styles on pages in the browser."""
    home, *roots = map(whole, (library, *(root or ())))
    options = config.Options(home, base, text_base, share, tuple(roots))
    password = os.environ.pop(config.PASSWORD, "")  # what the studio starts itself needs not know it
    config.check(options, port, password)
    with alone(home):
        serve(options, port, password, browser)


def serve(options: config.Options, port: int, password: str, browser: bool) -> None:
    """Say where it is, open the browser, and serve until the process is told to stop."""
    address = f"http://{config.LOCAL}:{port}"
    say(f"The studio is at [bold]{address}[/] (ctrl-C closes it). Your adapters: [bold]{escape(str(options.home))}[/]")
    if options.share:
        say(f"Others reach it by this machine's name and port {port}; it asks them for the password.")
    if browser and _has_screen():
        threading.Thread(target=_open, args=(address, port), daemon=True).start()
    config.serve(options, port, password)


def alone(home: Path) -> IO[str]:
    """Be the only studio of this library while the file is open. Raises RunError: there is another."""
    from studio.desk.database import lock

    return lock(home / ".studio")


def whole(path: Path) -> Path:
    """From the root, `~` written out. Raises ConfigError: a home folder of nobody."""
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}", next_step="write the whole path") from error


def _has_screen() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(address: str, port: int) -> None:
    """Open the browser as soon as someone answers there."""
    import socket
    import webbrowser

    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex((config.LOCAL, port)) == 0:
                webbrowser.open(address)
                return
        time.sleep(0.1)
