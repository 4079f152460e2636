"""Find a base model: an alias, a diffusers folder on disk, a single-file checkpoint, or a hub id; say clearly why not.

Nothing is loaded here; weights are read by the families. A single file is unpacked into the cache once.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from trainers import samples
from trainers.errors import BaseError, StyloraError

HUB_ALIASES = {"sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
EMBEDDED = ("tiny-sd",)
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
KIND = "StableDiffusionPipeline"


def find(base: str, weights: bool = True) -> Path:
    """The folder of a base, downloaded from the hub if need be; without `weights` only the small files are.

    Raises BaseError: no such folder, no such alias, not to be had offline, or a model of another kind.
    """
    if base in EMBEDDED:
        return checked(samples.base_folder(base), base)
    folder = _folder(base)
    if folder.is_file() and folder.suffix == ".safetensors":
        from trainers.unpack import cached

        return checked(cached(folder), base)
    if folder.exists():
        return checked(folder, base)
    name = HUB_ALIASES.get(base, base)
    if base not in HUB_ALIASES and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise BaseError(
            f"base {base!r}: there is no folder {folder.absolute()}, and it is no alias or hub id",
            next_step=f"name a diffusers folder, a hub id (owner/name), or {', '.join((*EMBEDDED, *HUB_ALIASES))}",
        )
    return checked(_from_hub(name, base, weights), base)


def _folder(base: str) -> Path:
    try:
        return Path(base).expanduser()
    except RuntimeError:  # `~name`, and there is no such user
        return Path(base)


def width(folder: Path) -> int:
    """Channels of the UNet's widest block; 0 where its config can't be read (whoever loads it says why)."""
    try:
        return int(max(json.loads((folder / "unet" / "config.json").read_text())["block_out_channels"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _from_hub(name: str, base: str, weights: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["model_index.json", *(f"{part}/*.{end}" for part in PARTS for end in ("json", "txt"))]
    stems = ("model", "diffusion_pytorch_model") if weights else ()
    wanted += [f"{part}/{stem}.safetensors" for part in PARTS for stem in stems]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseError(
            f"base {base!r} can't be had: looked for {name} on the hub and in {constants.HF_HUB_CACHE} ({reason})",
            next_step="go online once, name a folder that holds the model in diffusers' layout, or use --base tiny-sd",
        ) from error


def checked(folder: Path, base: str) -> Path:
    """The folder, if it is a whole Stable Diffusion 1.x model in diffusers' layout."""
    index = folder / "model_index.json"
    step = "name a folder in diffusers' layout (it holds model_index.json, unet/, vae/, text_encoder/, tokenizer/)"
    if not folder.is_dir():
        raise BaseError(f"base {base!r}: {folder} is a file, not a folder", next_step=step)
    if not index.is_file():
        raise BaseError(f"base {base!r}: {folder} holds no model_index.json", next_step=step)
    try:
        facts = json.loads(index.read_text())
    except (OSError, ValueError) as error:
        raise BaseError(f"base {base!r}: {index} can't be read: {error}", next_step="get the model anew") from error
    kind = facts.get("_class_name") if isinstance(facts, dict) else None
    if kind != KIND:
        raise BaseError(
            f"base {base!r} is of another kind: {kind}, wanted {KIND} (Stable Diffusion 1.x)",
            next_step="use an SD 1.x base such as sd15 or tiny-sd",
        )
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise BaseError(
            f"base {base!r}: {folder} is not whole", [f"{part}/ is missing" for part in missing], "get the model anew"
        )
    return folder


class reading:
    """While a part's files are read, and only then: whatever the libraries raise over broken files is one BaseError.

    They raise nearly every kind of exception, safetensors and tokenizers even their own. Warnings are silenced.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part, self._quiet = folder, part, warnings.catch_warnings()

    def __enter__(self) -> None:
        self._quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._quiet.__exit__(None, None, None)
        passed_on = (StyloraError, MemoryError, torch.OutOfMemoryError)
        if not isinstance(error, Exception) or isinstance(error, passed_on):
            return
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BaseError(
            f"base {self.folder}: its {self.part} can't be read: {reason}",
            next_step="get the model anew; each part needs its config.json and .safetensors weights",
        ) from error
