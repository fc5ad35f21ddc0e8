"""The ground: import order of the rooms, cheap import, environment.yml against pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import rattler
import yaml
from packaging.requirements import Requirement

import drolab

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "drolab"

# Lower rooms first: a module imports only from those above it (DESIGN §3). Rooms not built yet are absent.
ROOMS = (
    *(
        "types",
        "progress",
        "tables",
        "clones",
        "formats",
        "benchmarks",
        "data",
        "prompts",
        "atomic",
        "shards",
        "checkpoints",
        "inventory",
        "store",
        "upkeep",
        "models",
        "blocks",
        "chat",
        "passes",
        "hidden",
        "anchors",
        "probes",
        "spaces",
        "moments",
        "rates",
        "heldout",
        "separability",
        "evidence",
        "readouts",
        "directions",
        "transfer",
        "ridge",
        "sweep",
        "steering",
        "objective",
        "dro",
    ),
    *("cues", "flat_no", "voice", "asked", "signs", "string_rule", "judging", "refusal_text"),
    *("guards", "classifiers", "composite"),
    *("agreement", "decoding", "responses", "first_token", "judges", "causal", "labels"),
    *("comparison", "claims", "workbench"),
    *("drift", "release_files", "released", "xstest", "published"),
    *(
        "style",
        "boundaries",
        "paint",
        "planes",
        "curves",
        "tradeoffs",
        "grids",
        "maps",
        "figures",
        "views",
        "paper",
        "images",
        "export",
        "report",
        "runs",
        "panels",
        "suite",
        "study",
        "app",
        "demo",
    ),
    "__main__",
)
CONDA_NAMES = {"torch": "pytorch", "kaleido": "python-kaleido", "xxhash": "python-xxhash"}


def drolab_imports(source: str) -> set[str]:
    """The rooms that a module imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "drolab":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("drolab.")}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def violations(room: str, source: str) -> set[str]:
    allowed = set(ROOMS[: ROOMS.index(room)]) | ({room} if (PACKAGE / room).is_dir() else set())
    return drolab_imports(source) - allowed - {"__version__"}


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_from_rooms_above(path: Path) -> None:
    assert not violations(room_of(path), path.read_text(encoding="utf-8"))


def test_the_import_check_sees_a_violation() -> None:
    assert violations("store", "from drolab.models import load_model") == {"models"}
    assert violations("store", "def f():\n    import drolab.hidden") == {"hidden"}
    assert violations("store", "from drolab import dro, types") == {"dro"}


def test_only_panels_imports_ipywidgets_and_figures_import_types_only() -> None:
    importers = {room_of(path) for path in MODULES if "import ipywidgets" in path.read_text(encoding="utf-8")}
    assert importers == {"panels"}
    pictures = {"style", "boundaries", "paint", "planes", "curves", "tradeoffs", "grids", "maps"}
    for name in (*pictures, "figures"):
        imported = drolab_imports((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        assert imported <= {"types", *pictures}


def test_import_drolab_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "pandas", "sklearn", "plotly", "ipywidgets", "umap", "scipy", "matplotlib"]
    code = f"import sys, drolab; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    assert all(getattr(drolab, name) is not None for name in drolab.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = drolab.nonsense


def project_requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {item.name: item for item in map(Requirement, project["dependencies"])}


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_environment_yml_is_valid_conda() -> None:
    content = environment()
    assert set(content) == {"name", "channels", "dependencies"}
    for line in content["dependencies"]:
        if isinstance(line, str):
            rattler.MatchSpec(line, strict=True)
    (pip_lines,) = [line["pip"] for line in content["dependencies"] if isinstance(line, dict)]
    assert pip_lines == ["-e ."]


def test_environment_yml_agrees_with_pyproject() -> None:
    lines = [line for line in environment()["dependencies"] if isinstance(line, str) and line != "pip"]
    conda = {item.name: str(item.specifier) for item in map(Requirement, lines)}
    wanted = {CONDA_NAMES.get(name, name): str(item.specifier) for name, item in project_requirements().items()}
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert conda.pop("python") in (python, ",".join(reversed(python.split(","))))
    assert conda == wanted


def test_constraints_satisfy_the_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}
    for name, requirement in project_requirements().items():
        assert requirement.specifier.contains(pins[name.lower()]), name


def test_pickle_is_never_read() -> None:
    """Weights and stored arrays are safetensors; nothing in the package opens a pickle."""
    for path in MODULES:
        assert not drolab_pickle_calls(path.read_text(encoding="utf-8")), path


def drolab_pickle_calls(source: str) -> list[str]:
    names = {"pickle", "joblib", "dill", "cloudpickle"}
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    loads = [ast.unparse(call) for call in calls if ast.unparse(call) in ("torch.load", "np.load", "numpy.load")]
    imports = [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in names
    ]
    return loads + imports


def test_the_pickle_check_sees_a_pickle() -> None:
    assert drolab_pickle_calls("import pickle") == ["pickle"]
    assert drolab_pickle_calls("x = torch.load('f')") == ["torch.load"]
