"""What JSON does not know is put as it does."""

from __future__ import annotations

import json

from studio.look.document import plain


def test_what_json_does_not_know() -> None:
    found = plain({1: (float("nan"), 2.5, {"a": [float("-inf"), None, "x"]})})
    assert found == {"1": [None, 2.5, {"a": [None, None, "x"]}]}
    json.dumps(found, allow_nan=False)
