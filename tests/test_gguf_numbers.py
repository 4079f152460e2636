"""What is stored is off by no more than is said, and by nearly as much; F32 keeps everything."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("gguf", reason="the extra `gguf` isn't installed")

from studio.gguf.numbers import FLOATS, decode, encode, slack


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 1e3])
def test_rounding_is_within_its_bound(kind: str, size: float) -> None:
    wide = torch.randn(40, 96, generator=torch.Generator().manual_seed(1)) * size
    off, most = (decode(kind, encode(kind, wide)) - wide).abs(), slack(kind, wide)
    assert bool((off <= most).all())
    if kind == "F32":
        assert not off.any()
    elif size >= 1e-3:
        assert float((off / most).max()) > 0.8


def test_what_is_decoded_is_a_tensor_of_its_own() -> None:
    stored = encode("F32", torch.ones(1, 32))
    decode("F32", stored).zero_()
    assert stored.sum() == 32
