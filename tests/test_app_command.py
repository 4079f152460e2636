"""`stylora app`: the settings it starts Streamlit with, what it refuses, that a page answers, and what help costs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from streamlit import config as streamlit_config

from studio.app import config
from trainers.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
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
    asked = config.Options(tmp_path, "sd15", "tiny-lm", True)
    assert config.from_environment(asked.to_environment()) == asked
    assert config.from_environment({}) == config.Options(Path("~/stylora").expanduser())


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


def test_the_command_serves_and_ends(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", "from studio.cli import main; import studio.commands.app; main()", "app"]
    started = [*command, "--port", str(port), "--library", str(tmp_path / "mine"), "--no-browser"]
    child = subprocess.Popen(started, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert answer(f"http://{config.LOCAL}:{port}/_stcore/health", child) == "ok"
    finally:
        child.terminate()
        said = child.communicate(timeout=30)[0]
    assert f"http://{config.LOCAL}:{port}" in said
    assert "Traceback" not in said
    assert not re.search(r"streamlit", said, re.IGNORECASE)  # no advertisement of what it stands on


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
    command = "from studio.cli import main; import studio.commands.app; main()"
    quiet = {name: value for name, value in os.environ.items() if name != config.PASSWORD}
    done = subprocess.run([sys.executable, "-c", command, "app", "--share"], cwd=ROOT, env=quiet, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 1
    assert config.PASSWORD in done.stderr
    assert "Traceback" not in done.stderr
