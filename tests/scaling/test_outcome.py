"""Tables of a study: what a fit reads."""

import json
import shutil

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling.fit import fit
from bmscale.scaling.laws import CHINCHILLA
from bmscale.scaling.outcome import check_counted, write_tables
from bmscale.scaling.reading import open_table
from bmscale.scaling.runs import prepare
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
    prepare(study.plain.data)
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
    few = ("train.documents=300", "valid.documents=20", "tokenizer.vocabulary_size=320", f"directory={tmp_path}/data")
    study = read_study(str(tmp_path / "text.yaml"), [f"experiment.data.{key}" for key in few], f"{tmp_path}/out")
    pretend(study)
    return study


def test_a_study_of_language_models_can_be_fitted(text):
    assert write_tables(text) == 12
    table = open_table(text.table)
    assert "N_e" not in table.columns
    assert set(table.groups) == {trunk.name for trunk in text.trunks}
    assert len(set(table.runs)) == 12
    assert fit(CHINCHILLA, table.columns, restarts=2).certificate.stationary


def test_the_row_of_a_run_that_was_put_away_stays(text):
    write_tables(text)
    before = text.table.read_text()
    shutil.rmtree(text.run_folder("w32-l2-1.6e6-s0").path)
    assert write_tables(text) == 12
    assert text.table.read_text() == before
    text.run_folder("w64-l2-1.6e6-s0").exit.unlink()  # but not of one that is there and not done
    assert write_tables(text) == 11


@pytest.mark.parametrize(
    "line", ['{"cell": "w32-l2-1.6e6-s0"}', '{"steps": 3}', '{"cell": "w3', "", "[1]", '{"cell": "x", "steps": null}']
)
def test_a_table_that_cannot_be_read_is_named(text, line):
    write_tables(text)
    text.table.write_text(text.table.read_text() + line + "\n")
    with pytest.raises(BadInput, match=r"table\.jsonl: line 13: must be a JSON object with cell and steps"):
        check_counted(text)
