"""A merged model is the base with its adapters, to the last bit where nothing changed; the base is only read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import here, random_adapter, single_file
from safetensors.torch import load_file, save_file

from studio.draw.use import Use
from studio.merge import merge as merging
from studio.merge.contents import FILE
from studio.merge.ingredients import Ingredient
from studio.merge.merge import merge
from studio.merge.probe import Answers, Probe
from studio.merge.receipt import read, verify
from studio.merge.rewrite import Change, rewrite
from studio.merge.weights import Weights, open_base
from trainers import tensorfile
from trainers.digests import digest_of_file
from trainers.errors import BaseError, ConfigError, RunError, StyloraError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair
from trainers.tensorfile import TensorFile


@pytest.fixture(scope="module")
def two(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Use]:
    """Two adapters in use: weights, a text encoder's weight, a block's factor."""
    folder = tmp_path_factory.mktemp("adapters")
    gains = (Gain(0.8, blocks={"MID": 0.5}), Gain(-0.5, text_encoder=0.3))
    return [
        Use(random_adapter(tiny_base, seed).save(folder / f"{seed}.safetensors", dtype=torch.float32), gain)
        for seed, gain in enumerate(gains)
    ]


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest_of_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of tiny_base that the test may write to."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def test_a_folder(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    before = digests(tiny_base)
    done = merge(str(tiny_base), two, tmp_path / "out", ask=here)
    assert digests(tiny_base) == before
    assert all(one.relative < 1e-5 < 0.01 < one.effect for one in done.compared)
    assert digests(tmp_path / "out").keys() == before.keys() | {FILE}
    base, made = open_base(tiny_base), open_base(tmp_path / "out")
    adapters = [Adapter.load(use.path).pairs for use in two]
    assert done.modules == len(adapters[0])
    for path in base.shapes:
        wanted = base.weight(path)
        for use, pairs in zip(two, adapters, strict=True):
            if path in pairs:
                wanted = wanted + use.gain.at(path) * pairs[path].delta().reshape(wanted.shape)
        assert torch.equal(made.weight(path), wanted) if path not in adapters[0] else torch.allclose(
            made.weight(path), wanted, atol=1e-6
        )  # fmt: skip
    others = base.tensors.keys() - {f"{path}.weight" for path in adapters[0]}
    assert all(torch.equal(base.tensors[name].tensor(), made.tensors[name].tensor()) for name in others)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("open_clip", [False, True])
def test_a_single_file_keeps_names_order_metadata_and_is_the_merged_folder(
    tiny_base: Path, two: list[Use], tmp_path: Path, open_clip: bool
) -> None:
    facts = {"modelspec.title": "Tiny", "modelspec.hash_sha256": "0x1"}
    one = single_file(tiny_base, tmp_path / "one.safetensors", open_clip, facts)
    before = digest_of_file(one)
    merge(str(one), two, tmp_path / "out.safetensors", config=str(tiny_base), ask=here)
    merge(str(tiny_base), two, tmp_path / "out", ask=here)
    assert digest_of_file(one) == before
    old, new = tensorfile.read(one), tensorfile.read(tmp_path / "out.safetensors")
    assert list(new.entries.items()) == list(old.entries.items())
    assert new.metadata.keys() == {"modelspec.title", "stylora.receipt"}
    file, folder = open_base(tmp_path / "out.safetensors"), open_base(tmp_path / "out")
    assert all(
        torch.equal(file.tensors[n].tensor().flatten(), folder.tensors[n].tensor().flatten()) for n in folder.tensors
    )
    verify(tmp_path / "out.safetensors", here)


def test_merging_again_and_over(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    """Merging one adapter into the other's result is merging both; a merged model may be replaced when asked."""
    merge(str(tiny_base), two[:1], tmp_path / "one", ask=here)
    merge(str(tmp_path / "one"), two[1:], tmp_path / "both", ask=here)
    merge(str(tiny_base), two, tmp_path / "one", overwrite=True, ask=here)
    one, both = open_base(tmp_path / "one"), open_base(tmp_path / "both")
    assert all(torch.allclose(one.weight(path), both.weight(path), atol=1e-6) for path in one.shapes)
    assert [part["weight"] for part in read(both)["adapters"]] == [-0.5]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_casting(tiny_base: Path, two: list[Use], tmp_path: Path, dtype: str) -> None:
    done = merge(str(tiny_base), two, tmp_path / "out", dtype=dtype, ask=here)
    assert {source.dtype for source in open_base(tmp_path / "out").tensors.values()} == {
        dtype.upper().replace("FP", "F")
    }
    assert all(1e-6 < one.relative < one.bound for one in done.compared)


def test_a_merge_that_changes_nothing_is_refused(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    nought = Adapter({path: replace(pair, up=0 * pair.up) for path, pair in Adapter.load(two[0].path).pairs.items()})
    empty = Use(nought.save(tmp_path / "nought.safetensors", dtype=torch.float32))
    for use in (Use(two[0].path, Gain(0.0)), empty):
        with pytest.raises(ConfigError, match="nothing would change"):
            merge(str(tiny_base), [use], tmp_path / "out", ask=here)
    with pytest.raises(RunError, match="rounding has eaten"):
        merge(str(tiny_base), [Use(two[0].path, Gain(1e-30))], tmp_path / "out", ask=here)
    assert [path.name for path in tmp_path.iterdir()] == ["nought.safetensors"]


def test_nan_in_the_base_is_named(base: Path, two: list[Use], tmp_path: Path) -> None:
    for file, key in (("unet/diffusion_pytorch_model", "conv_in.bias"), ("vae/diffusion_pytorch_model", "x.weight")):
        tensors = load_file(base / f"{file}.safetensors")
        tensors[key] = torch.full((32,), torch.nan)
        save_file(tensors, base / f"{file}.safetensors")
    with pytest.raises(BaseError, match="NaN or Inf in the base") as caught:
        merge(str(base), two, tmp_path / "out", ask=here)
    assert caught.value.faults == ("unet.conv_in.bias", "vae.x.weight")
    assert not (tmp_path / "out").exists()


def test_over_the_bound_nothing_is_left(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    def off(model: Path, probe: Probe, settings: Mapping[str, bytes]) -> Answers:
        return {what: said * 1.001 for what, said in here(model, probe, settings).items()}

    with pytest.raises(RunError, match="isn't what the adapters") as caught:
        merge(str(tiny_base), two, tmp_path / "out", ask=off)
    assert len(caught.value.faults) == 2
    assert "the bound is 1.00e-04" in caught.value.faults[0]
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_rounding_eats_is_an_error(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="isn't what the adapters") as caught:
        merge(str(tiny_base), [Use(two[0].path, Gain(0.01))], tmp_path / "out", dtype="bf16", ask=here)
    assert "rounding has eaten them" in caught.value.faults[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["keep", "fp16", "bf16"])
@pytest.mark.parametrize("wrong", ["forgot one module", "2% too weak"])
def test_a_wrong_sum_is_found_out(
    tiny_base: Path, two: list[Use], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, dtype: str
) -> None:
    right, forgotten = merging._sum, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"

    def other(weights: Weights, paths: Sequence[str], parts: Sequence[Ingredient]) -> Change:
        if wrong == "forgot one module":
            return (lambda whole: whole) if forgotten in paths else right(weights, paths, parts)
        weak = [replace(part, use=replace(part.use, gain=weaker(part.use.gain))) for part in parts]
        return right(weights, paths, weak)

    monkeypatch.setattr(merging, "_sum", other)
    with pytest.raises(RunError, match="isn't what the adapters") as caught:
        merge(str(tiny_base), two, tmp_path / "out", dtype=dtype, ask=lambda *_: pytest.fail("proved before asked"))
    modules = len(Adapter.load(two[0].path).pairs)
    assert len(caught.value.faults) == (1 if wrong == "forgot one module" else modules)
    assert all("times what rounding allows" in fault for fault in caught.value.faults)
    assert list(tmp_path.iterdir()) == []


def weaker(gain: Gain) -> Gain:
    return replace(gain, weight=0.98 * gain.weight, text_encoder=gain.text_encoder and 0.98 * gain.text_encoder)


@pytest.mark.parametrize("dtype", ["keep", "fp16"])
def test_an_untouched_tensor_that_changed_is_found_out(
    tiny_base: Path, two: list[Use], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    def other(file: TensorFile, out: Path, changes: dict[str, Change], *rest: object) -> None:
        extra = {"conv_out.bias": lambda whole: whole * 1.01} if "conv_out.bias" in file.entries else {}
        rewrite(file, out, {**changes, **extra}, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(merging, "rewrite", other)
    with pytest.raises(RunError, match="isn't what the adapters") as caught:
        merge(str(tiny_base), two, tmp_path / "out", dtype=dtype, ask=here)
    assert caught.value.faults == ("conv_out.bias: no adapter changes it, and it isn't the base's",)
    assert list(tmp_path.iterdir()) == []


def test_digests_are_promises(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    one = single_file(tiny_base, tmp_path / "one.safetensors")
    family = StableDiffusion(tiny_base)
    good = {part: family.digest(part) for part in ("unet", "vae")}
    for base, out, config in ((tiny_base, "out", None), (one, "out.safetensors", str(tiny_base))):
        with pytest.raises(BaseError, match="not the base of the recipe") as caught:
            merge(str(base), two, tmp_path / out, config=config, digests={"vae": "12", "unet": "34"}, ask=here)
        assert len(caught.value.faults) == 2
    merge(str(tiny_base), two, tmp_path / "out", digests=good, ask=here)
    sha = digest_of_file(two[0].path)
    merge(str(tiny_base), [replace(two[0], sha256=sha, digest="12")], tmp_path / "same", ask=here)
    for promise in ({"sha256": "12"}, {"digest": "12"}, {"digest": "12", "sha256": "34"}):
        with pytest.raises(StyloraError, match="isn't the adapter of the recipe"):
            merge(str(tiny_base), [replace(two[0], **promise)], tmp_path / "other", ask=here)


def test_a_model_put_aside_by_a_killed_process_comes_back(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    (tmp_path / f".out.{gone()}.old").mkdir()
    with pytest.raises(ConfigError) as caught:
        merge(str(tiny_base), two, tmp_path / "out", ask=here)
    assert "exists" in caught.value.faults[0]
    assert (tmp_path / "out").is_dir()


def gone() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_everything_wrong_is_said_at_once(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    late = Use(two[0].path, Gain(1.0, schedule=((0.0, 0.0), (1.0, 1.0))))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError) as caught:
        merge(str(tiny_base), [late], tmp_path / "mine", dtype="int4", config="tiny-sd", overwrite=True)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "0.safetensors",
        "dtype",
        "--config",
        f"--out {tmp_path / 'mine'}",
    ]


def test_the_base_is_never_written_to(base: Path, two: list[Use]) -> None:
    (base.parent / "link").symlink_to(base)
    (base / FILE).write_text("{}")  # even if it could be replaced
    before = digests(base)
    for out in (base, base / "new", base.parent / "link", base.parent):
        with pytest.raises(ConfigError, match="can't be made") as caught:
            merge(str(base), two, out, overwrite=True)
        assert "where the base lies" in caught.value.faults[0]
    assert digests(base) == before


@pytest.mark.parametrize(
    ("out", "said"), [("there", "exists; name"), ("x.safetensors", "diffusers folder"), ("here", "")]
)
def test_names_of_results(tiny_base: Path, two: list[Use], tmp_path: Path, out: str, said: str) -> None:
    (tmp_path / "there").mkdir()
    if said:
        with pytest.raises(ConfigError) as caught:
            merge(str(tiny_base), two, tmp_path / out)
        assert said in caught.value.faults[0]
    one = single_file(tiny_base, tmp_path / "one.safetensors")
    with pytest.raises(ConfigError) as caught:
        merge(str(one), two, tmp_path / "folder")
    assert "the base is a single file" in caught.value.faults[0]


def test_adapters_that_do_not_go_in(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    adapter = random_adapter(tiny_base, 3)
    odd = {f"unet.down_blocks.9.resnets.{k}.conv1": pair for k, pair in enumerate(list(adapter.pairs.values())[:2])}
    use = Use(Adapter({**adapter.pairs, **odd}).save(tmp_path / "odd.safetensors", "diffusers", torch.float32))
    cases: list[tuple[list[Use], str]] = [([use], "only part"), ([two[0], two[0]], "twice"), ([], "can't be made")]
    cases.append(([Use(two[0].path, digest="12")], "isn't the adapter of the recipe"))
    for uses, said in cases:
        with pytest.raises(StyloraError, match=said):
            merge(str(tiny_base), uses, tmp_path / "out", ask=here)
    done = merge(str(tiny_base), [use], tmp_path / "out", partial=True, ask=here)
    assert done.modules == len(adapter.pairs)
    assert "of its energy acts in this base" in done.notes[0]


def test_sdxl_is_refused_with_the_reason(two: list[Use], tmp_path: Path) -> None:
    names = {
        "model.diffusion_model.out.2.weight": ("F32", (1,)),
        "conditioner.embedders.1.model.ln_final.bias": ("F32", (1,)),
    }
    (tmp_path / "xl.safetensors").write_bytes(tensorfile.header(names, {}) + bytes(8))
    with pytest.raises(BaseError, match="SDXL can't be run yet"):
        merge(str(tmp_path / "xl.safetensors"), two, tmp_path / "out.safetensors")


def test_too_large_a_number_leaves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    path = "unet.mid_block.resnets.0.conv1"
    out, *inner = open_base(tiny_base).shapes[path]
    pair = LoraPair(torch.full((1, *inner), 300.0), torch.full((out, 1, 1, 1), 300.0), 1.0)
    use = Use(Adapter({path: pair}).save(tmp_path / "huge.safetensors", dtype=torch.float32))
    with pytest.raises(RunError, match="too large a number for F16"):
        merge(str(tiny_base), [use], tmp_path / "out", dtype="fp16", ask=here)
    assert [found.name for found in tmp_path.iterdir()] == ["huge.safetensors"]


def test_the_receipt_is_json_that_says_what_went_in(tiny_base: Path, two: list[Use], tmp_path: Path) -> None:
    merge(str(tiny_base), two, tmp_path / "out", ask=here)
    told = json.loads((tmp_path / "out" / FILE).read_text())
    assert told["base"]["files"]["unet/diffusion_pytorch_model.safetensors"] == digest_of_file(
        tiny_base / "unet" / "diffusion_pytorch_model.safetensors"
    )
    assert [part["sha256"] for part in told["adapters"]] == [digest_of_file(use.path) for use in two]
    assert [(part["weight"], part["text_encoder"]) for part in told["adapters"]] == [(0.8, None), (-0.5, 0.3)]
    assert told["adapters"][0]["blocks"] == {"MID": 0.5}
    assert told["base"]["name"] == tiny_base.name  # and not where it lies
    assert str(tiny_base.parent) not in json.dumps(told)
    assert told["proof"]["modules"] == len(Adapter.load(two[0].path).pairs)
    assert 0 < told["proof"]["worst"] < 1
    assert {"torch", "diffusers"} <= told["versions"].keys()
