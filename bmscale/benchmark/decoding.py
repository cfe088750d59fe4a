"""Decoding, timed: `python -m bmscale.benchmark.decoding QUESTION.json ANSWER.json`.

Weights are random, so that no corpus has to be trained on; every hypothesis is made to have the same length, so that
rivals do the same work. Sources are real sentences, longest first, as `translate` orders them.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bmscale.benchmark import process
from bmscale.benchmark.figures import Figures
from bmscale.benchmark.peer_case import dimensions, interpreter
from bmscale.benchmark.setting import Setting
from bmscale.data.batch import pad_rows
from bmscale.data.shards import PairShards
from bmscale.data.tokenizer import PAD
from bmscale.data.workers import cores
from bmscale.errors import BadInput
from bmscale.model.init import initialise
from bmscale.model.tasks import TASKS

LENGTH = 24
"""Target pieces of every hypothesis."""

SENTENCES = 128
BATCH = 32

MODES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check(kind: str, shape_name: str, precision: str, search: str) -> None:
    """Raises BadInput for what such a case does not take."""
    known = tuple(MODES) if kind == "decode" else ("fp32", "int8")
    if precision not in known:
        raise BadInput(f"precision: {kind} is measured in {' or '.join(known)}; got '{precision}'")
    width = search.removeprefix("beam")
    if search != "greedy" and not (search.startswith("beam") and width.isdigit() and int(width) > 1):
        raise BadInput(f"search: must be greedy, or beam and a number above 1, such as beam5; got '{search}'")


def decode(setting: Setting, name: str, shape_name: str, precision: str, search: str) -> Figures:
    """Our own decoding. `search` is greedy or beamN. Raises BadInput."""
    check("decode", shape_name, precision, search)
    question = _question(setting, shape_name, precision, search)
    command = [sys.executable, "-m", "bmscale.benchmark.decoding"]
    return _figures(process.ask(command, question, cores(), setting.log(name), setting.max_seconds))


def decode_with_ctranslate2(setting: Setting, name: str, shape_name: str, precision: str, search: str) -> Figures:
    """CTranslate2's decoding of a Transformer of the same shape; `precision` may be int8. Raises BadInput."""
    check("ctranslate2", shape_name, precision, search)
    question = _question(setting, shape_name, precision, search)
    source, _ = setting.texts()
    question |= {
        "system": "ctranslate2",
        "source": str(source),
        "tokenizer": str(setting.prepared / "spiece.model"),
        "quantization": {"fp32": "float32", "int8": "int8"}[precision],
        "threads": cores(),
        "work": str(setting.folder / "peers" / name.replace("/", "-")),
        "device": setting.device,
        "seed": 0,
    }
    Path(question["work"]).mkdir(parents=True, exist_ok=True)
    script = Path(__file__).parent / "peers" / "ctranslate2_decode.py"
    command = [interpreter(setting, "ctranslate2"), str(script)]
    return _figures(process.ask(command, question, cores(), setting.log(name), setting.max_seconds))


def _question(setting: Setting, shape_name: str, precision: str, search: str) -> dict[str, Any]:
    setting.prepare()
    return {
        **dimensions(setting, shape_name),
        "precision": precision,
        "beam": 1 if search == "greedy" else int(search.removeprefix("beam")),
        "length": LENGTH,
        "sentences": SENTENCES,
        "batch_sentences": BATCH,
        "prepared": str(setting.prepared),
    }


def _figures(answer: dict[str, Any]) -> Figures:
    return Figures(
        seconds=answer["seconds"],
        target_tokens=answer["generated_tokens"],
        memory_gib=answer.get("peak_memory_gib"),
        versions=answer.get("versions", {}),
    )


def main(question: dict[str, Any]) -> dict[str, Any]:
    """Decode and say how long it took, the first batch left out."""
    task = TASKS["translation"]
    config = task.configure(
        **task.presets["vanilla"],
        vocab_size=question["vocabulary_size"],
        hidden_size=question["hidden_size"],
        num_attention_heads=question["heads"],
        num_encoder_layers=question["encoder_layers"],
        num_decoder_layers=question["decoder_layers"],
        intermediate_size=question["feed_forward_size"],
    )
    model: Any = task.model(config)
    initialise(model, seed=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, MODES[question["precision"]]).eval()
    pairs = PairShards.open(Path(question["prepared"]) / "train")
    rows = [pairs.pair(number)[0] for number in range(min(question["sentences"], len(pairs)))]
    rows.sort(key=len, reverse=True)
    most, length = question["batch_sentences"], question["length"]
    batches = [rows[start : start + most] for start in range(0, len(rows), most)]

    def run(batch: list[Any]) -> int:
        sources = pad_rows(batch, PAD).to(device)
        made = model.generate(
            input_ids=sources,
            attention_mask=sources != PAD,
            num_beams=question["beam"],
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
        )
        return made.shape[0] * length

    run(batches[0])
    begun = time.perf_counter()
    tokens = sum(map(run, batches))
    return {"seconds": time.perf_counter() - begun, "generated_tokens": tokens}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), encoding="utf-8")
