"""The question to a language model: each row by itself, whatever stands beside it; nothing that isn't one is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lms import CONTEXT, VOCABULARY, lm
from safetensors.torch import load_file

from studio.merge.probe import answers, from_data, main, probe_for
from studio.merge.probe_text import ASKED, LONGEST, RANDOM, TEXTS, TextProbe
from trainers.families.causal_lm import CausalLM


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm("gpt2", tmp_path_factory.mktemp("lms") / "gpt2")


def test_rows_do_not_see_each_other(base: Path) -> None:
    family = CausalLM(base)
    rows = ((5, 6, 7, 8, 9), (10, 11), (12,))
    said = answers(family, TextProbe(rows))["logits"]
    alone = [answers(family, TextProbe((row,)))["logits"] for row in rows]
    assert said.shape == (8, VOCABULARY)
    assert torch.allclose(said, torch.cat(alone), atol=1e-5)
    assert torch.allclose(alone[0][:2], answers(family, TextProbe((rows[0][:2],)))["logits"], atol=1e-5)


def test_texts_questions_and_random_tokens(base: Path) -> None:
    family = CausalLM(base)
    probe = probe_for(family, "a pirate's words")
    assert isinstance(probe, TextProbe)
    assert len(probe.rows) == len(TEXTS) + 1 + len(ASKED) + RANDOM
    assert probe == probe_for(family, "a pirate's words") != probe_for(family)
    assert max(map(len, probe.rows)) <= LONGEST <= CONTEXT
    tokenizer = family.part("tokenizer")
    assert tokenizer.decode(probe.rows[len(TEXTS)]) == "<s>a pirate's words"
    assert tokenizer.decode(probe.rows[-RANDOM - 1]).endswith("<|assistant|>\n")
    tokenizer.chat_template = None
    assert ASKED[0][:8] in tokenizer.decode(probe_for(family).rows[len(TEXTS)])


def test_a_model_on_disk_says_the_same(base: Path, tmp_path: Path) -> None:
    """What the fresh process does, in this one."""
    family = CausalLM(base)
    probe = probe_for(family)
    (tmp_path / "question").write_text(json.dumps(probe.data()))
    main(*map(str, (base, tmp_path / "question", tmp_path / "answers", tmp_path / "settings")))
    assert torch.allclose(load_file(tmp_path / "answers")["logits"], answers(family, probe)["logits"], atol=1e-5)


@pytest.mark.parametrize("rows", [[], [[]], [[1], []], ["x"], 3])
def test_what_is_no_question(rows: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_data({"rows": rows})
