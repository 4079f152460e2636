"""An adapter as a GGUF file for llama.cpp and Ollama: its runtime adds alpha / rank * lora_b @ lora_a to a tensor.

One alpha serves the whole file, and of each tensor its own rank; what a module's scale has beyond that goes into
lora_b, so that every delta is the adapter's (rsLoRA and uneven ranks too). The file is read back and compared.

`stylora export runs/pirate --to gguf --base tiny-lm`
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.export import widest
from studio.gguf import modelfile
from studio.gguf.base import Base, opened_base
from studio.gguf.layout import Layout
from studio.gguf.numbers import BLOCK, decode, encode, slack, type_of
from studio.gguf.package import opened, package, value
from studio.merge.rewrite import beside
from trainers.errors import AdapterError, RunError
from trainers.lora.adapter import Adapter, content_digest, refusals
from trainers.lora.algebra import joined, singular_values
from trainers.lora.kinds import Entry
from trainers.lora.ledger import Reading, ledger_of, read
from trainers.lora.pair import LoraPair

DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}  # what people write -> what GGUF calls it
OWN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ARITHMETIC = 1e-6  # alpha is a float32, and what is folded into lora_b rounds once more
Halves = dict[str, tuple[Tensor, Tensor]]  # tensor of the base -> lora_a (r, in), lora_b (out, r), float32


@dataclass(frozen=True)
class Written:
    """What was written: `error` is the largest of the modules' relative errors (Frobenius) after reading it back."""

    path: Path
    dtype: str
    adapter: Adapter
    entries: tuple[Entry, ...]
    error: float
    notes: tuple[str, ...]
    modelfile: Path | None = None


def export(
    path: Path,
    base: str,
    *,
    dtype: str | None = None,
    out: Path | None = None,
    rank: int | None = None,
    origin: str | None = None,
    overwrite: bool = False,
) -> Written:
    """Write the adapter for the GGUF of `base`: a transformers folder, hub id or alias, or that GGUF itself.

    `dtype` is a key of DTYPES (None: the adapter's own), `origin` what a Modelfile beside it says FROM (None: no
    Modelfile). Raises StyloraError: the adapter can't be read whole or doesn't fit, or the place is taken.
    """
    if dtype is not None and dtype not in DTYPES:
        raise AdapterError(f"--dtype is {dtype!r}, wanted one of {', '.join(DTYPES)}")
    out = out or path.with_name(path.name.removesuffix(".safetensors").removesuffix(".peft") + ".gguf")
    _check_places(out, origin, overwrite)
    model = opened_base(base)
    reading = read(path, rank, model.weight)
    adapter = reading.whole(path)
    _check_fit(path, reading, model)
    kind = DTYPES[dtype] if dtype else OWN[widest(adapter)]
    made = modelfile.text(origin, out.name, model.template()) if origin else ""
    notes: list[str] = []
    with beside(out) as temp:
        write(temp, adapter, model.layout, kind, notes)
        error_found = compare(temp, adapter, model.layout)
    written = modelfile.write(out, made, overwrite) if made else None
    return Written(out, kind, adapter, reading.entries, error_found, tuple(notes), written)


def _check_places(out: Path, origin: str | None, overwrite: bool) -> None:
    faults = [] if out.suffix == ".gguf" else [f"--out {out}: name it ….gguf"]
    places = [out, out.with_name(modelfile.NAME)] if origin else [out]
    faults += [f"{place}: exists" for place in places if place.exists() and (place.is_dir() or not overwrite)]
    if faults:
        raise AdapterError("this export can't be done", faults, "name another --out, or add --overwrite")


def _check_fit(path: Path, reading: Reading, model: Base) -> None:
    """Raises AdapterError unless every module has a tensor of its size in the base's GGUF."""
    ledger = ledger_of(reading, model.shapes(reading.adapter.pairs))
    if ledger.whole:
        return
    step = "name the base it was trained on"
    if model.layout.tied and any(name.endswith("lm_head") for name in reading.adapter.pairs):
        step = "train without lm_head: in this base it is the embedding, and a GGUF has no tensor of its own for it"
    raise AdapterError(f"{path}: not for the GGUF of this base", refusals(ledger.entries), step)


def halves(adapter: Adapter, layout: Layout) -> tuple[Halves, float]:
    """(lora_a and lora_b of each tensor in float32, alpha): alpha / rank * b @ a is the delta, rows as in the GGUF."""
    found = Counter(pair.alpha for pair in adapter.pairs.values() if pair.alpha)
    alpha = found.most_common(1)[0][0] if found else 1.0  # 0 would mean a scale of 1 to the runtime
    made: Halves = {}
    for path, pair in adapter.pairs.items():
        tensor = layout.tensor(path)
        up = pair.up.float().flatten(1) * (pair.alpha / alpha)
        order = layout.order(tensor, len(up))
        made[tensor] = pair.down.float().flatten(1), up if order is None else up[order]
    return made, alpha


def write(out: Path, adapter: Adapter, layout: Layout, kind: str, notes: list[str]) -> None:
    """Write the file. Raises AdapterError: a number is too large for `kind`."""
    gguf = package()
    writer = gguf.GGUFWriter(out, layout.architecture)
    made, alpha = halves(adapter, layout)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(adapter.info.title)
    writer.add_string("stylora.trigger", adapter.info.trigger)
    writer.add_string("stylora.digest", content_digest(adapter))
    parts = {f"{tensor}.{end}": part for tensor, pair in sorted(made.items())
             for end, part in zip(("lora_a", "lora_b"), pair, strict=True)}  # fmt: skip
    narrow = [name for name, part in parts.items() if kind == "Q8_0" and part.shape[1] % BLOCK]
    if narrow:
        notes.append(f"{len(narrow)} tensors are F16: their rows aren't multiples of {BLOCK}, which Q8_0 wants")
    for name, part in parts.items():
        stored = "F16" if name in narrow else kind
        writer.add_tensor(name, _encoded(name, stored, part), raw_dtype=type_of(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    for stream in writer.fout:
        os.fsync(stream.fileno())
    writer.close()


def _encoded(name: str, kind: str, part: Tensor) -> Any:
    try:
        return encode(kind, part)
    except OverflowError as error:
        raise AdapterError(f"{name}: {error}", next_step="export it as --dtype bf16 or fp32") from None


def pairs_in(path: Path, layout: Layout, paths: Mapping[str, str]) -> dict[str, tuple[LoraPair, tuple[str, str]]]:
    """{module path: (the pair as the runtime applies it, the kinds of its two halves)}; `paths` is {tensor: module}."""
    reader = opened(path)
    alpha, found = float(value(reader, "adapter.lora.alpha")), {each.name: each for each in reader.tensors}
    pairs = {}
    for tensor, module in paths.items():
        a, b = found[f"{tensor}.lora_a"], found[f"{tensor}.lora_b"]
        down, up = (decode(half.tensor_type.name, half.data) for half in (a, b))
        order = layout.order(tensor, len(up))
        up = up if order is None else up[order.argsort()]
        pairs[module] = LoraPair(down, up, alpha), (a.tensor_type.name, b.tensor_type.name)
    return pairs


def compare(path: Path, adapter: Adapter, layout: Layout) -> float:
    """The largest relative error of a delta in the file. Raises RunError: one is off by more than rounding can be."""
    faults, worst = [], 0.0
    for module, (got, kinds) in pairs_in(path, layout, {layout.tensor(path): path for path in adapter.pairs}).items():
        wanted = adapter.pairs[module]
        off = float(singular_values(joined([got, wanted], [1, -1])).norm())
        size = float(singular_values(wanted).norm())
        if not off <= _allowed(wanted, got, kinds):
            faults.append(f"{module}: the delta in the file is off by {off:.3g}, its size is {size:.3g}")
        worst = max(worst, off / size if size else 0.0)
    if faults:
        raise RunError(f"{path.name}: isn't the adapter", faults, "nothing was kept; check disk and memory")
    return worst


def _allowed(wanted: LoraPair, got: LoraPair, kinds: tuple[str, str]) -> float:
    """|B'A' - BA| <= |B' - B||A| + |B||A' - A| + |B' - B||A' - A| in Frobenius norms, each half rounded once."""
    fold = wanted.alpha / got.alpha
    down, up = wanted.down.float(), wanted.up.float() * fold
    off_down, off_up = float(slack(kinds[0], down).norm()), float(slack(kinds[1], up).norm())
    sizes = float(down.norm()), float(up.norm())
    total = off_up * sizes[0] + sizes[1] * off_down + off_up * off_down + ARITHMETIC * sizes[0] * sizes[1]
    return abs(got.scale) * total
