"""What trainings of recipes have in common: the schedule of a cycle, and steps that can be stopped and gone on with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tqdm.auto import tqdm

from drolab.errors import TrainingError


def digest(recipe: Any) -> str:
    """Names a recipe (a dataclass) in checkpoints, so that none is resumed with another one."""
    return hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()


def one_cycle(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate: a linear warm-up, then half a cosine down to a hundredth of the peak."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def take_steps(
    done: int,
    stop: int,
    total: int,
    *,
    backward: Callable[[int], float],
    update: Callable[[int], None],
    save: Callable[[int], None],
    save_every: int,
    desc: str,
    progress: bool,
) -> int:
    """From step `done` on to `stop`, of `total`; returns how many are done.

    Args:
        backward: gradients of a step; returns its loss.
        update: of the weights, by these gradients.
        save: a checkpoint after so many steps. Ctrl-C writes one, too.

    Raises:
        TrainingError: a loss that is not finite.
    """
    whole = True  # False while an update is under way: an interrupt there leaves weights that are no step's
    with tqdm(total=total, initial=done, desc=desc, unit="step", disable=not progress) as bar:
        try:
            while done < stop:
                loss = backward(done)
                if not math.isfinite(loss):
                    raise TrainingError(f"The loss is {loss} at step {done}: lower the learning rate.")
                whole = False
                update(done)
                done, whole = done + 1, True
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if done % save_every == 0:
                    save(done)
        except KeyboardInterrupt:
            if whole and done:
                save(done)
            bar.write("Stopped. Start again with the same arguments to go on from the checkpoint.")
            raise
    return done
