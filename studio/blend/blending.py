"""Adapter files -> one adapter file with a certificate: reading, checking, blending, what the header says, saving.

Try it: python -c "from pathlib import Path; from studio.blend.blending import *; \\
print(blend(['ink.safetensors:0.6', 'neon.safetensors:0.4'], Plan('svd'), Path('x')).certificate.total)"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from studio.blend import certificate
from studio.blend.certificate import Certificate, Row
from studio.blend.factored import Factored, Layer
from studio.blend.faults import KIND_FORMATS, format_faults, mixed_families, name_faults, out_faults
from studio.blend.methods import METHODS
from studio.draw.tables import noting
from studio.draw.use import Use, parse_use
from studio.export import _room as room
from trainers.devices import DTYPES
from trainers.errors import AdapterError, StyloraError
from trainers.lora.adapter import Adapter, AdapterInfo, content_digest, digest
from trainers.lora.blocks import format_blocks
from trainers.lora.family import is_text
from trainers.lora.formats import FORMATS
from trainers.lora.kinds import WeightOf
from trainers.lora.metadata import ARCHITECTURES, kohya_metadata, modelspec_metadata
from trainers.lora.pair import LoraPair, Pairs

DENSITY = 0.5  # where a method takes one and none is said
CARRIED = (  # header entries, where all adapters have the same
    "ss_sd_model_name", "ss_new_sd_model_hash", "stylora.base_digest", "ss_clip_skip", "ss_resolution",
    "modelspec.architecture", "modelspec.resolution", "modelspec.prediction_type", "modelspec.encoder_layer",
    "modelspec.license", "stylora.base",
)  # fmt: skip
OF_OTHER_NUMBERS = ("stylora.equal_feel", "stylora.extract")  # what was measured of the adapter before it was cut
OF_THE_FILE = ("ss_network_dim", "ss_network_alpha", "ss_output_name")  # what a resized file says anew


@dataclass(frozen=True)
class Plan:
    """What to make; None is not said. Without rank and energy the rank is the adapters' largest."""

    method: str = "svd"
    rank: int | None = None
    energy: float | None = None  # the share to keep in each layer, 0..1; with rank, that is the ceiling
    density: float | None = None
    seed: int | None = None
    dtype: str = "fp16"
    format: str = ""  # "": as the adapters' kind usually has it

    def faults(self) -> list[str]:
        """Everything that is unknown, out of range, or of no use to the method."""
        found = [
            f"{name}: got {got!r}, wanted one of {', '.join(filter(None, known))}"
            for name, got, known in (("method", self.method, METHODS), ("dtype", self.dtype, DTYPES),
                                     ("format", self.format, ("", *FORMATS))) if got not in known
        ]  # fmt: skip
        said = {name: value for name in ("rank", "energy", "density", "seed")
                if (value := getattr(self, name)) is not None}  # fmt: skip
        takes = METHODS[self.method].takes if self.method in METHODS else tuple(said)
        found += [f"{name}: {self.method} takes none" for name in said if name not in takes]
        if self.rank is not None and self.rank < 1:
            found.append(f"rank: got {self.rank}, wanted at least 1")
        for name in ("energy", "density"):
            if name in said and not 0 < said[name] <= 1:
                found.append(f"{name}: got {said[name]}, wanted more than 0, at most 1")
        return found

    def asked(self, largest: int) -> dict[str, Any]:
        """The parameters that the method takes, defaults filled in; `largest` is the adapters' largest rank."""
        rank = largest if self.rank is None and self.energy is None else self.rank
        values = {"rank": rank, "energy": self.energy, "density": self.density or DENSITY, "seed": self.seed or 0}
        return {name: values[name] for name in METHODS[self.method].takes if values[name] is not None}


@dataclass(frozen=True)
class Source:
    """An adapter's file as it goes into a blend."""

    use: Use
    adapter: Adapter
    sha256: str

    def facts(self) -> dict[str, Any]:
        """For the certificate: the name, both digests, the weights."""
        gain = self.use.gain
        found = {
            "name": self.use.title,
            "sha256": self.sha256,
            "digest": content_digest(self.adapter),
            "weight": gain.weight,
            "text_encoder": gain.text_encoder,
            "blocks": format_blocks(gain.blocks),
        }
        return {name: value for name, value in found.items() if value not in (None, "")}


@dataclass(frozen=True)
class Blended:
    """The result: its numbers are rounded as the file's will be."""

    adapter: Adapter
    certificate: Certificate
    plan: Plan
    sources: tuple[Source, ...]
    out: Path

    def save(self) -> Path:
        """Write the file, or the PEFT folder, whole or not at all. Raises AdapterError."""
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fault = error.strerror or str(error)
            raise AdapterError(f"{self.out}: can't be written", [fault], "name another --out") from None
        with room(self.out, self.plan.format):
            return self.adapter.save(self.out, self.plan.format, DTYPES[self.plan.dtype])

    def notes(self) -> list[str]:
        """What a person should know of these adapters together."""
        contents = [(source.use.title, content_digest(source.adapter)) for source in self.sources]
        twins = [
            f"{a} and {b} are the same adapter: it goes in with the sum of their weights"
            for (a, one), (b, other) in combinations(contents, 2)
            if one == other
        ]
        return twins + self._base_notes()

    def _base_notes(self) -> list[str]:
        digests = [(source.use.title, source.adapter.info.base_digest) for source in self.sources]
        if len({known for _, known in digests} - {""}) > 1:
            bases = ", ".join(f"{name} on {known[:12] or 'an unknown one'}" for name, known in digests)
            return [f"trained on different bases: {bases}"]
        silent = ", ".join(name for name, known in digests if not known)
        return [f"which base they were trained on isn't said by {silent}"] if silent and len(digests) > 1 else []


def blend(
    texts: Sequence[str | Use], plan: Plan, out: Path | None, overwrite: bool = False, faults: Sequence[str] = (),
    weight_of: WeightOf | None = None,
) -> Blended:  # fmt: skip
    """`FILE[:WEIGHT][:te=W][:blocks=…]` each -> one adapter named after `out`, which `save` writes.

    `out` is beside the first if not said; DoRA is converted with the base's weights, which `weight_of` gives.
    Raises one AdapterError with every fault, those that the caller found first.
    """
    faults = [*faults, *plan.faults()]
    sources = [source for text in texts if (source := _read(text, faults, weight_of))]
    adapters = [(source.use.title, source.adapter) for source in sources]
    plan = replace(plan, format=plan.format or KIND_FORMATS[any(is_text(adapter.pairs) for _, adapter in adapters)])
    if out is None and sources:
        out = _beside(sources[0].use.path, plan)
    mixed = mixed_families(adapters)
    faults += [*name_faults(out, plan.format), *out_faults(out, overwrite, plan.format), *mixed]
    factored = None
    if sources and not mixed:
        faults += format_faults(adapters, plan.format)
        with noting(faults):
            factored = Factored([source.adapter.pairs for source in sources])
    if factored and plan.rank and plan.rank > factored.largest_rank:
        faults.append(f"rank: got {plan.rank}, but no layer can have more than {factored.largest_rank}")
    if sources and not any(source.use.gain.at(path) for source in sources for path in source.adapter.pairs):
        faults.append("every weight is 0")
    if faults or factored is None or out is None:
        raise AdapterError(
            "nothing was written", faults, "`stylora blend --help`, `stylora resize --help` say what is meant"
        )
    return _made(tuple(sources), factored, plan, out)


def resize(
    text: str | Use, plan: Plan, out: Path | None = None, overwrite: bool = False, faults: Sequence[str] = (),
    weight_of: WeightOf | None = None,
) -> Blended:  # fmt: skip
    """One adapter cut to a rank or a share of its energy; `out` is beside it if not said.

    Its header is kept, but for what was measured of the numbers as they were.
    Raises one AdapterError with every fault.
    """
    if plan.rank is None and plan.energy is None:
        faults = [*faults, "neither --rank nor --energy says how far to cut"]
    made = blend([text], plan, out, overwrite, faults, weight_of)
    said = made.adapter.info.metadata
    new = {key: said[key] for key in (certificate.KEY, *OF_THE_FILE) if key in said}
    kept = {k: v for k, v in made.sources[0].adapter.info.metadata.items() if k not in OF_OTHER_NUMBERS}
    return replace(made, adapter=Adapter(made.adapter.pairs, AdapterInfo({**kept, **new})))


def _beside(path: Path, plan: Plan) -> Path:
    """ink.safetensors -> ink-rank8.safetensors, ink-energy0.95.safetensors; the folder pirate -> pirate-rank8."""
    said = {"rank": plan.rank, "energy": plan.energy}
    cuts = [f"{name}{value}" for name, value in said.items() if value is not None] or ["resized"]
    stem = "-".join([path.stem, *cuts])
    return path.with_name(stem + (".safetensors" if plan.format != "peft" else ""))


def _read(text: str | Use, faults: list[str], weight_of: WeightOf | None) -> Source | None:
    """The adapter that `text` names, or None and lines of `faults`."""
    use = None if isinstance(text, str) else text
    with noting(faults):
        use = use or parse_use(str(text))
    if use is None:
        return None
    if use.gain.schedule:
        faults.append(f"{use.title}: a file can't hold a schedule; leave it out")
    try:
        adapter = Adapter.load(use.path, weight_of=weight_of)
        if is_text(adapter.pairs) and (odd := replace(use.gain, schedule=()).for_pictures):
            faults.append(f"{use.title}: an adapter for text has no use for {', '.join(odd)}")
        return Source(use, adapter, digest(use.path))
    except StyloraError as error:
        faults += [f"{use.path}: {fault}" for fault in error.faults] or [error.what]
        return None


def _made(sources: tuple[Source, ...], factored: Factored, plan: Plan, out: Path) -> Blended:
    asked = plan.asked(max(pair.rank for source in sources for pair in source.adapter.pairs.values()))
    layers = factored.blend(
        [source.use.gain for source in sources],
        plan.method,
        rank=asked.get("rank"),
        share=asked.get("energy"),
        density=asked.get("density", 1.0),
        seed=asked.get("seed", 0),
    )
    pairs = {path: rounded(layer.cut.pair, DTYPES[plan.dtype]) for path, layer in layers.items()}
    facts = {"method": plan.method, **asked, "dtype": plan.dtype, "adapters": [source.facts() for source in sources]}
    paper = Certificate(facts, {path: _row(layer, pairs[path]) for path, layer in layers.items()})
    header = metadata(sources, pairs, out.stem) | {certificate.KEY: paper.text()}
    return Blended(Adapter(pairs, AdapterInfo(header)), paper, plan, sources, out)


def rounded(pair: LoraPair, dtype: torch.dtype) -> LoraPair:
    """The pair with the numbers that a file holds; alpha in float32, as kohya's files have it at best."""
    return LoraPair(pair.down.to(dtype), pair.up.to(dtype), float(torch.tensor(pair.alpha, dtype=torch.float32)))


def _row(layer: Layer, pair: LoraPair) -> Row:
    return Row(pair.rank, layer.cut.kept, layer.cut.discarded, layer.target.missed(pair))


def metadata(sources: Sequence[Source], pairs: Pairs, name: str) -> dict[str, str]:
    """The header: what all adapters agree on, joined trigger words, where it comes from. No clock speaks here."""
    infos = [source.adapter.info for source in sources]
    names = [source.use.title for source in sources]
    trigger = ", ".join(dict.fromkeys(info.trigger for info in infos if info.trigger))
    largest = max(pairs.values(), key=lambda pair: pair.rank)
    versions = {info.base_version for info in infos} & ARCHITECTURES.keys()
    kohya = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(largest.rank),
        "ss_network_alpha": str(largest.alpha),
        "ss_output_name": name,
    }
    said = {
        **({"stylora.kind": "text"} if is_text(pairs) else kohya),
        "modelspec.title": name,
        "modelspec.trigger_phrase": trigger,
        "modelspec.merged_from": ", ".join(names),
    }
    if len(versions) == 1:
        version = versions.pop()
        said |= kohya_metadata(base_version=version, rank=largest.rank, alpha=largest.alpha, name=name)
        said |= modelspec_metadata(base_version=version, title=name, trigger=trigger, merged_from=names)
    agreed = {
        key: values.pop() for key in CARRIED if len(values := {info.metadata.get(key, "") for info in infos}) == 1
    }
    return {key: value for key, value in {**said, **{k: v for k, v in agreed.items() if v}}.items() if value}
