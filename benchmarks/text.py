"""Tokens a second of training on text, and its memory, against TRL's SFTTrainer with peft.

`python benchmarks/text.py` takes about six minutes on two idle cores and needs `pip install trl datasets`, which
stylora itself does without; `--append` adds its figures to RESULTS.md. On tiny-lm, and on a Llama of 100 M parameters
with random weights, which cost the same time; the same texts for both, rank 16 on every linear layer, one process, in
turn: before each of TRL's steps stylora makes one of its own.
- stylora: `trainers.loop.train` as a run opens and prepares it: packed rows, adamw8bit; its whole step is timed.
- TRL: `trainer.train()`, from after its batch was read (on_step_begin) to after its update (on_step_end). Packed (its
  "bfd": rows as long as stylora's mean step) or padded, its default. All else as it does by itself, its optimizer too
  (adamw_torch_fused), but gradient checkpointing, logging and saving are off, as they are at stylora.
Both in float32, then both in bfloat16 as each does it by itself. Tokens are those of texts, padding isn't one; the
steps differ by a few. A ratio is the median over the rounds of that round's ratio of tokens a second. Memory: each way
in a process of its own, its most minus what its imports took.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import results
import torch
import transformers

from trainers import loop, prepare, run, samples
from trainers.config import TrainConfig

try:
    import datasets
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise SystemExit(
        f"{error.name} is missing: `pip install trl datasets` installs what stylora is compared with"
    ) from None

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore", FutureWarning)  # of transformers, for TRL's sake
datasets.disable_progress_bars()

GOAL, RANK, BATCH = 1.5, 16, 8
BASES, PRECISIONS, PACKED, PADDED = ("tiny-lm", "100 M"), ("fp32", "bf16"), "packed", "padded"
Speeds = list[float]  # tokens a second, by round


@dataclass(frozen=True)
class Case:
    """A base's folder, the texts, and the number format."""

    base: str
    folder: Path
    precision: str
    place: Path  # for what is made on the way

    def __str__(self) -> str:
        return f"{self.base}, {self.precision}"

    @property
    def data(self) -> Path:
        return samples.text_folder("pirate") / "train.jsonl"


def llama(place: Path) -> Path:
    """A folder with a Llama of 100.1 M random parameters and tiny-lm's tokenizer."""
    folder, tiny = place / "llama", samples.base_folder("tiny-lm")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for file in tiny.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def returned(events: Iterator[Any]) -> Any:
    """What a generator returns at its end."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


# --- the two ways ---------------------------------------------------------------------------------------------------


def stylora(case: Case, steps: int) -> Callable[[], float]:
    """One step of the product's own loop a call -> its tokens a second."""
    sets = (f"train.precision={case.precision}", f"train.batch={BATCH}", f"lora.rank={RANK}", "dataset.heldout=0")
    values = {"base": str(case.folder), "data": str(case.data), "out": str(case.place / "run")}
    config = TrainConfig.build(values=values, sets=list(sets))
    machine, family, subject = run.open_base(config)
    config = config.for_kind("text")
    data = returned(subject.encode(config, family, subject.scan(config, family), machine))
    shapes = subject.shapes(config)
    prepare.put_lora(config, family, shapes)
    update = prepare.update(config, family, prepare.peak_rates(family, shapes), machine)
    made = loop.train(family, data.plan, data.encodings, data.names, update, machine, first=0, steps=steps)

    def turn() -> float:
        begun = time.perf_counter()
        step = next(made)
        return (step.weight + step.samples) / (time.perf_counter() - begun)  # a text's first token isn't predicted

    return turn


class Watch(transformers.TrainerCallback):
    """TRL's tokens a second by step; `before` each of them something else may be done."""

    def __init__(self, before: Callable[[], object]) -> None:
        self.before, self.begun = before, 0.0
        self.sizes: list[int] = []
        self.speeds: Speeds = []

    def counting(self, collate: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        """The trainer's own collator, its batches' tokens counted."""

        def counted(examples: Any) -> dict[str, Any]:
            batch = collate(examples)
            whole = torch.ones_like(batch["input_ids"])
            self.sizes.append(int(batch.get("attention_mask", whole).sum()))
            return batch

        return counted

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.before()
        self.begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.speeds.append(self.sizes[len(self.speeds)] / (time.perf_counter() - self.begun))


def trl(case: Case, layout: str, length: int, steps: int, before: Callable[[], object]) -> Speeds:
    """Train with SFTTrainer; `length` tokens are in a packed row."""
    watch = Watch(before)
    packed = {"packing": True, "max_length": length, "per_device_train_batch_size": 1}
    args = SFTConfig(
        str(case.place / "trl"),
        max_steps=steps,
        bf16=case.precision == "bf16",
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        **(packed if layout == PACKED else {"per_device_train_batch_size": BATCH}),
    )
    texts = [json.loads(line) for line in case.data.read_text().splitlines()]
    trainer = SFTTrainer(
        str(case.folder),
        args,
        train_dataset=datasets.Dataset.from_list(texts),
        peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[watch],
    )
    trainer.data_collator = watch.counting(trainer.data_collator)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return watch.speeds


def step_length(case: Case) -> int:
    """Tokens of a step of texts, in the mean."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder)
    texts = [json.loads(line)["text"] for line in case.data.read_text().splitlines()]
    return round(BATCH * statistics.mean(len(tokenizer(text).input_ids) + 1 for text in texts))  # an end each


# --- measuring ------------------------------------------------------------------------------------------------------


def speeds(case: Case, layout: str, rounds: int, warmup: int) -> tuple[Speeds, Speeds]:
    """stylora's and TRL's, in turn."""
    turn, ours = stylora(case, warmup + rounds), list[float]()
    theirs = trl(case, layout, step_length(case), warmup + rounds, lambda: ours.append(turn()))
    return ours[warmup:], theirs[warmup:]


def most() -> int:
    """MB that this process has held at most (Linux; what getrusage says begins with what the parent had)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def peak(case: Case, way: str, steps: int = 4) -> int:
    """MB that training takes at most in this process, above what it has held before."""
    held = most()
    if way == "stylora":
        turn = stylora(case, steps)
        for _ in range(steps):
            turn()
    else:
        trl(case, way, step_length(case), steps, lambda: None)
    return most() - held


def peak_apart(case: Case, way: str) -> int:
    """The same, in a process of its own."""
    words = [sys.executable, __file__, "--peak", case.base, str(case.folder), case.precision, str(case.place), way]
    return int(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def figures(case: Case, rounds: int, warmup: int) -> Iterator[results.Figure]:
    """Speed against both of TRL's layouts, then memory."""
    for layout in (PACKED, PADDED):
        ours, theirs = speeds(case, layout, rounds, warmup)
        faster = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        number = f"{faster:.2f} ({statistics.median(ours):,.0f} / {statistics.median(theirs):,.0f} tokens/s)"
        yield results.Figure(f"stylora / TRL {layout}, {case}", number, f"≥ {GOAL}", faster >= GOAL)
    taken = [peak_apart(case, way) for way in ("stylora", PACKED, PADDED)]
    number = ", ".join(f"{mb:,}" for mb in taken) + " MB"
    yield results.Figure(f"memory of stylora, TRL packed, TRL padded, {case}", number)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--append", action="store_true", help="add the figures to RESULTS.md")
    ask.add_argument("--only", choices=BASES)
    ask.add_argument("--precision", choices=PRECISIONS)
    ask.add_argument("--rounds", type=int, help="default: 40 on tiny-lm, 6 on the 100 M")
    ask.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    args = ask.parse_args()
    if args.peak:
        base, folder, precision, place, way = args.peak
        print(peak(Case(base, Path(folder), precision, Path(place)), way))
        return
    print(f"{results.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for base in [args.only] if args.only else BASES:
            tiny = base == BASES[0]
            folder = samples.base_folder("tiny-lm") if tiny else llama(place)
            for precision in [args.precision] if args.precision else PRECISIONS:
                case = Case(base, folder, precision, place)
                for figure in figures(case, args.rounds or (40 if tiny else 6), warmup=5 if tiny else 2):
                    results.report("text.py", [figure], args.append)


if __name__ == "__main__":
    main()
