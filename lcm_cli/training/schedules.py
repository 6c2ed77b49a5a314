"""Learning-rate schedules: the rate of each step, 0 to `steps` - 1.

All but `constant` warm up linearly from `initial_rate`, reaching `learning_rate` at step `warmup`:

    cosine        half a cosine down to `final_rate` at `steps`
    linear        a straight line down to `final_rate`
    wsd           hold, then decay exponentially to `final_rate` over the last fraction `decay` of
                  the steps (linearly if it is 0, which an exponential does not reach)
    inverse_sqrt  decay as 1 / sqrt(step), without a final rate
    constant      no warm-up, no decay

The weights of losses follow schedules of their own (`loss_weight`).
"""

import math

from lcm_cli.training.recipes.model import Ramp, Training


def rate(step: int, options: Training) -> float:
    """Return the learning rate of a step."""
    peak, final = options.learning_rate, options.final_rate
    if options.schedule == "constant":
        return peak
    if step < options.warmup:
        return options.initial_rate + (peak - options.initial_rate) * step / options.warmup
    if options.schedule == "inverse_sqrt":
        return peak * math.sqrt(max(options.warmup, 1) / max(step, 1))
    if options.schedule == "wsd":
        return _decay(step, options)
    done = min(1.0, (step - options.warmup) / max(1, options.steps - options.warmup))
    left = (1 + math.cos(math.pi * done)) / 2 if options.schedule == "cosine" else 1 - done
    return final + (peak - final) * left


def _decay(step: int, options: Training) -> float:
    length = max(1, round(options.steps * options.decay))
    done = min(1.0, max(0.0, (step - (options.steps - length)) / length))
    peak, final = options.learning_rate, options.final_rate
    return peak * (final / peak) ** done if final > 0 else peak * (1 - done)


def loss_weight(weight: float | Ramp, step: int, steps: int) -> float:
    """Return the weight of a loss in a step, 0 to `steps` - 1."""
    if not isinstance(weight, Ramp):
        return weight
    done = min(1.0, step / max(1, steps - 1))
    if weight.schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return weight.start + (weight.end - weight.start) * done
