"""Pictures on the pages: thumbnails of adapters and of what was drawn, as small cached files, and what stands by them.

Try it: `stylora app`, then Library
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from typing import TYPE_CHECKING

import streamlit as st
from PIL import Image, ImageDraw

from studio.app import state
from trainers.errors import RunError, StyloraError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamlit.elements.lib.grid_container import GridContainer

    from studio.desk.library import Entry
    from studio.desk.rows import PictureRow

SIDE = 320  # pixels of a thumbnail at the most
SHOWN = "generate.shown"  # the draft of the pictures on the canvas
HUES = ("#b8472d", "#2c6e8f", "#7a8b3a", "#8a5a9e", "#c79a2e", "#4d7f73")
FAMILIES = {"sd1": "SD 1", "sd2": "SD 2", "sdxl": "SDXL", "lm": "language model", "": "unknown family"}


def thumbnail(entry: Entry) -> bytes:
    """The adapter's picture, or a sign drawn from its digest, the same at every visit; grey for a broken file."""
    return state.engine().library.thumbnail(entry.id) or sign(entry.id, entry.kind)


@st.cache_data(max_entries=512, show_spinner=False)
def sign(digest: str, kind: str) -> bytes:
    """A pattern of a digest: bars like lines of text, or a patchwork for pictures."""
    dice = hashlib.sha256(digest.encode()).digest()
    one, two = HUES[dice[0] % len(HUES)], HUES[(dice[0] + 1 + dice[1] % (len(HUES) - 1)) % len(HUES)]
    one, two = (one, two) if kind else ("#9a968f", "#7c7871")
    image = Image.new("RGB", (128, 128), one)
    pen = ImageDraw.Draw(image, "RGBA")
    for k in range(6):
        x, y, r = dice[3 * k + 2] / 2, dice[3 * k + 3] / 2, 14 + dice[3 * k + 4] % 40
        if kind == "text":
            pen.rounded_rectangle((18, 18 + 16 * k, 50 + r, 26 + 16 * k), 4, "#ffffffb0")
        else:
            pen.ellipse((x - r, y - r, x + r, y + r), two + "90")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@st.cache_data(max_entries=1024, show_spinner=False)
def small(file: str, side: int = SIDE) -> bytes:
    """A drawn picture as JPEG of at most `side` pixels; its file never changes, so its name is the key.

    Raises RunError: the file is gone or broken.
    """
    try:
        with Image.open(file) as picture:
            image = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them
        reason = getattr(error, "strerror", None) or "not a whole picture"
        raise RunError(f"this picture's file can't be read: {reason}", next_step="delete it") from None
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def within(jpeg: bytes) -> str:
    """A JPEG as an address that holds it: a preview that comes so is seen without asking the server once more."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def line(entry: Entry) -> str:
    """An adapter in a list of choices."""
    return " · ".join(part for part in (entry.name, entry.trigger, FAMILIES.get(entry.family, entry.family)) if part)


def facts(entry: Entry) -> str:
    """Family, base, rank and size in one line."""
    size = f"{entry.size / 2**20:.1f} MB" if entry.size >= 2**20 else f"{entry.size / 1024:.0f} kB"
    parts = (
        FAMILIES.get(entry.family, entry.family),
        entry.base_name,
        f"rank {entry.rank}" if entry.rank else "",
        size,
    )
    return " · ".join(part for part in parts if part)


# --- what was drawn -------------------------------------------------------------------------------------------------


def square(many: int) -> GridContainer:
    """A grid about as wide as high."""
    return st.grid(math.ceil(math.sqrt(many)), min_column_width=90, gap="small")


def file_of(picture: PictureRow) -> Path:
    """Where a picture lies. Raises RunError: its file is gone."""
    path = state.engine().store.picture_path(picture)
    if not path.is_file():
        raise RunError(f"the file of picture {picture.id} is gone", next_step="draw it again")
    return path


def there(pictures: Sequence[PictureRow], tell: bool = False) -> list[PictureRow]:
    """Those whose file is there; `tell`: of the others in a caption."""
    found = [picture for picture in pictures if state.engine().store.picture_path(picture).is_file()]
    if tell and (gone := len(pictures) - len(found)):
        st.caption("The file of 1 picture is gone." if gone == 1 else f"The files of {gone} pictures are gone.")
    return found


def tile(picture: PictureRow, side: int = SIDE, where: str = "history") -> None:
    """A small picture that opens when clicked."""
    with st.container(key=f"tile_{where}_{picture.id}"):
        try:
            st.image(small(str(file_of(picture)), side), width="stretch")
        except StyloraError:  # opened, it says why
            st.caption(f"picture {picture.id} can't be read")
        st.button(f"Open picture {picture.id}", key=f"{where}.open.{picture.id}", on_click=choose,
                  args=(picture.id,))  # fmt: skip


def choose(picture: int) -> None:
    state.put(SHOWN, [picture])
    state.note("outcomes", [])
