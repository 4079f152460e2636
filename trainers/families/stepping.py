"""A sampler's steps: how many it can take, how many are over after a call of the UNet, what it takes the picture to be.

Try it: python -c "from trainers.families.stepping import *; print(steps_over([9, 5, 5, 1], call=1, steps=3))"
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor

from trainers.errors import ConfigError


def check_steps(scheduler: Any, steps: int, sampler: str | None = None) -> None:
    """Raises ConfigError where a diffusers scheduler can't take so many steps on its base's noise schedule."""
    if has_steps(scheduler, steps):
        return
    most = next((fewer for fewer in range(steps - 1, 0, -1) if has_steps(scheduler, fewer)), 0)
    name, trained = sampler or type(scheduler).__name__, scheduler.config.num_train_timesteps
    raise ConfigError(
        f"steps: got {steps}, wanted at most {most}, as many as {name} can take of this base's {trained} timesteps",
        next_step=f"take {most} steps, or another sampler" if most else "take another sampler",
    )


def has_steps(scheduler: Any, steps: int) -> bool:
    """Whether they all lie on the schedule, and aren't all one: diffusers plans others too, and fails on the way."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, over diffusers' code
            scheduler.set_timesteps(steps)
    except ValueError:  # by which some of its schedulers refuse
        return False
    timesteps = scheduler.timesteps.tolist()
    return max(timesteps) < scheduler.config.num_train_timesteps and (steps == 1 or len(set(timesteps)) > 1)


def steps_over(timesteps: Sequence[float], call: int, steps: int) -> int:
    """How many of the steps are over after a call of the UNet: PNDM and Heun call it again at the same timestep."""
    if len(timesteps) == steps:  # among which rounding may have made some alike
        return call + 1
    each = list(dict.fromkeys(timesteps))
    over = each.index(timesteps[call + 1]) if call + 1 < len(timesteps) else len(each)
    return over * steps // len(each)


def guesses(scheduler: Any) -> Callable[[Tensor], Tensor]:
    """Watch a diffusers scheduler; the function gives, after a step, its guess of the finished latents.

    DDIM and Euler hand it out with each step, the DPM-Solvers and UniPC keep it. Where there is none (PNDM) the latents
    that the function is given stand for it, noise and all. What the scheduler computes stays as it is.
    """
    step, last = scheduler.step, list[Tensor]()

    @wraps(step)  # diffusers asks a step for its parameters
    def watched(*args: Any, **more: Any) -> Any:
        made = step(*args, **more)
        last[:] = made[1:2] if isinstance(made, tuple) else ()
        return made

    def guess(latents: Tensor) -> Tensor:
        kept = getattr(scheduler, "model_outputs", None) or [None]
        found = last[0] if last else kept[-1]
        return latents if found is None else found

    scheduler.step = watched
    return guess
