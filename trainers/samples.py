"""Where the bases and styles that come with stylora lie, in a checkout or in an installed wheel.

Try it: `python -c "from trainers.samples import style_names; print(style_names())"`
"""

from __future__ import annotations

from pathlib import Path

from trainers.errors import BaseError, DatasetError, StyloraError

PACKAGE = Path(__file__).resolve().parent
PARTS = ("bases", "styles", "text")  # a folder with none of them is somebody else's `sample_data`
BASE_MARKS = ("model_index.json", "config.json")  # of a diffusers folder, of a transformers folder


def sample_data() -> Path:
    """The checkout's top-level `sample_data`, else the one inside the package (the wheel's: one base, one style)."""
    candidates = (PACKAGE.parent / "sample_data", PACKAGE / "sample_data")
    for folder in candidates:
        if any((folder / part).is_dir() for part in PARTS):
            return folder
    raise StyloraError(
        "the sample data that comes with stylora isn't there",
        [f"looked for {folder} with {' or '.join(PARTS)} in it" for folder in candidates],
        "install the wheel again, or name a base folder and a picture folder of your own",
    )


def base_names() -> tuple[str, ...]:
    """Names of the bases that came with stylora: folders that diffusers or transformers can load."""
    found = (path.parent.name for mark in BASE_MARKS for path in sample_data().glob(f"bases/*/{mark}"))
    return tuple(sorted(found))


def base_folder(name: str) -> Path:
    """The folder of an embedded base; `BaseError` if there is none of that name."""
    if name not in (names := base_names()):
        raise BaseError(
            f"no base called {name!r} comes with stylora",
            [f"looked in {sample_data() / 'bases'}", f"there: {', '.join(names) or 'none'}"],
            "name one of these, a folder of a model or a hub id",
        )
    return sample_data() / "bases" / name


def style_names() -> tuple[str, ...]:
    """Names of the sample styles that came with stylora, in alphabetical order."""
    return tuple(sorted(path.name for path in sample_data().glob("styles/*") if path.is_dir()))


def style_folder(name: str) -> Path:
    """The picture folder of a sample style; `DatasetError` if there is none of that name."""
    if name not in (names := style_names()):
        raise DatasetError(
            f"no sample style called {name!r} comes with stylora",
            [f"looked in {sample_data() / 'styles'}", f"there: {', '.join(names) or 'none'}"],
            "name one of these, or a folder of pictures of your own",
        )
    return sample_data() / "styles" / name


def text_names() -> tuple[str, ...]:
    """Names of the sample writing styles that came with stylora, in alphabetical order."""
    return tuple(sorted(path.name for path in sample_data().glob("text/*") if path.is_dir()))


def text_folder(name: str) -> Path:
    """The folder of texts of a sample writing style; `DatasetError` if there is none of that name."""
    if name not in (names := text_names()):
        raise DatasetError(
            f"no sample writing style called {name!r} comes with stylora",
            [f"looked in {sample_data() / 'text'}", f"there: {', '.join(names) or 'none'}"],
            "name one of these, or a folder of texts of your own",
        )
    return sample_data() / "text" / name
