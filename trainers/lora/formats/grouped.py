"""A file's tensors sorted by module and role, before anyone asks what kind of adapter they make up.

Try it: python -c "from trainers.lora.formats import FORMATS; print(FORMATS['kohya'].group({}, {}))"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Tensors = dict[str, Tensor]
Place = Callable[[str], tuple[str, str] | None]  # a file's key -> (canonical module path, role), None where unknown

LYCORIS = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("diff", "diff_b"),
)
ROLES = ("down", "up", "mid", "alpha", "dora_scale", *LYCORIS)  # peft's lora_magnitude_vector is a dora_scale
IGNORED = ("bundle_emb.",)  # OneTrainer's embeddings travel in the same file and are no LoRA
COPIES = ".base_layer.weight"  # peft writes the base's output layer beside the LoRA of it


def alpha_is_rank(path: str, rank: int) -> float:
    """What a missing alpha means: the scale alpha / rank is 1."""
    return float(rank)


@dataclass
class Grouped:
    """{module path: {role: tensor}}, the key each came from, and whatever could not be placed.

    `alpha_of(path, rank)` speaks for modules without an alpha tensor; rsLoRA is folded in, so scale is alpha / rank.
    """

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    alpha_of: Callable[[str, int], float] = alpha_is_rank
    unknown: list[str] = field(default_factory=list)  # keys that name no module or role of ours
    doubled: dict[str, str] = field(default_factory=dict)  # key -> what stands where it belongs already
    faults: list[str] = field(default_factory=list)  # a broken header, settings that can't be honoured

    def put(self, path: str, role: str, tensor: Tensor, key: str) -> None:
        """Note a tensor's place; a second one for the same place is a fault."""
        if role in self.modules.setdefault(path, {}):
            self.doubled[key] = f"{path}: {role} stands in the file twice, the first time as {self.keys[path][role]}"
            return
        self.modules[path][role] = tensor
        self.keys.setdefault(path, {})[role] = key

    def add(self, tensors: Mapping[str, Tensor], place: Place, folder: str = "") -> None:
        """Sort `tensors` in by `place`; keys of a subfolder are noted as `folder/key`."""
        for name, tensor in tensors.items():
            key = f"{folder}/{name}" if folder else name
            if found := place(name):
                self.put(*found, tensor, key)
            elif not name.startswith(IGNORED) and not name.endswith(COPIES):
                self.unknown.append(key)


def group(tensors: Mapping[str, Tensor], place: Place) -> Grouped:
    """The tensors of one file, sorted by `place`; alpha = rank where no alpha tensor says otherwise."""
    grouped = Grouped()
    grouped.add(tensors, place)
    return grouped
