"""Causal language models: what the loop, the checks and the writing need of them. The one door to transformers' LMs.

Any folder that AutoModelForCausalLM reads, from the disk alone and without code of its own. One object owns the loss
and the writing, so the two can't disagree about what is predicted. A micro-batch's texts stand in one row without
padding, and logits are made for supervised tokens only: shortcuts past the model's own code (families/shortcuts), which
`prove` compares with it before they are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from trainers.attention import TORCH, Attention
from trainers.bases import reading
from trainers.digests import digest_of_files
from trainers.families import packing, quantized, shortcuts
from trainers.families.base import Encoding, Example, Loss, evaluating
from trainers.families.quantized import Quantization
from trainers.families.shortcuts import Found
from trainers.families.writing import OnToken, Sampling, write

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

Layout = Literal["packed", "padded"]
FILES = {
    "model": ("config.json", "*.safetensors", "*.safetensors.index.json"),
    "tokenizer": ("tokenizer*.json", "tokenizer.model", "vocab.json", "merges.txt", "*.jinja", "*_tokens*.json"),
}
AT_ONCE = 4096  # tokens of texts that are only measured
ENDLESS = 2**31  # tokenizers say 10^30 where they have no limit of their own


class CausalLM:
    """A base in `folder` (see bases.find); `dtype` is that of the weights that aren't quantised."""

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantization: Quantization = "none",
        layout: Layout = "packed",
        neftune: float = 0.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.folder, self.device, self.dtype = folder, torch.device(device), dtype
        self.quantization, self.layout, self.neftune, self.autocast = quantization, layout, neftune, autocast
        self.attention = Attention("sdpa", f"{TORCH}: language models use no other")
        self._parts: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._found: Found | None = None
        with reading(folder, "settings"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            text = config.get_text_config()
            limits = [getattr(text, "max_position_embeddings", None), self._tokenizer_says().get("model_max_length")]
            self.context = min(int(limit) for limit in (*limits, ENDLESS) if limit)
            self.architecture, self.vocabulary = str(config.model_type), int(text.vocab_size)

    def _tokenizer_says(self) -> Mapping[str, Any]:
        file = self.folder / "tokenizer_config.json"
        said: Mapping[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return said

    # --- parts ---------------------------------------------------------------------------------------------------

    def part(self, name: str) -> Any:
        """model or tokenizer: loaded when first asked for; the model frozen, in evaluation mode."""
        if name not in self._parts:
            with reading(self.folder, name):
                self._parts[name] = self._load(name)
        return self._parts[name]

    def _load(self, name: str) -> Any:
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if name == "tokenizer":
            return AutoTokenizer.from_pretrained(self.folder, **local)
        local |= quantized.settings(self.quantization, self.dtype, self.device)
        local |= {"use_safetensors": True, "output_loading_info": True, "dtype": self.dtype}
        read: Any = AutoModelForCausalLM.from_pretrained(self.folder, **local)
        model, found = read
        if missing := sorted(found["missing_keys"]):  # the library would go on with random numbers
            raise ValueError(f"{len(missing)} of its tensors are missing, such as {missing[0]}")
        if model._supports_attention_backend:
            model.set_attn_implementation(packing.NAME)
        quantized.keep_layout(model)
        model.requires_grad_(False).eval()
        return model if self.quantization != "none" else model.to(self.device)

    def unload(self, name: str) -> None:
        """Let a part go; it comes back from disk when it is next asked for."""
        self._parts.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def parts(self) -> dict[str, nn.Module]:
        """The models that may carry LoRA."""
        return {"model": self.part("model")}

    def loaded_parts(self) -> dict[str, nn.Module]:
        """Those of them that are in memory now."""
        return {"model": self._parts["model"]} if "model" in self._parts else {}

    def save_memory(self, on: bool) -> None:
        """Gradient checkpointing: a layer's activations are computed twice instead of kept."""
        model = self.part("model")
        if on:
            model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            model.activation_checkpointing_disable()
        for layer in model.modules():  # it checkpoints layers in training mode only; what is in them stays as it is
            if hasattr(layer, "gradient_checkpointing"):
                layer.training = on

    def digest(self, part: str) -> str:
        """sha256 over a part's files, by name and content: the same base anywhere has the same digest."""
        if part not in self._digests:
            files = {file for pattern in FILES[part] for file in self.folder.glob(pattern)}
            self._digests[part] = digest_of_files(files)
        return self._digests[part]

    def base_bytes(self) -> dict[str, int]:
        """Bytes and parameters of the quantised layers and of the rest (quantized.bytes_of)."""
        return quantized.bytes_of(self.part("model"))

    # --- loss ----------------------------------------------------------------------------------------------------

    def prove(self) -> list[str]:
        """Compare the shortcuts with the model's own code, once; what is wrong isn't used, and a note says so."""
        return self._proven().notes

    def _proven(self) -> Found:
        if self._found is None:
            model = self.part("model")
            with evaluating(model), self.autocast():
                self._found = shortcuts.prove(model, self.context, self.layout == "packed", self.device)
        return self._found

    def loss(self, examples: Sequence[Example]) -> Loss:
        """Sum of -log p over the supervised tokens of one micro-batch; lengths may differ."""
        encodings = [example.encoding for example in examples]
        noise = [self._noise(example) for example in examples] if self.neftune else None
        losses, owner = self._token_losses(encodings, noise)
        weights = torch.tensor([example.weight for example in examples], device=losses.device)
        sums, counts = _per_text(losses.detach(), owner, len(examples))
        return Loss((losses * weights[owner]).sum(), sums / counts.clamp(min=1), float(len(losses)))

    def _noise(self, example: Example) -> Tensor:
        """Uniform noise on the embeddings of a text, (T, d), of size alpha / sqrt(T d) (NEFTune, Jain et al. 2023)."""
        shape = len(example.encoding["ids"]), self.part("model").get_input_embeddings().weight.shape[1]
        draws = torch.rand(shape, generator=example.generator("neftune")) * 2 - 1
        size: float = self.neftune / (shape[0] * shape[1]) ** 0.5
        return draws * size

    @torch.no_grad()
    def nll(self, encodings: Sequence[Encoding]) -> Tensor:
        """(N, 2), float64: each text's sum of -log p over its supervised tokens, and how many these are."""
        made = torch.zeros(len(encodings), 2, dtype=torch.float64)
        with evaluating(self.part("model")):
            for batch in _batches([len(encoding["ids"]) for encoding in encodings], AT_ONCE):
                losses, owner = self._token_losses([encodings[i] for i in batch], None)
                made[batch] = torch.stack(_per_text(losses.double(), owner, len(batch)), 1).cpu()
        return made

    def _token_losses(self, encodings: Sequence[Encoding], noise: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        """-log p of every supervised token, (N,) float32, and which of the texts each belongs to, (N,)."""
        model, found = self.part("model"), self._proven()
        lengths = [len(encoding["ids"]) for encoding in encodings]
        row = (packing.packed if max(lengths) <= found.longest else packing.padded)(lengths, self.device)
        inputs = {"input_ids": row.lay([encoding["ids"] for encoding in encodings], self.device), **row.extras}
        if noise is not None:
            embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = embedded + row.lay(noise, self.device).to(embedded.dtype)
        asked = torch.cat([F.pad(encodings[i]["supervised"][1:], (0, 1)) for i in row.order])  # said by the one before
        targets = torch.cat([encodings[i]["ids"].roll(-1) for i in row.order])[asked].to(self.device)
        owner = torch.tensor(row.order).repeat_interleave(torch.tensor(lengths)[row.order])[asked].to(self.device)
        sources = (asked.nonzero()[:, 0] if row.places is None else row.places[asked]).to(self.device)
        with self.autocast():
            return shortcuts.losses(model, inputs, sources, targets, found.head), owner

    # --- probes and writing --------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) tokens -> (B, T, V) in float32 by the model's own forward, for receipts and probes."""
        model = self.part("model")
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        with evaluating(model), self.autocast():
            made = model(ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False)
        logits: Tensor = made.logits.float()
        return logits

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling | Sequence[Sampling],
        on_token: OnToken | None = None,
    ) -> list[list[int]]:
        """The new tokens of each prompt (writing.write)."""
        with self.autocast():
            return write(self.part("model"), self.part("tokenizer"), prompts, seeds, sampling, on_token, self.context)


def _per_text(losses: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum and number of each text's losses, (count,) each."""
    zeros = losses.new_zeros(count)
    return zeros.index_add(0, owner, losses), zeros.index_add(0, owner, torch.ones_like(losses))


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Which texts to measure together: like lengths, about so many tokens with the padding counted."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
