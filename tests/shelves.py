"""Small adapters, pictures and zips, and what lies in a library's folder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from PIL import Image

from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.metadata import kohya_metadata, modelspec_metadata
from trainers.lora.pair import LoraPair

CROSS = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k"
MLP = "model.model.layers.0.mlp.up_proj"


def picture(colour: str = "red", kind: str = "JPEG", size: tuple[int, int] = (8, 6)) -> bytes:
    drawn = io.BytesIO()
    Image.new("RGB", size, colour).save(drawn, kind)
    return drawn.getvalue()


def style(number: float = 1.0, trigger: str = "inkstyle", thumbnail: bytes | None = None) -> Adapter:
    tags = {"a": {"line art": 3}}
    metadata = kohya_metadata(base_version="sd_v1", rank=2, alpha=1, base_name="tiny-sd", tag_frequency=tags)
    metadata |= modelspec_metadata(base_version="sd_v1", title="Ink drawings", trigger=trigger, thumbnail=thumbnail)
    return Adapter({CROSS: LoraPair(torch.full((2, 768), float(number)), torch.ones(4, 2), 1.0)}, AdapterInfo(metadata))


def voice() -> Adapter:
    pairs = {MLP: LoraPair(torch.ones(1, 2), torch.ones(3, 1), 2.0)}
    return Adapter(pairs, AdapterInfo({"stylora.base": "tiny-lm", "stylora.kind": "text"}))


def zipped(folder: Path, prefix: str = "") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (file for file in sorted(folder.rglob("*")) if file.is_file()):
            archive.write(file, f"{prefix}{file.relative_to(folder)}")
    return made.getvalue()


def files_in(home: Path) -> set[str]:
    """All that isn't the database's, from the folder."""
    found = (path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    return {path for path in found if not path.startswith(".studio/studio.db")}
