"""What a model answers to a fixed question, in float32 on the CPU; what is asked is up to what the model makes.

Two models that answer alike are alike for a person's purposes. `fresh` asks a model on disk in a process of its own:
`python -m studio.merge.probe MODEL QUESTION.json ANSWERS.safetensors [SETTINGS]`
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from studio.merge import probe_pictures, probe_text
from studio.merge.probe_pictures import PictureProbe
from studio.merge.probe_text import TextProbe
from trainers.bases import kind_of
from trainers.errors import RunError, StyloraError
from trainers.unpack import Settings, read_settings, unpack

ROOT = Path(__file__).resolve().parents[2]
SMALL = re.compile(r"(\w+/)?[\w-]+(\.[\w-]+)*\.(json|txt)")  # model_index.json, unet/config.json …
Answers = dict[str, Tensor]  # "text", "unet" of pictures, "logits" of text: see what each probe's `ask` gives
Probe = PictureProbe | TextProbe


def probe_for(family: Any, words: str = "") -> Probe:
    """The question to a base; `words` are the adapters' own."""
    if kind_of(family.folder) == "text":
        return probe_text.probe_for(family, words)
    return probe_pictures.probe_for(family, words)


def from_data(data: dict[str, Any]) -> Probe:
    """The reverse of a probe's `data`. KeyError, TypeError, ValueError: it is none."""
    return probe_text.from_data(data) if "rows" in data else probe_pictures.from_data(data)


@torch.no_grad()
def answers(family: Any, probe: Probe) -> Answers:
    """What the models of a family say now, hooks and all."""
    return probe.ask(family)


def fresh(model: Path, probe: Probe, settings: Mapping[str, bytes] | None = None) -> Answers:
    """The answers of a model loaded from disk in a new process; a single file needs `settings`. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="stylora-") as name:
        folder = Path(name)
        question, said, small = folder / "question.json", folder / "answers.safetensors", folder / "settings"
        question.write_text(json.dumps(probe.data()))
        _write(settings or {}, small)
        command = [sys.executable, "-m", "studio.merge.probe", *map(str, (model, question, said, small))]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"{model}: a fresh process can't load it", done.stderr.strip().splitlines()[-3:])
        return load_file(said)


def family_of(model: Path, settings: Mapping[str, bytes], folder: Path) -> Any:
    """A model in float32 on the CPU; a single file is unpacked into `folder` first."""
    if model.is_dir() and kind_of(model) == "text":
        from trainers.families.causal_lm import CausalLM  # each of the two libraries takes seconds

        return CausalLM(model, device="cpu", dtype=torch.float32)
    from trainers.families.stable_diffusion import StableDiffusion

    if model.is_file():
        unpack(model, settings, folder, ("unet", "text_encoder"))
        model = folder
    return StableDiffusion(model, device="cpu", dtype=torch.float32)


def _write(settings: Mapping[str, bytes], folder: Path) -> None:
    """Write a model's small files; the names may come from a stranger's receipt, so they must stay in `folder`."""
    if odd := [name for name in settings if not SMALL.fullmatch(name)]:
        raise RunError("these aren't settings of a model", odd, "merge the model again")
    for name, data in settings.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def main(model: str, question: str, said: str, settings: str) -> None:
    """The fresh process: read the question, load the model, write its answers."""
    probe = from_data(json.loads(Path(question).read_text()))
    small: Settings = read_settings(Path(settings)) if Path(model).is_file() else {}
    try:
        family = family_of(Path(model), small, Path(said).parent / "unpacked")
        save_file({name: tensor.contiguous() for name, tensor in answers(family, probe).items()}, said)
    except StyloraError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
