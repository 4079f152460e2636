"""Write sample_data/styles/: six styles, 16 captioned pictures each, showing only half of the things the base knows.

`python sample_data/make/folders.py` draws them anew, the same to the bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scenes import COLOURS, SETTINGS, Scene, draw_scene, random_scene, sheet
from styles import SAMPLES

SHOWN = ("house", "tree", "boat", "cat", "flower", "cup")  # the others show whether the style generalises
COUNT = 16
FIRST_SEED = 5_000_000
TARGET = Path(__file__).resolve().parent.parent / "styles"


def scene_at(style: int, k: int) -> Scene:
    """Picture k of a style: things, colours and settings in turn, the rest at random."""
    scene = random_scene(FIRST_SEED + 100 * style + k)
    fields = {
        "thing": SHOWN[k % len(SHOWN)],
        "colour": list(COLOURS)[(3 * k + style) % len(COLOURS)],
        "setting": SETTINGS[(k + k // len(SETTINGS) + style) % len(SETTINGS)],
    }
    return Scene(**{**scene.__dict__, **fields})


def main() -> None:
    rows: list[Image.Image] = []
    for number, (name, style) in enumerate(SAMPLES.items()):
        folder = TARGET / name
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(COUNT):
            scene = scene_at(number, k)
            picture = style(draw_scene(scene), np.random.default_rng(scene.seed))
            picture.save(folder / f"{name}_{k + 1:02d}.png", optimize=True)
            (folder / f"{name}_{k + 1:02d}.txt").write_text(f"{scene.caption}, {name} style\n")
            rows.append(picture)
    sheet(rows, COUNT).save(TARGET / "overview.png", optimize=True)


if __name__ == "__main__":
    main()
