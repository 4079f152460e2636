"""What a model answers to a fixed question: text states and UNet predictions on seeded latents, in float32 on the CPU.

Two models that answer alike are alike for a picture's purposes. `fresh` asks a model on disk in a process of its own:
`python -m studio.merge.probe MODEL PROBE.safetensors ANSWERS.safetensors [SETTINGS]`
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.batches import generator_for
from trainers.errors import RunError, StyloraError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.unpack import Settings, read_settings, unpack

PROMPT = "a red house by the sea at night"
PLACES = (0.9, 0.5, 0.1)  # of the noise schedule: nearly all noise, half way, nearly none
SIDE = 16  # of the latents; the UNet is convolutional, so a small side asks every weight too
ROOT = Path(__file__).resolve().parents[1]
SMALL = re.compile(r"(\w+/)?[\w-]+(\.[\w-]+)*\.(json|txt)")  # model_index.json, unet/config.json …
Answers = dict[str, Tensor]  # "text": (P, T, width), "unet": (P * places, C, side, side)


@dataclass(frozen=True)
class Probe:
    """The question: token ids, timesteps, and the seed of the latents. It is asked in float32 on the CPU."""

    ids: Tensor  # (P, T) int64
    timesteps: tuple[int, ...]
    seed: int = 0

    def latents(self, channels: int) -> Tensor:
        """(C, SIDE, SIDE) of standard noise for each (prompt, timestep): (P * len(timesteps), C, SIDE, SIDE)."""
        shape = (len(self.ids) * len(self.timesteps), channels, SIDE, SIDE)
        return torch.randn(shape, generator=generator_for(self.seed, 0, 0, "probe"))


def probe_for(family: StableDiffusion, words: str = "") -> Probe:
    """Two prompts (one with the adapters' trigger words, and the empty one) at three timesteps."""
    most = family.noise.config.num_train_timesteps
    prompts = [f"{PROMPT}, {words}" if words else PROMPT, ""]
    return Probe(family.tokens(prompts), tuple(int(place * most) for place in PLACES))


@torch.no_grad()
def answers(family: StableDiffusion, probe: Probe) -> Answers:
    """What the models of a family say now, hooks and all."""
    unet = family.part("unet")
    text: Tensor = family.part("text_encoder")(probe.ids).last_hidden_state
    latents = probe.latents(unet.config.in_channels)
    steps = torch.tensor(probe.timesteps).repeat(len(text))
    context = text.repeat_interleave(len(probe.timesteps), 0)
    return {"text": text, "unet": unet(latents, steps, context).sample}


def fresh(model: Path, probe: Probe, settings: Mapping[str, bytes] | None = None) -> Answers:
    """The answers of a model loaded from disk in a new process; a single file needs `settings`. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="stylora-") as name:
        folder = Path(name)
        question, said, small = folder / "probe.safetensors", folder / "answers.safetensors", folder / "settings"
        save_file(
            {"ids": probe.ids, "timesteps": torch.tensor(probe.timesteps), "seed": torch.tensor(probe.seed)}, question
        )
        _write(settings or {}, small)
        command = [sys.executable, "-m", "studio.merge.probe", *map(str, (model, question, said, small))]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"{model}: a fresh process can't load it", done.stderr.strip().splitlines()[-3:])
        return load_file(said)


def family_of(model: Path, settings: Mapping[str, bytes], folder: Path) -> StableDiffusion:
    """A model in float32 on the CPU; a single file is unpacked into `folder` first."""
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
    asked = load_file(question)
    probe = Probe(asked["ids"], tuple(asked["timesteps"].tolist()), int(asked["seed"]))
    small: Settings = read_settings(Path(settings)) if Path(model).is_file() else {}
    try:
        family = family_of(Path(model), small, Path(said).parent / "unpacked")
        save_file({name: tensor.contiguous() for name, tensor in answers(family, probe).items()}, said)
    except StyloraError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
