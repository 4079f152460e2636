"""Jobs as the store keeps them: each comes back as it was."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from studio.desk import jobs
from studio.desk.jobs import KINDS, Blend, Draw, Export, Grid, Job, Measure, Merge, Resize, Write
from studio.desk.library import Library
from studio.desk.rows import JobRow
from studio.desk.store import Store
from studio.draw.axes import Axes
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from studio.write.recipe import WritingRecipe
from trainers.errors import StyloraError
from trainers.lora.gains import Gain


@pytest.fixture
def use(tmp_path: Path) -> Use:
    (tmp_path / "ink.safetensors").write_bytes(b"")
    gain = Gain(0.7, 0.25, blocks={"MID": 0.5}, schedule=((0, 0), (1, 1)))
    return Use(tmp_path.resolve() / "ink.safetensors", gain, name="Tusche")


def every(use: Use) -> list[Job]:
    recipe = Recipe('a "red" house', adapters=(use,), seed=5, count=2, size=(64, 32), sampler="euler")
    plain = replace(use, gain=Gain(0.5))
    return [
        Draw(recipe, previews=False),
        Grid(replace(recipe, grid=Axes("seed=1..3", batch=2))),
        Write(WritingRecipe("So?", chat=True, adapters=(plain,)), compare=True, said=("Who?", "I.")),
        Blend((use, plain), "both", rank=4, density=0.5),
        Resize((use,), "small", energy=0.9),
        Merge((use,), "inked", "tiny-sd", partial=True),
        Export((use,), "gguf", dtype="q8_0", base="tiny-lm"),
        Measure("strength", (use,), "tiny-sd", weights=(0.5, 1.0)),
    ]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home", Store(tmp_path / "studio.db"))


def row(job: Job, library: Library) -> JobRow:
    spec = json.loads(json.dumps(jobs.spec_of(job, library)))
    return JobRow(1, "me", job.kind, job.title, spec, "done", 0, 0, None, None, 0.0, None, None)


def test_jobs_come_back_from_the_store(use: Use, library: Library) -> None:
    assert {job.kind for job in every(use)} == KINDS.keys()
    for job in every(use):
        assert jobs.job_of(row(job, library), library) == job
        assert job.title


def test_a_job_of_an_older_studio_comes_back(use: Use, library: Library) -> None:
    job = Merge((use,), "inked", "tiny-sd")
    kept = row(job, library)
    kept.spec.update(overwrite=True)
    del kept.spec["ids"]
    assert jobs.job_of(kept, library) == job


def test_every_kind_has_its_job_and_somebody_who_does_it() -> None:
    for kind, (made, _) in KINDS.items():
        assert made.kind == kind
        assert callable(jobs.runner(kind))
        assert fields(made)


def test_a_job_whose_adapter_is_gone_cannot_come_back(use: Use, library: Library) -> None:
    kept = [row(job, library) for job in every(use)]
    use.path.unlink()
    for one in kept:
        with pytest.raises(StyloraError, match=r"Tusche: was ink\.safetensors"):
            jobs.job_of(one, library)
        missing: list[str] = []
        assert isinstance(jobs.job_of(one, library, missing), KINDS[one.kind][0])
        assert set(missing) == {"Tusche"}
