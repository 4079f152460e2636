"""What a merged model's files hold, as digests, and which of them have changed since.

Try it: python -c "from studio.merge import contents as c, weights as w; print(c.contents(w.open_base('tiny-sd')))"
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from studio.merge.weights import STALE, Weights
from trainers.digests import digest_of_file
from trainers.tensorfile import TensorFile

FILE = "stylora_receipt.json"
READ = (*STALE, ".json", ".txt", ".model", ".py", ".jinja", ".tiktoken")  # files that change what is loaded
SHORT = 16  # hexadecimal digits by which the receipt knows a single tensor, to be able to name it


def contents(model: Weights) -> dict[str, dict[str, str]]:
    """Digests of all that is read: {"files": {name: sha256}, "tensors": {weight file: short digests in order}}."""
    found: dict[str, dict[str, str]] = {"files": {}, "tensors": {}}
    weights = {file.path: file for file in model.files}
    for path in [model.root] if model.single_file else sorted(model.root.rglob("*")):
        name = "" if model.single_file else path.relative_to(model.root).as_posix()
        if path in weights:
            found["files"][name], found["tensors"][name] = tensor_digests(weights[path])
        elif path.is_file() and path.suffix in READ and name != FILE:
            found["files"][name] = digest_of_file(path)
    return found


def tensor_digests(file: TensorFile) -> tuple[str, str]:
    """(sha256 over every tensor's name, dtype, shape and bytes; SHORT digits for each tensor, in their order)."""
    total, short = hashlib.sha256(), []
    for key, entry in file.entries.items():
        one = hashlib.sha256()
        for piece in file.pieces(key):
            one.update(piece)
        total.update(f"{json.dumps(key)} {entry.dtype} {list(entry.shape)} {one.hexdigest()}\n".encode())
        short.append(one.hexdigest()[:SHORT])
    return total.hexdigest(), "".join(short)


def differences(then: Mapping[str, Mapping[str, str]], model: Weights) -> list[str]:
    """Each file that is gone, new or changed since, and which of its tensors."""
    now = contents(model)
    entries = {
        ("" if model.single_file else f.path.relative_to(model.root).as_posix()): list(f.entries) for f in model.files
    }
    faults = []
    for name in sorted(then["files"].keys() | now["files"].keys()):
        shown = name or model.root.name
        if name not in now["files"]:
            faults.append(f"{shown} is gone")
        elif name not in then["files"]:
            faults.append(f"{shown} is new")
        elif then["files"][name] != now["files"][name]:
            old, new = (_cut(side["tensors"].get(name, "")) for side in (then, now))
            changed = [key for key, a, b in zip(entries.get(name, []), old, new, strict=False) if a != b]
            tensors = f" in {', '.join(changed[:3])}{', …' if len(changed) > 3 else ''}" if changed else ""
            faults.append(f"{shown} has changed{tensors}")
    return faults


def _cut(text: str) -> list[str]:
    return [text[k : k + SHORT] for k in range(0, len(text), SHORT)]
