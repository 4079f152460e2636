"""The kinds of number a GGUF stores: encode, decode, and how far off rounding may be.

Try it: python -c "import torch; from studio.gguf.numbers import *; print(slack('F16', torch.ones(1, 32)))"
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from studio.gguf.package import package

FLOATS = ("F32", "F16", "BF16", "Q8_0")  # those that can be written here; llama.cpp's own tool makes the others
UNIT = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}  # largest relative error of rounding once
BLOCK = 32  # neighbouring numbers of a row that share a scale in Q8_0
UNIT_Q8 = 0.00445  # of a block's largest number: half of 1 / 127, and the scale itself is an F16
SMALLEST = 2.0**-25  # half the smallest F16: what numbers, or scales, below its range are off by at most


def encode(kind: str, numbers: Tensor) -> Any:
    """A float32 matrix (rows, columns) as numpy has it in a GGUF of `kind`: floats, or bytes (rows, bytes of a row).

    Raises OverflowError: a number is too large for `kind`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        stored: Any = package().quants.quantize(numbers.contiguous().numpy(), type_of(kind))
        if not bool(torch.isfinite(decode(kind, stored)).all()):
            raise OverflowError(f"too large a number for {kind}")
    return stored


def decode(kind: str, stored: Any) -> Tensor:
    """The reverse, in float32."""
    wide = package().quants.dequantize(stored, type_of(kind))
    return torch.tensor(wide, dtype=torch.float32)


def type_of(kind: str) -> Any:
    return package().GGMLQuantizationType[kind]


def slack(kind: str, numbers: Tensor) -> Tensor:
    """The largest error of each number of a matrix (rows, columns) when it is stored as `kind`."""
    sizes = numbers.abs()
    if kind == "Q8_0":
        largest = sizes.reshape(len(sizes), -1, BLOCK).amax(-1)
        return (UNIT_Q8 * largest + 127 * SMALLEST).repeat_interleave(BLOCK, -1)
    return UNIT[kind] * sizes + (SMALLEST if kind == "F16" else 0.0)
