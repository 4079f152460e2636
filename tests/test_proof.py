"""The proof of a merge finds a forgotten module, a weak one, a moved bit anywhere; and lets every right merge pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import random_adapter, single_file
from safetensors.torch import load_file, save_file
from torch import Tensor

from studio.draw.use import Use
from studio.merge import merge as merging
from studio.merge.ingredients import Ingredient
from studio.merge.proof import excess, prove
from studio.merge.rewrite import rewrite
from studio.merge.weights import Weights, open_base
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair

PATH = "transformer.resblocks.0.attn.in_proj_weight"  # query, key and value in one
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A single file with fused text encoder tensors and tensors of no pipeline."""
    return open_base(single_file(tiny_base, tmp_path_factory.mktemp("base") / "one.safetensors", open_clip=True))


def merged(base: Weights, out: Path, dtype: str, paths: list[str] | None = None) -> list[tuple[Adapter, Gain]]:
    """What merge writes, with adapters on every module or on `paths`; gives the adapters with their gains."""
    adapter = random_adapter(base.root, 1)
    if paths is not None:
        adapter = Adapter({path: adapter.pairs[path] for path in paths})
    other = random_adapter(base.root, 2, kinds=("attn",))
    uses = [(adapter, Gain(0.7, blocks={"MID": 0.0}))] + ([(other, Gain(-0.4))] if paths is None else [])
    changes: dict[str, list[str]] = {}
    for path in {path for one, gain in uses for path in one.pairs if gain.at(path)}:
        changes.setdefault(base.tensors[f"{path}.weight"].key, []).append(path)
    parts = [Ingredient(Use(Path(), gain), one) for one, gain in uses]
    rewrite(base.files[0], out, {k: merging._sum(base, v, parts) for k, v in changes.items()}, dtype)
    return uses


@pytest.mark.parametrize("dtype", ["", "F16", "BF16"])
def test_a_right_merge_is_proved(base: Weights, tmp_path: Path, dtype: str) -> None:
    uses = merged(base, tmp_path / "out.safetensors", dtype)
    proof = prove(base, open_base(tmp_path / "out.safetensors"), uses, dtype)
    assert proof.faults == ()
    assert proof.eaten == ()
    assert proof.modules == len({path for one, gain in uses for path in one.pairs if gain.at(path)})
    assert proof.others + len({base.tensors[f"{p}.weight"].key for one, g in uses for p in one.pairs if g.at(p)}) == (
        len(base.files[0].entries)
    )
    assert 0.5 < proof.worst < 1 if dtype else proof.worst < 0.5


def spoil(path: Path, key: str, change: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(path)
    tensors[key] = change(tensors[key]).to(tensors[key].dtype)
    save_file(tensors, path)


@pytest.mark.parametrize("dtype", ["", "F16"])
@pytest.mark.parametrize("key", ["betas", "first_stage_model.quant_conv.bias", "model.diffusion_model.out.2.weight"])
def test_a_tensor_that_no_adapter_changes(base: Weights, tmp_path: Path, key: str, dtype: str) -> None:
    out = tmp_path / "out.safetensors"
    uses = merged(base, out, dtype)
    spoil(out, key, lambda whole: torch.nextafter(whole, torch.full_like(whole, 9)))
    (fault,) = prove(base, open_base(out), uses, dtype).faults
    assert fault == f"{key}: no adapter changes it, and it isn't the base's"


def test_the_neighbours_in_a_fused_tensor(base: Weights, tmp_path: Path) -> None:
    out, layer = tmp_path / "out.safetensors", "text_encoder.text_model.encoder.layers.0.self_attn"
    uses = merged(base, out, "", [f"{layer}.q_proj"])
    assert prove(base, open_base(out), uses).faults == ()
    spoil(out, f"cond_stage_model.model.{PATH}", lambda whole: whole + torch.eye(*whole.shape).roll(32, 0))
    (fault,) = prove(base, open_base(out), uses).faults
    assert fault.startswith(f"{layer}.k_proj.weight: no adapter changes it")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, 0.93, 0.98, 1.02])
def test_a_delta_that_is_too_weak_or_too_strong(dtype: str, factor: float) -> None:
    g = torch.Generator().manual_seed(0)
    before = torch.randn(64, 96, generator=g).to(DTYPES[dtype])
    pair = LoraPair(0.05 * torch.randn(4, 96, generator=g), 0.05 * torch.randn(64, 4, generator=g), 4.0)
    deltas, whole = [(pair, 0.8), (pair, -0.3)], 0.5 * pair.delta()  # 0.5 % of the weight
    right = (before.float() + whole).to(before.dtype)
    assert excess(before, right, deltas) <= 1
    assert excess(before, (before.float() + factor * whole).to(before.dtype), deltas) > 1
    assert not excess(before, right.index_fill(0, torch.tensor([3]), torch.nan), deltas) <= 1


def test_files_of_another_form(base: Weights, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    merged(base, out, "")
    tensors = load_file(out)
    tensors["new"] = tensors.pop("betas")
    tensors["model.diffusion_model.out.2.bias"] = torch.zeros(9)
    save_file(tensors, out)
    assert prove(base, open_base(out), []).faults == (
        "betas: is missing",
        "new: is new",
        "model.diffusion_model.out.2.bias: is F32 [9], wanted F32 [4]",
    )
    assert len(prove(base, base, [], "F16").faults) == len(base.files[0].entries)
