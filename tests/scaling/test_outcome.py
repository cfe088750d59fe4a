"""Tables of a study: what a fit reads."""

import json
from pathlib import Path

import numpy as np
import pytest

from bmscale.scaling.fit import fit
from bmscale.scaling.laws import CHINCHILLA
from bmscale.scaling.outcome import write_tables
from bmscale.scaling.reading import open_table
from bmscale.scaling.study import Study, read_study
from tests.scaling.conftest import TRUTH

TEXT = """\
base: toy-text
experiment: {training: {attend_across_documents: true}}
sizes: [{width: 16, layers: 1}, {width: 32, layers: 2}, {width: 64, layers: 2}, {width: 128, layers: 2}]
tokens: [4.0e5, 1.6e6, 6.4e6]
"""


def pretend(study: Study) -> None:
    """Run folders as they are when every cell is done, with the losses of a law."""
    data = Path(study.plain.data.directory)
    data.mkdir(parents=True)
    splits = {"train": {"tokens": 10**6}, "valid": {"sources": [{}]}}
    (data / "manifest.json").write_text(json.dumps({"splits": splits}))
    for trunk in study.trunks:
        for cell in trunk.cells:
            run, tokens = study.run_folder(cell.name), cell.steps * study.tokens_per_step
            count = study.shape(cell.size).hidden_size ** 2 * 1e4
            loss = CHINCHILLA.predict(TRUTH, {"N": np.array([count]), "D": np.array([1e3 * tokens])})[0]
            run.path.mkdir(parents=True)
            record = {"experiment": {}, "identity": {}, "total_steps": cell.steps, "starts": [{"time": "2026"}]}
            run.record.write_text(json.dumps(record))
            run.exit.write_text('{"class": "done"}')
            run.metrics.write_text(json.dumps({"step": cell.steps, "valid_loss": loss, "tokens": tokens}) + "\n")


@pytest.fixture
def text(tmp_path) -> Study:
    (tmp_path / "text.yaml").write_text(TEXT)
    study = read_study(str(tmp_path / "text.yaml"), [f"experiment.data.directory={tmp_path}/data"], f"{tmp_path}/out")
    pretend(study)
    return study


def test_a_study_of_language_models_can_be_fitted(text):
    assert write_tables(text) == 12
    table = open_table(text.table)
    assert "N_e" not in table.columns
    assert set(table.groups) == {trunk.name for trunk in text.trunks}
    assert len(set(table.runs)) == 12
    assert fit(CHINCHILLA, table.columns, restarts=2).certificate.stationary
