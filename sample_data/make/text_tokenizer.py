"""The tokenizer of tiny-lm: a byte-level BPE trained on what the base is trained on, with a chat template.

`python sample_data/make/text_tokenizer.py work/lm_tokenizer` writes its files and shows how it cuts a few texts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import text_chat
import text_plain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SIZE = 4096  # tokens
CONTEXT = 512
START, END, PAD = "<s>", "</s>", "<pad>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TEXTS, CHATS = 12_000, 8_000  # what the merges are learned from
TEMPLATE = (  # one turn is `<|role|>`, a line break, the words, `</s>`; a line break stands between turns
    "{{- bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}"
)


def lines() -> Iterator[str]:
    """The first plain texts and turns of the base's training."""
    for k in range(TEXTS):
        yield text_plain.compose(f"train {k}")
    for k in range(CHATS):
        yield from (message["content"] for message in text_chat.compose(f"train {k}"))


def train(folder: Path) -> PreTrainedTokenizerFast:
    """Train, save and load back; `<s>` goes before a text, nothing after it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        min_frequency=8,  # every token is met often enough in training to mean something
        special_tokens=[START, END, PAD, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(lines(), trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


if __name__ == "__main__":
    made = train(Path(sys.argv[1]))
    for text in (text_plain.compose("shown"), "Avast, ye scurvy dog!", "ARRIVED SAFELY STOP", "Hear ye, good folk."):
        print(len(made), made.tokenize(text))
    print(made.apply_chat_template(text_chat.compose("shown"), tokenize=False))
