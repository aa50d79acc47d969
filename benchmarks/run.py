"""Runs every benchmark and writes docs/benchmarks.md: `make bench`."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def cell(value: object) -> str:
    """A number, or whatever stands for it, as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[dict]) -> str:
    """Rows of a benchmark as Markdown."""
    columns = ("name", "ours", "peer", "ratio", "target", "unit", "met")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    """Exit status 1 if a benchmark could not be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    args = parser.parse_args()
    cores = os.cpu_count()
    parts = [
        "# Benchmarks",
        f"Written by `make bench`{' with --quick' if args.quick else ''} on {cores} cores of "
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}.",
    ]
    status = 0
    for script in sorted(HERE.glob("*.py")):
        if script.name in (Path(__file__).name, "rows.py"):
            continue
        print(f"== {script.name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "rows.json"
            quick = ["--quick"] if args.quick else []
            done = subprocess.run([sys.executable, script, "--json", result, *quick])
            if done.returncode == 0 and not result.exists():
                parts += [f"## {script.stem}", "Not run: it needs a trained model, see its help."]
                continue
            if done.returncode:
                status = 1
                parts += [f"## {script.stem}", "Could not be run."]
                continue
            parts += [f"## {script.stem}", table(json.loads(result.read_text()))]
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written to {args.output}")
    return status


if __name__ == "__main__":
    sys.exit(main())
