"""Digests of what a model's files hold; that every change of a merged model is found is in tests/test_receipt.py."""

from __future__ import annotations

from pathlib import Path

from lms import lm

from studio.merge.contents import FILE, contents, differences, tensor_digests
from studio.merge.weights import open_base
from trainers import tensorfile


def test_of_a_language_model_all_that_is_loaded_counts(tmp_path: Path) -> None:
    model = open_base(lm("llama", tmp_path / "llama"))
    (model.root / FILE).write_text("{}")
    (model.root / "README.md").write_text("x")
    then = contents(model)
    names = {path.name for path in model.root.iterdir()} - {FILE, "README.md"}
    assert then["files"].keys() == names >= {"chat_template.jinja", "tokenizer.json", "model.safetensors"}
    assert differences(then, model) == []
    (model.root / "chat_template.jinja").unlink()
    (model.root / "generation_config.json").write_text("{}")
    (model.root / "tokenizer.model").write_text("x")
    assert differences(then, model) == [
        "chat_template.jinja is gone",
        "generation_config.json has changed",
        "tokenizer.model is new",
    ]


def test_digests_see_dtype_and_shape(tmp_path: Path) -> None:
    found = set()
    for k, (dtype, shape) in enumerate((("F32", (2, 1)), ("F32", (1, 2)), ("I32", (2, 1)))):
        (tmp_path / f"{k}").write_bytes(tensorfile.header({"a": (dtype, shape)}, {}) + bytes(8))
        found.add(tensor_digests(tensorfile.read(tmp_path / f"{k}"))[0])
    assert len(found) == 3
