"""Two graphs in onnxruntime say what the model says, with any shape of batch; what they cannot hold is refused."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bmscale.cli import main
from bmscale.data.toy import toy_pairs
from bmscale.deployment import onnx_format, onnx_graphs
from bmscale.deployment.gate import Examples, compare
from bmscale.deployment.trained import open_trained
from bmscale.errors import BadInput
from bmscale.model.folder import load_model

PAIRS = list(toy_pairs("test", 12))

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")),
    reason="pip install 'bmscale[onnx]'",
)

# Each option of the blocks once: rotary and sinusoid, all head layouts, all norms, the scalars.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern, scaled, one key head, QK-norm": (
        "modern",
        {"embedding_scale": 3.0, "attention_scale": 0.5, "residual_scale": 0.7, "logit_scale": 1.5,
         "num_key_value_heads": 1, "qk_norm": True, "num_decoder_layers": 1},
    ),
    "gemma, shared keys, wide heads, untied": (
        "gemma", {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": False}
    ),
    "vanilla": ("vanilla", {}),
}  # fmt: skip


@needs_onnx
@pytest.mark.parametrize("name", MODELS)
def test_the_graphs_are_the_model(make_model, tmp_path, name):
    """The gate reads each target in two halves, and searches token by token."""
    preset, options = MODELS[name]
    model, made, folder = make_model("translation", preset, **options), onnx_format.make(), tmp_path / "o"
    made.check(model)
    made.write(model, folder)
    sources = [source for source, _ in PAIRS]
    references = open_trained(model).translate(sources)
    found = compare(model, made, folder, Examples("toy", "", PAIRS, list(zip(sources, references, strict=True))))
    assert found["reasons"] == []
    assert found["log_probabilities"]["max_difference"] < 2e-5
    assert found["log_probabilities"]["tokens"] > 100
    assert found["test"]["metrics"]["bleu"]["systems"][1]["score"] == pytest.approx(100)
    assert found["test"]["search"]["beam_size"] == 3


@needs_onnx
def test_every_axis_is_free(make_model, tmp_path):
    """Batches, sources, targets and pasts of one, of many, of equal lengths; padded rows are as they are alone."""
    from bmscale.deployment.onnx_candidate import OnnxModel

    model, made = make_model("translation", "modern", num_key_value_heads=2), onnx_format.make()
    made.write(model, tmp_path / "o")
    ours: Any = load_model(model)
    theirs = OnnxModel(tmp_path / "o")
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for rows, width, before, length in ((1, 1, 0, 1), (1, 9, 1, 1), (5, 3, 3, 3), (2, 70, 40, 30), (33, 6, 6, 1)):
            ids_BS = torch.randint(4, 200, (rows, width), generator=draw)
            real_BS = torch.ones_like(ids_BS)
            real_BS[0, (width + 1) // 2 :] = 0
            target_BT = torch.randint(4, 200, (rows, before + length), generator=draw)
            expected = ours(input_ids=ids_BS, attention_mask=real_BS, decoder_input_ids=target_BT).logits
            source, past = theirs.read(ids_BS, real_BS), theirs.nothing(rows)
            for part in (target_BT[:, :before], target_BT[:, before:]):
                if part.shape[1]:
                    logits, past = theirs.step(part, real_BS, source, past)
            assert past.shape == (rows, 2, 2, 2, before + length, 8)
            torch.testing.assert_close(logits, expected[:, before:], atol=2e-5, rtol=0)
    sessions = {name: getattr(theirs, f"_{name}") for name in ("encoder", "decoder")}
    axes = {one.name: one.shape for session in sessions.values() for one in session.get_inputs()}
    assert axes["input_ids"] == ["batch", "target"]
    assert axes["attention_mask"] == ["batch", "source"]
    assert axes["past"] == ["batch", 2, 2, 2, "past", 8]
    _runs_as_the_card_says(made.usage(model), tmp_path / "o", open_trained(model).greedy(["A sentence."]))


def _runs_as_the_card_says(usage: str, folder: Path, expected: list[str]) -> None:
    """The card's program, in a process that has neither bmscale nor torch."""
    program = re.findall("```python\n(.*?)```", usage, re.S)[0]
    blocked = "import sys; sys.modules.update(dict.fromkeys(('bmscale', 'torch', 'transformers')))\n"
    result = subprocess.run(
        [sys.executable, "-c", blocked + program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == expected


@needs_onnx
def test_the_command_keeps_what_passes_and_nothing_else(make_model, tmp_path, monkeypatch, capsys):
    model, out, test = make_model("translation", "modern"), tmp_path / "out", tmp_path / "test.tsv"
    test.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS[:4]), encoding="utf-8")
    command = ["export", str(model.path), "--to", "onnx", "--out", str(out), "--test", str(test)]
    assert main(command) == 0
    assert "4 of 4 the same" in capsys.readouterr().out
    names = {"encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data", "spiece.model", "README.md"}
    names |= {"config.json", "generation_config.json", "provenance.json", "export.json"}
    assert set(os.listdir(out)) == names
    report = json.loads((out / "export.json").read_text())
    assert report["artefact"]["layout"] == "ONNX"
    assert report["artefact"]["opset"] >= 18
    assert report["gate"]["test"]["metrics"]["bleu"]["systems"][1]["difference"] == 0
    assert "Experimental" in (out / "README.md").read_text()

    write = onnx_graphs.write_graphs

    def one_position_late(model, folder):
        monkeypatch.setattr(onnx_graphs, "positions", lambda length, start, device: positions(length, start + 1, device))
        write(model, folder)

    positions = onnx_graphs.positions
    monkeypatch.setattr(onnx_graphs, "write_graphs", one_position_late)
    assert main([*command[:-3], str(tmp_path / "broken"), *command[-2:]]) == 1
    assert "log-probabilities of a token lie up to" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == [".broken.failed.json", "out", "test.tsv"]


def test_what_onnx_does_not_hold_is_refused(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(BadInput, match=r"packages onnxruntime are not installed here.*'bmscale\[onnx\]'"):
        onnx_format.make()
    monkeypatch.setattr(onnx_format, "find_spec", lambda name: object())
    made = onnx_format.make()
    with pytest.raises(BadInput, match=r"onnx is for encoder-decoders; got bmscale_decoder_only: export it to hf"):
        made.check(make_model("language_model", "llama"))
    with pytest.raises(BadInput, match="exists already"):
        made.write(make_model("translation", "modern"), tmp_path)
