"""The house: imports go down, only some folders know some libraries, and starting is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bmscale"

# From the cellar up. A module may import from its own floor and from those below, and never in a circle.
FLOORS = [
    {"errors", "config"},
    {"data", "model"},
    {"experiment"},
    {"engine"},
    {"inference"},
    {"evaluation"},
    {"planning"},
    {"training", "deployment", "cluster"},
    {"benchmark", "doctor", "scaling"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(("bmscale", *(part for part in parts if part != "__init__")))] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports anywhere, inside functions and type checks as well."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else str(node.module))
    return names


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def test_every_module_has_a_floor():
    assert {room(name) for name in modules() if room(name)} <= set(FLOOR)


def test_imports_go_down():
    known = modules()
    rooms = {
        (str(room(name)), str(room(other)))
        for name, path in known.items()
        for other in imported(path, known)
        if other in known and room(name) and room(other)
    }
    assert ("training", "engine") in rooms  # the search finds something
    upward = [f"{name} imports {other}" for name, other in rooms if FLOOR[name] < FLOOR[other]]
    assert not upward
    beside = [(one, other) for one, other in rooms if one < other and (other, one) in rooms]
    assert not beside, f"rooms that import each other: {beside}"


def test_no_circles():
    known = modules()
    below = {name: {other for other in imported(path, known) if other in known} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in below[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in known:
        visit(name, ())


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("accelerate", "engine/"),
        ("deepspeed", "engine/"),
        ("datasets", "data/corpus.py"),
        ("pyarrow", "data/corpus.py"),
    ],
)
def test_only_one_place_knows(library, allowed):
    for path in modules().values():
        place = path.relative_to(PACKAGE).as_posix()
        libraries = {name.split(".")[0] for name in imported(path, {})}
        assert library not in libraries or place.startswith(allowed), place


def test_the_model_knows_no_rank_and_no_batch():
    known = modules()
    for name, path in known.items():
        if room(name) == "model":
            ours = {room(other) for other in imported(path, known) if other.startswith("bmscale")}
            assert ours <= {"model", "errors", "config"}, name


def test_no_drawers():
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert not drawers & {part for path in PACKAGE.rglob("*.py") for part in path.with_suffix("").parts}


@pytest.mark.parametrize(
    "code", ["import bmscale", "from bmscale.cli import build_parser; build_parser().format_help()"]
)
def test_starting_imports_nothing_heavy(code):
    heavy = "('torch', 'transformers', 'deepspeed', 'numpy', 'datasets')"
    program = f"{code}; import sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_training_from_shards_needs_no_datasets():
    program = (
        "import sys; sys.modules['datasets'] = None; sys.modules['pyarrow'] = None\n"
        "import bmscale.training.train, bmscale.evaluation.evaluate; print('fine')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "fine\n", result.stderr
