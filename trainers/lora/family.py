"""Which family of bases an adapter is for (SD 1, SD 2, SDXL, language models): by names and sizes, else its header.

Try it: python -c "from trainers.lora.family import *; print(family_of({'unet.mid_block.attn2.to_k': (1280, 768)}))"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainers.lora.fit import Shape
from trainers.lora.pair import LoraPair

FAMILIES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL",
            "lm": "a language model"}  # fmt: skip
WORDS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # width of what the UNet's cross-attention reads
TEXT = {768: "sd1", 1024: "sd2"}  # width of the (first) text encoder; SDXL's is SD 1's, but a second one tells it
HEADERS = {"sd_v1": "sd1", "sd_v2": "sd2", "sdxl": "sdxl"}  # how ss_base_model_version begins
ARCHITECTURES = {"stable-diffusion-v1": "sd1", "stable-diffusion-v2": "sd2", "stable-diffusion-xl": "sdxl"}


def shapes_of(pairs: Mapping[str, LoraPair]) -> dict[str, Shape]:
    """{path: the shape of the weight it is for}."""
    return {path: (int(pair.up.shape[0]), *map(int, pair.down.shape[1:])) for path, pair in pairs.items()}


def is_text(paths: Iterable[str]) -> bool:
    """Whether these modules are a language model's."""
    return any(path.startswith("model.") for path in paths)


def family_of(shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> str:
    """A key of FAMILIES, or "" where neither sizes nor header tell (a tiny base is told by its header alone)."""
    return _by_shapes(shapes) or _by_header(metadata or {})


def _by_shapes(shapes: Mapping[str, Shape]) -> str:
    if is_text(shapes):
        return "lm"
    if any(path.startswith("text_encoder_2.") for path in shapes):
        return "sdxl"
    words = {shape[1] for path, shape in shapes.items() if path.endswith((".attn2.to_k", ".attn2.to_v"))}
    text = {shape[1] for path, shape in shapes.items() if path.endswith((".q_proj", ".k_proj", ".v_proj", ".fc1"))}
    found = {WORDS[width] for width in words & WORDS.keys()} or {TEXT[width] for width in text & TEXT.keys()}
    return found.pop() if len(found) == 1 else ""


def _by_header(metadata: Mapping[str, str]) -> str:
    if metadata.get("stylora.kind") == "text":
        return "lm"
    said = (
        (metadata.get("ss_base_model_version", ""), HEADERS),
        (metadata.get("modelspec.architecture", ""), ARCHITECTURES),
    )
    return next((family for text, table in said for start, family in table.items() if text.startswith(start)), "")
