"""Write a base again with changed tensors: one tensor in memory at a time, other bytes copied, whole or not at all.

Try it: python -c "from studio.merge.rewrite import *; print(DTYPES)"
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from studio.merge.weights import STALE, STEMS, Weights
from trainers import tensorfile
from trainers.errors import BaseError, RunError
from trainers.lora.files import raw
from trainers.tensorfile import FLOATS, TensorFile

DTYPES = {"keep": "", "fp16": "F16", "bf16": "BF16", "fp32": "F32"}  # what people write -> what safetensors does
REFUSED = "this merge can't be made"
UNIT = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}  # largest relative error of rounding once
HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of the base's tensors, untrue of the result

Change = Callable[[Tensor], Tensor]  # of a whole tensor of a file, in float32 (float64 where it is stored so), in place


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to; it takes the name `out` when all went well, else it is removed."""
    temp = _hidden(out, "part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out)
        yield temp
        _replace(temp, out)
    except OSError as error:
        step = "free some space, or name another --out"
        raise RunError(f"{out}: can't be written: {error.strerror or error}", next_step=step) from error
    finally:
        remove(temp)


def _hidden(out: Path, end: str) -> Path:
    return out.with_name(f".{out.stem}.{os.getpid()}.{end}{out.suffix}")


def _replace(temp: Path, out: Path) -> None:
    """Rename `temp` to `out`. No folder can be renamed over another: an old one goes aside, and back on failure."""
    old = _hidden(out, "old")
    if out.is_dir():
        out.rename(old)
    try:
        temp.replace(out)
    finally:
        if old.exists() and not os.path.lexists(out):
            _put_back(old, out)
    remove(old)


def sweep(out: Path) -> None:
    """Clear up what killed processes have left beside `out`: half a result goes, a model put aside comes back."""
    ours = re.compile(rf"\.{re.escape(out.stem)}\.(\d+)\.(part|old){re.escape(out.suffix)}")
    for path in sorted(out.parent.glob(".*")):
        found = ours.fullmatch(path.name)
        if not found or _runs(int(found[1])):
            continue
        if found[2] == "old" and not os.path.lexists(out):
            _put_back(path, out)
        remove(path)


def _put_back(old: Path, out: Path) -> None:
    try:
        old.rename(out)
    except OSError as error:
        fault = f"{old}: {error.strerror or error}"
        raise RunError(f"{out}: what was there lies aside and can't be put back", [fault], "rename it") from error


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


OF_ANY_MODEL = ("model_index.json", "LICENSE", "license")  # files at a base's top that hold for the merged model too
OF_TEXT = (".json", ".jinja", ".model", ".tiktoken", ".py", "merges.txt", "vocab.txt", "LICENSE.txt", "NOTICE.txt")


def copy_rest(weights: Weights, out: Path, besides: str) -> list[str]:
    """Copy a folder's other files, but for the base's own papers (README, pictures, curves).

    Gives the names of those left out because they hold the unchanged weights once more.
    """
    known, left = {file.path for file in weights.files}, []
    for path in sorted(weights.root.rglob("*")):
        name = path.relative_to(weights.root)
        if path.is_dir() or path in known or str(name) == besides or any(part.startswith(".") for part in name.parts):
            continue
        if path.suffix in STALE and (weights.text or len(name.parts) == 1 or name.parts[0] in STEMS):
            left.append(str(name))
            continue
        ends = OF_TEXT if weights.text else ()
        if len(name.parts) == 1 and not name.name.startswith(OF_ANY_MODEL) and not name.name.endswith(ends):
            continue  # what tells of the base alone
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    return left


def tell_dtype(folder: Path, dtype: str) -> None:
    """Make a language model's small files say how its numbers are stored now: transformers loads them as they say."""
    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    config = json.loads((folder / "config.json").read_text())
    told = config | {key: names[dtype] for key in ("dtype", "torch_dtype") if key in config}
    (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n")
    for index in folder.glob("*.index.json"):
        table = json.loads(index.read_text())
        sizes = [tensorfile.read(folder / name).size for name in set(table["weight_map"].values())]
        table["metadata"] = table.get("metadata", {}) | {"total_size": sum(sizes)}
        index.write_text(json.dumps(table, indent=2) + "\n")


def rewrite(file: TensorFile, out: Path, changes: Mapping[str, Change], dtype: str, room: int = 0) -> None:
    """Write a file again with `changes` to some tensors, all floats cast to `dtype` ("": kept); fsynced.

    `room` bytes of the header are kept free. Raises BaseError, RunError: a number is too large for the dtype.
    """
    stored = {key: dtype if dtype and entry.dtype in FLOATS else entry.dtype for key, entry in file.entries.items()}
    if odd := [f"{key} is stored as {stored[key]}" for key in changes if stored[key] not in FLOATS]:
        raise BaseError(f"{file.path}: nothing can be added to these tensors", odd, "convert the base to fp16 first")
    if not changes and stored == {key: entry.dtype for key, entry in file.entries.items()} and not room:
        shutil.copyfile(file.path, out)
        return
    names = {key: (stored[key], entry.shape) for key, entry in file.entries.items()}
    with out.open("xb") as stream:
        stream.write(tensorfile.header(names, metadata_of(file), room))
        for key, entry in file.entries.items():
            if key in changes or stored[key] != entry.dtype:
                stream.write(raw(_changed(file, key, changes.get(key), stored[key])))
            else:
                stream.writelines(file.pieces(key))
        stream.flush()
        os.fsync(stream.fileno())


def metadata_of(file: TensorFile) -> dict[str, str]:
    """The header entries that are still true when the tensors have changed."""
    return {key: text for key, text in file.metadata.items() if key not in HASHES}


def _changed(file: TensorFile, key: str, change: Change | None, dtype: str) -> Tensor:
    old = file.tensor(key)
    wide = old if old.dtype == torch.float64 else old.float()
    new = (change(wide) if change else wide).to(tensorfile.DTYPES[dtype])
    if not bool(torch.isfinite(new).all()) and bool(torch.isfinite(old).all()):
        raise RunError(f"{key}: too large a number for {dtype}", next_step="merge with --dtype bf16 or fp32")
    return new
