"""The tokenizer of tiny-sd: a byte-level BPE in CLIP's form, trained on the captions and on words of people's prompts.

`python sample_data/make/words.py work/tokenizer` writes vocab.json, merges.txt and the config.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from scenes import COLOURS, SETTINGS, THINGS
from styles import KNOWN
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

LENGTH = 32  # tokens in a prompt, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"
PROMPT_WORDS = """
a an the of in on by at with and in the style of drawing painting picture illustration print sketch photo art artwork
ink pen hatching halftone dots newspaper neon glow blueprint plan linocut relief woodcut watercolour watercolor wash
simple small large big little old new bright dark light soft bold detailed beautiful lovely quiet colourful pale paper
black brown grey gold silver sky sun moon stars clouds snow sand grass hills sea beach water night day morning evening
dog horse cow sheep duck rabbit fox bear apple pear cake chair table lamp book clock key hat shoe bell drum kite rocket
train bus ship plane bridge castle tower tent windmill mountain river lake forest garden street city village
sks ohwx style lora trigger object scene landscape portrait
""".split()  # noqa: SIM905


def captions() -> list[str]:
    """Every caption the base can meet, with and without a named style."""
    every = []
    for colour, thing, setting, style in itertools.product(COLOURS, THINGS, SETTINGS, ("", *KNOWN)):
        article = "an" if colour[0] in "aeiou" else "a"
        every.append(f"{article} {colour} {thing} {setting}" + (f", {style}" if style else ""))
    return every


def train(folder: Path) -> CLIPTokenizer:
    """Train, save and load back; merges never cross a word, words end in </w> as in CLIP."""
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1400, initial_alphabet=alphabet, end_of_word_suffix="</w>", min_frequency=1, show_progress=False
    )
    bpe.train_from_iterator([*captions(), *PROMPT_WORDS * 3], trainer)
    learned = json.loads(bpe.to_str())["model"]
    names = [
        *alphabet,
        *(f"{letter}</w>" for letter in alphabet),
    ]  # CLIP's own order: letters, letters at a word's end, merges
    names += ["".join(pair) for pair in learned["merges"]]
    vocab = {name: k for k, name in enumerate(dict.fromkeys(names))}
    for special in (START, END):
        vocab[special] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in learned["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=LENGTH, pad_token=END
    )
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    made = train(Path(sys.argv[1]))
    for text in ("an orange boat at night, pixel art", "ink style, a blue castle", "zxq"):
        print(len(made), made.tokenize(text), made(text).input_ids)
