"""What keeps a blend from being written: adapters that don't go together, names and places that can't be used.

Try it: python -c "from pathlib import Path; from studio.blend.faults import *; print(name_faults(Path('x'), 'kohya'))"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studio.draw.use import peft_configs
from trainers.lora.adapter import Adapter
from trainers.lora.family import FAMILIES, family_of, is_text, shapes_of
from trainers.lora.formats import FORMATS

Named = Sequence[tuple[str, Adapter]]
KIND_FORMATS = ("kohya", "peft")  # as a blend of adapters for pictures, for text is written unless asked otherwise


def out_faults(out: Path | None, overwrite: bool, format: str = "") -> list[str]:
    """Why nothing may be written there; a PEFT folder goes over another."""
    if out is None or not out.exists():
        return []
    if out.is_dir() and (format != "peft" or not peft_configs(out)):
        return [f"{out}: is a folder"]
    return [] if overwrite else [f"{out}: exists; add --overwrite to write over it"]


def name_faults(out: Path | None, format: str) -> list[str]:
    """A file that other tools find as what it is: `.safetensors`; a PEFT folder may have any other name."""
    if out is None or format not in FORMATS or (FORMATS[format].kind == "file") == (out.suffix == ".safetensors"):
        return []
    if FORMATS[format].kind == "file":
        return [f"{out}: an adapter is written as ….safetensors"]
    return [f"{out}: a PEFT adapter is a folder; name it {out.with_suffix('')}"]


def plot_faults(plot: Path | None, overwrite: bool) -> list[str]:
    """Why no chart may be written there."""
    found = out_faults(plot, overwrite)
    return found if plot is None or plot.suffix.lower() == ".png" else [*found, f"{plot}: a chart is written as PNG"]


def format_faults(adapters: Named, format: str) -> list[str]:
    """Language models' modules have names in PEFT's folders alone."""
    if format in ("", "peft") or not any(is_text(adapter.pairs) for _, adapter in adapters):
        return []
    return [f"format: {format} has no names for a language model's modules; write peft, or leave --format away"]


def mixed_families(adapters: Named) -> list[str]:
    """A fault where adapters are for different families, by their headers, else by their sizes; or other models."""
    said = [(name, FAMILIES[family]) for name, adapter in adapters if (family := _family(adapter))]
    texts = [name for name, adapter in adapters if is_text(adapter.pairs)]
    if texts and len(texts) < len(adapters):
        said += [(name, "pictures") for name, adapter in adapters if not _family(adapter)]
    elif len({root for _, adapter in adapters for root in _roots(adapter)}) > 1:
        said = [(name, f"models of {', '.join(_roots(adapter))}") for name, adapter in adapters]
    if len({family for _, family in said}) < 2:
        return []
    return ["mixed families: " + ", ".join(f"{name} is for {family}" for name, family in said)]


def _family(adapter: Adapter) -> str:
    return family_of({}, adapter.info.metadata) or family_of(shapes_of(adapter.pairs))


def _roots(adapter: Adapter) -> list[str]:
    """Where a language model's layers lie in it: model.layers in Llama's kin, transformer.h in GPT-2's."""
    inner = (path.partition(".")[2] for path in adapter.pairs if is_text([path]))
    return sorted({".".join(path.split(".")[:2]) for path in inner if path.count(".") > 1})
