"""The jobs that measure adapters: facts as JSON and a chart; on the base that is in memory, between its other jobs.

Try it: python -c "from studio.desk.measuring import *; print(list(MEASURES))"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from studio.desk import grounds, making
from studio.desk.rows import Json
from studio.desk.work import Work
from studio.look.document import plain
from trainers.errors import AdapterError, BaseError

if TYPE_CHECKING:
    from torch import Tensor

    from studio.desk.jobs import Measure
    from studio.look.measure import Base, Probes
    from trainers.lora.adapter import Adapter

Measured = tuple[Json, Any]  # facts, and a chart of them


def measure(work: Work, job: Measure) -> Json:
    work.say(f"measuring the {job.what}")
    facts, figure = MEASURES[job.what](work, job)
    return {"facts": plain(facts), "figure": work.add_figure(figure)}


def _anatomy(work: Work, job: Measure) -> Measured:
    from studio.look.anatomy import anatomy, sizes
    from studio.look.figures import anatomy_sheet
    from trainers.lora.family import is_text

    ((name, adapter),) = _adapters(work, job, 1, 1).items()
    norm = _norms(job.base, adapter) if job.base else None
    found = anatomy(adapter, norm)
    kinds = sizes(adapter, norm) if is_text(adapter.pairs) else {}
    return {"blocks": [asdict(part) for part in found], "kinds": kinds}, anatomy_sheet(name, found, kinds)


def _strength(work: Work, job: Measure) -> Measured:
    from studio.look import measure
    from studio.look.figures import strength_sheet
    from trainers.lora.gains import Gain

    adapters = _adapters(work, job, 1)
    weights = measure.rising(job.weights)
    asked, keys = _on_base(work, job, adapters)
    found, shown = {}, {}
    with asked.rack:
        for k, (key, (name, adapter)) in enumerate(zip(keys, adapters.items(), strict=True)):
            work.step(k, len(adapters))
            words = measure.with_triggers(asked.prompts, [adapter.info.trigger])
            found[name] = measure.strength(Watched(work, asked.probes(words)), key, weights, asked.reference)
            if job.pictures:
                shown[name] = asked.show([{key: Gain(weight)} for weight in found[name].worth_a_look], words[0])
        work.step(len(adapters), len(adapters))
        facts = {name: asdict(s) | {"labels": s.labels} for name, s in found.items()}
        return {"base": job.base, "adapters": facts}, strength_sheet(found, shown)


def _conflict(work: Work, job: Measure) -> Measured:
    from studio.look import measure
    from studio.look.anatomy import overlap
    from studio.look.figures import conflict_sheet

    adapters = _adapters(work, job, 2)
    pairs = list(combinations(adapters, 2))
    overlaps = {(a, b): overlap(adapters[a], adapters[b], (a, b)) for a, b in pairs}
    measured, shown = {}, {}
    if job.base:
        asked, keys = _on_base(work, job, adapters)
        gains = {name: (key, use.gain) for name, key, use in zip(adapters, keys, job.adapters, strict=True)}
        with asked.rack:
            for k, (a, b) in enumerate(pairs):
                work.step(k, len(pairs))
                words = measure.with_triggers(asked.prompts, [adapters[name].info.trigger for name in (a, b)])
                measured[a, b] = measure.disturbance(Watched(work, asked.probes(words)), gains[a], gains[b])
                if job.pictures:
                    cells = [{}, dict([gains[a]]), dict([gains[b]]), dict([gains[a], gains[b]])]
                    shown[a, b] = asked.show(cells, words[0])
    facts = [
        {"pair": pair, "overlap": asdict(overlaps[pair][-1]), "blocks": [asdict(block) for block in overlaps[pair]]}
        | ({**asdict(measured[pair]), "verdict": measured[pair].verdict} if pair in measured else {})
        for pair in pairs
    ]
    return {"base": job.base, "pairs": facts}, conflict_sheet(list(adapters), overlaps, measured, shown)


MEASURES: dict[str, Callable[[Work, Measure], Measured]] = {
    "anatomy": _anatomy,
    "strength": _strength,
    "conflict": _conflict,
}


# --- what they share -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """Probes whose answers come piece by piece, so that a cancel is heard between two of them."""

    work: Work
    asked: Probes

    @property
    def places(self) -> tuple[int, ...]:
        return self.asked.places

    @property
    def logits(self) -> bool:
        return self.asked.logits

    def answers(self, cells: Sequence[Any]) -> Iterator[Tensor]:
        for piece in self.asked.answers(cells):
            self.work.check()
            yield piece


def _adapters(work: Work, job: Measure, least: int, most: int = 26) -> dict[str, Adapter]:
    """{title: adapter}, all different. Raises AdapterError."""
    from trainers.lora.adapter import Adapter, content_digest

    if not least <= len(job.adapters) <= most:
        raise AdapterError(f"{job.what}: got {len(job.adapters)} adapters", next_step=f"choose {least} or more")
    titles = [use.title for use in job.adapters]
    names = [title if titles.count(title) == 1 else f"{title} ({k + 1})" for k, title in enumerate(titles)]
    weight_of = grounds.weight_of(job.base)
    with making.base_wanted(job.base):
        found = {
            name: Adapter.load(use.path, weight_of=weight_of) for name, use in zip(names, job.adapters, strict=True)
        }
    if len({content_digest(adapter) for adapter in found.values()}) < len(found):
        raise AdapterError("the same adapter twice", next_step="choose different ones")
    work.check()
    return found


def _norms(base: str, adapter: Adapter) -> Callable[[str], float]:
    from studio.merge.weights import open_base
    from trainers.lora.fit import misfits

    weights = open_base(base)
    if odd := misfits(adapter.pairs, weights.shapes):
        raise AdapterError(f"the adapter doesn't fit {base}", [f"{path}: {why}" for path, why in odd.items()])
    return lambda path: float(weights.weight(path).double().norm())


def _on_base(work: Work, job: Measure, adapters: Mapping[str, Adapter]) -> tuple[Base, list[str]]:
    """measure.on_base, on the base that is in memory or will be."""
    from studio.look import measure
    from studio.look.measure_pictures import Pictures
    from studio.look.measure_text import Texts
    from trainers import bases

    if not job.base:
        raise BaseError(f"{job.what} is measured on a base", next_step="choose one")
    text = bases.kind_of(bases.find(job.base)) == "text"
    held = (work.residents.texts if text else work.residents.pictures)(job.base)
    held.rack.close()  # else its hooks would run along
    opened: Base = (Texts if text else Pictures)(held.family)
    return measure.on_base(job.base, adapters, opened=opened)
