"""What a Hugging Face Space reads: the front matter, the requirements, and the order of the app's imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def front_matter() -> dict:
    return yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def requirements() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {each.name: each for each in found}


def test_the_front_matter_says_what_a_space_needs() -> None:
    facts = front_matter()
    assert facts["sdk"] == "gradio"
    assert requirements()["gradio"].specifier.contains(str(facts["sdk_version"]))
    assert (ROOT / facts["app_file"]).is_file()
    assert facts["hf_oauth"] is True
    assert facts["hf_oauth_scopes"] == ["contribute-repos"]
    assert len(facts["short_description"]) <= 60


@pytest.mark.parametrize(("lends", "code"), [("true", 5), ("", 0)])
def test_the_lender_is_imported_first_and_only_where_gpus_are_lent(tmp_path: Path, lends: str, code: int) -> None:
    """ZeroGPU's module must come before anything touches CUDA."""
    (tmp_path / "spaces.py").write_text("import sys\nsys.exit(6 if 'torch' in sys.modules else 5)\n")
    # Stops the import of the app where its first heavy import would begin.
    (tmp_path / "components.py").write_text("import sys\nsys.exit(0)\n")
    environment = {**os.environ, "SPACES_ZERO_GPU": lends, "PYTHONPATH": str(tmp_path)}
    run = "import sys; sys.path.insert(0, sys.argv[1]); exec(compile(open('app.py').read(), 'app.py', 'exec'))"
    done = subprocess.run([sys.executable, "-c", run, str(tmp_path)], cwd=ROOT, env=environment, check=False)
    assert done.returncode == code
