"""The ground: import order of the rooms, cheap import, environment.yml against pyproject.toml."""

from __future__ import annotations

import ast
import importlib
import re
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

# From the ground up: each imports only from those before it. A folder is a wing, the rest are single files.
HOUSE = (
    *("errors", "files", "types", "progress", "threads", "intervals"),
    *("store", "figures", "data", "models", "inference", "probing", "judges", "dro", "evidence", "export", "panels"),
    *("findings", "report", "check", "notebooks", "reproduction", "harnesses", "cluster", "dashboard", "__main__"),
)
CONDA_NAMES = {"torch": "pytorch", "kaleido": "python-kaleido", "xxhash": "python-xxhash"}


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
Import = tuple[str, str | None]  # what is imported from, below drolab, and the name; None for a plain import


def drolab_imports(source: str) -> set[Import]:
    """What a module imports from drolab, wherever in the file it does."""
    found: set[Import] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "drolab":
            found |= {(node.module.partition(".")[2], alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name[7:], None) for alias in node.names if alias.name.startswith("drolab.")}
    return found - {("", "__version__")}


def place_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def face(wing: str) -> set[str]:
    """The public names of a wing or a file."""
    path = PACKAGE / wing / "__init__.py"
    tree = ast.parse((path if path.exists() else PACKAGE / f"{wing}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return {name for name in vars(importlib.import_module(f"drolab.{wing}")) if not name.startswith("_")}


def violations(place: str, source: str) -> set[str]:
    """Imports from further up, from inside another wing, or of what another wing does not offer."""
    found = set()
    for module, name in drolab_imports(source):
        path = ".".join(filter(None, (module, name)))
        other, _, inside = (module or path).partition(".")
        if other == place:
            continue
        up = other not in HOUSE[: HOUSE.index(place)]
        if up or inside or (module and name and name not in face(other)):
            found.add(path)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_wing_imports_only_the_faces_of_those_below_it(path: Path) -> None:
    assert not violations(place_of(path), path.read_text(encoding="utf-8"))


def test_the_import_check_sees_a_violation() -> None:
    assert violations("store", "from drolab.models import load_model") == {"models.load_model"}
    assert violations("store", "def f():\n    import drolab.inference.hidden") == {"inference.hidden"}
    assert violations("store", "from drolab import dro, types") == {"dro"}
    assert violations("models", "from drolab.store.shards import Shards") == {"store.shards.Shards"}
    assert violations("dro", "from drolab.models import _private") == {"models._private"}
    assert not violations("dro", "from drolab.models import ChatModel\nfrom drolab.dro.objective import losses")


def test_every_module_has_its_place() -> None:
    assert {place_of(path) for path in MODULES} == set(HOUSE)


def test_only_panels_imports_ipywidgets_and_figures_know_the_ground_alone() -> None:
    importers = {place_of(path) for path in MODULES if "import ipywidgets" in path.read_text(encoding="utf-8")}
    assert importers == {"panels"}
    for path in (PACKAGE / "figures").glob("*.py"):
        places = {module.partition(".")[0] for module, _ in drolab_imports(path.read_text(encoding="utf-8"))}
        assert places <= {"figures", "types", "errors"}


def test_only_cluster_knows_ray_and_not_before_it_is_asked() -> None:
    importing = re.compile(r"^( *)(?:import|from) ray\b", re.MULTILINE)
    found = {
        (place_of(path), bool(indent))
        for path in MODULES
        for indent in importing.findall(path.read_text(encoding="utf-8"))
    }
    assert found == {("cluster", True)}


def test_nothing_in_drolab_imports_a_recipe() -> None:
    for path in MODULES:
        assert "recipes" not in path.read_text(encoding="utf-8").replace("recipes/", ""), path


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
