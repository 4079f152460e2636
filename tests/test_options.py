"""Every setting is a flag of the command line, and what is given arrives unread."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from trainers.config import TrainConfig, leaves
from trainers.options import flags, with_options

ROOT = Path(__file__).parent.parent
app = typer.Typer()
seen: list[tuple[Path | None, list[str], dict[str, str]]] = []


@app.command()
@with_options
def train(
    values: dict[str, str],
    file: Path | None = typer.Argument(None),
    sets: list[str] = typer.Option([], "--set", metavar="KEY=VALUE"),
) -> None:
    """Trains."""
    seen.append((file, sets, values))


def called(*args: str) -> tuple[Path | None, list[str], dict[str, str]]:
    seen.clear()
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return seen[0]


@pytest.fixture(scope="module")
def help_text() -> str:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.key)
def test_help_shows_every_setting(help_text: str, leaf: object) -> None:
    key = getattr(leaf, "key")  # noqa: B009
    assert re.search(rf"{re.escape(flags()[key][0])}\s", help_text)


def test_help_shows_meaning_default_limits_and_section(help_text: str) -> None:
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", help_text).split())
    assert "--rank int >= 1 rank of the adapter, of the UNet's or of the language model's (default: 16)" in words
    assert "folder of pictures, or folder or file of texts (required, here or in a TOML file)" in words
    assert "--format kohya|diffusers" in words
    for section in ("lora", "dataset", "prior", "objective", "optim", "train", "adapter"):
        assert f"─ {section} ─" in help_text


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--data", "data"),
        ("--rank", "lora.rank"),
        ("--lora.rank", "lora.rank"),
        ("--lr", "optim.lr"),
        ("--text-lr", "optim.text_lr"),
        ("--optim.text-lr", "optim.text_lr"),
        ("--steps", "train.steps"),
        ("--prior.steps", "prior.steps"),
        ("--name", "name"),
        ("--optim.name", "optim.name"),
        ("--format", "adapter.format"),
        ("--text-encoder", "lora.text_encoder"),
    ],
)
def test_a_flag_sets_its_key(flag: str, key: str) -> None:
    assert called(flag, "-3") == (None, [], {key: "-3"})  # faults, such as -3, are for the config to list


def test_no_flag_belongs_to_two_settings() -> None:
    names = [name for leaf in leaves() for name in flags()[leaf.key]]
    assert len(names) == len(set(names))
    assert all(f"--{leaf.key.replace('_', '-')}" in flags()[leaf.key] for leaf in leaves())


def test_settings_of_the_class_pictures_are_named_in_full() -> None:
    assert {flags()[leaf.key] for leaf in leaves() if leaf.section == "prior"} == {
        (f"--prior.{name}",) for name in ("class-prompt", "pictures", "weight", "guidance", "steps")
    }


def test_arguments_of_the_command_stay_as_they_were() -> None:
    file, sets, values = called("ink.toml", "--set", "a=1", "--rank", "4", "--set", "b=2")
    assert (file, sets, values) == (Path("ink.toml"), ["a=1", "b=2"], {"lora.rank": "4"})


def test_flags_become_a_config() -> None:
    _, _, values = called("--data", "a", "--out", "b", "--lr", "1e-4", "--flip", "true", "--alpha", "none")
    config = TrainConfig.build(values=values)
    assert (config.optim.lr, config.dataset.flip, config.lora.alpha) == (1e-4, True, None)


def test_flags_need_no_torch() -> None:
    code = "import sys, trainers.options; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
