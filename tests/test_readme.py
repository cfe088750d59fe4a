"""The commands of the README, run in a copy of the project as a reader would type them (tests/run.sh itself aside)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "bmscale"
    if (ROOT / ".git").exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        listed = subprocess.run(
            ["git", "ls-files", "-mo", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in listed.stdout.splitlines():  # what is not committed yet is tested as well
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def run(command: str, folder: Path) -> str:
    environment = {**os.environ, "BMSCALE_ENV": "active", "PYTHONPATH": str(folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def test_the_commands_are_those_that_are_tested_here():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert commands[:2] == ["bash launch/quickstart.sh", "bash tests/run.sh"]
    assert len(commands) == 6


def test_the_readme_works_from_top_to_bottom(clone):
    """Quickstart, then the five steps, which find everything there, then the Python example."""
    shown = run("bash launch/quickstart.sh", clone)
    assert shown.count("    -> ") == 5
    import json

    results = json.loads((clone / "runs/toy/results.json").read_text())
    bleu = results["test"]["toy-test"]["scores"]["bleu"]
    assert bleu["score"] >= 80
    assert "tok:13a" in bleu["signature"]
    outputs = [run(line, clone) for block in blocks("sh")[2:] for line in block.splitlines()]
    assert "Haus" in outputs[-1]
    (program,) = blocks("python")
    assert "Haus" in run(f"python - <<'END'\n{program}END", clone)
