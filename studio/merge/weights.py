"""The weights of a base as a stream: which tensors there are, where each lies, and one of them at a time.

A base is a diffusers folder, a single-file checkpoint or a language model's folder, in shards or not; in any of them a
weight is known by its canonical module path. Opening reads headers only.

Try it: python -c "from studio.merge.weights import open_base; print(open_base('tiny-sd').shapes['unet.conv_in'])"
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainers import bases, single_file, tensorfile
from trainers.errors import BaseError
from trainers.lora.fit import Shape, canonical
from trainers.single_file import Piece
from trainers.tensorfile import TensorFile

STEMS = {"unet": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model",
         "vae": "diffusion_pytorch_model"}  # fmt: skip
STALE = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".gguf")
ADAPTED = ("unet", "text_encoder", "text_encoder_2", "model")  # the components whose modules may carry LoRA
KINDS = (bases.KIND, "StableDiffusionXLPipeline")


@dataclass(frozen=True)
class Source:
    """Where a tensor lies: the file, its name there, its rows (None: all of it), whether it is stored transposed.

    `table` marks what is no linear map though it has the shape of one; `through` is done to its numbers when they are
    read: a base may be taken as what quantisation leaves of it.
    """

    file: TensorFile
    key: str
    rows: slice | None = None
    transposed: bool = False
    table: bool = False
    through: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> Shape:
        shape = self.file.entries[self.key].shape
        if self.rows:
            return (self.rows.stop - self.rows.start, *shape[1:])
        return tuple(reversed(shape)) if self.transposed else shape

    @property
    def dtype(self) -> str:
        """As safetensors writes it: F16, BF16, F32 …"""
        return self.file.entries[self.key].dtype

    def tensor(self) -> Tensor:
        """The tensor in the dtype it is stored in (`through` may give another)."""
        whole = self.file.tensor(self.key)
        part = whole[self.rows] if self.rows else whole
        part = part.T.contiguous() if self.transposed else part
        return self.through(part) if self.through else part


@dataclass(frozen=True)
class Weights:
    """A base on disk: `tensors` are all of its pipeline's, `shapes` those that can carry LoRA, by module path."""

    root: Path  # the folder or the file
    files: tuple[TensorFile, ...]
    tensors: dict[str, Source]  # component.name, such as unet.conv_in.weight; text encoders with `text_model.`
    closed: dict[str, tuple[Shape, str]] = field(default_factory=dict)  # layers whose weight is no tensor here, and why

    @property
    def single_file(self) -> bool:
        return self.root.is_file()

    @property
    def sdxl(self) -> bool:
        return any(name.startswith("text_encoder_2.") for name in self.tensors)

    @property
    def text(self) -> bool:
        """Is it a language model?"""
        return any(name.startswith("model.") for name in self.tensors)

    @property
    def shapes(self) -> dict[str, Shape]:
        """{canonical module path: (out, in) or (out, in, kh, kw)} of every linear layer and convolution."""
        layers = (name for name, source in self.tensors.items() if is_layer(name, source))
        return {name.removesuffix(".weight"): self.tensors[name].shape for name in layers} | {
            path: shape for path, (shape, _) in self.closed.items()
        }

    def weight(self, path: str) -> Tensor:
        """The weight of a module, by its canonical path, in the dtype it is stored in. KeyError: there is none."""
        return self.tensors[f"{path}.weight"].tensor()

    def unsound(self) -> list[str]:
        """The tensors with a number in them that is none; one is read at a time."""
        floats = (name for name, source in self.tensors.items() if source.dtype in tensorfile.FLOATS)
        return [name for name in floats if not bool(torch.isfinite(self.tensors[name].tensor()).all())]


def is_layer(name: str, source: Source) -> bool:
    """Is this the weight of a linear layer or a convolution that may carry LoRA? Embeddings are tables, not maps."""
    adapted = name.startswith(tuple(f"{component}." for component in ADAPTED))
    if source.table or not adapted or not name.endswith(".weight"):
        return False
    return len(source.shape) in (2, 4) and "_embedding.weight" not in name


def open_base(base: str | Path) -> Weights:
    """The weights of an alias, a diffusers or transformers folder, a hub id or a single file. Raises BaseError."""
    path = Path(base).expanduser()
    if path.is_file():
        return open_file(path)
    if (path / "model_index.json").is_file() and _kind(path) in KINDS:
        return open_folder(path)
    folder = bases.find(str(base))
    return open_language_model(folder) if bases.kind_of(folder) == "text" else open_folder(folder)


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def open_folder(folder: Path) -> Weights:
    """A diffusers folder. Raises BaseError: a component's weights aren't there or are no safetensors."""
    tensors: dict[str, Source] = {}
    files: list[TensorFile] = []
    for component in (part for part in STEMS if (folder / part).is_dir()):
        for file in map(tensorfile.read, weight_files(folder / component, STEMS[component])):
            files.append(file)
            tensors |= {canonical(component, key): Source(file, key) for key in file.entries}
    return Weights(folder, tuple(files), tensors)


TIED = "its weight is the embeddings': both would change"
FUSED = "it is made of several stored tensors when the base is loaded"


def open_language_model(folder: Path) -> Weights:
    """A transformers folder, its tensors under their names in the live model. Raises BaseError: it can't be one."""
    from trainers.families.skeleton import skeleton  # transformers takes seconds

    files = {key: file for file in map(tensorfile.read, weight_files(folder, "model")) for key in file.entries}
    plan = skeleton(folder, files)
    tensors: dict[str, Source] = {}
    for key, spots in plan.tensors.items():
        for spot in spots:
            path = spot.name.removesuffix(".weight")
            rows = _block(files[key], key, spot.part, spot.of) if spot.of > 1 else None
            turned = path in plan.turned and spot.name.endswith(".weight")
            table = path not in plan.layers or path in plan.tied
            tensors[canonical("model", spot.name)] = Source(files[key], key, rows, turned, table)
    if not tensors:
        names = ", ".join(list(files)[:3]) or "none at all"
        raise BaseError(f"{folder}: its tensors aren't those of its architecture", [names], "get the model anew")
    closed = {
        canonical("model", path): (shape, TIED if path in plan.tied else FUSED)
        for path, shape in plan.layers.items()
        if path in plan.tied or canonical("model", f"{path}.weight") not in tensors
    }
    return Weights(folder, tuple({file.path: file for file in files.values()}.values()), tensors, closed)


def _block(file: TensorFile, key: str, part: int, of: int) -> slice:
    rows = file.entries[key].shape[0] // of
    return slice(part * rows, (part + 1) * rows)


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The files that are read when a component is loaded: its one file, or the shards that its index names.

    Where a folder holds both, diffusers takes the shards and transformers the one file.
    """
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file() or (whole.is_file() and stem == "model"):
        return [whole]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseError(f"{index}: can't be read: {error}", next_step="get the model anew") from None
    if odd := [name for name in names if Path(name).name != name]:
        raise BaseError(f"{index}: names files elsewhere", odd, "get the model anew")
    return [folder / name for name in names]


def open_file(path: Path) -> Weights:
    """A single-file checkpoint with the original names. Raises BaseError: it is none."""
    if path.suffix != ".safetensors":
        raise BaseError(f"{path}: only .safetensors checkpoints are read", next_step="convert it to .safetensors")
    file = tensorfile.read(path)
    tensors = {}
    for key, pieces in single_file.pieces(file.entries).items():
        for piece in pieces:
            tensors[f"{piece.component}.{piece.name}"] = Source(file, key, rows_of(file, key, piece), piece.transposed)
    if not any(name.startswith("unet.") for name in tensors):
        names = ", ".join(list(file.entries)[:3]) or "none at all"
        raise BaseError(
            f"{path}: no Stable Diffusion checkpoint",
            [f"its {len(file.entries)} tensors: {names}"],
            "name a checkpoint whose tensors begin with model.diffusion_model., or a diffusers folder",
        )
    return Weights(path, (file,), tensors)


def rows_of(file: TensorFile, key: str, piece: Piece) -> slice | None:
    """The rows of a fused query, key, value that a piece is; None for whole tensors."""
    return None if piece.third is None else _block(file, key, piece.third, 3)
