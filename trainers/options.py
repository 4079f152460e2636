"""Every setting as a command-line flag, made from `config.leaves()`. Imports no torch.

A flag is a text, None when it wasn't given: `TrainConfig.build` reads all of them at once and lists every fault.
Try: stylora train --help
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import typer
from typer.models import OptionInfo

from trainers.leaves import Leaf, leaves

SHORT_NAMES_GO_TO = ("", "train")  # where several sections have a setting of one name; in this order
ALWAYS_IN_FULL = ("prior",)  # `--weight` alone would not say that it is the class pictures' weight


@cache
def flags() -> dict[str, tuple[str, ...]]:
    """The flags of each key: --leaf where one setting may have the short name, and always --section.leaf."""
    owners = defaultdict(list)
    for leaf in leaves():
        if leaf.section not in ALWAYS_IN_FULL:
            owners[leaf.name].append(leaf)
    short = {_owner(sharing): f"--{name.replace('_', '-')}" for name, sharing in owners.items()}
    return {leaf.key: _flags(leaf, short.get(leaf.key)) for leaf in leaves()}


def _owner(sharing: list[Leaf]) -> str:
    by_section = {leaf.section: leaf.key for leaf in sharing}
    favoured = [by_section[section] for section in SHORT_NAMES_GO_TO if section in by_section]
    return (favoured or [""] if len(sharing) > 1 else [sharing[0].key])[0]


def _flags(leaf: Leaf, short: str | None) -> tuple[str, ...]:
    full = f"--{leaf.key.replace('_', '-')}"
    return (full,) if short in (None, full) else (str(short), full)


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a Typer command one flag per setting; those given come as its `values`, {"optim.lr": "1e-4"}."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for name, p in signature.parameters.items() if name != "values"]
    rows = [(_identifier(flag), leaf, flag) for leaf in leaves() for flag in flags()[leaf.key]]
    parameters = own + [_parameter(*row) for row in rows]

    @wraps(command)
    def called(**given: Any) -> Any:
        texts = [(leaf.key, given.pop(name)) for name, leaf, _ in rows]
        return command(**given, values={key: text for key, text in texts if text is not None})

    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": signature.return_annotation}
    return called


def _identifier(flag: str) -> str:
    return flag.strip("-").replace(".", "__").replace("-", "_")


def _parameter(name: str, leaf: Leaf, flag: str) -> inspect.Parameter:
    option = _option(leaf, flag)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=str | None)


def _option(leaf: Leaf, flag: str) -> OptionInfo:
    default = "required, here or in a TOML file" if leaf.required else f"default: {_shown(leaf.default)}"
    if leaf.on_text != leaf.default:
        default += f", on text {_shown(leaf.on_text)}"
    if leaf.only:
        default += f"; {leaf.only} only"
    option: OptionInfo = typer.Option(
        None,
        flag,
        hidden=flag != flags()[leaf.key][0],  # both names of all settings would drown the help
        metavar=leaf.type_text,
        help=f"{leaf.description} ({default})",
        show_default=False,
        rich_help_panel=leaf.section or "at the top of a TOML file, outside any table",
    )
    return option


def _shown(default: Any) -> str:
    if isinstance(default, bool) or default is None:
        return str(default).lower()
    return "empty" if default in ("", []) else str(default)
