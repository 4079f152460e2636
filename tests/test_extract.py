"""What was merged comes out again; errors are stated exactly; what no adapter can hold is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import here, random_adapter, single_file
from safetensors.torch import load_file, save_file

from studio.draw.use import Use
from studio.merge import extract as extracting
from studio.merge.extract import ENTRY, extract, notes, pair_of, randomised_svd
from studio.merge.merge import merge
from studio.merge.weights import open_base
from trainers.errors import BaseError, ConfigError
from trainers.lora.adapter import Adapter
from trainers.lora.algebra import energy, inner
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def adapter(tiny_base: Path) -> Adapter:
    return random_adapter(tiny_base, 5)


@pytest.fixture(scope="module")
def tuned(tiny_base: Path, adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_base with the adapter at 0.5 in it, as a folder; `tuned.safetensors` beside it is the single file."""
    folder = tmp_path_factory.mktemp("tuned")
    path = adapter.save(folder / "a.safetensors", dtype=torch.float32)
    merge(str(tiny_base), [Use(path, Gain(0.5))], folder / "tuned", ask=here)
    single_file(folder / "tuned", folder / "tuned.safetensors")
    return folder / "tuned"


def cosine(one: LoraPair, other: LoraPair) -> float:
    return inner(one, other) / (energy(one) * energy(other)) ** 0.5


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_merge_then_extract_is_the_adapter(tuned: Path, tiny_base: Path, adapter: Adapter, kind: str) -> None:
    model = tuned if kind == "folder" else tuned.with_suffix(".safetensors")
    found = extract(str(model), str(tiny_base), 4, dtype=torch.float32)
    assert found.adapter.pairs.keys() == adapter.pairs.keys()
    for path, pair in found.adapter.pairs.items():
        assert cosine(pair, adapter.pairs[path]) > 0.999999
        assert energy(pair) == pytest.approx(0.25 * energy(adapter.pairs[path]), rel=1e-4)
    assert found.error < 1e-9
    assert found.left_out == {}


def test_the_stated_error_is_the_error_of_what_is_stored(tuned: Path, tiny_base: Path, tmp_path: Path) -> None:
    found = extract(str(tuned), str(tiny_base), 2, dtype=torch.float16)
    saved = Adapter.load(found.adapter.save(tmp_path / "two.safetensors", dtype=torch.float16))
    one, other = open_base(tuned), open_base(tiny_base)
    for module in found.modules:
        delta = one.weight(module.path).double() - other.weight(module.path).double()
        left = float((delta - saved.pairs[module.path].delta().double()).square().sum())
        assert left == pytest.approx(module.error, rel=1e-4)
        best = float(np.square(np.linalg.svd(delta.flatten(1).numpy(), compute_uv=False)[2:]).sum())
        assert best * (1 - 1e-9) <= module.error <= best * 1.001
    told = json.loads(saved.info.metadata[ENTRY])
    assert told["error"] == pytest.approx(found.error)
    assert told["modules"].keys() == saved.pairs.keys()


def test_randomised_svd_against_numpy() -> None:
    g = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 60, generator=g, dtype=torch.float64)).Q for n in (90, 70))
    values = torch.logspace(0, -4, 60, dtype=torch.float64)
    matrix = (left * values) @ right.T
    u, s, v = randomised_svd(matrix, 10, "seed")
    assert torch.allclose(s[:10], values[:10], rtol=1e-6)
    error = float((matrix - (u[:, :10] * s[:10]) @ v[:10]).square().sum())
    assert error == pytest.approx(float(matrix.square().sum() - s[:10].square().sum()), rel=1e-9)
    assert error == pytest.approx(float(values[10:].square().sum()), rel=1e-6)
    assert torch.equal(u, randomised_svd(matrix, 10, "seed")[0])


def test_energy_asks_for_the_lowest_rank_that_keeps_it() -> None:
    delta = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.1], dtype=torch.float64))
    for share, rank in ((0.5, 1), (0.9, 2), (0.99, 3), (1.0, 4)):
        pair, error = pair_of(delta, 4, share, torch.float32, "x")
        assert pair.rank == rank
        assert error <= (1 - share + 1e-6) * 14.01
    assert pair_of(delta, 2, 1.0, torch.float32, "x")[0].rank == 2


@pytest.mark.parametrize(
    ("targets", "kinds"), [("attention", {"attn"}), ("attention+ff", {"attn", "mlp"}), ("all-linear", {"attn", "mlp"})]
)
def test_targets_and_what_lies_outside(tuned: Path, tiny_base: Path, targets: str, kinds: set[str]) -> None:
    found = extract(str(tuned), str(tiny_base), 4, targets=targets)
    assert {kind for path in found.adapter.pairs for kind in ("attn", "mlp", "conv1") if kind in path} == kinds
    whole = extract(str(tuned), str(tiny_base), 4)
    assert found.energy + sum(found.left_out.values()) == pytest.approx(whole.energy)
    assert "layers outside the targets" in notes(found)[0]


def test_what_no_adapter_can_hold_is_named(tuned: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tuned, tmp_path / "other")
    vae, text = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
    for file, key in (
        (UNET, "conv_norm_out.weight"),
        (UNET, "conv_in.bias"),
        (vae, "quant_conv.weight"),
        (text, "embeddings.token_embedding.weight"),
    ):
        tensors = load_file(other / file)
        tensors[key] = tensors[key] + 1
        save_file(tensors, other / file)
    found = extract(str(other), str(tiny_base), 4)
    assert found.left_out["unet.conv_norm_out.weight"] == pytest.approx(32, rel=1e-5)
    assert len(found.left_out) == 4
    told = notes(found)
    assert [line.split(",")[0].removeprefix("not in the adapter: ") for line in told] == [
        "embeddings",
        "norms and biases",
        "the VAE",
    ]
    assert "unet.conv_in.bias, unet.conv_norm_out.weight" in told[1]
    assert 0 < found.outside < 1


def test_a_mere_cast_is_no_difference(tiny_base: Path, tmp_path: Path) -> None:
    half = shutil.copytree(tiny_base, tmp_path / "half")
    tensors = {key: tensor.half() for key, tensor in load_file(half / UNET).items()}
    tensors["conv_out.weight"] = tensors["conv_out.weight"] + 1
    save_file(tensors, half / UNET)
    for models in ((half, tiny_base), (tiny_base, half)):
        found = extract(*map(str, models), 1)
        assert list(found.adapter.pairs) == ["unet.conv_out"]
        assert found.left_out == {}


def changed(model: Path, out: Path, file: str, **tensors: torch.Tensor | None) -> Path:
    """A copy with other tensors (None: without that one)."""
    other = shutil.copytree(model, out)
    kept = {key: tensor for key, tensor in load_file(other / file).items() if key not in tensors}
    save_file(kept | {key: tensor for key, tensor in tensors.items() if tensor is not None}, other / file)
    return other


def test_every_tensor_is_compared_before_any_is_taken(tuned: Path, tiny_base: Path, tmp_path: Path) -> None:
    bad = {"conv_in.bias": torch.full((32,), torch.nan), "conv_norm_out.weight": torch.zeros(9)}
    other = changed(tuned, tmp_path / "other", UNET, **bad, **{"conv_out.weight": torch.zeros(4, 32, 5, 5)})
    with pytest.raises(BaseError, match="isn't tuned from") as caught:
        extract(str(other), str(tiny_base), 4)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "unet.conv_norm_out.weight",
        "unet.conv_out.weight",
        "unet.conv_in.bias",
    ]
    only = changed(tuned, tmp_path / "only", UNET, **{"conv_in.bias": bad["conv_in.bias"]})
    for models in ((only, tiny_base), (tiny_base, only)):
        with pytest.raises(BaseError, match="no difference can be taken") as caught:
            extract(*map(str, models), 4)
        assert caught.value.faults == (f"unet.conv_in.bias: NaN or Inf in {only}",)


def test_what_one_model_alone_has_is_named_with_its_energy(tuned: Path, tiny_base: Path, tmp_path: Path) -> None:
    whole = extract(str(tuned), str(tiny_base), 4)
    text, key = "text_encoder/model.safetensors", "embeddings.token_embedding.weight"
    table = load_file(tuned / text)[key]
    other = changed(tuned, tmp_path / "a", text, **{key: torch.cat([table, torch.full((1, table.shape[1]), 2.0)])})
    other = changed(other, tmp_path / "b", UNET, **{"conv_in.bias": None, "conv_out.extra.weight": torch.ones(2, 3)})
    shutil.rmtree(other / "vae")
    found = extract(str(other), str(tiny_base), 4)
    assert found.left_out == {f"text_encoder.text_model.{key}": 4.0 * table.shape[1]}
    bias = float(load_file(tiny_base / UNET)["conv_in.bias"].double().square().sum())
    assert found.lone == {"unet.conv_in.bias": pytest.approx(bias), "unet.conv_out.extra.weight": 6.0}
    assert found.outside == pytest.approx(1 - whole.energy / (whole.energy + 128 + bias + 6))
    told = notes(found)
    assert [line.split(",")[0] for line in told[:3]] == [
        "not in the adapter: embeddings",
        "only one of the models has layers",
        "only one of the models has norms and biases",
    ]
    assert told[3] == "only one of the models has any vae; it wasn't compared"
    assert json.loads(found.adapter.info.metadata[ENTRY])["absent"] == ["vae"]


def test_what_cannot_be_extracted(tuned: Path, tiny_base: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        extract(str(tuned), str(tiny_base), 0, energy=1.5, targets="some")
    assert len(caught.value.faults) == 3
    for targets, most in (("all", 128), ("attention", 64)):
        extract(str(tuned), str(tiny_base), most, targets=targets)
        with pytest.raises(ConfigError) as caught:
            extract(str(tuned), str(tiny_base), most + 1, targets=targets)
        assert caught.value.faults == (f"rank: got {most + 1}, but no module of the targets can have more than {most}",)
    with pytest.raises(BaseError, match="differ in nothing"):
        extract(str(tiny_base), str(tiny_base))
    with pytest.raises(BaseError, match="isn't tuned from"):
        extract(str(tuned), "tiny-sd")


def test_rows_by_block_add_up(tuned: Path, tiny_base: Path) -> None:
    found = extract(str(tuned), str(tiny_base), 4)
    rows = extracting.by_block(found)
    assert sum(int(row[1]) for row in rows) == len(found.modules)
    assert rows[0][0] == "BASE"
    assert sum(float(row[3].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.5)
