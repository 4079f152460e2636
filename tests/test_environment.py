"""`stylora env` tells what a bug report needs, the attention kernel and the reason for it among it."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from studio import environment
from trainers import attention, cache


def test_facts() -> None:
    facts = dict(environment.facts())
    assert set(environment.PACKAGES) < facts.keys()
    assert facts["torch"] == metadata.version("torch")
    chosen = attention.choose(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    assert facts["attention"] == f"{chosen.name}: {chosen.why}"
    assert facts["device"].startswith("cuda" if torch.cuda.is_available() else "cpu")
    assert facts["precision"].startswith(("fp32 ", "bf16 ", "fp16 "))
    assert facts["encodings are kept in"] == str(cache.default_folder())
    assert "tiny-sd" in facts["embedded bases"]
    assert "ink" in facts["sample styles"]


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert dict(environment.facts())["no-such-package"] == "not installed"
