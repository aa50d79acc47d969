"""Runs benchmarks, keeps their rows in docs/benchmarks/, writes docs/benchmarks.md: `make bench`.

python benchmarks/run.py                        all of them
python benchmarks/run.py roi loading            these; the others' rows stay as they are
python benchmarks/run.py decoding -- --only X   with options of its own: its other rows stay
python benchmarks/run.py --page                 none: the page alone, from the rows that are kept
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
NOT_BENCHMARKS = ("run", "rows", "espnet_search")


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


def merged(before: list[dict], new: list[dict]) -> list[dict]:
    """The rows with those of the same name replaced, and the others at the end."""
    found = {row["name"]: row for row in new}
    rows = [found.pop(row["name"], row) for row in before]
    return rows + list(found.values())


def write_page(folder: Path) -> None:
    """`docs/benchmarks.md`: the introduction in `folder`, then a table a file of rows."""
    introduction = folder / "introduction.md"
    parts = ["# Benchmarks"]
    if introduction.exists():
        parts.append(introduction.read_text(encoding="utf-8").strip())
    for path in sorted(folder.glob("*.json")):
        parts += [f"## {path.stem}", table(json.loads(path.read_text(encoding="utf-8")))]
    page = folder.with_suffix(".md")
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written to {page}")


def main() -> int:
    """Exit status 1 if a benchmark could not be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in NOT_BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="small ones; the page stays as it is")
    parser.add_argument("--page", action="store_true", help="run none")
    own = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    args = parser.parse_args(sys.argv[1 : len(sys.argv) - len(own) - bool(own)])
    for name in args.names:
        if name not in known:
            parser.error(f"no benchmark {name}; there are {', '.join(known)}")
    folder = DOCS / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"
    print(f"{machine}, Python {platform.python_version()}", flush=True)
    status = 0
    for name in [] if args.page else args.names or known:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            result = Path(temporary) / "rows.json"
            options = [*own, *(["--quick"] if args.quick else []), "--json", result]
            done = subprocess.run([sys.executable, HERE / f"{name}.py", *options])
            if done.returncode:
                status = 1
                print(f"{name} could not be run", flush=True)
            elif not result.exists():
                print(f"{name} needs a trained model, see its help", flush=True)
            elif not args.quick:
                path = folder / f"{name}.json"
                rows = json.loads(result.read_text())
                if own and path.exists():
                    rows = merged(json.loads(path.read_text(encoding="utf-8")), rows)
                path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if not args.quick:
        write_page(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
