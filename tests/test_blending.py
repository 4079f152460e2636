"""Adapter files into one: what the file holds, what its header says, and every fault at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from studio.blend.blending import Blended, Plan, blend, resize
from studio.blend.certificate import of_header
from studio.blend.faults import plot_faults
from studio.blend.methods import METHODS
from studio.look.measure import EQUAL_FEEL
from studio.merge.extract import ENTRY
from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, AdapterInfo, LoraPair, content_digest, digest
from trainers.lora.algebra import matrices
from trainers.lora.metadata import kohya_metadata, modelspec_metadata

ATTN = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
SIZES = {f"{ATTN}.to_q": (16, 16), f"{ATTN}.to_k": (16, 24), "unet.mid_block.resnets.0.conv1": (16, 8, 3, 3),
         "text_encoder.text_model.encoder.layers.0.mlp.fc1": (20, 12)}  # fmt: skip


def write(
    path: Path,
    rank: int,
    seed: int,
    version: str = "sd_v1",
    base: str = "ab" * 32,
    sizes: dict[str, tuple[int, ...]] = SIZES,
) -> Path:
    numbers = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoraPair(
            torch.randn(rank, *inputs, generator=numbers) / 8,
            torch.randn(out, rank, *[1] * (len(inputs) - 1), generator=numbers) / 8,
            rank / 2,
        )
        for name, (out, *inputs) in sizes.items()
    }
    head: dict[str, str] = {}
    if version:
        head = kohya_metadata(base_version=version, rank=rank, alpha=rank / 2, name=path.stem, base_name="tiny",
                              base_digest=base, learning_rate=1e-3)  # fmt: skip
        head |= modelspec_metadata(base_version=version, title=path.stem.title(), trigger=f"{path.stem} style",
                                   resolution=(64, 64), thumbnail=b"\xff\xd8")  # fmt: skip
    return Adapter(pairs, AdapterInfo(head)).save(path, dtype=torch.float32)


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    return write(tmp_path / "ink.safetensors", 4, 1)


@pytest.fixture
def neon(tmp_path: Path) -> Path:
    return write(tmp_path / "neon.safetensors", 3, 2)


def dense(adapter: Adapter) -> dict[str, Tensor]:
    return {path: up @ down for path, pair in adapter.pairs.items() for up, down in [matrices(pair)]}


def faults_of(texts: list[str], plan: Plan, out: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        blend(texts, plan, out)
    return "\n".join(caught.value.faults)


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_the_certificates_numbers_are_the_dense_truth_of_the_file(
    ink: Path, neon: Path, tmp_path: Path, dtype: str, format: str
) -> None:
    made = blend(
        [f"{ink}:0.6", f"{neon}:-0.4"], Plan(rank=2, dtype=dtype, format=format), tmp_path / "both.safetensors"
    )
    back = Adapter.load(made.save())
    one, other, got = (dense(adapter) for adapter in (Adapter.load(ink), Adapter.load(neon), back))
    layers = of_header(back.info.metadata).layers
    assert layers.keys() == got.keys() == SIZES.keys()
    for path, row in layers.items():
        wanted = 0.6 * one[path] - 0.4 * other[path]
        squares = torch.linalg.svdvals(wanted).square()
        assert row.rank == 2
        assert row.kept == pytest.approx(float(squares[:2].sum()), rel=1e-9)
        assert row.discarded == pytest.approx(float(squares[2:].sum()), rel=1e-9)
        assert row.missed == pytest.approx(float((wanted - got[path]).square().sum()), rel=1e-9)


def test_the_header_says_how_it_was_made(ink: Path, neon: Path, tmp_path: Path) -> None:
    plan = Plan("dare", rank=2, energy=0.9, density=0.5, seed=3)
    back = Adapter.load(
        blend([f"{ink}:0.6:te=0.1:blocks=MID=0.5", str(neon)], plan, tmp_path / "both.safetensors").save()
    )
    facts = of_header(back.info.metadata).facts
    asked = {"rank": 2, "energy": 0.9, "density": 0.5, "seed": 3}
    assert {name: facts[name] for name in ("method", "dtype", *asked)} == {"method": "dare", "dtype": "fp16", **asked}
    first, second = facts["adapters"]
    assert first == {"name": "ink", "weight": 0.6, "text_encoder": 0.1, "blocks": "MID=0.5", "sha256": digest(ink),
                     "digest": content_digest(Adapter.load(ink))}  # fmt: skip
    assert (second["name"], second["weight"]) == ("neon", 1.0)
    head = back.info.metadata
    assert (head["modelspec.merged_from"], back.info.trigger) == ("ink, neon", "ink style, neon style")
    assert (back.info.base_version, back.info.base_digest, head["modelspec.resolution"]) == (
        "sd_v1",
        "ab" * 32,
        "64x64",
    )
    assert (back.info.name, head["ss_network_dim"]) == ("both", "2")
    assert not {"modelspec.thumbnail", "modelspec.date", "ss_learning_rate"} & head.keys()


def test_equal_inputs_give_equal_bytes(ink: Path, neon: Path, tmp_path: Path) -> None:
    files = [blend([str(ink), str(neon)], Plan("dare", rank=2), tmp_path / folder / "x.safetensors").save()
             for folder in ("a", "b")]  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_weights_1_and_0_give_back_the_adapter(ink: Path, neon: Path, tmp_path: Path, method: str) -> None:
    density = 1.0 if "density" in METHODS[method].takes else None
    plan = Plan(method, density=density, dtype="fp32")
    had, got = dense(Adapter.load(ink)), dense(blend([str(ink), f"{neon}:0"], plan, tmp_path / "x.safetensors").adapter)
    assert had.keys() == got.keys()
    for path, delta in had.items():
        assert torch.allclose(got[path], delta, rtol=0, atol=1e-6 * float(delta.norm()))


def test_a_single_adapter_by_concat_keeps_its_numbers_bit_by_bit(ink: Path, neon: Path, tmp_path: Path) -> None:
    out = blend([f"{ink}:0.7", f"{neon}:0"], Plan("concat", dtype="fp32"), tmp_path / "x.safetensors").save()
    for path, pair in Adapter.load(out).pairs.items():
        had = Adapter.load(ink).pairs[path]
        assert torch.equal(pair.down, had.down)
        assert torch.equal(pair.up, had.up)
        assert pair.scale == pytest.approx(0.7 * had.scale, rel=1e-7)


def test_without_rank_and_energy_it_is_the_largest_rank_of_the_adapters(ink: Path, neon: Path, tmp_path: Path) -> None:
    both = [str(ink), str(neon)]
    assert blend(both, Plan(), tmp_path / "x.safetensors").certificate.total.ranks == "4"
    assert blend(both, Plan("concat"), tmp_path / "x.safetensors").certificate.total.ranks == "7"
    assert blend(both, Plan(energy=1.0), tmp_path / "x.safetensors").certificate.total.ranks == "7"


def test_a_peft_folder_is_written_and_read_again(ink: Path, tmp_path: Path) -> None:
    out = blend([str(ink)], Plan(format="peft", dtype="fp32"), tmp_path / "folder").save()
    had, got = dense(Adapter.load(ink)), dense(blend([str(out)], Plan(), tmp_path / "x.safetensors").adapter)
    assert all(torch.allclose(got[path], delta, atol=1e-3) for path, delta in had.items())


# --- what is said of the inputs ---------------------------------------------------------------------------------------


def test_different_bases_of_one_family_are_noted_and_not_carried(ink: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.safetensors", 2, 3, base="cd" * 32)
    made = blend([str(ink), str(other)], Plan(), tmp_path / "x.safetensors")
    assert made.notes() == ["trained on different bases: ink on abababababab, other on cdcdcdcdcdcd"]
    assert made.adapter.info.base_digest == ""
    assert made.adapter.info.base_version == "sd_v1"


def test_silent_headers_are_noted(ink: Path, tmp_path: Path) -> None:
    silent = write(tmp_path / "silent.safetensors", 2, 3, version="")
    made = blend([str(silent), str(ink)], Plan(), tmp_path / "x.safetensors")
    assert made.notes() == ["which base they were trained on isn't said by silent"]
    assert (made.adapter.info.base_version, made.adapter.info.trigger) == ("sd_v1", "ink style")
    alone = blend([str(silent)], Plan(), tmp_path / "x.safetensors").adapter.info.metadata
    assert {"ss_network_dim", "ss_network_module", "modelspec.title"} <= alone.keys()
    assert "ss_base_model_version" not in alone


def test_every_fault_is_told_at_once(ink: Path, tmp_path: Path) -> None:
    nan = Adapter({f"{ATTN}.to_q": LoraPair(torch.ones(1, 16), torch.ones(16, 1), 1.0)}).save(
        tmp_path / "nan.safetensors"
    )
    raw = nan.read_bytes()
    nan.write_bytes(raw[:-2] + b"\x00\x7e")  # NaN in half precision
    texts = [str(ink), f"{ink}:much", str(nan), str(tmp_path / "gone.safetensors"), f"{ink}:schedule=0@0,1@1"]
    plan = Plan("average", rank=0, energy=1.5, density=0.0, dtype="int8", format="pickle")
    said = faults_of(texts, plan, tmp_path)
    for part in ("'average', wanted one of concat, svd, ties", "rank: got 0", "energy: got 1.5", "density: got 0.0",
                 "'int8'", "'pickle'", "is a folder", "much", "NaN", "gone.safetensors", "schedule"):  # fmt: skip
        assert part in said


def test_ranks_above_the_possible_and_options_of_other_methods(ink: Path, neon: Path, tmp_path: Path) -> None:
    assert "rank: got 8, but no layer can have more than 7" in faults_of(
        [str(ink), str(neon)], Plan(rank=8), tmp_path / "x.safetensors"
    )
    said = faults_of([str(ink)], Plan("concat", rank=2, density=0.5, seed=1), tmp_path / "x.safetensors")
    assert said.splitlines() == [f"{name}: concat takes none" for name in ("rank", "density", "seed")]
    assert "every weight is 0" in faults_of([f"{ink}:0", f"{neon}:0"], Plan(), tmp_path / "x.safetensors")


def test_mixed_families_and_shapes_are_refused(ink: Path, tmp_path: Path) -> None:
    sdxl = write(tmp_path / "xl.safetensors", 2, 3, version="sdxl_base_v1-0")
    said = faults_of([str(ink), str(sdxl)], Plan(), tmp_path / "x.safetensors")
    assert said == "mixed families: ink is for Stable Diffusion 1.x, xl is for Stable Diffusion XL"
    (tmp_path / "xl").mkdir()
    assert "mixed families" in faults_of(
        [str(ink), str(sdxl.rename(tmp_path / "xl" / ink.name))], Plan(), tmp_path / "x.safetensors"
    )
    wide = write(tmp_path / "wide.safetensors", 2, 3, version="", sizes={f"{ATTN}.to_k": (16, 32)})
    said = faults_of([str(ink), str(wide)], Plan(), tmp_path / "x.safetensors")
    assert "attn2.to_k: made for (16, 24) and (16, 32)" in said


def test_nothing_is_written_over_unasked(ink: Path, neon: Path, tmp_path: Path) -> None:
    assert "exists; add --overwrite" in faults_of([str(ink)], Plan(), neon)
    assert isinstance(blend([str(ink)], Plan(), neon, overwrite=True), Blended)
    assert plot_faults(tmp_path / "kept.jpg", False) == [f"{tmp_path / 'kept.jpg'}: a chart is written as PNG"]
    assert plot_faults(None, False) == plot_faults(tmp_path / "kept.png", False) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="can't be written"):
        blend([str(ink)], Plan(), tmp_path / "file" / "x.safetensors").save()


# --- resize -----------------------------------------------------------------------------------------------------------


def test_resize_is_the_best_truncation_and_keeps_the_header(ink: Path) -> None:
    made = resize(str(ink), Plan(rank=2, dtype="fp32"))
    assert made.out == ink.with_name("ink-rank2.safetensors")
    back, had = Adapter.load(made.save()), Adapter.load(ink)
    for path, delta in dense(had).items():
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        assert torch.allclose(dense(back)[path], (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)
    for key in ("modelspec.title", "modelspec.thumbnail", "ss_learning_rate", "ss_new_sd_model_hash"):
        assert back.info.metadata[key] == had.info.metadata[key]
    assert (back.info.name, back.info.metadata["ss_network_dim"]) == ("ink-rank2", "2")
    assert of_header(back.info.metadata).facts["method"] == "svd"


def test_resize_drops_what_was_measured_of_the_adapter_before(ink: Path) -> None:
    had = Adapter.load(ink)
    said = {EQUAL_FEEL: '{"weight": 0.77}', ENTRY: '{"error": 0.1}', "mine": "kept"}
    had.info.metadata.update(said)
    made = resize(str(had.save(ink.with_name("told.safetensors"))), Plan(rank=2))
    assert said.keys() & Adapter.load(made.save()).info.metadata.keys() == {"mine"}
    assert not said.keys() & blend([str(ink)], Plan(), ink.with_name("x.safetensors")).adapter.info.metadata.keys()


def test_resize_by_energy_keeps_at_least_that_in_every_layer(ink: Path) -> None:
    made = resize(str(ink), Plan(energy=0.8))
    assert made.out.name == "ink-energy0.8.safetensors"
    rows = made.certificate.layers.values()
    assert all(row.share >= 0.8 for row in rows)
    assert min(row.rank for row in rows) < 4


def test_resize_must_be_told_how_far(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        resize(str(tmp_path / "gone"), Plan())
    assert len(caught.value.faults) == 2
    assert "neither --rank nor --energy" in caught.value.faults[0]
