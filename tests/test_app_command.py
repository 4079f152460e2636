"""`stylora app`: the settings it starts Streamlit with, what it refuses, that a page answers, and what help costs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import typer
from streamlit import config as streamlit_config
from typer.testing import CliRunner

from studio.app import config, state
from studio.commands import app as command
from trainers.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "from studio.cli import main; import studio.commands.app; main()"
LONG = "a long enough secret"


def free_port() -> int:
    with socket.socket() as one:
        one.bind((config.LOCAL, 0))
        return int(one.getsockname()[1])


def test_it_is_local_and_guarded_and_says_nothing_to_others() -> None:
    found = config.settings(config.Options(Path("x")), 8501)
    assert found["server.address"] == "127.0.0.1"
    assert found["server.port"] == 8501
    assert found["server.enableXsrfProtection"]
    assert found["server.enableCORS"]
    assert found["client.showErrorDetails"] == "none"
    assert found["client.toolbarMode"] == "minimal"
    assert not found["browser.gatherUsageStats"]
    assert found["server.fileWatcherType"] == "none"
    assert not found[
        "runner.postScriptGC"
    ]  # measured: with it, drawing took seven times as long while a page looked on
    assert 0 < found["server.maxUploadSize"] <= 2048


def test_streamlit_knows_every_setting() -> None:
    assert set(config.settings(config.Options(Path("x")), 8501)) <= streamlit_config._config_options_template.keys()


@pytest.mark.parametrize("theme", [config.LIGHT, config.DARK])
def test_texts_can_be_read(theme: dict[str, str]) -> None:
    """WCAG's contrast of text on both backgrounds: at least 7 to 1; of links at least 4.5."""
    for ground in ("backgroundColor", "secondaryBackgroundColor"):
        assert contrast(theme["textColor"], theme[ground]) >= 7
        assert contrast(theme["linkColor"], theme[ground]) >= 4.5


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_options_travel_by_environment(tmp_path: Path) -> None:
    asked = config.Options(tmp_path, "sd15", "tiny-lm", True, (tmp_path / "a:b", tmp_path / "c d"))
    assert config.from_environment(asked.to_environment()) == asked
    assert config.from_environment({}) == config.Options(Path("~/stylora").expanduser())


def test_the_engine_is_made_with_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MagicMock()
    monkeypatch.setattr("studio.desk.engine.Engine", made)
    state._open(config.Options(tmp_path, "sd15", "lm", True, (tmp_path / "pictures",)))
    made.assert_called_once_with(
        tmp_path, base="sd15", text_base="lm", roots=(tmp_path / "pictures",), shared=True
    )  # fmt: skip


def test_others_may_send_less(tmp_path: Path) -> None:
    alone, shared = config.Options(tmp_path), config.Options(tmp_path, share=True)
    assert config.settings(alone, 1)["server.maxUploadSize"] == config.largest(alone) == config.LARGEST_UPLOAD
    assert config.settings(shared, 1)["server.maxUploadSize"] == config.largest(shared) == config.LARGEST_SHARED
    assert config.largest(alone, 40) == config.largest(shared, 40) == 40


def test_folders_of_root_reach_the_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[config.Options] = []
    cli = typer.Typer()
    cli.command("app")(command.studio)
    cli.command("other")(lambda: None)  # with one command alone there would be no word for it
    monkeypatch.setattr(config, "serve", lambda options, port, password: served.append(options))
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["app", "--no-browser", "--port", str(free_port()), "--root", "runs", "--root"]
    done = CliRunner().invoke(cli, [*words, str(tmp_path)])
    assert not done.exception
    assert served[0].roots == (tmp_path / "runs", tmp_path)
    for wrong in ("nowhere", "~nobody-of-this-name"):
        told = CliRunner().invoke(cli, [*words, wrong]).exception
        assert isinstance(told, ConfigError)
        assert wrong in str(told)
    assert len(served) == 1


@pytest.mark.parametrize("password", ["", "short"])
def test_sharing_needs_a_password(password: str) -> None:
    shared = config.Options(Path("x"), share=True)
    with pytest.raises(ConfigError, match="needs a password") as refused:
        config.check(shared, free_port(), password)
    assert config.PASSWORD in refused.value.next_step
    config.check(shared, free_port(), LONG)
    assert config.settings(shared, 1)["server.address"] == "0.0.0.0"


def test_a_taken_port_is_told() -> None:
    with socket.socket() as other:
        other.bind((config.LOCAL, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)) as refused:
            config.check(config.Options(Path("x")), port, "")
    assert f"--port {port + 1}" in refused.value.next_step


@contextmanager
def serving(home: Path, *words: str) -> Iterator[tuple[str, list[str]]]:
    """The command as a process; its address, and what it said, when it has ended."""
    port, said = free_port(), list[str]()
    places = ("--port", str(port), "--library", str(home))
    started = [sys.executable, "-c", COMMAND, "app", *places, "--no-browser", *words]
    environment = os.environ | {config.PASSWORD: LONG}
    child = subprocess.Popen(started, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True)  # fmt: skip
    try:
        address = f"http://{config.LOCAL}:{port}"
        assert answer(f"{address}/_stcore/health", child) == "ok"
        yield address, said
    finally:
        child.send_signal(signal.SIGINT)
        said.append(child.communicate(timeout=30)[0])
    assert child.returncode == 0
    assert "Traceback" not in said[0]
    assert not re.search(r"streamlit|uvicorn", said[0], re.IGNORECASE)  # no advertisement of what it stands on


def test_the_command_serves_and_ends(tmp_path: Path) -> None:
    with serving(tmp_path / "mine") as (address, said), urllib.request.urlopen(address) as page:
        assert "password" not in page.read().decode()
        again = [sys.executable, "-c", COMMAND, "app", "--port", str(free_port()), "--library", str(tmp_path / "mine")]
        second = subprocess.run(again, cwd=ROOT, text=True, capture_output=True)
    assert address in said[0]
    assert (second.returncode, second.stdout) == (1, "")
    assert "open already" in second.stderr


def test_a_shared_studio_takes_nothing_before_the_password(tmp_path: Path) -> None:
    with serving(tmp_path / "mine", "--share") as (address, _):
        upload = urllib.request.Request(f"{address}/_stcore/upload_file/a/b", b"x" * 1000, method="PUT")
        for request in (upload, f"{address}/_stcore/host-config", f"{address}/_stcore/metrics"):
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(request)
            refused.value.close()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with browser.open(address, b"password=" + LONG.replace(" ", "+").encode()) as page:
            assert page.url == f"{address}/"
        with browser.open(f"{address}/_stcore/host-config") as inside:
            assert "allowedOrigins" in inside.read().decode()


def answer(address: str, child: subprocess.Popen[str]) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until and child.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                return str(reply.read().decode())
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no answer; the child's status is {child.poll()}")


def test_help_needs_no_streamlit() -> None:
    code = "import sys, studio.commands.app; print({'streamlit', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_share_refuses_before_anything_starts() -> None:
    quiet = {name: value for name, value in os.environ.items() if name != config.PASSWORD}
    done = subprocess.run([sys.executable, "-c", COMMAND, "app", "--share"], cwd=ROOT, env=quiet, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 1
    assert config.PASSWORD in done.stderr
    assert "Traceback" not in done.stderr
