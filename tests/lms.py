"""Language models in miniature, of the four architectures that differ most, with random weights: `lm(kind, folder)`.

`python -m tests.lms /tmp/lms` writes one of each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM as AnyLM
from transformers import Gemma2Config, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.utils import logging

logging.disable_progress_bar()

MARKS = ("<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>")
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
PAIRS = ("th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "Ġt", "Ġa", "Ġs", "Ġw", "the", "Ġthe")
VOCABULARY = len(MARKS) + len(LETTERS) + len(PAIRS)
CONTEXT = 64
TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"
)
WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
KINDS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {**WIDTHS, "tie_word_embeddings": True}),
    "qwen": (Qwen2Config, {**WIDTHS, "tie_word_embeddings": False}),  # biases at q, k and v
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),  # Conv1D, dropout 0.1
    "gemma": (  # embeddings times a scale, caps on scores and logits, every other layer sees 8 tokens only
        Gemma2Config,
        {**WIDTHS, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "final_logit_softcapping": 5.0},
    ),
}


def lm(kind: str, folder: Path, **changes: Any) -> Path:
    """Write model and tokenizer of a row of KINDS; `changes` go into its config."""
    make, settings = KINDS[kind]
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = make(**{"vocab_size": VOCABULARY, **ids, **settings, **changes})
    model = AnyLM.from_config(config)
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=g)
            if "norm" in name or "ln_" in name:  # Gemma's are stored less one
                tensor.add_(0.1 * noise)
            else:  # louder than a base at birth, so that its answers differ clearly from token to token
                tensor.copy_(noise * (0.1 if tensor.ndim == 1 else 0.25))
    model.save_pretrained(folder)
    tokenizer(CONTEXT).save_pretrained(folder)
    return folder


def tokenizer(context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """Bytes and a few merges; `<s>` goes before a text, nothing after it."""
    tokens = {token: number for number, token in enumerate((*MARKS, *LETTERS, *PAIRS))}
    splits = [(pair[:-1], pair[-1]) if pair[:-1] in tokens else (pair[0], pair[1:]) for pair in PAIRS]
    bpe = Tokenizer(models.BPE(tokens, splits))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(MARKS[3:]),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    made.chat_template = TEMPLATE
    return made


if __name__ == "__main__":
    for each in KINDS:
        print(lm(each, Path(sys.argv[1]) / each))
