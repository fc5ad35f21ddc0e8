"""A script of `benchmarks/` as a module, to run it small."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from helpers.tiny import ROOT


def benchmark(name: str) -> ModuleType:
    """The module `benchmarks/{name}.py`, under a name that hides no other module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
