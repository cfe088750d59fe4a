"""Cases of single commands: how soon training starts, how soon help answers, preparing data, saving a state."""

import shutil
import sys
import time

from bmscale.benchmark import process
from bmscale.benchmark.figures import Figures
from bmscale.benchmark.setting import Setting, read_lines
from bmscale.benchmark.training_case import EngineChoice, check_precision, new_run
from bmscale.data.prepare import prepare as prepare_data
from bmscale.data.workers import cores
from bmscale.errors import BmscaleError

LOOK_SECONDS = 0.02
"""How often a case looks whether a run has come to its first step."""


def start(setting: Setting, name: str, shape_name: str, precision: str, engine: str = "none") -> Figures:
    """From the command to the end of the first training step."""
    check_precision(precision)
    choice = EngineChoice.parse(engine)
    run, command = new_run(setting, name, shape_name, precision, choice, log_every_steps=1, max_steps=1)
    begun = time.perf_counter()
    with process.started(command, choice.threads, setting.log(name)) as running:
        while not run.metrics.exists() and running.poll() is None:
            if time.perf_counter() - begun > setting.max_seconds:
                limit = setting.max_seconds
                raise BmscaleError(f"{name}: no step was taken within {limit:.0f} s; see {setting.log(name)}")
            time.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - begun
    if not run.metrics.exists():
        raise BmscaleError(f"{name}: the run ended with {running.returncode}; see {setting.log(name)}")
    return Figures(seconds=seconds)


def answer(setting: Setting, name: str, what: str) -> Figures:
    """`bmscale --help`, or `import bmscale`."""
    command = {
        "help": [sys.executable, "-m", "bmscale", "--help"],
        "import": [sys.executable, "-c", "import bmscale"],
    }[what]
    begun = time.perf_counter()
    process.run(command, cores(), setting.log(name))
    return Figures(seconds=time.perf_counter() - begun)


def prepare(setting: Setting, name: str) -> Figures:
    """`bmscale prepare` of the corpus into a new folder: cleaning, tokenizer, shards."""
    folder = setting.folder / "prepared-again"
    if folder.exists():
        shutil.rmtree(folder)
    config = setting.data_config(folder)
    begun = time.perf_counter()
    manifest = prepare_data(config)
    seconds = time.perf_counter() - begun
    shutil.rmtree(folder)
    read = sum(source["pairs_read"] for source in manifest["splits"]["train"]["sources"])
    return Figures(seconds=seconds, work=read, unit="pairs")


def checkpoint(setting: Setting, name: str, shape_name: str, precision: str, engine: str = "none") -> Figures:
    """Saving the training state: how long training stands still, and how much is written."""
    check_precision(precision)
    choice = EngineChoice.parse(engine)
    run, command = new_run(setting, name, shape_name, precision, choice, save_every_steps=1, max_steps=4)
    process.run(command, choice.threads, setting.log(name), setting.max_seconds)
    saved = [line for line in read_lines(run.metrics) if line.get("event") == "saved"]
    seconds = sum(line["stall_seconds"] for line in saved)
    if not seconds > 0:
        raise BmscaleError(f"{name}: no state was saved that took a measurable time; see {setting.log(name)}")
    return Figures(seconds=seconds, work=sum(line["gib"] for line in saved), unit="GiB")
