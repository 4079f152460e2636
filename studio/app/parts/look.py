"""How the pages look beyond the theme: a few lines of CSS and the sign in the browser's tab.

Try it: `stylora app`
"""

from __future__ import annotations

import streamlit as st
from PIL import Image, ImageDraw

from studio.app import config

CSS = """<style>
.block-container {padding: 4.25rem 2rem 3rem; max-width: 1560px}
[data-testid="stImage"] img {border-radius: 8px}
.st-key-desk_keeper, .st-key-look {display: none}
.feel {position: relative; height: 1.1rem; margin: -1.6rem 6px 0; font-size: .75rem; opacity: .75}
.feel i {position: absolute; top: 0; transform: translateX(-50%); font-style: normal; white-space: nowrap}
[class*="st-key-title_"] button {min-height: 0; padding: 0; font-size: .85rem}
.stMarkdown table thead {display: none}
.feel i::before {content: ""; display: block; width: 2px; height: 6px; margin: 0 auto; background: currentColor}
[class*="st-key-canvas_"] {min-height: min(60vw, 544px); justify-content: center; border-radius: 12px; padding: 1.1rem;
  background: color-mix(in srgb, currentColor 5%, transparent)}
[class*="st-key-canvas_"] img {max-height: 76vh; object-fit: contain}
[class*="st-key-tile_"] {position: relative}
[class*="st-key-tile_"] [class*="st-key-"] {position: absolute; inset: 0; opacity: 0}
[class*="st-key-tile_"] [class*="st-key-"] div, [class*="st-key-tile_"] button {width: 100%; height: 100%}
:is([class*="st-key-tile_"], [class*="st-key-card_"]) [data-testid="stElementToolbar"] {display: none}
[class*="st-key-tile_"]:hover img {filter: brightness(1.08)}
.receipt, .written {white-space: pre-wrap; border-radius: 10px; padding: .7rem .9rem; margin: 0 0 .5rem;
  background: color-mix(in srgb, currentColor 5%, transparent); font-size: .92rem; line-height: 1.55}
.receipt small, .written span {opacity: .55}
.written {font-family: serif; font-size: 1.05rem; min-height: 3rem}
.written.small {font-size: .9rem; padding: .5rem .7rem; margin: 0}
.voice {aspect-ratio: 1; overflow: hidden; font: italic .82rem/1.45 serif; padding: .7rem; border-radius: 8px;
  background: color-mix(in srgb, currentColor 7%, transparent)}
.receipt mark {background: color-mix(in srgb, #7a8b3a 32%, transparent); color: inherit; border-radius: 3px}
@media (min-width: 900px) {.st-key-stage {position: sticky; top: 4.25rem}}
@media (max-width: 640px) {.block-container {padding: 4rem .8rem 3rem}}
</style>"""


def icon() -> Image.Image:
    """The sign in the browser's tab, 64 x 64, drawn here: one by name would be fetched from the net."""
    image = Image.new("RGBA", (64, 64))
    pen = ImageDraw.Draw(image)
    for x, y, colour in zip((4, 22, 13), (6, 6, 22), config.LIGHT["chartCategoricalColors"], strict=False):
        pen.ellipse((x, y, x + 36, y + 36), f"{colour}d8")
    return image


def dress() -> None:
    """Put the CSS into the page."""
    with st.container(key="look"):
        st.html(CSS)
