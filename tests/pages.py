"""What the tests of the studio's pages share: a page opened for a desk without a browser, on the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from studio.app import config, state
from studio.desk.engine import Engine

DESK = "a-desk-of-sixteen-letters"


@contextmanager
def engine_of(home: Path, base: str, text_base: str) -> Iterator[Engine]:
    """The pages' own engine, on this home and these bases."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in config.Options(home, base, text_base).to_environment().items():
            patch.setenv(name, value)
        patch.setattr(state, "WARM_AFTER", 1e6)
        opened = state.engine()
        try:
            yield opened
        finally:
            opened.training.close()
            state.close()


def visit(engine: Engine, page: str, **drafts: Any) -> AppTest:
    """The page as a desk sees it that has these drafts ("blend__rack") besides those of before."""
    for name, value in drafts.items():
        engine.store.put(f"drafts/{DESK}/{name.replace('__', '.')}", value)
    at = AppTest.from_file(str(config.MAIN), default_timeout=60)
    at.query_params["desk"] = DESK
    at.run()
    at.switch_page(f"views/{page}.py").run()
    return sound(at)


def sound(at: AppTest) -> AppTest:
    assert not at.exception, at.exception[0].value
    return at


def draft(at: AppTest, name: str) -> Any:
    return at.session_state["drafts"].get(name)


def finished(at: AppTest, engine: Engine, *jobs: int) -> AppTest:
    """The page when these jobs are over."""
    for job in jobs:
        assert engine.wait(job, 60).over
    return sound(at.run())


def said(at: AppTest) -> str:
    """All that stands on the page as text."""
    kinds = (at.markdown, at.caption, at.error, at.info, at.success, at.text, at.subheader)
    html = [str(one.proto.body) for one in at.get("html")]
    return "\n".join([*(str(one.value) for kind in kinds for one in kind), *html]).replace("\\", "")
