"""The commands as a person types them: what bad input says, what is made and shown, and that nothing else speaks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from lms import lm
from PIL import Image
from test_console import on_terminal
from typer.testing import CliRunner

from studio.cli import app
from trainers import run
from trainers.lora.adapter import Adapter, digest

ROOT = Path(__file__).parent.parent
QUICK = ("--steps", "2", "--batch", "2", "--rank", "2")
HUB_ID = "nobody-at-all/no-such-model"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def shown(*words: str | Path, code: int = 0) -> Any:
    """Runs a command; any exit code but the one expected is a failure, and so is a traceback."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


def refused(*words: str | Path) -> str:
    """The one clear message of a command that must fail; nothing below the current folder may change."""
    before = contents(Path.cwd())
    result = shown(*words, code=1)
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("Error: ") == 1
    assert result.stderr.rstrip().splitlines()[-1].startswith("Next: ")
    assert contents(Path.cwd()) == before
    return str(result.stderr)


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path): (path.stat().st_mtime_ns, None if path.is_dir() else path.read_bytes()) for path in folder.rglob("*")
    }


# --- bad input -------------------------------------------------------------------------------------------------------


def picture_file(place: Path) -> str:
    Image.new("RGB", (16, 16)).save(place / "a.png")
    return "a.png"


def folder_of(place: Path, **files: bytes) -> str:
    (place / "data").mkdir()
    for name, content in files.items():
        (place / "data" / name.replace("__", ".")).write_bytes(content)
    return "data"


def truncated(place: Path) -> str:
    folder = folder_of(place, b__txt=b"a house", a__txt=b"a boat")
    for name in ("a", "b"):
        Image.radial_gradient("L").save(place / folder / f"{name}.png")
    whole = (place / folder / "b.png").read_bytes()
    (place / folder / "b.png").write_bytes(whole[: len(whole) // 2])
    return folder


DATA: dict[str, tuple[Callable[[Path], str], list[str]]] = {
    "missing": (lambda place: "nowhere", ["nowhere: no such folder"]),
    "a file": (picture_file, ["a.png: a file, not a folder"]),
    "empty": (lambda place: folder_of(place), ["data: no pictures: the folder is empty"]),
    "no pictures": (lambda place: folder_of(place, notes__pdf=b"x"), ["no pictures", "found 1 .pdf"]),
    "a truncated picture": (truncated, ["b.png: truncated"]),
    "several": (
        lambda place: folder_of(place, a__png=b"", b__png=b"no picture", c__webp=b"RIFF"),
        ["a.png: empty file", "b.png: not a picture", "c.webp: "],
    ),
}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("command", ["train", "doctor"])
def test_bad_folders(place: Path, tiny_base: Path, command: str, case: str) -> None:
    make, said = DATA[case]
    data = make(place)
    more = ("--base", tiny_base, "--data", data, "--out", "run") if command == "train" else (data,)
    message = refused(command, *more)
    for part in said:
        assert part in message


@contextmanager
def somebody_else() -> Iterator[None]:
    """Root may read and write everything; then act as `nobody` for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder that every user can reach and write."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        monkeypatch.chdir(name)
        monkeypatch.setenv("STYLORA_CACHE", str(Path(name) / "cache"))
        yield Path(name)


def test_an_unreadable_folder(open_place: Path) -> None:
    folder_of(open_place, a__png=b"x")
    (open_place / "data").chmod(0o300)
    with somebody_else():
        result = shown("doctor", "data", code=1)
    assert "data: Permission denied" in result.stderr
    (open_place / "data").chmod(0o700)


def test_an_unwritable_out(open_place: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers import pictures

    found = pictures.Samples((), (), 16)
    monkeypatch.setattr(pictures, "scan", lambda *_: found)  # the other user can't read what pytest has made
    (open_place / "locked").mkdir(mode=0o555)
    opened = run.open_base(run.TrainConfig.build(values={"base": str(tiny_base), "data": "x", "out": "x"}))
    monkeypatch.setattr(run, "open_base", lambda _: opened)
    with somebody_else():
        result = shown("train", "--data", "x", "--out", "locked/run", code=1)
        drawn = shown("generate", "--prompt", "a", "--out", "locked/a.png", code=1)
    assert "locked/run can't be written: Permission denied" in result.stderr
    assert "nothing can be written in" in drawn.stderr
    assert list((open_place / "locked").iterdir()) == []


def test_an_out_that_is_taken(place: Path, tiny_base: Path, picture_folder: Callable[..., Path]) -> None:
    data = picture_folder(n=1)
    (place / "file").write_text("mine")
    (place / "mine").mkdir()
    (place / "mine" / "letter.txt").write_text("mine")
    for out, said in (
        ("file", "file is a file"),
        ("file/run", "file/run can't be written"),
        ("mine", "mine holds other files"),
    ):
        assert said in refused("train", "--base", tiny_base, "--data", data, "--out", out)


def sdxl(place: Path) -> str:
    (place / "xl").mkdir()
    (place / "xl" / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    return "xl"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda place: HUB_ID, f"looked for {HUB_ID} on the hub and in "),
        (lambda place: "sd15", "looked for stable-diffusion-v1-5/stable-diffusion-v1-5 on the hub and in "),
        (lambda place: "no_such_base", "and it is no alias or hub id"),
        (sdxl, "of another kind: StableDiffusionXLPipeline"),
        (folder_of, "holds no model_index.json"),
        (picture_file, "is a file, not a folder"),
    ],
)
def test_bases_that_cannot_be_had(
    place: Path, picture_folder: Callable[..., Path], make: Callable[[Path], str], said: str
) -> None:
    base, data = make(place), picture_folder(n=1)
    assert said in refused("train", "--base", base, "--data", data, "--out", "run")
    assert said in refused("generate", "--base", base, "--prompt", "a", "--out", "new.png")
    assert said in refused("batch", data, "--base", base, "--out", "runs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "-1"], ["lora.rank: got -1 (from a flag), wanted int >= 1"]),
        (["--set", "optim.lrr=1"], ["optim.lrr (from --set): no such setting; the nearest is optim.lr"]),
        (["--set", "rank"], ["--set rank: got no key and value"]),
        (["--steps", "many"], ["train.steps: got 'many'"]),
        (
            ["--rank", "-1", "--lr", "fast", "--set", "train.stepz=3", "--set", "lora.targets=atention"],
            ["4 settings", "lora.rank", "optim.lr: got 'fast'", "nearest is train.steps", "did you mean attention?"],
        ),
        (["broken.toml"], ["broken.toml: not TOML"]),
        (["broken.toml", "--rank", "0"], ["2 settings", "broken.toml: not TOML", "lora.rank: got 0"]),
        (["odd.toml"], ["lora.rnk (from odd.toml): no such setting; the nearest is lora.rank", "train.batch: got 0"]),
        (["gone.toml"], ["gone.toml: can't be read: No such file"]),
    ],
)
def test_bad_settings(place: Path, words: list[str], said: list[str]) -> None:
    (place / "broken.toml").write_text("[lora\nrank = 3")
    (place / "odd.toml").write_text("[lora]\nrnk = 3\n[train]\nbatch = 0\n")
    message = refused("train", "--data", "x", "--out", "run", *words)
    for part in said:
        assert part in message


def test_what_is_required_is_said(place: Path) -> None:
    message = refused("train")
    assert "data: missing" in message
    assert "out: missing" in message


def test_bad_runs(place: Path) -> None:
    (place / "run").mkdir()
    assert "run is no run folder: it holds no config.toml" in refused("resume", "run")
    assert "nowhere is no run folder" in refused("resume", "nowhere")


def test_bad_requests(place: Path) -> None:
    (place / "a.png").write_bytes(b"mine")
    words = ["--adapter", "gone.safetensors", "--size", "8", "--count", "0", "--out", "a.png", "--sampler", "ddmi"]
    message = refused("generate", "--prompt", "a", *words)
    for part in ("gone.safetensors: there is no such file", "size 8", "count", "a.png exists", "sampler: got ddmi"):
        assert part in message
    (place / "text.safetensors").write_text("no weights at all, but text")
    message = refused("generate", "--prompt", "a", "--out", "b.png", "--adapter", "text.safetensors")
    assert "text.safetensors: not a whole safetensors file" in message


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--out", "a.png"],
        ["again"],
        ["grid", "--prompt", "a"],
        ["generate", "--prompt", "a"],
        ["generate", "--prompt", "a", "--out", "a.png", "--seed", "x"],
        ["doctor"],
        ["batch"],
        ["resume"],
        ["train", "--no-such-flag", "1"],
        ["trian"],
        ["demo", "--steps", "0"],
    ],
)
def test_wrong_usage_exits_with_2(place: Path, words: list[str]) -> None:
    result = shown(*words, code=2)
    assert result.stderr.startswith("Usage: ")
    assert list(place.iterdir()) == []


# --- help ------------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_commands_of_the_house() -> None:
    assert {"train", "resume", "batch", "doctor", "generate", "grid", "again", "demo", "env"} <= set(COMMANDS)
    overview = shown("--help").output
    for name, command in COMMANDS.items():
        assert re.search(rf"\b{name}\b", overview)
        assert command.help, name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_option(name: str) -> None:
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown(name, "--help").output).split())
    for parameter in COMMANDS[name].params:
        if not getattr(parameter, "hidden", False):
            label = parameter.opts[0]
            assert label in words or parameter.param_type_name == "argument", label
            assert parameter.help, f"{label} says nothing of itself"
            assert " ".join(parameter.help.split()[:3]) in words


# --- what is made ----------------------------------------------------------------------------------------------------


def test_a_file_its_flags_and_set_are_the_same(
    place: Path, tiny_base: Path, picture_folder: Callable[..., Path]
) -> None:
    data = picture_folder(n=2)
    file = f'base = "{tiny_base}"\ndata = "{data}"\nout = "one/ink"\n[lora]\nrank = 2\n[train]\nsteps = 9\nbatch = 2\n'
    (place / "ink.toml").write_text(file)
    shown("train", "ink.toml", "--set", "optim.lr=2e-4", "--set", "train.steps=2")
    shown("train", "--base", tiny_base, "--data", data, "--out", "two/ink", *QUICK, "--lr", "2e-4")
    shown("train", "ink.toml", "--steps", "2", "--out", "three/ink")
    one, two, three = (digest(f"{place}/{name}/ink/ink.safetensors") for name in ("one", "two", "three"))
    assert one == two
    assert one != three
    config = json.loads(Adapter.load("one/ink/ink.safetensors").info.metadata["stylora.config"])
    assert config["optim"]["lr"] == 2e-4
    assert run.read_config(Path("one/ink")).optim.lr == 2e-4

    before = contents(place)
    again = refused("train", "ink.toml", "--set", "train.steps=2")
    assert "one/ink holds a finished run" in again
    finished = shown("resume", "one/ink")
    assert "one/ink is finished" in finished.stdout
    assert contents(place) == before


def test_generate_draws_with_the_adapter(place: Path, tiny_base: Path, picture_folder: Callable[..., Path]) -> None:
    shown("train", "--base", tiny_base, "--data", picture_folder(n=2), "--out", "ink", *QUICK, "--lr", "0.05")
    common = ("generate", "--base", tiny_base, "--prompt", "a red house", "--seed", "7", "--steps", "3")
    shown(*common, "--out", "bare.png")
    shown(*common, "--out", "zero.png", "--adapter", "ink:0")
    result = shown(*common, "--out", "[new]/ink.png", "--adapter", "ink/ink.safetensors:0.8", "--count", "2")
    assert result.stdout.splitlines() == ["[new]/ink-1.png seed 7", "[new]/ink-2.png seed 8"]
    bare, zero, with_it = (Image.open(place / name) for name in ("bare.png", "zero.png", "[new]/ink-1.png"))
    assert bare.tobytes() == zero.tobytes()
    assert bare.tobytes() != with_it.tobytes()
    assert "<lora:ink:0.8>" in with_it.info["parameters"]
    assert "Seed: 7" in with_it.info["parameters"]
    assert "[new]/ink-1.png exists" in refused(*common, "--out", "[new]/ink.png", "--count", "2")
    shown(*common, "--out", "bare.png", "--overwrite")


def test_doctor_tells_what_was_read(place: Path, picture_folder: Callable[..., Path]) -> None:
    folder = picture_folder(n=3)
    (folder / "02.txt").unlink()
    result = shown("doctor", folder, "--trigger", "sks")
    assert "3 pictures, nothing wrong." in result.stdout
    assert (
        "captions 2 from .txt" in result.stdout.replace("3 pictures: ", "") or "2 captions from .txt" in result.stdout
    )
    assert "trigger word put in front of 2 of 3 captions" in result.stdout
    message = refused("doctor", folder, "--require-captions", "--min-side", "17")
    assert "02.png: no caption" in message
    assert message.count("too small: 16 x 16, wanted 17") == 3


def test_env_says_attention_and_why() -> None:
    text = shown("env").stdout
    assert re.search(r"^\s*attention  (sdpa: torch's scaled_dot_product_attention: \w.+|xformers: \w.+)$", text, re.M)
    assert re.search(r"^\s*torch  \d", text, re.M)


# --- terminals, pipes and silence ------------------------------------------------------------------------------------


def test_on_a_terminal_a_bar_is_drawn(
    place: Path, tiny_base: Path, picture_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--base", str(tiny_base), "--data", str(picture_folder(n=2)), "--out", "run", *QUICK]
    text = on_terminal(monkeypatch, lambda: app(words, standalone_mode=False))
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(r"training\s*━+\s*2/2\s*loss \d\.\d{4} · lr ", plain)
    assert "done in" in plain
    assert (place / "run" / "run.safetensors").is_file()


SEVERAL = """
import sys
from studio.cli import app
for words in %r:
    try:
        app(words)
    except SystemExit as stop:
        assert stop.code == 0, (words, stop.code)
"""


def test_no_library_speaks_and_a_pipe_gets_plain_lines(
    place: Path, tiny_base: Path, picture_folder: Callable[..., Path]
) -> None:
    """Real processes: what libraries print on their own, no runner in the same process would show."""
    data, base = picture_folder(n=2, name="ink"), str(tiny_base)
    small = ["--base", base, *QUICK]
    commands = [
        ["train", *small, "--data", str(data), "--out", "run", "--save-every", "1", "--preview-every", "1"],
        ["train", *small, "--data", str(data), "--out", "frozen", "--text-encoder", "false"],
        ["train", *small, "--data", str(data), "--out", "saving", "--gradient-checkpointing", "true"],
        ["resume", "run"],
        ["batch", str(data), *small, "--out", "runs", "--set", "adapter.format=diffusers"],
        ["generate", "--base", base, "--prompt", "house " * 90, "--adapter", "run", "--steps", "2", "--out", "a.png"],
        ["doctor", str(data)],
        ["env"],
    ]
    code = [sys.executable, "-c", SEVERAL % commands]
    done = subprocess.run(code, cwd=place, env=plain_environment(), capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("step 2/2 loss ") == 4
    assert "checkpoint at step 1: " in done.stdout
    assert "a.png seed 0" in done.stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)


@pytest.mark.parametrize("entry", ["from studio.cli import main; main()", "-m trainers"])
def test_both_entries_refuse_alike(place: Path, entry: str) -> None:
    command = [sys.executable, *(["-m", "trainers"] if entry.startswith("-m") else ["-c", entry])]
    words = ["train", "--data", "x", "--out", "run", "--rank", "-1", "--set", "optim.lrr=1"]
    done = subprocess.run([*command, *words], cwd=place, env=plain_environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "Error: 2 settings can't be used:\n"
        "  - optim.lrr (from --set): no such setting; the nearest is optim.lr\n"
        "  - lora.rank: got -1 (from a flag), wanted int >= 1\n"
        "Next: `stylora train --help` lists every setting with its limits\n"
    )
    assert list(place.iterdir()) == []
    done = subprocess.run([*command, "resume"], cwd=place, env=plain_environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "Missing argument" in done.stderr


def plain_environment() -> dict[str, str]:
    """As it is, but with the checkout importable and nothing that would hide warnings."""
    hidden = ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "FORCE_COLOR")
    return {**{k: v for k, v in os.environ.items() if k not in hidden}, "PYTHONPATH": str(ROOT)}


# --- text -------------------------------------------------------------------------------------------------------------


def test_doctor_reads_texts_too(place: Path) -> None:
    Path("letters").mkdir()
    Path("letters/a.jsonl").write_text('{"text": "Dear Agnes"}\n{"text": "Dear Ruth"}\n')
    result = shown("doctor", "letters")
    assert "2 texts from a.jsonl" in result.stdout
    assert "2 texts, nothing wrong." in result.stdout
    assert "--trigger is for pictures" in refused("doctor", "letters", "--trigger", "sks")
    Path("letters/a.jsonl").write_text('{"text": ""}\n{"txt": "Dear Ruth"}\n')
    said = refused("doctor", "letters/a.jsonl")
    assert "a.jsonl:1" in said
    assert "a.jsonl:2" in said


def test_training_on_text_says_what_is_learned_and_what_comes_next(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers import texts

    def nothing(*_: object) -> Iterator[Any]:
        yield from ()
        return {}

    monkeypatch.setattr(texts, "appraise", nothing)
    lm("llama", Path("micro"))
    Path("hens.jsonl").write_text('{"prompt": "Where is the hen?", "completion": " On the nest."}\n')
    words = ("train", "--base", "micro", "--data", "hens.jsonl", "--out", "runs/hens", "--steps", "2", "--batch", "1")
    result = shown(*words)
    assert "hens.jsonl:1 <s>Where is the hen? On the nest.</s>" in result.stdout
    assert "Next: stylora generate --base micro --adapter runs/hens/hens" in result.stdout
    assert Path("runs/hens/hens/adapter_model.safetensors").is_file()
    said = refused("train", "--base", "micro", "--data", "hens.jsonl", "--out", "runs/two", "--flip", "true")
    assert "dataset.flip: is for a base that makes pictures" in said


def test_a_base_of_the_other_kind_is_named(place: Path, picture_folder: Callable[..., Path]) -> None:
    Path("hens.jsonl").write_text('{"text": "the hen"}\n')
    said = refused("train", "--data", "hens.jsonl", "--out", "runs/x")
    assert "holds texts and no pictures, and tiny-sd makes pictures" in said
    assert "--base, such as tiny-lm" in said
    said = refused("train", "--base", "tiny-lm", "--data", picture_folder(n=1), "--out", "runs/x")
    assert "holds pictures, and tiny-lm is a language model" in said
