"""Texts as a run's subject: documents become pieces of tokens; previews, header and report speak of texts.

Try it: python -c "from trainers import texts; print(texts.UNIT)"
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers import bases, checkpoint, devices, documents, report, supervision, tokens
from trainers.batches import Plan
from trainers.config import TrainConfig
from trainers.digests import digest_of
from trainers.documents import Document
from trainers.errors import ConfigError
from trainers.events import Event, Note, Supervised
from trainers.families.base import Encoding
from trainers.families.causal_lm import CausalLM
from trainers.families.writing import Sampling
from trainers.lora import fit, inject
from trainers.lora.adapter import Adapter
from trainers.prepare import Data, Shape
from trainers.tokens import Piece, Tokenized

KIND: bases.Kind = "text"
UNIT = "tokens"
LONGEST = 1024  # tokens of a piece, unless asked for more
PREVIEWS, PREVIEW_WORDS, PREVIEW_TOKENS = 4, 4, 80


@dataclass(frozen=True)
class Texts:
    """The data as read and cut: what is learned, what is kept apart, what lies outside the style."""

    training: tuple[Piece, ...]
    heldout: tuple[Piece, ...]
    plain: tuple[Piece, ...]
    notes: tuple[str, ...]
    supervised: Supervised


@dataclass(frozen=True)
class TextData(Data):
    """The digest is over tokens, what of them is learned, and repeats."""

    texts: Texts

    @property
    def heldout(self) -> list[Encoding]:
        return [piece.encoding for piece in self.texts.heldout]

    @property
    def documents(self) -> list[Document]:
        """The documents that are learned from, each once."""
        return list({piece.document.name: piece.document for piece in self.texts.training}.values())


def open_base(config: TrainConfig, folder: Path, machine: devices.Machine) -> CausalLM:
    """The base in `folder` as the settings want it."""
    return CausalLM(
        folder,
        device=machine.device,
        dtype=machine.frozen_dtype,
        quantization=config.train.quantization,
        layout=config.dataset.layout,
        neftune=config.objective.neftune,
        autocast=machine.autocast,
    )


def shapes(config: TrainConfig) -> dict[str, Shape]:
    """The model alone."""
    lora = config.lora
    shape = inject.Shape(lora.rank, lora.full_alpha, lora.dropout, lora.rslora, lora.dora)
    return {"model": Shape(shape, lora.targets, config.optim.lr, rule=2.0)}


def scan(config: TrainConfig, family: CausalLM) -> Texts:
    """The documents, cut into pieces of tokens."""
    wish, context = config.dataset, config.dataset.context or min(family.context, LONGEST)
    if context > family.context:
        raise ConfigError(
            f"dataset.context={context}: this base reads {family.context} tokens at once",
            next_step=f"use at most {family.context}",
        )
    if config.data.is_dir() and not documents.holds_texts(config.data) and documents.holds_pictures(config.data):
        raise ConfigError(
            f"{config.data} holds pictures, and {config.base} is a language model",
            next_step="name a base that makes pictures with --base, such as tiny-sd, or a folder of texts",
        )
    reading = documents.sound(documents.read(config.data, heldout=wish.heldout, repeats=wish.repeats), config.data)
    plain = documents.sound(documents.read(wish.plain, heldout=0), wish.plain).documents if wish.plain else ()
    tokenizer = family.part("tokenizer")

    sets = [
        tokens.pieces(
            found,
            tokenizer,
            context=context,
            overlap=wish.overlap if wish.overlap < context else context // 4,
            supervise=wish.supervise,
            vocabulary=family.vocabulary,
        )
        for found in (reading.training, reading.heldout, plain)
    ]
    tokens.sound(Tokenized(faults=tuple(fault for one in sets for fault in one.faults)))
    notes = (*reading.notes, *(note for one in sets for note in one.notes))
    shown = supervision.receipt(sets[0].pieces, tokenizer)
    samples = [(one.name, list(one.runs)) for one in shown.samples]
    learned = Supervised(shown.documents, shown.pieces, shown.tokens, shown.supervised, samples)
    return Texts(sets[0].pieces, sets[1].pieces, sets[2].pieces, notes, learned)


def encode(
    config: TrainConfig, family: CausalLM, found: Texts, machine: devices.Machine
) -> Generator[Event, None, TextData]:
    """Says what is learned of the texts, and proves that the base computes them as laid out."""
    yield from map(Note, found.notes)
    yield found.supervised
    yield from map(Note, family.prove())
    if config.train.quantization != "none":
        yield Note(f"the base is held in {config.train.quantization}: {_memory(family)}")
    plan = Plan(
        repeats=tuple(piece.document.repeats for piece in found.training),
        buckets=("",) * len(found.training),
        batch=config.train.batch,
        micro_batch=config.train.micro_batch or config.train.batch,
        seed=config.seed,
    )
    encodings = [piece.encoding for piece in found.training]
    whole = digest_of(*(f"{e['ids'].tolist()} {e['supervised'].tolist()}" for e in encodings), str(plan.repeats))
    return TextData([piece.document.name for piece in found.training], encodings, plan, whole, found)


def _memory(family: CausalLM) -> str:
    """What a quantised base takes, in words."""
    size = family.base_bytes()
    each = size["quantized_bytes"] / max(1, size["quantized_parameters"])
    return f"{each:.2f} bytes a parameter, {(size['quantized_bytes'] + size['other_bytes']) / 1e6:,.1f} MB in all"


def validate(family: CausalLM, data: TextData) -> float | None:
    """Mean of -log p over the supervised tokens of the texts that are kept apart."""
    if not data.heldout:
        return None
    total, count = family.nll(data.heldout).sum(0).tolist()
    return float(total / count)


def preview(config: TrainConfig, family: CausalLM, data: TextData, step: int) -> Path:
    """A file with what follows on the preview prompts, each with its fixed seed."""
    prompts = config.train.preview_prompts or _beginnings(data)
    tokenizer = family.part("tokenizer")
    made = family.write(
        [tokenizer(prompt).input_ids for prompt in prompts],
        [config.seed + k for k in range(len(prompts))],
        Sampling(max_tokens=PREVIEW_TOKENS),
    )
    text = "\n\n".join(prompt + tokenizer.decode(row) for prompt, row in zip(prompts, made, strict=True))
    path = config.out / "previews" / f"step-{step:06d}.txt"
    path.parent.mkdir(exist_ok=True)
    checkpoint.write_atomically(path, f"after step {step}\n\n{text}\n".encode())
    return path


def _beginnings(data: TextData) -> list[str]:
    """The first words of the first texts."""
    texts = [text for document in data.documents for text in document.learned]
    return list(dict.fromkeys(" ".join(text.split()[:PREVIEW_WORDS]) for text in texts))[:PREVIEWS]


def header(
    config: TrainConfig, family: CausalLM, data: TextData, rates: Mapping[str, float], machine: devices.Machine
) -> dict[str, str]:
    """modelspec's entries, and stylora's own: kind, base, settings."""
    digest = family.digest("model")
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": config.adapter_name,
        "modelspec.architecture": f"{family.architecture}/lora",
        "stylora.kind": KIND,
        "stylora.base": report.base_name(config),
        "stylora.learning_rate": repr(rates["model"]),
        "stylora.precision": machine.precision,
        **report.own_header(config, KIND, digest, data),
    }


def facts(config: TrainConfig, data: TextData, seconds: float) -> dict[str, Any]:
    """Texts, tokens and their speed."""
    return {
        "texts": len(data.documents),
        "tokens": data.texts.supervised.tokens,
        "supervised_tokens": data.texts.supervised.supervised,
        "exposures_per_text": list(report.exposures(data, config.train.steps)),
    }


def appraise(
    config: TrainConfig, family: CausalLM, data: TextData, path: Path
) -> Generator[Event, None, dict[str, Any]]:
    """Perplexities, style and memorisation of the base with the finished adapter, as its file is read, and without."""
    from trainers.appraisal import appraise as measure  # only the end of a run needs it

    family.save_memory(False)
    inject.remove(family.part("model"))
    layers, texts = fit.modules(family.parts()), data.texts
    adapter = Adapter.load(path, weight_of=lambda name: fit.weight(layers[name]))  # which DoRA needs
    found = yield from measure(family, adapter, texts.training, texts.heldout, texts.plain, config.seed)
    return found.facts() | {"base_bytes": family.base_bytes()}
