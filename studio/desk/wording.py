"""Errors as the pages say them: there is no command line there, so its flags and commands are said otherwise.

Try it: python -c "from studio.desk.wording import *; print(in_page_words('use --device auto'))"
"""

from __future__ import annotations

import re

ROOM = "free some space, or check the folder's rights"
FLAGS = (  # those of `stylora app` itself may be said
    "adapter|adapters|base|batch|chat|config|dataset.cache|device|dtype|energy|format|onto|out|overwrite|"
    "partial|plain|prompt|prompts|rank|set|thumbnail|to|weights|x|y"
)
SAYINGS = {  # the first that fits wins; what is left of flags and commands is put right by the last rows
    r"name another --out, or add --overwrite": "give it another name",
    r"exists; (name another, or )?add --overwrite( to write over it)?": "exists; give it another name",
    r"(free some space, or )?name another (folder with )?--(out|dataset\.cache)": ROOM,
    r"; `stylora check FILE --base …` tells how much.*": "; Fits in the Library tells how much of it can be applied",
    r"use that part with `--partial`, or ": "",
    r"name the base it is for \(`--base …`\)": "choose the base it is for",
    r"use the base it was trained on \(`--base …`\)": "use the base it was trained on",
    r"name the base (they were|it was) trained on with --base": r"choose the base \1 trained on",
    r"name the right one with --base": "choose the right base",
    r"name (a base that makes pictures|a language model) with --base, such as": r"choose \1, such as",
    r", or use --base tiny-sd": ", or use tiny-sd",
    r"name the right one with --adapter.*": "put the right one into the rack",
    r"nothing was kept; merge with --dtype fp32.*": "nothing was kept; merge into a base in fp32, which rounds least",
    r"(merge|export) (it as |with )--dtype (.*)": r"choose other numbers: \3",
    r"(move it|name another \S+), or add --overwrite": r"\1",
    r"no adapter; give --adapter \S+": "no adapter; put one into the rack",
    r"x: no axis; give --x, such as --x (\S+)": r"x: no axis; choose one, such as \1",
    r"add --chat": "choose Chat",
    r"write plainly with `stylora generate --plain`": "choose Prompt",
    r"neither --rank nor --energy says": "neither a rank nor a share of energy says",
    r"free some space, then `stylora resume`": "free some space, then press Resume",
    r"a begun run goes on with `stylora resume RUN`": "Resume goes on with it",
    r"(see )?(`stylora \w+ --help`(, )?)+( (says?|lists?|tells?|is).*)?": "put this right, then ask again",
    r"`stylora (?!app)(\w+)[^`]*`": r"\1 in a terminal",
    r"`llama-gguf-split --merge`": "llama-gguf-split",
    rf"`--({FLAGS})\b([^`]*)`": r"\1\2",
    rf"(?<![\w-])--({FLAGS})\b": r"\1",
}  # fmt: skip
RULES = [(re.compile(pattern), words) for pattern, words in SAYINGS.items()]


def in_page_words(text: str) -> str:
    """The text without flags and commands: "add --chat" becomes "choose Chat"."""
    for pattern, words in RULES:
        text = pattern.sub(words, text)
    return text
