"""What several test folders need: a small prepared corpus, and the command line as a process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = """\
name: tiny
data:
  directory: prepared
  source_language: en
  target_language: de
  train: {toy: train, pairs: 600}
  valid: {toy: valid, pairs: 40}
  tokenizer: {vocabulary_size: 300}
model: {hidden_size: 32, num_attention_heads: 2, num_encoder_layers: 1, num_decoder_layers: 1, dropout: 0.1}
training:
  tokens_per_step: 600
  max_micro_batch_tokens: 500
  max_steps: 12
  precision: fp32
  optimizer: {learning_rate: 5.0e-3}
  schedule: {type: constant, warmup_steps: 4}
  log_every_steps: 2
  save_every_steps: 4
evaluation:
  every_steps: 6
  pairs: 6
  test: [{toy: test, pairs: 20}]
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


def run_bmscale(
    *arguments: str, folder: Path, ranks: int = 1, stdin: str = "", check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, on so many ranks; its output as text."""
    command = [sys.executable, "-m", "bmscale", *arguments]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [*launcher, "-m", "bmscale", *arguments]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr[-4000:]
    return result


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="slow proofs in full: all kills, the whole elastic matrix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's quickstart is by far the longest test: with tests side by side it must not begin last."""
    items.sort(key=lambda item: "test_readme" not in item.nodeid)


@pytest.fixture(scope="session")
def bmscale() -> Command:
    """The command line as a function: `bmscale("train", "tiny.yaml", folder=…, ranks=2)`."""
    return run_bmscale


@pytest.fixture(scope="session")
def prepared_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("once") / "work"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    run_bmscale("prepare", "tiny.yaml", folder=folder)
    return folder


@pytest.fixture(scope="module")
def prepared(prepared_once, tmp_path_factory) -> Path:
    """A folder with tiny.yaml and its prepared data; each test file has its own, so that no run meets another's."""
    return shutil.copytree(prepared_once, tmp_path_factory.mktemp("prepared") / "work")


@pytest.fixture(scope="session")
def trained(prepared_once, tmp_path_factory) -> Path:
    """The same with runs/tiny, trained to its end by one process without DeepSpeed."""
    folder = shutil.copytree(prepared_once, tmp_path_factory.mktemp("trained") / "work")
    run_bmscale("train", "tiny.yaml", folder=folder)
    return folder
