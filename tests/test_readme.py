"""The README tells the truth about the tree, the commands and the links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TREE = README.split("## The house")[1].split("```")[1]


def in_tree(package: str) -> set[str]:
    """Paths the README's tree names below a package: two blanks of indent a level."""
    found, stack = set(), [package]
    lines = TREE.split(f"\n{package}/", 1)[1].splitlines()[1:]
    for line in lines:
        if not line.startswith("  "):
            break
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        stack = [*stack[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            found.add("/".join(stack))
    return found


@pytest.mark.parametrize("package", ["trainers", "studio"])
def test_tree_names_every_module_and_no_other(package: str) -> None:
    on_disk = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"}
    assert in_tree(package) == on_disk


def test_every_name_at_the_top_of_the_tree_exists() -> None:
    names = re.findall(r"(?:^|\s{2,})([\w.-]+(?:\.\w+|/|file|LICENSE))(?=\s{2,})", TREE, re.M)
    assert {"Makefile", "constraints.txt", "sample_data/"} <= set(names)
    missing = [name for name in re.findall(r"^([A-Za-z][\w.-]*/?)\s{2,}", TREE, re.M) if not (ROOT / name).exists()]
    assert missing == []


def test_links_and_pictures_exist() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_settings_named_in_the_readme_exist() -> None:
    from trainers.config import leaves

    keys = {leaf.key for leaf in leaves()}
    named = set(re.findall(r"`((?:lora|optim|train|prior|adapter|dataset)\.\w+)`", README))
    assert named
    assert named <= keys


def test_commands_of_the_readme_exist() -> None:
    from studio.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands <= set(re.findall(r"stylora (\w+)\b", README))
    assert set(re.findall(r"^stylora (\w+) ", README, re.M)) <= commands


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
