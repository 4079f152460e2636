"""How a language model's next token is chosen, as plain numbers; importing it loads no library.

Try it: python -c "from trainers.families.sampling import *; print(Sampling(temperature=-1).faults())"
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the penalty divides logits of tokens that stand there, then temperature, k, p."""

    max_tokens: int = 200
    temperature: float = 0.8  # 0: always the likeliest token
    top_p: float = 0.95  # the likeliest tokens that make up this share; 1: all
    top_k: int = 0  # so many of the likeliest tokens; 0: all
    repetition_penalty: float = 1.0  # 1: none

    def faults(self) -> list[str]:
        """Everything that is out of range."""
        wanted = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature <= 100, "0 to 100; 0 takes the likeliest token"),
            "top_p": (0 < self.top_p <= 1, "more than 0, 1 at the most"),
            "top_k": (self.top_k >= 0, "at least 0; 0 takes all tokens"),
            "repetition_penalty": (0 < self.repetition_penalty <= 100, "more than 0, 100 at the most; 1 is none"),
        }
        return [f"{key}: got {getattr(self, key)}, wanted {text}" for key, (fits, text) in wanted.items() if not fits]
