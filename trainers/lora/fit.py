"""Which module of a base each pair of an adapter belongs to, and what doesn't fit: names and sizes, no numbers.

Try it: python -c "from trainers.lora.fit import *; print(misfits({}, {'unet.conv_in': (320, 4, 3, 3)}))"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.errors import AdapterError
from trainers.lora.formats.names import canonical as canonical
from trainers.lora.pair import LoraPair, Pairs

MISFIT = "made for ("  # how the reason of a module of another size begins
Shape = tuple[int, ...]  # (out, in) or (out, in, kh, kw)


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that can carry LoRA here: linear layers and convolutions, by path; LoRA's own are none.

    A compiled model's paths are those it had before torch.compile.
    """
    kinds = (nn.Linear, nn.Conv2d)
    return {
        path.replace("_orig_mod.", ""): module
        for path, module in model.named_modules()
        if (isinstance(module, kinds) or is_transposed(module)) and ".lora_" not in path
    }


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's linear layer (transformers' Conv1D, known by its name): y = x W + b, so its weight is kept (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def weight_shape(module: nn.Module) -> Shape:
    """(out, in) or (out, in / groups, kh, kw) as the layer computes, though a quantised weight is packed otherwise."""
    if isinstance(module, nn.Conv2d):
        return (module.out_channels, module.in_channels // module.groups, *map(int, module.kernel_size))
    if is_transposed(module):
        into, out = module.get_parameter("weight").shape
        return out, into
    assert isinstance(module, nn.Linear)
    return module.out_features, module.in_features


@torch.no_grad()
def weight(module: nn.Module) -> Tensor:
    """The weight as the layer computes, of `weight_shape`, in float32 on the CPU: turned, unpacked from 4 or 8 bits."""
    kept = module.get_parameter("weight").detach()
    if kept.is_floating_point():
        return (kept.T if is_transposed(module) else kept).float().cpu()
    one = torch.eye(weight_shape(module)[1], device=kept.device)
    bias = getattr(module, "bias", None)
    found: Tensor = module.forward(one) - (0 if bias is None else bias)  # it knows its packing; forward: without hooks
    return found.T.float().cpu().contiguous()


def modules(parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """{canonical path: module} of every module of live models that can carry LoRA."""
    return {
        canonical(component, path): module
        for component, model in parts.items()
        for path, module in candidates(model).items()
    }


def shapes(parts: Mapping[str, nn.Module]) -> dict[str, Shape]:
    """{canonical path: weight shape} of the same."""
    return {name: weight_shape(module) for name, module in modules(parts).items()}


@dataclass(frozen=True)
class Place:
    """Where a pair goes: the component, the path within its model, the module, and the pair in that module's form."""

    component: str
    path: str
    module: nn.Module
    pair: LoraPair


def misfits(pairs: Mapping[str, LoraPair], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """{canonical path: why it doesn't fit} against the base's weight shapes by canonical path."""
    found = {}
    for name, pair in pairs.items():
        got = (int(pair.up.shape[0]), *map(int, pair.down.shape[1:]))
        if name not in shapes:
            found[name] = "the base has no such module"
        elif _squeezed(got) != _squeezed(shapes[name]):
            found[name] = f"made for {got}, the base has {tuple(shapes[name])}"
    return found


def locate(parts: Mapping[str, nn.Module], pairs: Mapping[str, LoraPair]) -> dict[str, Place]:
    """The place of every pair in the models, by canonical path; AdapterError names each one that has none."""
    modules = {
        canonical(component, path): (component, path, module)
        for component, model in parts.items()
        for path, module in candidates(model).items()
    }
    faults = misfits(pairs, {name: weight_shape(module) for name, (_, _, module) in modules.items()})
    for name in pairs.keys() & modules.keys():
        if (groups := getattr(modules[name][2], "groups", 1)) != 1:
            faults[name] = f"its convolution is in {groups} groups, but LoRA's down and up go over all channels"
    if faults:
        raise AdapterError(
            "the adapter doesn't fit this base",
            [f"{name}: {why}" for name, why in faults.items()],
            "use the base it was trained on (`--base …`); `stylora check FILE --base …` tells how much of it fits",
        )
    return {name: Place(*modules[name], in_form_of(pair, modules[name][2])) for name, pair in pairs.items()}


def in_form_of(pair: LoraPair, module: nn.Module) -> LoraPair:
    """The pair with 1 x 1 kernels for a convolution, without for a linear layer: both are the same map."""
    dimensions = 4 if isinstance(module, nn.Conv2d) else 2
    if pair.down.dim() == dimensions:
        return pair
    down, up = ((t[..., None, None] if dimensions == 4 else t.flatten(1)) for t in (pair.down, pair.up))
    return LoraPair(down, up, pair.alpha)


def fitting(pairs: Pairs, shapes: Mapping[str, Shape]) -> Pairs:
    """Those of the pairs that fit."""
    wrong = misfits(pairs, shapes)
    return {name: pair for name, pair in pairs.items() if name not in wrong}


def _squeezed(shape: Shape) -> Shape:
    """The shape without a 1 x 1 kernel: a linear layer and a 1 x 1 convolution are the same map."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)
