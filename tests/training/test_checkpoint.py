"""Training states on disk: what is damaged is not taken for a state."""

import json
import shutil

import pytest

from bmscale.errors import BadInput
from bmscale.training.checkpoint import Standing, StateReader, list_states, read_standing


@pytest.fixture
def state(trained, tmp_path):
    shutil.copytree(trained / "runs/tiny/state", tmp_path / "state")
    return tmp_path / "state/step-00000012"


def test_a_state_knows_where_it_stands(state):
    standing = read_standing(state)
    assert (standing.optimizer_step, standing.data_step) == (12, 12)
    assert standing.best_step in (6, 12)
    reader = StateReader(state)
    kinds = {key.rsplit(".", 1)[1] for key in reader.names()}
    assert kinds == {"master", "exp_avg", "exp_avg_sq"}
    assert reader("model.encoder.embed.tokens.weight", "exp_avg").shape == (300, 32)


def test_standing_after_steps():
    standing = Standing().after_step(100, skipped=False).after_step(50, skipped=True)
    assert (standing.optimizer_step, standing.data_step, standing.target_tokens) == (1, 2, 100)


def test_unfinished_folders_are_no_states(state):
    (state.parent / ".tmp-step-00000016").mkdir()
    (state.parent / "step-00000016").mkdir()
    assert [path.name for path in list_states(state.parent)] == ["step-00000008", "step-00000012"]


def test_damage_is_told(state):
    with pytest.raises(BadInput, match=r"holds no 'nobody\.master'"):
        StateReader(state)("nobody", "master")
    file = next(state.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"must have \d+ bytes, got \d+: the state is damaged"):
        read_standing(state)
    record = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(BadInput, match="has format 99, this version reads 1"):
        read_standing(state)
    (state / "state.json").write_text("{")
    with pytest.raises(BadInput, match=r"state\.json: damaged"):
        read_standing(state)
