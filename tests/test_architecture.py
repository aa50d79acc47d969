"""Hold the architecture: who imports whom, and how large files and functions may be.

The imports are read from the source, those inside functions and under `TYPE_CHECKING` too.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import speechattn

ROOT = Path(__file__).resolve().parents[1]

# Modules at ground level: every package may import them, and they import nothing else.
GROUND = {"config", "dropout", "errors", "files", "masks", "units"}
NETWORKS = {"attention", "decoders", "encoders", "frontends", "kernels"}
# Which other packages each may import, lowest first.
MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "k2": set(),
    "data": set(),
    "synth": set(),
    "attention": {"kernels"},
    "frontends": {"attention", "kernels"},
    "encoders": {"attention", "kernels"},
    "decoders": {"attention", "kernels"},
    "model": NETWORKS | {"data"},
    "lm": NETWORKS | {"data", "model"},
    "decoding": NETWORKS | {"data", "k2", "lm", "model"},
    "losses": NETWORKS | {"data", "decoding", "k2", "lm", "model"},
    "deploy": NETWORKS | {"data", "decoding", "lm", "model"},
    "evaluation": NETWORKS | {"data", "decoding", "lm", "model"},
    "transcribe": NETWORKS | {"data", "decoding", "deploy", "lm", "model"},
    "training": NETWORKS | {"data", "decoding", "deploy", "lm", "losses", "model"},
    "importing": NETWORKS | {"data", "decoding", "lm", "losses", "model"},
}
MAY_IMPORT["cli"] = {*MAY_IMPORT}

# What recognises speech needs none of these.
HEAVY = (
    "jsonargparse",
    "lhotse",
    "lightning",
    "matplotlib",
    "pytorch_lightning",
    "tensorboard",
)
FILE_LINES = 400
FUNCTION_LINES = 60
PACKAGE_LINES = 43_300

# First words of a docstring that are no verb in the imperative ...
NO_VERBS = set(
    """
    a an the this that these those it its itself our there here another any all both each every
    either neither no none some same other such only what whether how where which who whose when
    while why since until as at before behind below above after beside by for from in into like of
    on over to under up with within without if so and or but not never always also one two
    three half true false raw ready written given known exact dynamic relative straight uniform
    rotary longest hidden minus white whole attention self-attention area beam content distance
    divergence environment error face gradient hand height id intersection language layer
    log-probability mean non-maximum number optimiser optimizer part percent percentile reference
    side size sound speaker table text tile validation video wall weight width word
    """.split()
)
# ... and their forms: plurals and third persons, participles, letters, names in code.
NO_VERB = re.compile(
    r"""(?x)
    (?!(?:Process|Pass|Press|Express|Compress|Decompress|Suppress|Guess|Focus|Bias)$)[\w-]+s
    | (?!(?:Embed|Feed|Seed|Need|Speed)$)\w+ed
    | (?!(?:Bring|Spring)$)\w+ing
    | \w | [a-z].* | .*\d.* | .*[A-Z]{2,}.* | .*[^\w-].*
    """
)

# What breaks a rule and is known to. An entry that no longer does has to go.
KNOWN: dict[str, set[str]] = {}


@cache
def sources() -> dict[str, tuple[str, ast.Module]]:
    """Return text and syntax tree of each file of the package by its path."""
    files = sorted((ROOT / "speechattn").rglob("*.py"))
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in files}
    return {path: (text, ast.parse(text)) for path, text in texts.items()}


@cache
def imports() -> dict[str, set[str]]:
    """Return the modules of the package that each of its modules imports."""
    trees = {
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): tree
        for path, (_, tree) in sources().items()
    }
    edges: dict[str, set[str]] = {module: set() for module in trees}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module}: imports are absolute"
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in trees else str(node.module) for name in full]
            else:
                continue
            edges[module].update(name for name in names if name in trees)
    return edges


def package(module: str) -> str:
    """Return the folder or file right below `speechattn` that a module is in."""
    return module.split(".")[1] if "." in module else ""


def reachable(module: str) -> set[str]:
    """Return the modules that a module imports, directly or through others."""
    found: set[str] = set()
    todo = [module]
    while todo:
        new = imports()[todo.pop()] - found
        found |= new
        todo += new
    return found


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the path and node of each function of the package."""
    for path, (_, tree) in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield path, node


def check(rule: str, broken: set[str]) -> None:
    """Fail on what breaks a rule and is not in KNOWN, and on what is in it and no longer does."""
    known = KNOWN.get(rule, set())
    new, gone = sorted(broken - known), sorted(known - broken)
    assert not new, f"{rule}:\n  " + "\n  ".join(new)
    assert not gone, f"{rule}: take these out of KNOWN:\n  " + "\n  ".join(gone)


def test_each_package_has_its_place():
    packages = {package(module) for module in imports()} - {""}
    assert packages == MAY_IMPORT.keys() | GROUND
    cli, *others = reversed(MAY_IMPORT)
    assert cli == "cli"
    TopologicalSorter({name: MAY_IMPORT[name] for name in others}).prepare()  # no circles


def test_arrows_run_downwards():
    broken = set()
    for module, targets in imports().items():
        own = package(module)
        allowed = GROUND | {"", own} | MAY_IMPORT.get(own, set())
        broken |= {f"{module} -> {t}" for t in targets if package(t) not in allowed}
    check("arrows", broken)


def test_no_import_circles():
    check("circles", {module for module in imports() if module in reachable(module)})


def test_recognition_imports_no_training_library():
    code = f"""
import sys
from speechattn import Transcriber
import speechattn.transcribe
for name in speechattn.transcribe.__all__:
    getattr(speechattn.transcribe, name)
print(*sorted(set({HEAVY}) & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    check("heavy imports", set(done.stdout.split()))


def test_files_are_short():
    paths = [*(ROOT / "speechattn").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    lines = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8").count("\n") for p in paths}
    check("long files", {path for path, n in lines.items() if n > FILE_LINES})
    total = sum(n for path, n in lines.items() if path.startswith("speechattn"))
    check("long package", {"speechattn"} if total > PACKAGE_LINES else set())


def test_functions_are_short():
    broken = set()
    for path, node in functions():
        body = node.body[ast.get_docstring(node) is not None :]
        if body and body[-1].end_lineno - body[0].lineno >= FUNCTION_LINES:
            broken.add(f"{path} {node.name}")
    check("long functions", broken)


def test_docstrings_of_functions_begin_with_a_verb():
    broken: dict[str, list[str]] = defaultdict(list)
    for path, node in functions():
        words = (ast.get_docstring(node) or "").split()
        first = words[0].rstrip(",.:;") if words else "Return"
        if first.lower() in NO_VERBS or NO_VERB.fullmatch(first):
            part = path.split("/")[1].removesuffix(".py")
            broken[part].append(f"{path}:{node.lineno} {node.name}: {first}")
    new = [line for key in broken.keys() - KNOWN.get("docstrings", set()) for line in broken[key]]
    assert not new, "docstrings that begin with no verb:\n  " + "\n  ".join(sorted(new))
    check("docstrings", set(broken))


def test_the_public_face_is_complete_and_typed():
    stub = ast.parse((ROOT / "speechattn" / "__init__.pyi").read_text(encoding="utf-8"))
    names = {a.asname for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names}
    names |= {n.target.id for n in stub.body if isinstance(n, ast.AnnAssign)}
    assert sorted(names) == sorted(dir(speechattn)) == sorted(speechattn.__all__)
    assert all(hasattr(speechattn, name) for name in names)
    assert (ROOT / "speechattn" / "py.typed").is_file()
