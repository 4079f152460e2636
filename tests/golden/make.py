"""Makes the {key: shape} tables of this folder, by other tools' naming and never by stylora's own: rank 8, no weights.

peft, diffusers and LyCORIS name their own files here (`pip install lycoris-lora einops` for these tables alone: tried
with 4.1.3). The names of kohya-ss/sd-scripts, of diffusers' oldest files and of cloneofsimo are spelled out; SDXL's
original ones come by the loops of its original constructor (sgm/modules/diffusionmodules/openaimodel.py).

Run it: python tests/golden/make.py && git diff --stat tests/golden
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from bases import CLIP_G, CLIP_L, SD15, SDXL, clip, linears, unet

HERE = Path(__file__).parent
RANK = 8
SMALL = 100_000  # bytes; larger tables are compressed

Shape = list[int]
Shapes = dict[str, Shape]  # module name -> shape of its weight
Table = dict[str, Shape]  # key -> shape

TRANSFORMER = re.compile(r"attentions\.\d+\.(proj_in|proj_out|.*(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))$")
ATTENTION = re.compile(r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$")
CONVOLUTION = re.compile(r"(resnets|downsamplers|upsamplers)\.\d+\.(conv\w*|time_emb_proj)$")


def chosen(shapes: Shapes, *patterns: re.Pattern[str]) -> Shapes:
    return {name: shape for name, shape in shapes.items() if any(pattern.search(name) for pattern in patterns)}


def halves(name: str, shape: Shape, down: str, up: str) -> Table:
    out, *inner = shape
    return {name + down: [RANK, *inner], name + up: [out, RANK, *[1] * (len(inner) - 1)]}


# --- kohya ------------------------------------------------------------------------------------------------------------


def kohya(prefix: str, shapes: Shapes) -> Table:
    table: Table = {}
    for path, shape in shapes.items():
        name = f"{prefix}_{path.replace('.', '_')}"
        table |= halves(name, shape, ".lora_down.weight", ".lora_up.weight") | {f"{name}.alpha": []}
    return table


def text(config: dict[str, Any]) -> Shapes:
    """Every linear layer of a text encoder's layers, by the names that files keep."""
    return {f"text_model.{name}": shape for name, shape in linears(clip(config)).items() if ".layers." in name}


def kohya_sd15() -> Table:
    return kohya("lora_unet", chosen(linears(unet(SD15)), TRANSFORMER)) | kohya("lora_te", text(CLIP_L))


def kohya_sd15_locon() -> Table:
    return kohya("lora_unet", chosen(linears(unet(SD15)), TRANSFORMER, CONVOLUTION)) | kohya("lora_te", text(CLIP_L))


def sdxl_text() -> Table:
    return kohya("lora_te1", text(CLIP_L)) | kohya("lora_te2", text(CLIP_G))


def kohya_sdxl_diffusers_names() -> Table:
    return kohya("lora_unet", chosen(linears(unet(SDXL)), TRANSFORMER)) | sdxl_text()


def kohya_sdxl() -> Table:
    attending = re.compile(r"\.proj_(in|out)$|\.transformer_blocks\.")
    return kohya("lora_unet", chosen(dict(sgm()), attending)) | sdxl_text()


def kohya_sdxl_locon() -> Table:
    return kohya("lora_unet", chosen(dict(sgm()), re.compile(r"^(input_blocks\.[1-9]|middle_block|output_blocks)")))


def sgm(
    width: int = 320, multiples: tuple[int, ...] = (1, 2, 4), depths: tuple[int, ...] = (0, 2, 10)
) -> Iterator[Any]:
    """(name, weight's shape) of SDXL's UNet, block by block as openaimodel.py builds it; no norms."""
    yield "input_blocks.0.0", [width, 4, 3, 3]
    channels, now, block = [width], width, 0
    for level, (multiple, depth) in enumerate(zip(multiples, depths, strict=True)):
        for _ in range(2):
            block += 1
            yield from residual(f"input_blocks.{block}.0", now, now := width * multiple)
            yield from transformer(f"input_blocks.{block}.1", now, depth)
            channels.append(now)
        if level < len(multiples) - 1:
            block += 1
            yield f"input_blocks.{block}.0.op", [now, now, 3, 3]
            channels.append(now)
    yield from residual("middle_block.0", now, now)
    yield from transformer("middle_block.1", now, depths[-1])
    yield from residual("middle_block.2", now, now)
    block = -1
    for level, (multiple, depth) in reversed(list(enumerate(zip(multiples, depths, strict=True)))):
        for place in range(3):
            block += 1
            yield from residual(f"output_blocks.{block}.0", now + channels.pop(), now := width * multiple)
            yield from transformer(f"output_blocks.{block}.1", now, depth)
            if level and place == 2:
                yield f"output_blocks.{block}.{2 if depth else 1}.conv", [now, now, 3, 3]


def residual(name: str, old: int, new: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.in_layers.2", [new, old, 3, 3]
    yield f"{name}.emb_layers.1", [new, 1280]
    yield f"{name}.out_layers.3", [new, new, 3, 3]
    if old != new:
        yield f"{name}.skip_connection", [new, old, 1, 1]


def transformer(name: str, width: int, depth: int, words: int = 2048) -> Iterator[tuple[str, Shape]]:
    if depth:
        yield f"{name}.proj_in", [width, width]
        yield f"{name}.proj_out", [width, width]
    for block in range(depth):
        inner = f"{name}.transformer_blocks.{block}"
        for attention, source in (("attn1", width), ("attn2", words)):
            yield f"{inner}.{attention}.to_q", [width, width]
            yield f"{inner}.{attention}.to_k", [width, source]
            yield f"{inner}.{attention}.to_v", [width, source]
            yield f"{inner}.{attention}.to_out.0", [width, width]
        yield f"{inner}.ff.net.0.proj", [8 * width, width]
        yield f"{inner}.ff.net.2", [width, 4 * width]


# --- diffusers and peft -----------------------------------------------------------------------------------------------


def injected(model: nn.Module, pattern: str) -> dict[str, torch.Tensor]:
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    with torch.device("meta"):
        return get_peft_model_state_dict(inject_adapter_in_model(LoraConfig(r=RANK, target_modules=pattern), model))


def sd15_parts() -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    yield "unet", injected(unet(SD15), r".*\.(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)")
    found = injected(clip(CLIP_L), r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)")
    yield "text_encoder", {f"text_model.{key}": tensor for key, tensor in found.items()}


def diffusers_newest() -> Table:
    return {f"{part}.{key}": list(tensor.shape) for part, found in sd15_parts() for key, tensor in found.items()}


def diffusers_older() -> Table:
    from diffusers.utils import convert_state_dict_to_diffusers

    parts = ((part, convert_state_dict_to_diffusers(found)) for part, found in sd15_parts())
    return {f"{part}.{key}": list(tensor.shape) for part, found in parts for key, tensor in found.items()}


def diffusers_oldest() -> Table:
    """Attention processors' own weights, as train_text_to_image_lora.py wrote them until 2023."""
    table: Table = {}
    for name, shape in chosen(linears(unet(SD15)), ATTENTION).items():
        stem = re.sub(r"\.(to_\w+)(\.0)?$", r".processor.\1_lora", name)
        table |= halves(stem, shape, ".down.weight", ".up.weight")
    return table


def peft_folder(name: str) -> Callable[[], Table]:
    def make() -> Table:
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

        pattern = r".*\.(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|[qkv]_proj|out_proj|fc1|fc2)"
        base = unet(SD15) if name == "unet" else clip(CLIP_L)
        with torch.device("meta"):
            model = get_peft_model(base, LoraConfig(r=RANK, target_modules=pattern))
            return {key: list(tensor.shape) for key, tensor in get_peft_model_state_dict(model).items()}

    return make


# --- LyCORIS and cloneofsimo ------------------------------------------------------------------------------------------


def lycoris(algorithm: str, part: str = "", **settings: Any) -> Callable[[], Table]:
    def make() -> Table:
        from lycoris.kohya import LycorisNetworkKohya as Network

        logging.disable(logging.WARNING)
        kinds = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
        targets = {
            "unet_target_module": [] if part else kinds,
            "unet_target_name": [rf"{part}\..*"] if part else [],
            "text_encoder_target_module": [] if part else ["CLIPAttention", "CLIPMLP"],
            "text_encoder_target_name": [],
        }
        Network.apply_preset(targets)
        model, encoder = unet(SD15), nn.Module()
        encoder.text_model = clip(CLIP_L)  # transformers 4 had the level that files keep
        model.get_submodule(part or "mid_block").to_empty(device="cpu")  # DoRA looks at the weights
        sizes = {"lora_dim": RANK, "conv_lora_dim": RANK, "alpha": 4.0, "conv_alpha": 4.0}
        made = Network(encoder, model, 1.0, **sizes, network_module=algorithm, **settings)
        modules = [*made.text_encoder_loras, *made.unet_loras]
        return {f"{m.lora_name}.{key}": list(t.shape) for m in modules for key, t in m.state_dict().items()}

    return make


def cloneofsimo() -> Table:
    """lora_diffusion's save_safeloras: modules by number, up and down by turns."""
    table: Table = {}
    parts = {"unet": linears(unet(SD15)), "text_encoder": text(CLIP_L)}
    for part, shapes in parts.items():
        for number, shape in enumerate(chosen(shapes, ATTENTION).values()):
            table |= halves(f"{part}:{number}", shape, ":down", ":up")
    return table


TABLES: dict[str, Callable[[], Table]] = {
    "kohya_sd15_attention_ff": kohya_sd15,
    "kohya_sd15_locon": kohya_sd15_locon,
    "kohya_sdxl": kohya_sdxl,
    "kohya_sdxl_locon": kohya_sdxl_locon,
    "kohya_sdxl_diffusers_names": kohya_sdxl_diffusers_names,
    "diffusers_newest": diffusers_newest,
    "diffusers_older": diffusers_older,
    "diffusers_oldest": diffusers_oldest,
    "peft_unet": peft_folder("unet"),
    "peft_text_encoder": peft_folder("text_encoder"),
    "lycoris_loha": lycoris("loha"),
    "lycoris_lokr": lycoris("lokr", factor=8),
    "lycoris_loha_tucker": lycoris("loha", "mid_block", use_tucker=True),
    "lycoris_lokr_tucker": lycoris("lokr", "mid_block", use_tucker=True, factor=8, decompose_both=True),
    "lycoris_locon_tucker": lycoris("locon", "mid_block", use_tucker=True),
    "lycoris_dora": lycoris("locon", "mid_block", weight_decompose=True),
    "lycoris_full": lycoris("full", "mid_block"),
    "cloneofsimo": cloneofsimo,
}


def main() -> None:
    for name in sys.argv[1:] or TABLES:
        raw = json.dumps(TABLES[name](), separators=(",", ":"), sort_keys=True).encode()
        path = HERE / f"{name}.json"
        if len(raw) > SMALL:
            path, raw = path.with_suffix(".json.gz"), gzip.compress(raw, mtime=0)
        path.write_bytes(raw)
        sys.stdout.write(f"{path.name}: {len(raw)} bytes\n")


if __name__ == "__main__":
    main()
