"""Merging into language models: every architecture's layout of files, shards, 16 bits; transformers loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import here, random_adapter
from lms import KINDS, lm
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from studio.draw.use import Use
from studio.merge.contents import FILE
from studio.merge.merge import Merged, merge
from studio.merge.receipt import verify
from studio.merge.weights import open_base
from trainers.errors import BaseError, ConfigError, RunError, StyloraError
from trainers.families import skeleton
from trainers.families.causal_lm import CausalLM
from trainers.families.skeleton import Spot
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack

IDS = torch.arange(3, 43).view(2, 20)
LOADED: dict[str, object] = {"local_files_only": True}


def adapter(base: Path, out: Path, seed: int = 0) -> Path:
    return random_adapter(base, seed, kinds=("attn", "mlp")).save(out, "peft", torch.float32)


def live(base: Path, uses: list[Use]) -> Tensor:
    family = CausalLM(base)
    with Rack(family.parts()) as rack:
        rack.set([{rack.add(Adapter.load(use.path)): use.gain for use in uses}])
        return family.logits(IDS)


@torch.no_grad()
def loaded(folder: Path, **how: object) -> Tensor:
    """The logits of what transformers itself loads."""
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **LOADED, **how)
    assert not told["missing_keys"]
    return model.eval()(IDS).logits.float()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lms")
    return {kind: lm(kind, folder / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_base_and_rack_say(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    gains = (Gain(0.8, blocks={"L01": 0.5}), Gain(-0.4))
    uses = [Use(adapter(bases[kind], tmp_path / f"a{n}", n), gain) for n, gain in enumerate(gains)]
    done = merge(str(bases[kind]), uses, tmp_path / "out", ask=here)
    wanted, found, bare = live(bases[kind], uses), loaded(tmp_path / "out"), loaded(bases[kind])
    assert float((wanted - bare).abs().max()) > 0.1
    assert torch.allclose(found, wanted, atol=1e-4)
    assert done.modules == len(Adapter.load(uses[0].path).pairs)
    assert done.like
    assert done.like.kl_max < 1e-6
    assert done.like.agreement == 1
    assert {file.name for file in (tmp_path / "out").iterdir()} == {p.name for p in bases[kind].iterdir()} | {FILE}
    told = json.loads((tmp_path / "out" / FILE).read_text())
    assert told["next_token"].keys() == {"kl_mean", "kl_max", "agreement", "places", "kl_bound"}
    assert verify(tmp_path / "out", here)[2].agreement == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(("dtype", "word"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_shards_in_16_bits(tmp_path: Path, dtype: str, word: str) -> None:
    base = lm("llama", tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(base, **LOADED)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="40KB")
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    use = Use(adapter(base, tmp_path / "a"))
    done = merge(str(base), [use], tmp_path / "out", dtype=dtype, ask=here)
    assert sorted(file.name for file in (tmp_path / "out").glob("*.safetensors")) == shards
    assert len(shards) > 1
    (compared,) = done.compared
    assert 1e-6 < compared.relative < compared.bound
    assert done.like
    assert 0 < done.like.kl_mean < done.like.kl_max < 0.5 * (compared.bound * compared.scale) ** 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **LOADED)
    assert model.dtype == getattr(torch, word)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == word
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(file.size for file in open_base(tmp_path / "out").files)
    error = (loaded(tmp_path / "out", dtype=torch.float32) - live(base, [use])).abs().max()
    assert float(error) < compared.bound * compared.scale


def test_gpt2_as_it_is_in_the_wild(bases: dict[str, Path], tmp_path: Path) -> None:
    """Names without `transformer.`, and the causal mask among the tensors."""
    base = lm("gpt2", tmp_path / "base")
    tensors = {
        key.removeprefix("transformer."): tensor for key, tensor in load_file(base / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    use = Use(adapter(bases["gpt2"], tmp_path / "a"))
    merge(str(base), [use], tmp_path / "wild", ask=here)
    merge(str(bases["gpt2"]), [use], tmp_path / "tame", ask=here)
    wild, tame = (open_base(tmp_path / name) for name in ("wild", "tame"))
    assert wild.tensors.keys() == tame.tensors.keys()
    assert all(torch.equal(wild.tensors[name].tensor(), tame.tensors[name].tensor()) for name in tame.tensors)
    assert load_file(tmp_path / "wild" / "model.safetensors").keys() == tensors.keys()


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def merged(base: Path, folder: Path) -> Merged:
    return merge(str(base), [Use(adapter(base, folder / "a"))], folder / "out", ask=here)


def test_a_flipped_bit_and_another_template_are_found(bases: dict[str, Path], tmp_path: Path) -> None:
    merged(bases["llama"], tmp_path)
    flip(tmp_path / "out")
    (tmp_path / "out" / "chat_template.jinja").write_text("x")
    with pytest.raises(RunError, match="isn't what was merged") as caught:
        verify(tmp_path / "out", here)
    assert caught.value.faults == (
        "chat_template.jinja has changed",
        "model.safetensors has changed in model.norm.weight",
    )


def test_other_distributions_are_no_receipt(bases: dict[str, Path], tmp_path: Path) -> None:
    def other(*question: object) -> dict[str, Tensor]:
        said = here(*question)  # type: ignore[arg-type]
        return {"logits": said["logits"].roll(1, -1)}

    with pytest.raises(RunError, match="isn't what the adapters") as caught:
        merge(str(bases["qwen"]), [Use(adapter(bases["qwen"], tmp_path / "b"))], tmp_path / "out", ask=other)
    assert any(fault.startswith("next token: KL") for fault in caught.value.faults)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    merged(bases["qwen"], tmp_path)
    with pytest.raises(RunError, match="its answers aren't"):
        verify(tmp_path / "out", other)


def test_names_that_were_mixed_up_are_found_by_the_answers(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor by tensor all is well then: what was meant for one layer was added to another of its shape."""
    right, use = skeleton._spots, Use(adapter(bases["llama"], tmp_path / "a"))

    def wrong(key: str, *rest: object) -> list[Spot]:
        mixed = key.replace("q_proj", "?").replace("o_proj", "q_proj").replace("?", "o_proj")
        return right(mixed, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(skeleton, "_spots", wrong)
    with pytest.raises(RunError, match="isn't what the adapters") as caught:
        merge(str(bases["llama"]), [use], tmp_path / "out", ask=here)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["logits", "next token"]


def test_what_cannot_be_merged(bases: dict[str, Path], tmp_path: Path) -> None:
    use = Use(adapter(bases["llama"], tmp_path / "a"))
    shape = open_base(bases["llama"]).shapes["model.lm_head"]
    head = Adapter({"model.lm_head": LoraPair(torch.ones(2, shape[1]), torch.ones(shape[0], 2), 2.0)})
    cases: list[tuple[str, list[Use], dict[str, str], type[StyloraError], str]] = [
        ("gpt2", [use], {}, StyloraError, "another base"),
        ("llama", [Use(head.save(tmp_path / "head", "peft"))], {}, BaseError, "nothing can be added to these layers"),
        ("llama", [Use(use.path, Gain(1.0, text_encoder=0.5))], {}, ConfigError, "can't be made"),
        ("llama", [use], {"onto": "dequantised"}, ConfigError, "can't be made"),
        ("llama", [use], {"onto": "int4"}, ConfigError, "can't be made"),
    ]
    for kind, uses, more, error, said in cases:
        with pytest.raises(error, match=said):
            merge(str(bases[kind]), uses, tmp_path / "out", ask=here, **more)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "head"]
    untied = Adapter({"model.lm_head": head.pairs["model.lm_head"]}).save(tmp_path / "untied", "peft")
    assert merge(str(bases["qwen"]), [Use(untied)], tmp_path / "out", ask=here).modules == 1


def test_what_is_not_weights_goes_along_or_is_left(bases: dict[str, Path], tmp_path: Path) -> None:
    base = lm("llama", tmp_path / "base")
    for name in ("README.md", "loss.csv", "LICENSE", "merges.txt", "special_tokens_map.json", "original/params.json"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("{}")
    for name in ("pytorch_model.bin", "original/consolidated.00.pth"):
        (base / name).write_bytes(b"x")
    done = merged(base, tmp_path)
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"LICENSE", "merges.txt", "special_tokens_map.json", "chat_template.jinja"} < there
    assert not {"README.md", "loss.csv", "pytorch_model.bin", "original/consolidated.00.pth"} & there
    assert sum("holds the base's weights once more" in note for note in done.notes) == 2
