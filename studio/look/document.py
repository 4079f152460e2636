"""What was measured as JSON can hold it.

Try it: python -c "from studio.look.document import *; print(plain({1: (float('nan'), 2)}))"
"""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> Any:
    """As JSON has it: keys are texts, and numbers that it doesn't know (NaN, infinity) are null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
