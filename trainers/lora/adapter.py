"""An adapter as plain data: what a style changed in a frozen base, and what is known about it. Load, save, digest.

Try it: python -c "from trainers.lora.adapter import *; print(components(Adapter.load('ink.safetensors')))"
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora import files
from trainers.lora.files import DTYPES, Tensors, digest
from trainers.lora.fit import MISFIT
from trainers.lora.formats import DIFFUSERS_HEADER, FORMATS, detect, foreign_faults, foreign_kind, peft
from trainers.lora.formats.grouped import COPIES
from trainers.lora.kinds import NEEDS_BASE, Entry, WeightOf, assemble
from trainers.lora.metadata import thumbnail_of, trigger_of
from trainers.lora.pair import LoraPair, Pairs, pair_faults

__all__ = [
    "Adapter",
    "AdapterInfo",
    "LoraPair",
    "Reading",
    "components",
    "content_digest",
    "digest",
    "read",
    "save_dora",
]


@dataclass(frozen=True)
class AdapterInfo:
    """The file's header entries, and the few of them that stylora itself speaks of."""

    metadata: dict[str, str] = field(default_factory=dict)
    format: str = ""  # the FORMATS row it was read as; "" when it never was in a file

    @property
    def name(self) -> str:
        return self.metadata.get("ss_output_name", "")

    @property
    def title(self) -> str:
        return self.metadata.get("modelspec.title", self.name)

    @property
    def trigger(self) -> str:
        """Its trigger phrase, or the tags that all captions share."""
        return trigger_of(self.metadata)

    @property
    def base_digest(self) -> str:
        return self.metadata.get("ss_new_sd_model_hash") or self.metadata.get("stylora.base_digest", "")

    @property
    def base_name(self) -> str:
        """The hub id or name of the language model it was trained on."""
        return self.metadata.get("stylora.base", "")

    @property
    def base_version(self) -> str:
        return self.metadata.get("ss_base_model_version", "")

    @property
    def thumbnail(self) -> bytes | None:
        """The picture file inside the header."""
        return thumbnail_of(self.metadata)


@dataclass(frozen=True, eq=False)
class Adapter:
    """{canonical module path: LoraPair} and what is known about it. Equal content: compare `content_digest`."""

    pairs: Pairs
    info: AdapterInfo = field(default_factory=AdapterInfo)

    @classmethod
    def load(cls, path: str | os.PathLike[str], rank: int | None = None, weight_of: WeightOf | None = None) -> Adapter:
        """Read a whole adapter of any format and kind (see `read`); AdapterError lists all that can't be applied."""
        return read(path, rank, weight_of).whole(path)

    def save(self, path: str | os.PathLike[str], format: str = "kohya", dtype: torch.dtype = torch.float16) -> Path:
        """Write the file whole or not at all; equal content gives equal bytes. "peft" writes a new folder.

        AdapterError: nothing was written.
        """
        path = Path(path)
        if faults := self._faults(format, dtype):
            raise AdapterError(f"{path}: this adapter can't be saved", faults)
        if FORMATS[format].kind == "folder":
            return _save_folder(path, self, dtype, {})
        tensors, extra = FORMATS[format].write(self.pairs, dtype)
        _check_range(path, tensors, dtype)
        files.write_whole(path, files.file_bytes(tensors, self._kept() | extra))
        return path

    def _kept(self) -> dict[str, str]:
        return {key: value for key, value in self.info.metadata.items() if key != DIFFUSERS_HEADER}

    def _faults(self, format: str, dtype: torch.dtype) -> list[str]:
        faults = [fault for path, pair in sorted(self.pairs.items()) for fault in pair_faults(path, pair)]
        if not self.pairs:
            faults.append("it has no modules")
        if format not in FORMATS:
            faults.append(f"format is {format!r}, wanted one of {', '.join(FORMATS)}")
        if dtype not in DTYPES:
            faults.append(f"dtype is {dtype}, wanted one of {', '.join(map(str, DTYPES))}")
        odd = [key for key, value in self.info.metadata.items() if not _is_text(key) or not _is_text(value)]
        return faults + [f"metadata {key!r} isn't text" for key in odd]


def save_dora(
    path: str | os.PathLike[str],
    adapter: Adapter,
    magnitudes: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a PEFT folder of DoRA (Liu et al. 2024): the pairs and, by canonical path, their magnitudes (out,).

    Only the base's weights make plain pairs of it (`read` with `weight_of`), so it isn't an Adapter's own format.
    AdapterError: nothing was written.
    """
    faults = adapter._faults("peft", dtype)
    faults += [f"{name}: NaN or Inf in its magnitude" for name, m in magnitudes.items() if not m.isfinite().all()]
    if faults or not magnitudes:
        raise AdapterError(f"{path}: this DoRA can't be saved", faults or ["it has no magnitudes"])
    return _save_folder(Path(path), adapter, dtype, magnitudes)


def _save_folder(path: Path, adapter: Adapter, dtype: torch.dtype, magnitudes: Mapping[str, Tensor]) -> Path:
    parts = peft.write_folder(adapter.pairs, dtype, magnitudes, adapter.info.base_name)
    for tensors, _ in parts.values():
        _check_range(path, tensors, dtype)
    files.write_folder_whole(path, files.folder_bytes(parts, adapter._kept()))
    return path


def _is_text(value: object) -> bool:
    """A str that UTF-8 can carry: a lone surrogate (a badly decoded file name) would make a header nobody can read."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _check_range(path: Path, tensors: Tensors, dtype: torch.dtype) -> None:
    if large := [name for name, part in tensors.items() if not bool(torch.isfinite(part).all())]:
        faults = [f"{name}: too large a number for {dtype}" for name in large]
        raise AdapterError(f"{path}: this adapter can't be saved", faults, "save it as bfloat16 or float32")


@dataclass(frozen=True, eq=False)
class Reading:
    """All of a file that could be read, and what became of every tensor in it."""

    adapter: Adapter
    entries: tuple[Entry, ...]

    def whole(self, path: str | os.PathLike[str]) -> Adapter:
        """The adapter, unless anything of the file is refused: AdapterError says all of that."""
        if refused := refusals(self.entries):
            step = f"{cure(self.entries)}; `stylora check FILE --base …` tells how much of it can be applied"
            raise AdapterError(f"{path}: this adapter can't be read whole", refused, step)
        return self.adapter


def read(path: str | os.PathLike[str], rank: int | None = None, weight_of: WeightOf | None = None) -> Reading:
    """Read what can be read of a file of FORMATS, of a PEFT folder or of the tensors' file in one.

    Kinds other than plain LoRA are converted: exactly, or cut to `rank`; DoRA needs the base's weights by `weight_of`
    (kinds.assemble). AdapterError: there is no such file, it is broken, or it is no adapter at all.
    """
    path = Path(path)
    if path.name == peft.TENSORS_FILE and (path.parent / peft.CONFIG_FILE).is_file():
        path = path.parent  # half of the adapter stands in the config
    if path.is_dir():
        parts, metadata = files.read_folder(path)
        name, grouped, there = "peft", peft.group_folder(parts), files.keys_of(parts)
    else:
        tensors, metadata = files.read_file(path, lambda keys: _check_names(path, keys))
        name = detect(tensors) or ""
        grouped, there = FORMATS[name].group(tensors, metadata), list(tensors)
    pairs, entries = assemble(grouped, rank=rank, weight_of=weight_of)
    known = {key for entry in entries for key in entry.keys}
    entries += [Entry("", (key,), "left aside", _aside(key)) for key in sorted(there) if key not in known]
    return Reading(Adapter(pairs, AdapterInfo(metadata, name)), tuple(entries))


def _aside(key: str) -> str:
    return "a copy of the base's own weight" if key.endswith(COPIES) else "an embedding, no LoRA"


def by_reason(entries: Iterable[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Entries by (verdict, reason) in the order they come; all that are of another size than the base's are one."""
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    sizes: dict[str, str] = {}  # verdict -> the first misfit's words
    for entry in entries:
        reason = sizes.setdefault(entry.verdict, entry.reason) if entry.reason.startswith(MISFIT) else entry.reason
        groups[entry.verdict, reason].append(entry)
    return groups


def refusals(entries: Iterable[Entry]) -> list[str]:
    """One line for each reason why tensors are refused, with their number and a few names."""
    groups = by_reason(entry for entry in entries if entry.verdict == "refused")
    return [_line(reason, found) for (_, reason), found in groups.items()]


def _line(reason: str, found: list[Entry]) -> str:
    names = [entry.path or entry.keys[0] for entry in found if entry.path or entry.keys]
    count = sum(len(entry.keys) for entry in found)
    first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{first}: {reason} ({count} tensor{'s' * (count != 1)})" if names else reason


def cure(entries: Iterable[Entry]) -> str:
    """What to do about refused tensors."""
    if any(entry.verdict == "refused" and entry.reason == NEEDS_BASE for entry in entries):
        return "name the base it is for (`--base …`): DoRA is converted with the base's weights"
    return "get a whole adapter in its place"


def _check_names(path: Path, keys: list[str]) -> None:
    """Is it an adapter, before any tensor is read?"""
    if detect(keys):
        return
    if any("lora" in key or foreign_kind(key) for key in keys):
        wanted = f"stylora reads {', '.join(FORMATS)} files for Stable Diffusion"
        raise AdapterError(f"{path}: an adapter of a format stylora doesn't know", foreign_faults(keys), wanted)
    names = ", ".join(sorted(keys)[:3]) or "none at all"
    raise AdapterError(f"{path}: no LoRA in it", [f"its {len(keys)} tensors: {names}"], "give an adapter file")


def components(adapter: Adapter) -> tuple[str, ...]:
    """The parts of the base it changes, sorted: ("text_encoder", "unet")."""
    return tuple(sorted({path.partition(".")[0] for path in adapter.pairs}))


def content_digest(adapter: Adapter) -> str:
    """sha256 of the numbers alone: names, shapes, kinds of number, tensor bytes and alphas; not the metadata."""
    total = hashlib.sha256()
    for path, pair in sorted(adapter.pairs.items()):
        for part in (pair.down, pair.up):
            total.update(f"{path} {part.dtype} {list(part.shape)} {pair.alpha!r}\n".encode())
            total.update(files.raw(part))
    return total.hexdigest()
