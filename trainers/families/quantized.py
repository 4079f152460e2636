"""Bases whose linear layers are stored in 4 or 8 bits, by bitsandbytes, on the CPU too; embeddings and head stay whole.

NF4 with double quantisation is QLoRA's (Dettmers et al. 2023), int8 is LLM.int8()'s (Dettmers et al. 2022).
Layers are quantised while they are read. Try: python -m pytest tests/test_quantized.py
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at each product that it casts

Quantization = Literal["none", "nf4", "int8"]
COMPUTE = torch.bfloat16  # of NF4's products: what QLoRA computes in, whatever the format of the other weights


def settings(kind: Quantization, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told besides; empty for "none"."""
    if kind == "none":
        return {}
    made = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float16 if dtype == torch.float16 else COMPUTE,
        )
        if kind == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": made, "device_map": {"": device}}


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from rearranging NF4 weights on the first forward without gradients.

    On CPUs with AVX-512 BF16 it does so for good, into a layout whose products have no gradient: whoever measured the
    base before or during training would lose the gradients of all layers below, in silence. Narrow layers even fail.
    """
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def bytes_of(model: nn.Module) -> dict[str, int]:
    """Bytes in memory and parameters of the quantised layers' matrices (their tables too), and of all the rest.

    Keys: quantized_bytes, quantized_parameters, other_bytes, other_parameters. LoRA in it isn't counted.
    """
    counts = dict.fromkeys(("quantized_bytes", "quantized_parameters", "other_bytes", "other_parameters"), 0)
    layers: list[Any] = [m for m in model.modules() if _quantized(m._parameters.get("weight"))]
    for layer in layers:
        counts["quantized_parameters"] += layer.in_features * layer.out_features
        counts["quantized_bytes"] += sum(tensor.nbytes for tensor in _tensors(layer))
    for name, parameter in model.named_parameters():
        if not _quantized(parameter) and "lora_" not in name:
            counts["other_parameters"] += parameter.numel()
            counts["other_bytes"] += parameter.nbytes
    return counts


def _quantized(weight: object) -> bool:
    """Whether it is one of bitsandbytes' parameters (named, so that an unquantised base needs no bitsandbytes)."""
    return type(weight).__name__ in ("Params4bit", "Int8Params")


def _tensors(layer: Any) -> list[torch.Tensor]:
    """The codes, and what is needed to read them: the scales of blocks or rows, in NF4 quantised once more."""
    weight = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return [weight.data, layer.state.SCB if weight.SCB is None else weight.SCB]
    tables = [state.absmax, state.code]
    if state.nested:
        tables += [state.offset, state.state2.absmax, state.state2.code]
    return [weight.data, *tables]


def dequantised(weight: torch.Tensor, kind: Quantization) -> torch.Tensor:
    """What a quantised base has in the place of a weight (out, in), in float32: quantised and back.

    NF4: blocks of 64, their scales in 8 bits (QLoRA, section 3); int8: rows by their largest number.
    """
    import bitsandbytes.functional as bits

    if kind == "nf4":
        packed, state = bits.quantize_4bit(weight.float().contiguous(), quant_type="nf4", compress_statistics=True)
        whole: torch.Tensor = bits.dequantize_4bit(packed, state).float()
        return whole
    rows, scales, _ = bits.int8_vectorwise_quant(weight.to(torch.float16).contiguous())
    unscaled: torch.Tensor = rows.float() * scales[:, None].float()
    return unscaled / 127
