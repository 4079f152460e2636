"""Keeps the house's rules by reading the source: who imports whom, no cycles, small files, docstrings, quick help."""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for package in ("trainers", "studio") for path in sorted((ROOT / package).rglob("*.py"))]
NAMES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
TREES = {name: ast.parse(path.read_text(), str(path)) for path, name in NAMES.items()}
STDLIB = sys.stdlib_module_names

RUN = ("trainers.run", "trainers.session", "trainers.prepare", "trainers.report", "trainers.batch", "trainers.pictures",
       "trainers.texts", "studio.demo", "studio.text_demo", "studio.desk.training",
       "studio.desk.presets")  # what a run is made by  # fmt: skip
CONFIG_STOPS_AT = ("trainers.cli", "trainers.options", "studio.cli", "studio.options", *RUN)

# library or module of ours -> the only modules that may import it
DOORS = {
    "diffusers": ("trainers.families.stable_diffusion*",),
    "transformers": ("trainers.families.*",),
    "peft": ("trainers.lora.inject",),
    "bitsandbytes": ("trainers.optim", "trainers.families.*"),
    "streamlit": ("studio.app", "studio.app.*"),
    "torchvision": (),
    "trainers.config": CONFIG_STOPS_AT,
    "trainers.settings": ("trainers.config", "trainers.leaves", *CONFIG_STOPS_AT),
    "gguf": ("studio.gguf.*",),
    "trainers.run": ("trainers.cli", "trainers.batch", "trainers.__main__", "studio.demo", "studio.text_demo"),
    "trainers.loop": ("trainers.*",),
    "studio": ("studio", "studio.*"),
}
LORA_MAY_IMPORT = {"torch", "safetensors", "trainers.errors", "trainers.lora"}
PURE = (
    "trainers.buckets",
    "trainers.objective",
    "trainers.lora.algebra",
    "trainers.lora.blocks",
    "trainers.lora.gains",
    "trainers.lora.kinds",
    "trainers.lora.lycoris",
    "studio.blend.methods",
    "studio.blend.factored",
)
TOUCHES_FILES = {"PIL", "os", "io", "pathlib", "shutil", "tempfile", "glob", "safetensors", "open"}
WORKER = "studio.desk.engine"  # its thread serves all desks: nothing that a job raises may end it
LONGEST_CHAIN = 8
LONGEST_FILE = 300
SECONDS_FOR_HELP = 0.4


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_cli(module: str) -> bool:
    return module.rpartition(".")[2] in ("cli", "__main__")


def targets(node: ast.AST) -> list[str]:
    """What a statement imports: `from a import b` is a.b if that is a module of ours, else a."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(base), names=names, level=0):
            return [full if (full := f"{base}.{alias.name}") in TREES else base for alias in names]
        case ast.ImportFrom():
            return ["(relative)"]
        case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(name)), *_]):
            return [name] if call in ("import_module", "__import__", "find_spec") else []
    return []


def imported(module: str) -> list[str]:
    """Everything a module imports anywhere, inside functions and for types too."""
    return [target for node in ast.walk(TREES[module]) for target in targets(node)]


def run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run when the module is imported: no function bodies, nothing under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


GRAPH = {
    module: {target for node in run_at_import(tree) for target in targets(node) if target in TREES and target != module}
    for module, tree in TREES.items()
}


@cache
def chain(module: str) -> tuple[str, ...]:
    return max(((module, *chain(target)) for target in sorted(GRAPH[module])), key=len, default=(module,))


def cycle() -> list[str]:
    """Modules that are left when those that import nothing left are taken away again and again."""
    left = dict(GRAPH)
    while free := [module for module, found in left.items() if not found & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


def faults(rule: Callable[[str], Iterator[str]]) -> list[str]:
    return [f"{module}: {fault}" for module in TREES for fault in rule(module)]


def test_there_is_source_to_check() -> None:
    assert {"trainers.cli", "studio.cli", "trainers.lora.adapter", "trainers.loop"} <= TREES.keys()


@pytest.mark.parametrize("library", DOORS)
def test_one_door(library: str) -> None:
    def rule(module: str) -> Iterator[str]:
        if not any(fnmatch(module, door) for door in DOORS[library]):
            yield from (target for target in imported(module) if within(target, library))

    assert faults(rule) == []


def test_lora_can_be_lifted_out() -> None:
    def rule(module: str) -> Iterator[str]:
        allowed = LORA_MAY_IMPORT | ({"peft"} if module == "trainers.lora.inject" else set())
        for target in imported(module) if within(module, "trainers.lora") else []:
            if target.partition(".")[0] not in STDLIB and not any(within(target, name) for name in allowed):
                yield target

    assert faults(rule) == []


def test_imports_are_absolute() -> None:
    assert faults(lambda module: (target for target in imported(module) if target == "(relative)")) == []


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_touch_no_files(module: str) -> None:
    words = {node.id for node in ast.walk(TREES[module]) if isinstance(node, ast.Name)}
    used = words | {target.partition(".")[0] for target in imported(module)}
    assert used & TOUCHES_FILES == set()


def test_no_cycles() -> None:
    assert cycle() == []


def test_short_chains() -> None:
    longest = () if cycle() else max(map(chain, GRAPH), key=len)
    assert len(longest) <= LONGEST_CHAIN, " -> ".join(longest)


def test_every_module_has_a_docstring() -> None:
    assert [module for module, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def is_broad(node: ast.AST) -> bool:
    """`except:`, `except Exception`, `suppress(Exception)` and the like."""
    if isinstance(node, ast.ExceptHandler):
        caught = [node.type] if node.type else []
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
        caught = node.args
    else:
        return False
    names = {part.id for kind in caught for part in ast.walk(kind) if isinstance(part, ast.Name)}
    return not caught or bool(names & {"Exception", "BaseException"})


def test_only_the_command_line_catches_everything_or_prints() -> None:
    def rule(module: str) -> Iterator[str]:
        for node in [] if is_cli(module) else ast.walk(TREES[module]):
            if is_broad(node) and module != WORKER:
                yield f"line {node.lineno}: catches everything"  # type: ignore[attr-defined]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield f"line {node.lineno}: prints"

    assert faults(rule) == []


HELP = [sys.executable, "-c", "from studio.cli import main; main()", "--help"]  # what the console script does


def processor_seconds(command: list[str]) -> float:
    """User and system time of a child that must succeed: unlike the clock, it hardly minds a busy machine."""
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_is_quick() -> None:
    assert statistics.median(processor_seconds(HELP) for _ in range(5)) < SECONDS_FOR_HELP


def test_the_command_line_imports_no_heavy_library() -> None:
    code = "import sys, studio.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heavy = {"torch", "numpy", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "streamlit"}
    assert heavy & set(output.split()) == set()
