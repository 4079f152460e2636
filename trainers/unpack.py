"""Unpack a single-file checkpoint into a diffusers folder: its tensors under diffusers' names, one at a time.

What a single file lacks (settings, tokenizer) comes from a diffusers folder of the same build.

Try it: python -c "from trainers.unpack import *; print(cached(Path('model.safetensors')))"
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from trainers import bases, single_file, tensorfile
from trainers.cache import default_folder
from trainers.digests import digest_of
from trainers.errors import BaseError
from trainers.single_file import Piece
from trainers.tensorfile import TensorFile

Settings = dict[str, bytes]  # relative path in a diffusers folder -> the file's bytes
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
GUESSES = ("tiny-sd", "sd15")  # bases whose settings are tried where none are named


def cached(path: Path, config: str | None = None) -> Path:
    """The diffusers folder of a single file in the cache, made when first asked for. Raises BaseError."""
    settings = settings_for(tensorfile.read(path), config)
    facts = path.stat()
    parts = [part for item in sorted(settings.items()) for part in item]
    key = digest_of(str(path.resolve()), f"{facts.st_size} {facts.st_mtime_ns}", *parts)
    folder = default_folder() / "unpacked" / key
    if not folder.is_dir():
        partial = folder.with_name(f".{key}.{os.getpid()}.part")
        try:
            unpack(path, settings, partial)
            partial.rename(folder)
        except OSError as error:
            raise BaseError(f"{path}: can't be unpacked into {folder}: {error}", next_step="free some space") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def settings_for(file: TensorFile, config: str | None = None) -> Settings:
    """Settings and tokenizer of the base called `config`, else of the first of GUESSES whose sizes fit.

    Raises BaseError: they are of another build, or none fits.
    """
    if any(key.startswith(single_file.SDXL) for key in file.entries):
        raise BaseError(f"{file.path}: this is an SDXL checkpoint, and SDXL can't be run yet", next_step="use SD 1.x")
    if not single_file.pieces(file.entries):
        what = "an adapter; give it with --adapter" if any("lora" in key for key in file.entries) else "something else"
        fault = f"its {len(file.entries)} tensors: {', '.join(sorted(file.entries)[:2])}, …"
        raise BaseError(f"{file.path}: no checkpoint but {what}", [fault], "name a base: tiny-sd, sd15, a folder")
    names = [config] if config else list(GUESSES)
    faults = []
    for name in names:
        try:
            settings = read_settings(bases.find(name, weights=False))
        except BaseError as error:
            faults.append(error.what)
            continue
        if not (odd := misfit(settings, file)):
            return settings
        faults.append(f"{name}: {odd}")
    step = "name a diffusers folder of the same build: `--config FOLDER`"
    raise BaseError(f"{file.path}: no settings and tokenizer fit this checkpoint", faults, step)


def read_settings(folder: Path) -> Settings:
    """The small files of a diffusers folder: model_index.json, each part's settings, the tokenizer."""
    found = [folder / "model_index.json"]
    found += [
        file for part in bases.PARTS for file in sorted((folder / part).glob("*")) if file.suffix in (".json", ".txt")
    ]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found if not file.name.endswith(".index.json")}


def misfit(settings: Mapping[str, bytes], file: TensorFile) -> str:
    """Why these settings are of another build than the checkpoint; "" when the sizes agree."""
    try:
        unet, text = (json.loads(settings[f"{part}/config.json"]) for part in ("unet", "text_encoder"))
        wanted = {
            "unet.conv_in.weight": (unet["block_out_channels"][0], unet["in_channels"]),
            "unet.conv_out.weight": (unet["out_channels"], unet["block_out_channels"][0]),
            "unet.time_embedding.linear_1.weight": (unet["block_out_channels"][0] * 4, unet["block_out_channels"][0]),
            "text_encoder.text_model.embeddings.token_embedding.weight": (text["vocab_size"], text["hidden_size"]),
        }
    except (KeyError, ValueError, TypeError, IndexError) as error:
        return f"its settings can't be read: {error}"
    for key, found in single_file.pieces(file.entries).items():
        name = f"{found[0].component}.{found[0].name}"
        if name in wanted and file.entries[key].shape[:2] != wanted.pop(name, ()):
            return f"{name} is {list(file.entries[key].shape)} in the checkpoint"
    return f"the checkpoint has no {', '.join(wanted)}" if wanted else ""


def unpack(path: Path, settings: Mapping[str, bytes], out: Path, parts: tuple[str, ...] = tuple(STEMS)) -> None:
    """Write a checkpoint's parts and their settings as a diffusers folder; peak memory is about one tensor."""
    file = tensorfile.read(path)
    for name, data in settings.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    places: dict[str, list[tuple[str, Piece]]] = {part: [] for part in parts}
    for key, found in single_file.pieces(file.entries).items():
        for piece in found:
            places.get(piece.component, []).append((key, piece))
    for part, here in places.items():
        (out / part).mkdir(parents=True, exist_ok=True)
        names = {piece.name: (file.entries[key].dtype, _shape(file, key, piece)) for key, piece in here}
        tensorfile.write(out / part / f"{STEMS[part]}.safetensors", names, _tensors(file, here), {"format": "pt"})


def _shape(file: TensorFile, key: str, piece: Piece) -> tuple[int, ...]:
    shape = file.entries[key].shape
    if piece.third is not None:
        return (shape[0] // 3, *shape[1:])
    if piece.component == "vae" and ".attentions." in piece.name:  # 1 x 1 convolutions there, linear layers here
        return tuple(shape[:2])
    return tuple(reversed(shape)) if piece.transposed else shape


def _tensors(file: TensorFile, here: list[tuple[str, Piece]]) -> Iterator[Tensor]:
    for key, piece in here:
        tensor = file.tensor(key)
        if piece.third is not None:
            rows = len(tensor) // 3
            yield tensor[piece.third * rows : (piece.third + 1) * rows]
        else:
            yield (tensor.T if piece.transposed else tensor).reshape(_shape(file, key, piece))
