"""Learning rates over steps, as factors of the highest."""

import math


def warmup_cosine(step: int, warmup: int, total: int, floor: float = 0.01) -> float:
    """Rise linearly for `warmup` steps, then fall along half a cosine to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))


def noam(step: int, warmup: int) -> float:
    """Rise linearly for `warmup` steps, then fall with the inverse square root (1706.03762)."""
    step, warmup = step + 1, max(1, warmup)
    return min(step / warmup, math.sqrt(warmup / step))
