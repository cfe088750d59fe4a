"""Two graphs in onnxruntime say what the model says, with any shape of batch; what they cannot hold is refused."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
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

# Each option of the blocks once: rotary and sinusoid, all head layouts, all norms, the scalars. One layer is traced in
# half the time of two.
SHALLOW = {"num_encoder_layers": 1, "num_decoder_layers": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern, scaled, one key head, QK-norm": (
        "modern",
        {"embedding_scale": 0.5, "attention_scale": 0.8, "residual_scale": 1.5, "logit_scale": 1.5,
         "num_key_value_heads": 1, "qk_norm": True, **SHALLOW},
    ),
    "gemma, shared keys, wide heads, untied": (
        "gemma", {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": False, "num_encoder_layers": 1}
    ),
    "vanilla": ("vanilla", {"scale_embeddings": False, **SHALLOW}),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(make_model, tmp_path_factory):
    """A model, its format and its folder, by the names of MODELS, each made once."""
    kept: dict[str, Any] = {}

    def export(name):
        if name not in kept:
            preset, options = MODELS[name]
            model, made = make_model("translation", preset, **options), onnx_format.make()
            folder = tmp_path_factory.mktemp("onnx") / "o"
            made.check(model)
            made.write(model, folder)
            kept[name] = model, made, folder
        return kept[name]

    return export


@needs_onnx
@pytest.mark.parametrize("name", MODELS)
def test_the_graphs_are_the_model(exported, name):
    """The gate reads each target in two halves, and searches token by token."""
    model, made, folder = exported(name)
    sources = [source for source, _ in PAIRS]
    references = open_trained(model).translate(sources)
    found = compare(model, made, folder, Examples("toy", "", PAIRS, list(zip(sources, references, strict=True))))
    assert found["reasons"] == []
    assert sum(map(len, references)) > 400
    assert found["log_probabilities"]["max_difference"] < 2e-5
    assert found["log_probabilities"]["tokens"] > 100
    assert found["test"]["metrics"]["bleu"]["systems"][1]["score"] == pytest.approx(100)
    assert found["test"]["search"]["beam_size"] == 3


@needs_onnx
def test_every_axis_is_free(exported):
    """Batches, sources, targets and pasts of one, of many, of equal lengths; padded rows are as they are alone."""
    from bmscale.deployment.onnx_candidate import OnnxModel

    model, _, folder = exported("gemma, shared keys, wide heads, untied")
    ours: Any = load_model(model)
    theirs = OnnxModel(folder)
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
            assert past.shape == (rows, 2, 2, 2, before + length, 10)
            torch.testing.assert_close(logits, expected[:, before:], atol=2e-5, rtol=0)
    axes = {
        one.name: one.shape for session in (theirs.encoder_graph, theirs.decoder_graph) for one in session.get_inputs()
    }
    assert axes["input_ids"] == ["batch", "target"]
    assert axes["attention_mask"] == ["batch", "source"]
    assert axes["past"] == ["batch", 2, 2, 2, "past", 10]


@needs_onnx
def test_the_folder_translates_as_the_card_says(exported):
    model, made, folder = exported("vanilla")
    lines = [source for source, _ in PAIRS]
    found = dict(zip(lines, open_trained(model).greedy(lines), strict=True))
    line = max(lines, key=lambda line: len(found[line]))
    program = re.findall("```python\n(.*?)```", made.usage(model), re.S)[0].replace("A sentence.", line)
    blocked = "import sys; sys.modules.update(dict.fromkeys(('bmscale', 'torch', 'transformers')))\n"
    command = [sys.executable, "-c", blocked + program]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == found[line].strip()
    assert len(found[line]) > 5


@needs_onnx
def test_the_command_keeps_graphs_that_pass(exported, tmp_path, monkeypatch, capsys):
    """The graphs were written before; all else is as in earnest."""
    model, _, folder = exported("vanilla")

    def copy(model, target):
        for file in folder.glob("*.onnx*"):
            shutil.copyfile(file, target / file.name)

    monkeypatch.setattr(onnx_graphs, "write_graphs", copy)
    out, test = tmp_path / "out", tmp_path / "test.tsv"
    test.write_text("The old man sleeps.\tDer alte Mann schläft.\nWho calls her?\tWer ruft sie an?\n", encoding="utf-8")
    assert main(["export", str(model.path), "--to", "onnx", "--out", str(out), "--test", str(test)]) == 0
    assert "2 of 2 the same" in capsys.readouterr().out
    names = {"encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data", "spiece.model", "README.md"}
    names |= {"config.json", "generation_config.json", "provenance.json", "export.json"}
    assert set(os.listdir(out)) == names
    report = json.loads((out / "export.json").read_text())
    assert report["artefact"]["layout"] == "ONNX"
    assert report["artefact"]["opset"] >= 18
    assert "Experimental" in (out / "README.md").read_text()
    data = bytearray((out / "decoder.onnx.data").read_bytes())
    assert report["artefact"]["sha256"]["decoder.onnx.data"] == hashlib.sha256(data).hexdigest()
    data[len(data) // 2] ^= 1
    (out / "decoder.onnx.data").write_bytes(data)
    with pytest.raises(BadInput, match=r"decoder\.onnx\.data: damaged or changed"):
        onnx_format.make().open(out)


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
