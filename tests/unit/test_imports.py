"""The import rule: app → components → backends → mole → lego, and no page or hub below the page."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ["lego", "mole", "backends", "components", "app"]
# Readers of other tools' files use diffusers' converters, imported when such a file is read.
EXCEPTIONS = {"lego/formats/kohya.py": {"diffusers"}}
FORBIDDEN = {
    "lego": {"gradio", "plotly", "spaces", "huggingface_hub", "transformers", "diffusers", "peft"},
    "mole": {"gradio", "plotly", "spaces", "huggingface_hub", "transformers", "diffusers", "peft"},
    "backends": {"gradio", "plotly"},
}


def imported(file: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py")) if package != "app" else [ROOT / "app.py"]


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    above = set(ORDER[ORDER.index(package) + 1 :]) | {"tests", "benchmarks"}
    found = files(package)
    assert found, f"{package} has no files"
    for file in found:
        name = file.relative_to(ROOT).as_posix()
        wrong = imported(file) & (above | FORBIDDEN.get(package, set())) - EXCEPTIONS.get(name, set())
        assert not wrong, f"{name} imports {wrong}"


def test_the_converters_are_imported_late() -> None:
    """Reading a PEFT folder must not wait seconds for diffusers."""
    code = "import sys, lego; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_rule_sees_a_breach(tmp_path: Path) -> None:
    breach = tmp_path / "breach.py"
    breach.write_text("def late():\n    from components.page import create\n    import gradio.blocks\n")
    assert imported(breach) == {"components", "gradio"}
