"""The engine: eight desks at once, fair turns, newest wishes, cancels within a step, faults, and a killed server."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from drawing import pixels, wild

from studio.desk import jobs
from studio.desk.engine import Draw, Engine, Measure, Merge
from studio.desk.store import Store
from studio.desk.work import Snapshot, Work
from studio.draw import generate
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from trainers.errors import AdapterError, BaseError, RunError
from trainers.lora.gains import Gain


@pytest.fixture(scope="module")
def home(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("ink", "neon")):
        wild(tiny_base, folder / f"{name}.safetensors", seed=seed)
    return folder


@pytest.fixture(scope="module")
def engine(home: Path, tiny_base: Path) -> Iterator[Engine]:
    made = Engine(home, base=str(tiny_base), device="cpu")
    made.start()
    yield made
    made.close()


@pytest.fixture
def recipe(home: Path, tiny_base: Path) -> Recipe:
    return Recipe("a red house", base=str(tiny_base), adapters=(Use(home / "ink.safetensors"),), steps=2, seed=3)


def weighed(recipe: Recipe, weight: float, name: str = "ink") -> Recipe:
    use = recipe.adapters[0]
    return replace(recipe, adapters=(replace(use, path=use.path.with_stem(name), gain=Gain(weight)),))


def until_step(engine: Engine, job: int, step: int = 1) -> Snapshot:
    """Wait until a job has done so many steps."""
    until = time.monotonic() + 60
    while (now := engine.snapshot(job)).done < step:
        assert time.monotonic() < until, now
        assert not now.over, now
        time.sleep(0.001)
    return now


def picture(engine: Engine, job: int) -> Any:
    done = engine.wait(job)
    assert done.state == "done", done
    assert done.result is not None
    (id,) = done.result["pictures"]
    return pixels(engine.store.picture_path(engine.store.picture(id)))


def direct(recipe: Recipe) -> Any:
    ((_, made),) = generate.draw(generate.load(recipe, "cpu"), recipe.pictures())
    return pixels(made.image)


# --- several desks ---------------------------------------------------------------------------------------------------


def test_eight_desks_get_their_own_weights_in_turn(engine: Engine, recipe: Recipe) -> None:
    asked = {f"desk{k}": [weighed(recipe, 0.3 * k - 0.6, "ink" if k % 3 else "neon")] * 2 for k in range(8)}
    until_step(engine, before := engine.submit("nobody", Draw(replace(recipe, steps=400))))
    made = [(desk, engine.submit(desk, Draw(one))) for desk, both in asked.items() for one in both]
    engine.cancel(before)
    wanted = {desk: direct(both[0]) for desk, both in asked.items()}
    for desk, job in made:
        assert (picture(engine, job) == wanted[desk]).all()
    begun = {engine.store.job(job).started: desk for desk, job in made}
    order = [desk for _, desk in sorted(begun.items())]  # type: ignore[type-var]
    assert sorted(order[:8]) == sorted(asked), "nobody waits for another's second job"
    for desk in asked:
        assert len(engine.store.pictures(desk)) == 2
        assert all(row.desk == desk for row in engine.store.pictures(desk))


def test_a_desk_sees_no_others(engine: Engine, recipe: Recipe) -> None:
    job = engine.submit("ann", Draw(replace(recipe, steps=50)))
    until_step(engine, job)
    for reach in (engine.snapshot, engine.cancel, engine.file):
        with pytest.raises(RunError, match="there is no job"):
            reach(job, "bob")
    engine.cancel(job, "ann")
    assert engine.wait(job).state == "cancelled"


def test_who_waits_knows_how_long(engine: Engine, recipe: Recipe) -> None:
    first = engine.submit("ann", Draw(replace(recipe, steps=300)))
    until_step(engine, first)
    others = [engine.submit(desk, Draw(recipe)) for desk in ("ann", "ann", "bob")]
    assert [engine.ahead(job) for job in [first, *others]] == [0, 2, 3, 1], "bob had no turn yet"
    assert engine.snapshot(others[0]).state == "waiting"
    for job in (first, *others):
        engine.cancel(job)
    assert {engine.wait(job).state for job in (first, *others)} == {"cancelled"}


# --- wishes and cancels ----------------------------------------------------------------------------------------------


def test_the_newest_wish_ends_the_older_ones(engine: Engine, recipe: Recipe) -> None:
    running = engine.submit("ann", Draw(weighed(replace(recipe, steps=400), 0.1)), slot="canvas")
    until_step(engine, running)
    beside = engine.submit("ann", Draw(recipe), slot="other")
    others = engine.submit("bob", Draw(recipe), slot="canvas")
    wishes = [engine.submit("ann", Draw(weighed(recipe, 0.2 * k)), slot="canvas") for k in range(1, 5)]
    assert (picture(engine, wishes[-1]) == direct(weighed(recipe, 0.8))).all()
    assert {engine.wait(job).state for job in (running, *wishes[:-1])} == {"cancelled"}
    assert engine.wait(beside).state == engine.wait(others).state == "done"


def test_a_cancel_ends_a_job_within_a_step_and_leaves_the_models_clean(engine: Engine, recipe: Recipe) -> None:
    job = engine.submit("ann", Draw(weighed(replace(recipe, steps=400), 1.5)))
    seen = until_step(engine, job, 3)
    assert seen.previews
    assert seen.total == 400
    engine.cancel(job)
    at = engine.snapshot(job).done
    ended = engine.wait(job)
    assert ended.state == "cancelled"
    assert ended.done <= at + 1
    bare = replace(recipe, adapters=())
    assert (picture(engine, engine.submit("ann", Draw(bare))) == direct(bare)).all()
    engine.cancel(job)
    assert engine.snapshot(job).state == "cancelled"


def test_pictures_that_were_done_before_a_cancel_stay(engine: Engine, recipe: Recipe) -> None:
    job = engine.submit("ann", Draw(replace(recipe, steps=30, count=24)))
    until_step(engine, job, 31)
    engine.cancel(job)
    ended = engine.wait(job)
    assert ended.state == "cancelled"
    assert ended.result is not None
    assert len(ended.result["pictures"]) in (8, 16)
    assert all(engine.store.picture(id).job == job for id in ended.result["pictures"])


# --- faults ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd:
    title: str = "odd"
    kind: ClassVar[str] = "odd"


def fall(work: Work, job: Odd) -> None:
    raise KeyError("no such thing")


def test_whatever_goes_wrong_the_next_job_runs(
    engine: Engine, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(jobs.KINDS, "odd", (Odd, f"{__name__}:fall"))
    failed = engine.wait(engine.submit("ann", Odd()))  # type: ignore[arg-type]
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["what"] == "something went wrong"
    assert failed.error["faults"] == ["KeyError: 'no such thing'"]
    assert "Traceback" in caplog.text
    assert engine.wait(engine.submit("ann", Draw(recipe))).state == "done"


def test_models_that_cannot_be_let_go_do_not_end_the_worker(
    engine: Engine, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(*_: object) -> None:
        raise MemoryError("no room even for that")

    monkeypatch.setitem(jobs.KINDS, "odd", (Odd, f"{__name__}:fall"))
    before = engine.residents
    for name in ("close", "rest"):
        monkeypatch.setattr(before, name, stuck)
    failed = engine.wait(engine.submit("ann", Odd()))  # type: ignore[arg-type]
    assert failed.state == "failed"
    assert "can't be let go" in caplog.text
    assert (picture(engine, engine.submit("ann", Draw(recipe))) == direct(recipe)).all()
    assert engine.residents is not before


def test_a_shared_studio_reads_bases_of_its_folders_alone(tiny_base: Path, recipe: Recipe, tmp_path: Path) -> None:
    shared = Engine(tmp_path / "home", device="cpu", shared=True)
    for base in (str(tiny_base), "/etc", "/etc/nothing", "~", "../x", "~nobody1/x"):
        for job in (Draw(replace(recipe, base=base)), Merge((), "x", base), Measure("strength", (), base)):
            with pytest.raises(BaseError, match="outside the folders"):
                shared.submit("ann", job)
        with pytest.raises(BaseError, match="outside the folders"):
            shared.training.start("ann", {"data": str(tmp_path / "home"), "base": base}, "x")
    assert shared.store.jobs(None) == []
    for base in ("tiny-sd", "owner/name", str(tmp_path / "home" / "mine")):
        assert shared.submit("ann", Draw(replace(recipe, base=base)))
    shared.close()
    given = Engine(tmp_path / "home", device="cpu", shared=True, base=str(tiny_base), roots=[tmp_path / "more"])
    for base in (str(tiny_base), str(tmp_path / "more" / "x")):
        assert given.submit("ann", Draw(replace(recipe, base=base)))
    given.close()
    free = Engine(tmp_path / "home", device="cpu")
    assert free.submit("ann", Draw(recipe))
    free.close()


def test_adapters_and_data_may_lie_in_the_roots(home: Path, tmp_path: Path) -> None:
    engine = Engine(tmp_path, device="cpu", roots=[home])
    assert engine.library.add_path(home / "ink.safetensors").name == "ink"
    assert home in engine.training.roots
    engine.close()


def test_a_fault_of_the_wish_is_told_in_words(engine: Engine, recipe: Recipe) -> None:
    gone = replace(recipe, adapters=(Use(engine.home / "gone.safetensors"),))
    failed = engine.wait(engine.submit("ann", Draw(gone)))
    assert failed.state == "failed"
    assert failed.error is not None
    assert "gone.safetensors" in failed.error["what"]
    assert failed.error.keys() == {"what", "faults", "next_step"}


def test_a_result_that_cannot_be_stored_is_told(
    engine: Engine, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(id: int, **changes: Any) -> None:
        raise RunError("studio.db can't be written", ["disk full"], "free some space")

    with monkeypatch.context() as patch:
        patch.setattr(engine.store, "set_job", full)
        failed = engine.wait(engine.submit("ann", Draw(recipe)))
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["faults"] == ["disk full"]
    assert engine.wait(engine.submit("ann", Draw(recipe))).state == "done"


# --- what stays ------------------------------------------------------------------------------------------------------


def test_a_job_of_the_past_can_be_given_again(engine: Engine, recipe: Recipe) -> None:
    job = engine.submit("ann", Draw(recipe))
    assert (picture(engine, engine.again(job, "ann")) == picture(engine, job)).all()
    with pytest.raises(RunError, match="there is no job"):
        engine.again(job, "bob")
    with pytest.raises(RunError, match="has left no file"):
        engine.file(job, "ann")


def test_a_job_of_the_past_finds_renamed_adapters(tiny_base: Path, tmp_path: Path) -> None:
    ink = wild(tiny_base, tmp_path / "ink.safetensors", seed=0)
    engine = Engine(tmp_path, device="cpu")
    engine.start()
    entry = engine.library.cards()[0]
    recipe = Recipe("a", base=str(tiny_base), adapters=(Use(entry.path, Gain(0.5), name="ink"),), steps=1)
    job = engine.submit("ann", Draw(recipe))
    first = picture(engine, job)
    engine.library.rename(entry.id, "tusche")
    assert (picture(engine, engine.again(job, "ann")) == first).all()
    wild(tiny_base, ink, seed=1)  # another adapter takes the name
    engine.library.refresh()
    assert (picture(engine, engine.again(job, "ann")) == first).all()
    asked = engine.asked(job, "ann")
    assert isinstance(asked, Draw)
    assert asked.recipe.adapters[0].path == tmp_path / "tusche.safetensors"
    engine.library.remove(entry.id)
    with pytest.raises(AdapterError, match="no longer in the library") as caught:
        engine.again(job, "ann")
    assert caught.value.faults == ("ink: was ink.safetensors",)
    missing: list[str] = []
    rest = engine.asked(job, "ann", missing)
    assert isinstance(rest, Draw)
    assert (rest.recipe.adapters, rest.recipe.prompt, missing) == ((), "a", ["ink"])
    engine.close()


def test_nothing_is_lost_by_closing(tiny_base: Path, recipe: Recipe, tmp_path: Path) -> None:
    one = Engine(tmp_path, device="cpu")
    one.start()
    done = one.submit("ann", Draw(recipe))
    one.wait(done)
    running, waiting = (one.submit("ann", Draw(replace(recipe, steps=400))) for _ in range(2))
    until_step(one, running)
    one.close()
    with pytest.raises(RunError, match="closing"):
        one.submit("ann", Draw(recipe))
    other = Engine(tmp_path, device="cpu")
    assert [other.snapshot(job).state for job in (done, running, waiting)] == ["done", "cancelled", "lost"]
    assert picture(other, done).any()
    other.close()


SERVER = """
import sys, time
from pathlib import Path
from studio.desk.engine import Draw, Engine
from studio.draw.recipe import Recipe
home, base = Path(sys.argv[1]), sys.argv[2]
engine = Engine(home, base=base, device="cpu")
engine.start()
for k in range(3):
    engine.wait(engine.submit("ann", Draw(Recipe("a red house", base=base, steps=1, seed=k))))
running = engine.submit("ann", Draw(Recipe("a boat", base=base, steps=500)))
engine.submit("ann", Draw(Recipe("a cat", base=base, steps=1)))
while engine.snapshot(running).done < 2 and not engine.snapshot(running).over:
    time.sleep(0.005)
print("now", flush=True)
engine.wait(running)
"""


def test_a_killed_server_comes_back_with_every_finished_picture(tiny_base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path), str(tiny_base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as server:
        assert server.stdout
        assert server.stdout.readline() == "now\n"
        server.send_signal(signal.SIGKILL)
    (unknown,) = Store(tmp_path / ".studio" / "studio.db").pictures("ann", 1)
    file = tmp_path / ".studio" / "pictures" / "000004-abcdef01.png"
    shutil.copy(tmp_path / ".studio" / unknown.file, file)  # as if the kill had come just after it was written
    engine = Engine(tmp_path, device="cpu")
    engine.start()
    (found,) = engine.store.pictures("ann", 1)
    assert (found.file, found.job, found.width, found.height) == (f"pictures/{file.name}", 4, 16, 16)
    assert 'prompt = "a red house"' in found.recipe
    engine.store.delete_picture(found.id)
    rows = engine.store.jobs("ann")
    assert [row.state for row in rows] == ["lost", "lost", "done", "done", "done"]
    assert [row.recipe.count("seed = ") for row in engine.store.pictures("ann")] == [1, 1, 1]
    for row in engine.store.pictures("ann"):
        assert pixels(engine.store.picture_path(row)).shape == (16, 16, 3)
    assert engine.wait(engine.again(rows[0].id, "ann")).state == "done"
    engine.close()


def test_an_engine_that_was_never_started_closes(tmp_path: Path) -> None:
    Engine(tmp_path).close()
    Store(tmp_path / ".studio" / "studio.db").close()


def test_further_folders_reach_the_library(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = wild(tiny_base, tmp_path / "data" / "ink.safetensors")
    engine = Engine(tmp_path / "home", roots=(tmp_path / "data",))
    assert engine.library.add_path(file).path == tmp_path / "home" / "ink.safetensors"
    engine.close()
