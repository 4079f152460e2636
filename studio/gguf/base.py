"""The base an adapter is for, as a GGUF file or as the folder that one is made of: layout, sizes, weights, template.

Try it: python -c "from studio.gguf.base import *; print(opened_base('tiny-lm').layout)"
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from studio.gguf.layout import Layout, of_folder, of_reader
from studio.gguf.numbers import FLOATS, decode
from studio.gguf.package import opened, value
from trainers import bases
from trainers.errors import BaseError
from trainers.lora.fit import Shape, canonical


class Base(Protocol):
    """What is asked of a base."""

    layout: Layout

    def shapes(self, paths: Iterable[str]) -> dict[str, Shape]:
        """{canonical path: (out, in)} of those modules that it has."""

    def weight(self, path: str) -> Tensor:
        """A module's weight (out, in), rows in the module's own order. Raises BaseError: there is none."""

    def template(self) -> tuple[str, str, str]:
        """(chat template, beginning-of-sequence, end-of-sequence), "" for what it hasn't."""


def opened_base(base: str) -> Base:
    """A GGUF, else a transformers folder, hub id or alias. Raises BaseError."""
    path = Path(base).expanduser()
    return File(path) if path.suffix == ".gguf" else Folder(bases.find(base, weights=False, kind="text"))


class File:
    """A GGUF."""

    def __init__(self, path: Path) -> None:
        self.path, self.reader = path, opened(path)
        self.layout = of_reader(path, self.reader)
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in self.reader.tensors}

    def shapes(self, paths: Iterable[str]) -> dict[str, Shape]:
        named = {path: self.layout.tensor(path) for path in paths}
        found = {path: self.tensors[name].shape for path, name in named.items() if name in self.tensors}
        return {path: tuple(map(int, reversed(shape))) for path, shape in found.items()}

    def weight(self, path: str) -> Tensor:
        name = self.layout.tensor(path)
        tensor = self.tensors.get(name)
        if tensor is None or tensor.tensor_type.name not in FLOATS:
            kind = tensor.tensor_type.name if tensor else "not there"
            raise BaseError(f"{self.path}: {name or path} is {kind}, wanted one of {', '.join(FLOATS)}")
        found = decode(tensor.tensor_type.name, tensor.data)
        order = self.layout.order(name, len(found))
        return found if order is None else found[order.argsort()]

    def template(self) -> tuple[str, str, str]:
        tokens = self.reader.get_field("tokenizer.ggml.tokens")
        ids = [value(self.reader, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")]
        bos, eos = ("" if number is None or tokens is None else str(tokens.contents(number)) for number in ids)
        return str(value(self.reader, "tokenizer.chat_template", "")), bos, eos


class Folder:
    """A transformers folder: its config is enough, its weights are opened only where DoRA is to be converted."""

    def __init__(self, path: Path) -> None:
        self.path, self.layout = path, of_folder(path)

    def shapes(self, paths: Iterable[str]) -> dict[str, Shape]:
        from trainers.families.skeleton import skeleton  # transformers takes seconds

        bare = skeleton(self.path, [])
        found = {canonical("model", path): shape for path, shape in bare.layers.items() if path not in bare.tied}
        return {path: found[path] for path in paths if path in found and self.layout.tensor(path)}

    def weight(self, path: str) -> Tensor:
        from studio.merge.weights import open_base

        return open_base(self.path).weight(path)

    def template(self) -> tuple[str, str, str]:
        settings = self._json("tokenizer_config.json")
        file = self.path / "chat_template.jinja"
        template = file.read_text("utf-8") if file.is_file() else settings.get("chat_template")
        marks = (settings.get(name) for name in ("bos_token", "eos_token"))
        bos, eos = (mark.get("content", "") if isinstance(mark, dict) else mark or "" for mark in marks)
        return template if isinstance(template, str) else "", bos, eos

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found
