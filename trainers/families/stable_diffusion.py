"""Stable Diffusion 1.x: what the loop, the cache and the generator need of it. The one door to diffusers.

Parts (unet, vae, text_encoder, tokenizer) are loaded from the base's folder when first asked for and can be let go;
all of them are frozen. One object owns the loss and the sampling, so the two can't disagree about what is predicted.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from trainers import attention, objective
from trainers.bases import reading
from trainers.digests import digest_of_files
from trainers.errors import BaseError
from trainers.families.base import Encoding, Example, Loss, evaluating
from trainers.families.stepping import check_steps, guesses, steps_over

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
LOADERS: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
Prediction = Literal["epsilon", "v"]


class StableDiffusion:
    """An SD 1.x base in `folder` (see bases.find); `dtype` is that of the frozen weights."""

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        prediction: Prediction | None = None,
        min_snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        caption_dropout: float = 0.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.folder, self.device, self.dtype = folder, torch.device(device), dtype
        self.min_snr_gamma, self.noise_offset, self.caption_dropout = min_snr_gamma, noise_offset, caption_dropout
        self.autocast = autocast
        self.attention = attention.choose(self.device)
        self._parts: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._empty: Encoding = {}
        with reading(folder, "scheduler"):
            self.noise = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        with reading(folder, "settings"):
            parts = ("unet", "vae", "text_encoder")
            unet, vae, text = (json.loads((folder / part / "config.json").read_text()) for part in parts)
            widths = unet["cross_attention_dim"], text["hidden_size"]
            factor = 2 ** (len(vae["block_out_channels"]) - 1)
            self.resolution = int(unet["sample_size"] * factor)
            # each level of the UNet but the last halves the latents; diffusers' pipeline wants multiples of 8 besides
            self.multiple = max(8, factor * 2 ** (len(unet["block_out_channels"]) - 1))
            self.latent_scale = float(vae.get("scaling_factor", 0.18215))
        if widths[0] != widths[1]:
            raise BaseError(
                f"base {folder}: its UNet reads text of width {widths[0]}, its text encoder writes {widths[1]}",
                next_step="get the model anew: these parts are of two models",
            )
        own: Prediction = "v" if self.noise.config.prediction_type == "v_prediction" else "epsilon"
        self.prediction: Prediction = prediction or own

    # --- parts ---------------------------------------------------------------------------------------------------

    def part(self, name: str) -> Any:
        """unet, vae, text_encoder or tokenizer: loaded when first asked for, frozen, in evaluation mode."""
        if name not in self._parts:
            with reading(self.folder, name):
                self._parts[name] = self._load(name)
        return self._parts[name]

    def _load(self, name: str) -> Any:
        if name == "tokenizer":
            return CLIPTokenizer.from_pretrained(self.folder / name)
        model, found = LOADERS[name].from_pretrained(
            self.folder / name, use_safetensors=True, output_loading_info=True, dtype=self.dtype
        )
        if missing := sorted(found["missing_keys"]):  # the libraries would go on with random numbers
            raise ValueError(f"{len(missing)} of its tensors are missing, such as {missing[0]}")
        if name == "unet" and self.attention.name == "xformers":
            model.enable_xformers_memory_efficient_attention()
        return model.requires_grad_(False).eval().to(self.device)

    def unload(self, name: str) -> None:
        """Let a part go; it comes back from disk when it is next asked for."""
        self._parts.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def parts(self) -> dict[str, nn.Module]:
        """The models that may carry LoRA."""
        return {"unet": self.part("unet"), "text_encoder": self.part("text_encoder")}

    def loaded_parts(self) -> dict[str, nn.Module]:
        """Those of them that are in memory now."""
        return {name: self._parts[name] for name in ("unet", "text_encoder") if name in self._parts}

    def save_memory(self, on: bool) -> None:
        """Gradient checkpointing: activations are computed twice instead of kept."""
        unet, text = self.part("unet"), self._parts.get("text_encoder")
        (unet.enable_gradient_checkpointing if on else unet.disable_gradient_checkpointing)()
        if text is None:
            return
        # transformers renamed these methods, and the old ones warn
        word = "activation" if hasattr(text, "activation_checkpointing_enable") else "gradient"
        if on:
            getattr(text, f"{word}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(text, f"{word}_checkpointing_disable")()
        for layer in text.modules():  # it checkpoints layers in training mode only; what is in them stays as it is
            if hasattr(layer, "gradient_checkpointing"):
                layer.training = on

    def digest(self, part: str) -> str:
        """sha256 over a part's config and weight files: the same base anywhere has the same digest."""
        if part not in self._digests:
            there = (self.folder / part).iterdir()
            files = [file for file in there if file.suffix in (".json", ".safetensors", ".txt")]
            self._digests[part] = digest_of_files(files)
        return self._digests[part]

    # --- encoding ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_picture(self, picture: Image.Image) -> Encoding:
        """{"moments": (2C, H/f, W/f)}: mean and log-variance of the VAE's posterior, float32 on the CPU."""
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 127.5 - 1  # (3, H, W)
        vae = self.part("vae")
        moments = vae.encode(pixels[None].to(self.device, vae.dtype)).latent_dist.parameters
        return {"moments": moments[0].float().cpu()}

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """(B, T) token ids, cut and padded to the text encoder's length."""
        tokenizer = self.part("tokenizer")
        longest = tokenizer.model_max_length
        ids: Tensor = tokenizer(
            list(captions), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    def token_count(self, caption: str) -> tuple[int, int]:
        """How many tokens a caption needs, start and end included, and how many the text encoder reads."""
        tokenizer = self.part("tokenizer")
        return len(tokenizer(caption).input_ids), int(tokenizer.model_max_length)

    def encode_ids(self, caption: str) -> Encoding:
        """{"ids": (T,)}: for when the text encoder is trained too."""
        return {"ids": self.tokens([caption])[0]}

    @torch.no_grad()
    def encode_text(self, caption: str) -> Encoding:
        """{"text": (T, width)}, float32 on the CPU: for when the text encoder is frozen."""
        states = self.part("text_encoder")(self.tokens([caption]).to(self.device)).last_hidden_state
        return {"text": states[0].float().cpu()}

    def set_empty(self, encoding: Encoding) -> None:
        """The encoding of the empty caption, which caption dropout puts in a caption's place."""
        self._empty = encoding

    # --- loss ----------------------------------------------------------------------------------------------------

    def loss(self, examples: Sequence[Example]) -> Loss:
        """Weighted sum of the denoising errors of one micro-batch (Ho et al. 2020; min-SNR: Hang et al. 2023)."""
        draws = [self._draw(example) for example in examples]
        latents, noise = (
            torch.stack([d[k] for d in draws]).to(self.device) for k in ("latents", "noise")
        )  # (B, C, h, w)
        timesteps = torch.tensor([d["timestep"] for d in draws], device=self.device)
        alphas = self.noise.alphas_cumprod.to(self.device)
        noisy = objective.add_noise(latents, noise, alphas, timesteps)
        with self.autocast():
            guess = self.part("unet")(noisy, timesteps, self._context([d["words"] for d in draws])).sample
        each = objective.loss_per_sample(guess, objective.target(self.prediction, latents, noise, alphas, timesteps))
        each = each * objective.min_snr_weight(objective.snr(alphas, timesteps), self.min_snr_gamma, self.prediction)
        weights = torch.tensor([example.weight for example in examples], device=self.device)
        return Loss((each * weights).sum(), each.detach(), float(sum(e.slot < e.of for e in examples)))

    def _draw(self, example: Example) -> dict[str, Any]:
        """Everything random about one example, from its own generators.

        Timesteps are stratified over the step's batch (Kingma et al. 2021, low-discrepancy sampler): slot i of n draws
        from the i-th n-th of the schedule, rotated by a number that all slots of the step share.
        """
        encoding = example.encoding
        mirrored = "mirrored_moments" in encoding and bool(torch.rand((), generator=example.generator("mirror")) < 0.5)
        mean, log_variance = encoding["mirrored_moments" if mirrored else "moments"].chunk(2)
        g = example.generator("noise")
        spread = torch.randn(mean.shape, generator=g) * (0.5 * log_variance.clamp(-30, 20)).exp()
        latents = (mean + spread) * self.latent_scale
        noise = torch.randn(latents.shape, generator=g)
        if self.noise_offset:
            shifts = torch.randn(latents.shape[:1], generator=example.generator("offset"))
            noise = objective.offset_noise(noise[None], self.noise_offset, shifts[None])[0]
        whole_step = Example(encoding, 1.0, example.seed, example.step, -1, 1)
        shared = torch.rand((), generator=whole_step.generator("timestep"))
        place = (float(shared) + (example.slot % example.of + float(torch.rand((), generator=g))) / example.of) % 1.0
        timestep = min(int(place * self.noise.config.num_train_timesteps), self.noise.config.num_train_timesteps - 1)
        dropped = float(torch.rand((), generator=g)) < self.caption_dropout
        return {"latents": latents, "noise": noise, "timestep": timestep, "words": self._empty if dropped else encoding}

    def _context(self, words: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """(B, T, width) text states: from the cache, or through the text encoder that is being trained."""
        if "text" in words[0]:
            return torch.stack([w["text"] for w in words]).to(self.device)
        ids = torch.stack([w["ids"] for w in words]).to(self.device)
        states: Tensor = self.part("text_encoder")(ids).last_hidden_state
        return states

    # --- sampling ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative: str | Sequence[str] = "",
        steps: int = 25,
        guidance: float = 7.5,
        size: tuple[int, int] | None = None,
        sampler: str | None = None,
        on_step: Callable[[int, int], None] | None = None,
        on_latents: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image]:
        """One picture per (prompt, seed), as one batch, through diffusers' own pipeline; `size` is (width, height).

        `negative` is one for all or one for each; `on_step(steps done, steps)` is called after each call of the UNet,
        and then `on_latents(steps done, what the finished latents (B, C, h, w) will be as far as the sampler knows)`.
        Raises ConfigError as `check_steps` does.
        """
        check_steps(scheduler := self._scheduler(sampler), steps, sampler)
        guess = guesses(scheduler) if on_latents else None
        parts: dict[str, Any] = {name: self.part(name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
        extras: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

        def tell(pipeline: Any, call: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
            done = steps_over(scheduler.timesteps.tolist(), call, steps)
            if on_step:
                on_step(done, steps)
            if on_latents and guess:
                on_latents(done, guess(values["latents"]))
            return values

        width, height = size or (self.resolution, self.resolution)
        models = (parts["unet"], parts["text_encoder"])
        with warnings.catch_warnings(), evaluating(*models), self.autocast():
            warnings.simplefilter("ignore")  # of old bases' settings, which diffusers puts right itself
            pipeline: Any = StableDiffusionPipeline(scheduler=scheduler, **parts, **extras)
            pipeline.set_progress_bar_config(disable=True)
            made = pipeline(
                prompt=list(prompts),
                negative_prompt=[negative] * len(prompts) if isinstance(negative, str) else list(negative),
                num_inference_steps=steps,
                guidance_scale=guidance,
                width=width,
                height=height,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=tell,
            )
        return list(made.images)

    def check_steps(self, steps: int, sampler: str | None = None) -> None:
        """Raises ConfigError where the sampler can't take so many steps on this base."""
        check_steps(self._scheduler(sampler), steps, sampler)

    def _scheduler(self, sampler: str | None) -> Any:
        """The base's own scheduler, or a row of SAMPLERS on its noise schedule; the rest is the row's own."""
        with reading(self.folder, "scheduler"):
            index = json.loads((self.folder / "model_index.json").read_text())
            name, extra = SAMPLERS[sampler] if sampler else (index["scheduler"][1], {})
            kind = "v_prediction" if self.prediction == "v" else "epsilon"
            return getattr(diffusers, name).from_pretrained(self.folder / "scheduler", prediction_type=kind, **extra)
