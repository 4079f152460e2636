"""Find a base model: an alias, a folder of diffusers or transformers, a single-file checkpoint, or a hub id.

Nothing is loaded here; weights are read by the families. A single file is unpacked into the cache once.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from trainers import samples
from trainers.errors import BaseError, StyloraError

HUB_ALIASES = {"sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
EMBEDDED = ("tiny-sd", "tiny-lm")
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
KIND = "StableDiffusionPipeline"
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")  # how the names of transformers' classes end
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is there
Kind = Literal["pictures", "text"]
WORDS: dict[Kind, str] = {"pictures": "a Stable Diffusion model", "text": "a language model"}


def find(base: str, weights: bool = True, kind: Kind | None = None) -> Path:
    """The folder of a base, downloaded from the hub if need be; without `weights` only the small files are.

    Raises BaseError: no such folder, no such alias, not to be had offline, a model that can't be used, or not `kind`.
    """
    folder = _found(base, weights)
    if kind and kind_of(folder) != kind:
        fit = "tiny-lm" if kind == "text" else "tiny-sd"
        raise BaseError(
            f"base {base!r} is {WORDS[kind_of(folder)]}, wanted {WORDS[kind]}", next_step=f"name one such as {fit}"
        )
    return folder


def _found(base: str, weights: bool) -> Path:
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
            next_step=f"name a folder of a model, a hub id (owner/name), or {', '.join((*EMBEDDED, *HUB_ALIASES))}",
        )
    return checked(_from_hub(name, base, weights), base)


def kind_of(folder: Path) -> Kind:
    """What the base in a folder makes: a diffusers folder pictures, a transformers one text."""
    return "pictures" if (folder / "model_index.json").is_file() else "text"


def _folder(base: str) -> Path:
    try:
        return Path(base).expanduser()
    except RuntimeError:  # `~name`, and there is no such user
        return Path(base)


def width(folder: Path) -> int:
    """Channels of the UNet's widest block, or a language model's width; 0 where the config can't be read (whoever loads
    it says why)."""
    try:
        if kind_of(folder) == "text":
            config = json.loads((folder / "config.json").read_text())
            return int(config.get("hidden_size") or config["n_embd"])
        return int(max(json.loads((folder / "unet" / "config.json").read_text())["block_out_channels"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _from_hub(name: str, base: str, weights: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.jinja", "merges.txt", "tokenizer.model"]  # of language models, and model_index.json
    wanted += [f"{part}/*.{end}" for part in PARTS for end in ("json", "txt")]
    stems = ("model", "diffusion_pytorch_model") if weights else ()
    wanted += [f"{part}/{stem}.safetensors" for part in PARTS for stem in stems]
    wanted += ["model.safetensors", "model-*-of-*.safetensors"] if weights else []
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseError(
            f"base {base!r} can't be had: looked for {name} on the hub and in {constants.HF_HUB_CACHE} ({reason})",
            next_step="go online once, name a folder that holds the model in diffusers' layout, or use --base tiny-sd",
        ) from error


def checked(folder: Path, base: str) -> Path:
    """The folder, if it is a whole Stable Diffusion 1.x model of diffusers or a language model of transformers."""
    step = "name a folder of diffusers (it holds model_index.json, unet/ …) or of transformers (config.json …)"
    if not folder.is_dir():
        raise BaseError(f"base {base!r}: {folder} is a file, not a folder", next_step=step)
    if (folder / "model_index.json").is_file():
        return _diffusers(folder, base)
    if (folder / "config.json").is_file():
        return _transformers(folder, base)
    raise BaseError(f"base {base!r}: {folder} holds no model_index.json and no config.json", next_step=step)


def _diffusers(folder: Path, base: str) -> Path:
    kind = _facts(folder / "model_index.json", base).get("_class_name")
    if kind != KIND:
        raise BaseError(
            f"base {base!r} is of another kind: {kind}, wanted {KIND} (Stable Diffusion 1.x)",
            next_step="use an SD 1.x base such as sd15 or tiny-sd",
        )
    missing = [f"{part}/ is missing" for part in PARTS if not (folder / part).is_dir()]
    return _whole(folder, base, missing)


def _transformers(folder: Path, base: str) -> Path:
    named = _facts(folder / "config.json", base).get("architectures")
    kinds = [str(name) for name in named] if isinstance(named, list) else []
    if not any(name.endswith(LANGUAGE_MODELS) for name in kinds):
        raise BaseError(
            f"base {base!r} is of another kind: {', '.join(kinds) or None}, wanted a causal language model",
            next_step="use one such as tiny-lm, whose config.json names a …ForCausalLM",
        )
    there = any((folder / name).is_file() for name in TOKENIZERS)
    return _whole(folder, base, [] if there else [f"a tokenizer is missing ({', '.join(TOKENIZERS)})"])


def _facts(file: Path, base: str) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BaseError(f"base {base!r}: {file} can't be read: {error}", next_step="get the model anew") from error
    return facts if isinstance(facts, dict) else {}


def _whole(folder: Path, base: str, missing: list[str]) -> Path:
    if missing:
        raise BaseError(f"base {base!r}: {folder} is not whole", missing, "get the model anew")
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
