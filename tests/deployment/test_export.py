"""The command: what passes is kept with its report, what does not leaves nothing but that."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmscale.cli import main
from bmscale.deployment import export, hugging_face
from bmscale.deployment.formats import make_format
from bmscale.deployment.scratch import scratch_folder

PAIRS = """The old man sleeps.\tDer alte Mann schläft.
Who calls her?\tWer ruft sie an?
\tNichts.
We sing a song.\tWir singen ein Lied.
"""


@pytest.fixture
def test_file(tmp_path) -> Path:
    path = tmp_path / "test.tsv"
    path.write_text(PAIRS, encoding="utf-8")
    return path


def test_an_export_is_kept_with_report_and_card(make_model, test_file, tmp_path, capsys):
    model, out = make_model("translation", "modern", num_key_value_heads=2), tmp_path / "out"
    command = ["export", str(model.path), "--to", "hf", "--out", str(out), "--test", str(test_file)]
    assert main([*command, "--licence", "cc-by-4.0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    report = json.loads((out / "export.json").read_text())
    assert report["artefact"]["layout"] == "remote-code"
    assert report["artefact"]["bytes"] < sum(
        file.stat().st_size for file in out.iterdir()
    )  # report and card came later
    assert report["model"]["data_hash"] == "abc"
    gate = report["gate"]
    assert gate["passed"]
    assert gate["texts"] == {"name": "test", "sha256": gate["texts"]["sha256"], "left_out": 1}
    assert gate["log_probabilities"]["max_difference"] < 1e-5
    assert gate["greedy"] == {"texts": 3, "different": 0}
    assert gate["test"]["sentences"] == 3
    assert gate["test"]["search"]["beam_size"] == 3
    assert [metric["name"] for metric in gate["test"]["metrics"].values()] == ["BLEU", "chrF2++"]
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "\nlicense: cc-by-4.0\n" in card
    assert "trust_remote_code=True" in card
    assert "import bmscale" not in card
    assert gate["test"]["metrics"]["bleu"]["signatures"]["bootstrap"] in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "test.tsv"]
    assert report["files"] == sorted(path.name for path in out.iterdir())
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert report["artefact"]["sha256"]["model.safetensors"] == weights
    assert report["changes"]["bleu"] == 0
    assert "| BLEU |" in card
    assert "| identical |" in card
    with (out / "README.md").open("a") as file:
        file.write("From my corpus.\n")
    assert main(command) == 2
    assert "its README.md was edited since it was exported" in capsys.readouterr().err
    assert (out / "README.md").read_text().endswith("From my corpus.\n")


def test_an_export_from_within_the_model_folder_lies_beside_it(make_model, test_file, tmp_path, monkeypatch, capsys):
    model = make_model("translation", "modern")
    before = sorted(model.path.iterdir())
    monkeypatch.chdir(model.path)
    assert main(["export", ".", "--to", "hf", "--test", str(test_file), "--out", "out"]) == 2
    assert "must not lie in the model's own folder" in capsys.readouterr().err
    assert main(["export", ".", "--to", "hf", "--test", str(test_file)]) == 0
    assert (model.path.parent / f"{model.path.name}-hf" / "export.json").is_file()
    assert sorted(model.path.iterdir()) == before


def test_an_export_that_is_ended_leaves_nothing(make_model, test_file, tmp_path):
    """Neither files nor processes, when it is told to end while the gate is at work."""
    model = make_model("translation", "modern")
    command = ["export", str(model.path), "--to", "hf", "--out", str(tmp_path / "out"), "--test", str(test_file)]
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from bmscale.cli import main; sys.exit(main())", *command]
    )
    gates: list[str] = []
    deadline = time.monotonic() + 60
    while not gates and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        gates = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert gates
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert not any(Path("/proc", gate).exists() for gate in gates)
    assert os.listdir(tmp_path) == ["test.tsv"]


def test_a_broken_export_is_not_kept(make_model, test_file, tmp_path, monkeypatch, capsys):
    """One weight of one matrix, changed by as much as it is large."""
    model, out = make_model("translation", "vanilla"), tmp_path / "out"
    write = hugging_face.write_layout

    def break_one_weight(model, layout, target):
        write(model, layout, target)
        file = target / "model.safetensors"
        state = load_file(file)
        weight = state["model.decoder.layers.0.fc1.weight"]
        row = int(weight.norm(dim=1).argmax())
        weight[row, 0] += 1.0
        save_file({name: tensor.clone() for name, tensor in state.items()}, file, metadata={"format": "pt"})

    monkeypatch.setattr(hugging_face, "write_layout", break_one_weight)
    command = ["export", str(model.path), "--to", "hf", "--out", str(out), "--test", str(test_file)]
    assert main(command) == 1
    said = capsys.readouterr().err
    failed = tmp_path / ".out.failed.json"
    assert "log-probabilities of a token lie up to" in said
    assert str(failed) in said
    assert not json.loads(failed.read_text())["gate"]["passed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.failed.json", "test.tsv"]


def test_an_older_export_stays_where_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename
    out.mkdir()
    (out / "old").touch()

    def fail(path, target):
        if path.name == out.name and path != out:
            raise OSError("disk")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with contextlib.suppress(OSError), scratch_folder(out) as scratch:
        (scratch / "out").mkdir()
        with pytest.raises(OSError, match="disk") as failed:
            export._keep(make_format("hf", {}), scratch / "out", out, {}, "card")
        assert not out.exists()  # it had made room
        raise failed.value
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/old"]


def test_a_model_that_is_replaced_meanwhile_is_not_exported(make_model, test_file, tmp_path, monkeypatch, capsys):
    """As a training that goes on does. The gate may have opened either."""
    model = make_model("translation", "vanilla")

    def replace(*_):
        (model.path / "provenance.json").write_text(json.dumps({**model.provenance, "step": 2}))
        return {"passed": True}

    monkeypatch.setattr(export, "_pass", replace)
    command = ["export", str(model.path), "--to", "hf", "--out", str(tmp_path / "out"), "--test", str(test_file)]
    assert main(command) == 1
    assert "was replaced while it was exported, as training does; export it again" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["test.tsv"]


def test_weights_that_are_not_finite_are_refused(make_model, test_file, tmp_path, capsys):
    model = make_model("translation", "vanilla")
    state = load_file(model.weights[0])
    name = next(name for name in state if name.endswith("q_proj.weight"))
    state[name][1, 2] = float("nan")
    save_file(state, model.weights[0], metadata={"format": "pt"})
    command = ["export", str(model.path), "--to", "hf", "--out", str(tmp_path / "out"), "--test", str(test_file)]
    assert main(command) == 2
    assert f"tensor {name} has values that are not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "hff"], "--to: must be one of hf"),
        (["--to", "hf", "--layout", "t5"], "--layout: must be auto, remote-code or, for an encoder-decoder, t5"),
        (["--to", "hf", "--layout", "t5gemma"],
         "has no place in layout t5gemma: sandwich_norm must be True; got False; feed_forward must be geglu"),
        (["--to", "hf", "--layout", "m2m_100"], "norm must be layer_norm; got rms_norm"),
        (["--to", "hf", "--sentences", "0"], "--sentences: must be at least 1; got 0"),
        (["--to", "hf", "--test", "nowhere.tsv"], "nowhere.tsv"),
        (["--to", "hf"], "is in no run folder, so no test set is known; give --test FILE"),
        (["--to", "hf", "--compute-type", "int8"], "--compute-type: is no option of --to hf, which has --layout"),
        (["--to", "hf", "--out", "taken"], "taken: exists and is no export"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_said_before_anything_is_written(
    arguments, said, make_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    assert main(["export", str(make_model("translation", "modern").path), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "thesis.txt"]


def test_the_test_set_of_a_run_is_known(trained, monkeypatch, capsys):
    """And an older export makes room for a new one."""
    monkeypatch.chdir(trained)
    out = trained / "runs/tiny/export/best-hf"
    for sentences in (4, 3):
        assert main(["export", "runs/tiny/model/best", "--to", "hf", "--sentences", str(sentences)]) == 0
        report = json.loads((out / "export.json").read_text())
        assert report["gate"]["test"]["sentences"] == sentences
        assert "BLEU:" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["best-hf"]
    assert torch.__version__.startswith(report["versions"]["torch"].split("+")[0])
