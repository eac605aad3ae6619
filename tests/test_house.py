"""The house rules that a machine can check: floors, third parties, sizes, and what the stages depend on."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aupipe"

FLOOR_0 = {"facs", "schema", "values", "recipes", "config"}
LEFT = {"archives", "assets", "storage", "processes", "datasets", "synthetic", "video", "images"}
LEFT |= {"landmarks", "blazemesh", "faces", "align", "shards", "folds", "leaks", "census", "check", "clips", "codec"}
LEFT |= {"journal", "runlog", "shared", "order", "prefetch"}
RIGHT = {"models", "losses", "metrics", "optimisers", "pixels"}
FLOOR_2 = {"loop", "training", "progress", "keeper", "resident", "features", "inference", "checkpoint", "predictor"}
FLOOR_3 = {"stream", "trainer", "tracking", "report", "figures", "inspection"}
FLOORS = {**dict.fromkeys(FLOOR_0, 0), **dict.fromkeys(LEFT | RIGHT, 1), **dict.fromkeys(FLOOR_2, 2)}
FLOORS |= {**dict.fromkeys(FLOOR_3, 3), "cli": 4}

THIRD_PARTY = {
    "numpy": set(FLOORS),
    "pyarrow": set(FLOORS),
    "cv2": {"images", "align", "blazemesh", "shards", "leaks", "codec", "synthetic"},
    "av": {"video"},
    "ai_edge_litert": {"blazemesh"},
    "h5py": {"datasets", "synthetic"},
    "scipy": {"datasets", "synthetic"},
    "sklearn": {"folds"},
    "yaml": {"config"},
    "torch": RIGHT | FLOOR_2,
    "safetensors": {"checkpoint", "features", "models"},
    "matplotlib": {"report", "figures"},
    "jinja2": {"inspection"},
    "ray": {"stream", "trainer"},
    "mlflow": {"tracking"},
    "rich": {"cli"},
    "typer": {"cli"},
}

# Adapters carry batches, sums, records and files; they are not looked through. The model's own code is hashed in the recipe.
ADAPTERS = {"stream", "resident", "shared", "prefetch", "processes", "storage", "trainer", "tracking", "models"}
# A stage that depends on a room's product does not depend on what only the making of that product needs.
PRODUCTS = {"shards": "data/shards", "datasets": "data/manifest", "folds": "data/folds"}
PINNED = {"assets"}  # how the files are made does not matter: their sha256 does, and it stands in assets.py itself


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def room(path: Path) -> str:
    """The room of a library file: its name, or its folder's."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, typing_too: bool = True) -> Iterator[str]:
    """Dotted names of everything that a file imports, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path, *, typing_too: bool = True) -> set[str]:
    parts = (name.split(".") for name in imports(path, typing_too=typing_too))
    return {p[1] for p in parts if p[0] == "aupipe" and len(p) > 1 and p[1] in FLOORS}


LIBRARY = [p for p in sources(PACKAGE) if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_and_stay_in_their_wing(path: Path) -> None:
    own = room(path)
    assert own in FLOORS, f"{own} has no floor: give it one here and in docs/design.md"
    for other in rooms_imported(path) - {own}:
        assert FLOORS[other] <= FLOORS[own], f"{own} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})"
        assert not (own in LEFT and other in RIGHT), f"{own} (left wing) imports {other} (right wing)"
        assert not (own in RIGHT and other in LEFT), f"{own} (right wing) imports {other} (left wing)"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_parties_are_used_only_in_their_rooms(path: Path) -> None:
    own = room(path)
    for name in {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"aupipe"}:
        assert name in THIRD_PARTY, f"{own} imports {name}, which has no room"
        assert own in THIRD_PARTY[name], f"{own} imports {name}, whose rooms are {sorted(THIRD_PARTY[name])}"


@pytest.mark.parametrize("path", sources(ROOT / "tests"), ids=lambda p: p.name)
def test_test_files_hold_one_room_each(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= 400


@pytest.mark.parametrize("path", sources(PACKAGE) + sources(ROOT / "pipelines") + sources(ROOT / "benchmarks"),
                         ids=lambda p: str(p.relative_to(ROOT)))  # fmt: skip
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "a file past 400 lines holds two rooms"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name} has more than 50 lines"


@pytest.mark.parametrize("path", LIBRARY + sources(ROOT / "pipelines"), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "a docstring at the head of the file"
    assert path.stem not in {"utils", "common", "helpers", "base", "misc"}


@pytest.mark.parametrize("path", LIBRARY + sources(ROOT / "pipelines"), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for forbidden in ("import pickle", "torch.load(", "yaml.load(", "allow_pickle=True", "joblib"):
        assert forbidden not in text


def test_importing_the_package_brings_no_framework() -> None:
    code = "import sys, aupipe, aupipe.config; print(*{'torch', 'ray', 'mlflow', 'cv2', 'dvc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_core_needs_no_adapter() -> None:
    """Floors 0 to 2 run on a machine without Ray, MLflow, DVC or PyAV."""
    block = "import sys; sys.modules.update(dict.fromkeys(['ray', 'mlflow', 'dvc', 'av', 'rich', 'typer', 'matplotlib']))"
    rooms = sorted(FLOOR_0 | LEFT | RIGHT | FLOOR_2)
    code = block + "\n" + "\n".join(f"import aupipe.{name}" for name in rooms)
    subprocess.run([sys.executable, "-c", code], check=True)


def stages() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("name", stages())
def test_a_stage_depends_on_the_code_that_can_change_its_result(name: str) -> None:
    stage = stages()[name]
    if stage.get("always_changed"):
        return  # looks for itself whether something changed: its keys hold the code
    listed = stage["deps"]
    assert f"pipelines/{name}.py" in listed
    data = [d for d in listed if not d.endswith(".py") and not d.startswith("aupipe/")]
    found: set[str] = set()
    waiting = rooms_imported(ROOT / "pipelines" / f"{name}.py", typing_too=False)
    while waiting:
        own = waiting.pop()
        if own in found or own in FLOOR_0 or own in ADAPTERS:
            continue
        found.add(own)
        if own not in PINNED and not any(d.startswith(PRODUCTS.get(own, "-")) for d in data):
            files = [PACKAGE / f"{own}.py"] if (PACKAGE / f"{own}.py").exists() else sources(PACKAGE / own)
            waiting |= set().union(*(rooms_imported(f, typing_too=False) for f in files))
    wanted = {f"aupipe/{own}.py" if (PACKAGE / f"{own}.py").exists() else f"aupipe/{own}" for own in found}
    assert {d for d in listed if d.startswith("aupipe/")} == wanted


def test_every_stage_has_a_door_and_every_door_a_stage() -> None:
    doors = {p.stem for p in (ROOT / "pipelines").glob("*.py") if not p.stem.startswith("_")}
    assert doors == set(stages())


def test_doors_are_not_imported() -> None:
    for path in sources(PACKAGE):
        assert not any(name.startswith("pipelines") for name in imports(path))


def test_every_library_file_has_its_test() -> None:
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests").glob("test_*.py")}
    missing = {room(p) for p in LIBRARY} - tests
    assert not missing, f"no tests/test_{min(missing, default='')}.py"
