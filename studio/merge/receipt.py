"""The receipt of a merge: what went in, how far the result on disk is from the live rack, and what it must still be.

A merged folder holds it as `stylora_receipt.json`, a merged single file in its header. It isn't a signature: who can
write the weights can write a receipt too. docs/methods.md, "Merge and receipt", derives the bound.

Try it: `stylora verify MERGED`
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.merge.contents import FILE, contents, differences
from studio.merge.likeness import Likeness, kl_bound, likeliest, likeness, likeness_to
from studio.merge.probe import Answers, Probe, fresh, from_data
from studio.merge.rewrite import UNIT, metadata_of
from studio.merge.weights import Weights, open_base
from trainers import tensorfile
from trainers.errors import BaseError, RunError
from trainers.lora.files import raw

ENTRY = "stylora.receipt"
FLOOR = 1e-4  # two ways of adding up in float32, on any two machines
ROUNDINGS = {"logits": 16}  # how many roundings of the weights an answer may be off by; of any other:
OTHERS = 8
KEPT = 2048  # numbers of each answer that the receipt keeps
DEQUANTISED = "dequantised"  # the base that adapters of a quantised run may have been merged onto
LOGITS = "logits"  # the answer of language models
Receipt = dict[str, Any]
Ask = Callable[[Path, Probe, Mapping[str, bytes]], Answers]


@dataclass(frozen=True)
class Compared:
    """One kind of answer, live against merged: absolute numbers, and the bound relative to `scale`."""

    what: str  # text, unet; logits of language models
    error: float  # max |live - merged|
    scale: float  # max |live|
    effect: float  # max |live - base|: what the adapters do
    bound: float

    @property
    def relative(self) -> float:
        return self.error / self.scale if self.scale else self.error

    @property
    def of_effect(self) -> float:
        """The error as a share of what the adapters do; 0 where they do nothing that could be told from rounding."""
        return self.error / self.effect if self.effect > FLOOR * self.scale else 0.0

    def faults(self) -> list[str]:
        """Over the bound, or so near the adapters' own effect that the bound says nothing."""
        if not self.relative <= self.bound:  # NaN is over it too
            return [f"{self.what}: off by {self.relative:.2e} of its size, the bound is {self.bound:.2e}"]
        if self.of_effect > 0.5:
            return [f"{self.what}: off by {self.of_effect:.0%} of what the adapters do: rounding has eaten them"]
        return []


def bound_of(dtype: str, what: str = "") -> float:
    """The largest error allowed, relative to the largest output, where weights are stored in `dtype` (F16, BF16 …)."""
    return FLOOR + ROUNDINGS.get(what, OTHERS) * UNIT[dtype]


def compare(live: Answers, bare: Answers, merged: Answers, dtype: str) -> list[Compared]:
    """Each kind of answer of the rack against the merged model's; `bare` are those of the base alone."""
    return [
        Compared(
            what, _largest(said - merged[what]), _largest(said), _largest(said - bare[what]), bound_of(dtype, what)
        )
        for what, said in sorted(live.items())
    ]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def next_token(live: Answers, merged: Answers) -> Likeness | None:
    """Of language models: how near another's next-token distributions are to the rack's."""
    return likeness(live[LOGITS], merged[LOGITS]) if LOGITS in live else None


def limit(compared: Sequence[Compared]) -> float:
    """Of language models: the largest KL divergence that the bound on the logits allows."""
    return max((kl_bound(one.bound * one.scale) for one in compared if one.what == LOGITS), default=0.0)


def faults_of(compared: Sequence[Compared], like: Likeness | None) -> list[str]:
    """Everything that is over its bound."""
    faults = [fault for one in compared for fault in one.faults()]
    if like and not like.kl_max <= limit(compared):
        faults.append(f"next token: KL {like.kl_max:.2e} nats, the bound is {limit(compared):.2e}")
    return faults


def shares(compared: Sequence[Compared]) -> list[tuple[str, str, str, str, str]]:
    """Rows for people: what, largest error, of its size, of the adapters' effect, bound."""
    return [
        (one.what, f"{one.error:.2e}", f"{one.relative:.2e}", f"{one.of_effect:.2%}", f"{one.bound:.2e}")
        for one in compared
    ]


# --- what the answers and the files were -----------------------------------------------------------------------------


def kept(answers: Answers) -> dict[str, str]:
    """About KEPT numbers of each answer, evenly spread, as base64 of float32; of logits the likeliest tokens too."""
    tables = likeliest(answers[LOGITS]) if LOGITS in answers else {}
    numbers = {what: _spread(said) for what, said in answers.items()} | {
        what: table.float().contiguous() for what, table in tables.items()
    }
    return {what: base64.b64encode(bytes(raw(table))).decode() for what, table in numbers.items()}


def _spread(said: Tensor) -> Tensor:
    flat = said.float().flatten()
    return flat[:: max(1, len(flat) // KEPT)].contiguous()


def unkept(texts: Mapping[str, str]) -> Answers:
    """The reverse of `kept`."""
    return {
        what: torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.float32)
        for what, text in texts.items()
    }


# --- the record ------------------------------------------------------------------------------------------------------


def sealed(receipt: Receipt) -> Receipt:
    """The receipt with a digest over itself."""
    return {**receipt, "sha256": _own_digest(receipt)}


def _own_digest(receipt: Receipt) -> str:
    rest = {key: value for key, value in receipt.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def seal(temp: Path, facts: Receipt) -> None:
    """Write the receipt into the merged model: a file of its folder, or the room left in the header."""
    model = open_base(temp)
    whole = sealed(facts | {"contents": contents(model)})
    if not model.single_file:
        (temp / FILE).write_text(json.dumps(whole, indent=1, sort_keys=True))
        return
    file = model.files[0]
    names = {key: (entry.dtype, entry.shape) for key, entry in file.entries.items()}
    head = tensorfile.header(names, metadata_of(file) | {ENTRY: json.dumps(whole)}, file.data)
    if len(head) != file.data:
        raise RunError(f"the receipt takes {len(head) - file.data} bytes more than the header has room for")
    with temp.open("r+b") as stream:
        stream.write(head)
        stream.flush()
        os.fsync(stream.fileno())


def read(model: Weights) -> Receipt:
    """The receipt that a merged model carries. Raises RunError: there is none, or it was changed."""
    step = "only models that `stylora merge` has made carry one"
    if model.single_file:
        text = model.files[0].metadata.get(ENTRY, "")
    else:
        text = (model.root / FILE).read_text() if (model.root / FILE).is_file() else ""
    if not text:
        raise RunError(f"{model.root}: carries no receipt", next_step=step)
    try:
        receipt: Receipt = dict(json.loads(text))
        if receipt["sha256"] == _own_digest(receipt):
            return receipt
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{model.root}: its receipt can't be read: {error}", next_step="merge it again") from None
    raise RunError(f"{model.root}: its receipt was changed", next_step="merge it again")


def record(
    probe: Probe,
    live: Answers,
    compared: Sequence[Compared],
    settings: Mapping[str, bytes],
    like: Likeness | None = None,
) -> Receipt:
    """The part of a receipt that verifying needs: question, answers, what they were compared to, settings."""
    return {
        "probe": probe.data(),
        "answers": kept(live),
        "compared": [asdict(one) for one in compared],
        "settings": {name: data.decode() for name, data in settings.items() if not name.startswith("tokenizer/")},
        **({"next_token": like.facts() | {"kl_bound": limit(compared)}} if like else {}),
    }


def verify(path: Path, ask: Ask = fresh) -> tuple[Receipt, list[Compared], Likeness | None]:
    """Prove a merged model again, from it alone: every byte by its digest, its answers by asking in a fresh process.

    Gives the receipt, and today's answers against the rack's when it was merged: of language models the distribution of
    the next token too, over the LIKELIEST tokens of each place and the rest. Raises RunError: what differs.
    """
    try:
        model = open_base(path)
    except BaseError as error:
        raise RunError(f"{path}: can't be verified: {error.what}", error.faults, error.next_step) from None
    receipt = read(model)
    try:
        story(receipt)
        then, probe, live, settings = _asked(receipt)
        faults = differences(receipt["contents"], model)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: its receipt isn't whole: {error}", next_step="merge it again") from None
    if faults:
        raise RunError(f"{path} isn't what was merged", faults, "merge it again")
    whole = ask(model.root, probe, settings)
    said = {what: _spread(tensor) for what, tensor in whole.items()}
    if odd := [one.what for one in then if said[one.what].shape != live[one.what].shape]:
        raise RunError(f"{path}: its answers have another form than its receipt's", odd, "merge it again")
    now = [replace(one, error=_largest(live[one.what] - said[one.what])) for one in then]
    try:
        like = likeness_to(live, whole[LOGITS]) if LOGITS in whole else None
    except (KeyError, RuntimeError, ValueError) as error:
        raise RunError(f"{path}: its receipt isn't whole: {error}", next_step="merge it again") from None
    if faults := faults_of(now, like):
        raise RunError(f"{path}: its answers aren't those of the adapters on the base", faults, "merge it again")
    return receipt, now, like


def story(receipt: Receipt) -> tuple[str, str]:
    """In words: what the model is ("tiny-sd with ink at 0.8"), and how the merge was proved ("" in old receipts)."""
    names = [f"{one['name']} at {one['weight']:g}" for one in receipt["adapters"]]
    onto, base = receipt.get("onto", {}), receipt["base"]["name"]
    if onto.get("chosen") == DEQUANTISED:
        base += f" (as {onto['trained_on']} left it)"
    return f"{base} with {', '.join(names)}", proved(receipt["proof"]) if "proof" in receipt else ""


def proved(proof: Mapping[str, Any]) -> str:
    """What was proved tensor by tensor, in words; of the receipt's entry or of Proof.facts()."""
    return (
        f"{proof['modules']} modules are base + adapters, number by number: off by at most {proof['worst']:.2f} of what"
        f" rounding allows ({proof['where']}); {proof['others']} other tensors are the base's own"
    )


def _asked(receipt: Receipt) -> tuple[list[Compared], Probe, Answers, dict[str, bytes]]:
    """What a receipt holds for asking again: how it went, the question, the answers, a single file's settings."""
    probe = from_data(receipt["probe"])
    settings = {name: text.encode() for name, text in receipt["settings"].items()}
    return [Compared(**row) for row in receipt["compared"]], probe, unkept(receipt["answers"]), settings
