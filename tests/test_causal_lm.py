"""Language models of four architectures: packed, padded and one by one are one loss with one gradient."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lms import CONTEXT, KINDS, VOCABULARY, lm
from trainers.errors import BaseError
from trainers.families.base import Encoding, Example
from trainers.families.causal_lm import CausalLM
from trainers.lora.inject import Shape, inject, trainable

LENGTHS = (20, 9, 31, 9)


def encoding(length: int, seed: int = 0) -> Encoding:
    """A random text, about two thirds of it supervised, its end always."""
    g = torch.Generator().manual_seed(100 * seed + length)
    supervised = torch.rand(length, generator=g) < 0.7
    supervised[0], supervised[-1] = False, True
    return {"ids": torch.randint(6, VOCABULARY, (length,), generator=g), "supervised": supervised}


def examples(weights: tuple[float, ...] = (1, 1, 1, 1)) -> list[Example]:
    """Four texts of one step."""
    pairs = enumerate(zip(LENGTHS, weights, strict=True))
    return [Example(encoding(length, k), weight, 3, 5, k, 4) for k, (length, weight) in pairs]


def injected(
    family: CausalLM, pattern: str = r"attn\..*proj$|c_attn$|mlp\..*proj$|c_fc$"
) -> list[tuple[str, nn.Parameter]]:
    """LoRA in all layers of a kind, both halves with numbers in them."""
    model = family.part("model")
    inject("model", model, [name for name, _ in model.named_modules() if re.search(pattern, name)], Shape(4), seed=1)
    parameters = trainable("model", model)
    g = torch.Generator().manual_seed(2)
    for _, tensor in parameters:
        tensor.data = torch.randn(tensor.shape, generator=g) * 0.1
    return parameters


def gradients(family: CausalLM, batches: list[list[Example]]) -> tuple[float, float, list[Tensor]]:
    """(loss, weight, gradients) of one step of several micro-batches."""
    parameters = [tensor for _, tensor in injected(family)]
    losses = [family.loss(batch) for batch in batches]
    total = torch.stack([loss.total for loss in losses]).sum()
    return float(total.detach()), sum(loss.weight for loss in losses), list(torch.autograd.grad(total, parameters))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_padded_and_one_by_one_are_alike(kind: str, tmp_path: Path) -> None:
    folder, texts = lm(kind, tmp_path), examples()
    packed = gradients(CausalLM(folder), [texts])
    padded = gradients(CausalLM(folder, layout="padded"), [texts])
    single = gradients(CausalLM(folder), [[text] for text in texts])
    assert packed[1] == padded[1] == single[1] == sum(int(text.encoding["supervised"].sum()) for text in texts)
    for other in (padded, single):
        assert packed[0] == pytest.approx(other[0], rel=1e-6)
        for a, b in zip(packed[2], other[2], strict=True):
            assert float((a - b).norm()) <= 2e-5 * float(b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_cross_entropy_of_the_models_logits(kind: str, tmp_path: Path) -> None:
    family, texts = CausalLM(lm(kind, tmp_path)), examples((1, 0.5, 2, 0))
    each = []
    for text in texts:
        ids, supervised = text.encoding["ids"], text.encoding["supervised"]
        every = F.cross_entropy(family.logits(ids[None])[0, :-1], ids[1:], reduction="none")
        each.append(every[supervised[1:]])
    loss = family.loss(texts)
    assert torch.allclose(loss.each, torch.stack([one.mean() for one in each]), atol=1e-5)
    assert float(loss.total) == pytest.approx(sum(t.weight * float(e.sum()) for t, e in zip(texts, each, strict=True)))
    nll = family.nll([text.encoding for text in texts])
    assert torch.allclose(nll[:, 0].float(), torch.stack([one.sum() for one in each]), atol=1e-4)
    assert nll[:, 1].tolist() == [len(one) for one in each]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_no_text_sees_another(layout: Any, tmp_path: Path) -> None:
    family = CausalLM(lm("gemma", tmp_path), layout=layout)
    mine = Example(encoding(12), 1.0, 0, 0, 0, 2)
    alone = family.loss([mine]).each
    for other in (encoding(12, 1), encoding(30, 2), encoding(5, 3)):
        beside = Example(other, 1.0, 0, 0, 1, 2)
        assert torch.allclose(family.loss([mine, beside]).each[:1], alone, atol=1e-5)
        assert torch.allclose(family.loss([beside, mine]).each[1:], alone, atol=1e-5)


def test_a_text_without_supervised_tokens_counts_nothing(tmp_path: Path) -> None:
    family = CausalLM(lm("llama", tmp_path))
    silent = {"ids": encoding(9)["ids"], "supervised": torch.zeros(9, dtype=torch.bool)}
    loss = family.loss([Example(silent, 1.0, 0, 0, 0, 1)])
    assert (float(loss.total), loss.each.tolist(), loss.weight) == (0, [0], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_memory_gives_the_same_gradients(kind: str, tmp_path: Path) -> None:
    folder = lm(kind, tmp_path)
    plain, saving = CausalLM(folder), CausalLM(folder)
    saving.save_memory(True)
    calls: list[int] = []
    wanted = gradients(plain, [examples()])
    saving.prove()
    next(m for m in saving.part("model").modules() if hasattr(m, "mlp")).mlp.register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    got = gradients(saving, [examples()])
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(wanted[2], got[2], strict=True))
    assert len(calls) == 2  # forward, and again in the backward pass
    saving.save_memory(False)
    assert not any(m.training for m in saving.part("model").modules() if hasattr(m, "gradient_checkpointing"))


def test_neftune_is_noise_in_training_alone(tmp_path: Path) -> None:
    folder, texts = lm("llama", tmp_path), examples()
    plain, noisy = CausalLM(folder), CausalLM(folder, neftune=5.0)
    seen: list[Tensor] = []
    noisy.prove()
    noisy.part("model").model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    one = texts[:1]
    losses = [float(family.loss(one).total.detach()) for family in (plain, noisy, noisy)]
    assert losses[1] == losses[2] != losses[0]
    noise = seen[0] - noisy.part("model").get_input_embeddings()(one[0].encoding["ids"][None])
    assert 0.9 * 5 / (20 * 32) ** 0.5 < float(noise.abs().max()) <= 5.001 / (20 * 32) ** 0.5
    assert torch.equal(plain.nll([one[0].encoding]), noisy.nll([one[0].encoding]))
    whole = [float(family.loss(batch).total) for family in (noisy,) for batch in (texts, *([t] for t in texts))]
    assert whole[0] == pytest.approx(sum(whole[1:]))  # a text's noise is its own, wherever it stands


def test_a_trained_head_is_computed_in_chunks_too(tmp_path: Path) -> None:
    family = CausalLM(lm("qwen", tmp_path))
    parameters = injected(family, "lm_head")
    loss = family.loss(examples())
    got = torch.autograd.grad(loss.total, [tensor for _, tensor in parameters])
    own = 0.0
    for text in examples():
        ids, supervised = text.encoding["ids"], text.encoding["supervised"]
        logits = family.part("model")(ids[None]).logits[0, :-1]
        own += F.cross_entropy(logits, ids[1:], reduction="none")[supervised[1:]].sum()
    for a, b in zip(got, torch.autograd.grad(own, [tensor for _, tensor in parameters]), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_what_a_base_says_of_itself(tmp_path: Path) -> None:
    family = CausalLM(lm("gpt2", tmp_path))
    assert (family.context, family.architecture, family.vocabulary) == (CONTEXT, "gpt2", VOCABULARY)
    assert family.attention.name == "sdpa"
    assert "scaled_dot_product_attention" in family.attention.why
    assert family.loaded_parts() == {}
    assert list(family.parts()) == list(family.loaded_parts()) == ["model"]
    assert not any(parameter.requires_grad for parameter in family.part("model").parameters())
    family.unload("model")
    assert family.loaded_parts() == {}
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 10**30}))
    assert CausalLM(tmp_path).context == CONTEXT
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 48}))
    assert CausalLM(tmp_path).context == 48


def test_digests_follow_the_files_that_matter(tmp_path: Path) -> None:
    folder = lm("llama", tmp_path)
    before = [CausalLM(folder).digest(part) for part in ("model", "tokenizer")]
    (folder / "README.md").write_text("words")
    assert [CausalLM(folder).digest(part) for part in ("model", "tokenizer")] == before
    (folder / "chat_template.jinja").write_text("{{ other }}")
    after = [CausalLM(folder).digest(part) for part in ("model", "tokenizer")]
    assert after[0] == before[0] != before[1] != after[1]


def test_broken_bases_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(BaseError, match="settings can't be read"):
        CausalLM(tmp_path)
    folder = lm("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseError, match=r"1 of its tensors are missing, such as model\.norm\.weight"):
        CausalLM(folder).part("model")
