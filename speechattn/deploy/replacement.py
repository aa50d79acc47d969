"""Modules of a model replaced by others that compute the same."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Old = TypeVar("Old", bound=nn.Module)


def replace_modules(
    model: nn.Module, kind: type[Old], replacement: Callable[[Old], nn.Module]
) -> int:
    """Replace the modules of a class inside a model, in place, and return how many.

    `replacement` gives the new module for an old one, or the old one to keep it.
    """
    count = 0
    for parent in list(model.modules()):
        for name, old in list(parent.named_children()):
            if isinstance(old, kind) and (new := replacement(old)) is not old:
                setattr(parent, name, new)
                count += 1
    return count
