"""Training states on disk: committed whole or not at all, verified when read, kept by two."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from bmscale.errors import BadInput
from bmscale.training import checkpoint
from bmscale.training.checkpoint import StateReader, find_usable, list_states, read_manifest, retain, verify
from bmscale.training.standing import Standing

SHAPES = {"a": torch.Size([3, 4]), "b": torch.Size([5])}


class FakeEngine:
    """One rank that holds two parameters; `fill` is what their elements are."""

    is_main, rank, device_name = True, 0, "cpu"
    state_kinds = ("master", "exp_avg", "exp_avg_sq")

    def __init__(self, fill: float = 1.0, shapes: dict[str, torch.Size] | None = None) -> None:
        self.fill, self.held = fill, shapes or SHAPES

    def describe(self) -> str:
        return "a fake"

    def shapes(self) -> dict[str, torch.Size]:
        return SHAPES

    def moved(self) -> None:
        pass

    def pieces(self):
        for name, shape in self.held.items():
            for number, kind in enumerate(self.state_kinds):
                values = torch.arange(shape.numel(), dtype=torch.float32) + self.fill + number / 8
                yield checkpoint.Piece(name, kind, 0, values)


def save(
    folder: Path,
    step: int,
    *,
    keep: int = 2,
    background: bool = False,
    engine: FakeEngine | None = None,
    run: str | None = None,
) -> Path:
    standing = Standing(optimizer_step=step, data_step=step, best_value=0.1 + step, recent_losses=[1 / 3, 1e-300])
    writing = checkpoint.Save(folder, engine or FakeEngine(step), standing, 0.5, run)  # type: ignore[arg-type]
    writing.write(background=background)
    return writing.commit(keep).path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def states(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(checkpoint, "_known_whole", {})
    for step in (5, 10):
        save(tmp_path / "state", step)
    return tmp_path / "state"


@pytest.mark.parametrize("background", [False, True])
def test_a_state_gives_back_what_was_saved(tmp_path, background):
    state = save(tmp_path, 7, background=background)
    manifest = read_manifest(state)
    assert manifest.standing.data_step == 7
    assert manifest.standing.recent_losses == [1 / 3, 1e-300]
    assert manifest.probe == 0.5
    assert names(tmp_path) == ["latest", "step-00000007"]
    assert (tmp_path / "latest").read_text() == "step-00000007\n"
    reader = StateReader(state)
    assert reader("a", "exp_avg", 5, 4).tolist() == [5 + 7.125, 6 + 7.125, 7 + 7.125, 8 + 7.125]
    assert {name: tensor.shape for name, tensor in reader.weights()} == SHAPES
    with pytest.raises(BadInput, match=r"holds no 'nobody\.master'"):
        reader("nobody", "master", 0, 1)
    with pytest.raises(BadInput, match="holds 3 of 4 elements"):
        reader("b", "master", 2, 4)
    with pytest.raises(BadInput, match=r"'b' has shape \[5\] there, \[6\] here"):
        reader.check_fits({**SHAPES, "b": torch.Size([6])})


def test_pieces_of_several_files_are_one_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 16)
    state = save(tmp_path, 1)
    assert len(list(state.glob("*.safetensors"))) == 2
    assert StateReader(state)("b", "master", 0, 5).tolist() == [1, 2, 3, 4, 5]


def test_a_snapshot_does_not_see_what_comes_later(tmp_path, monkeypatch):
    """In the background the values are those of the moment of saving, however the weights move on."""
    engine = FakeEngine(3.0)
    writing = checkpoint.Save(tmp_path, engine, Standing(optimizer_step=1, data_step=1), None)  # type: ignore[arg-type]
    writing.write(background=True)
    engine.fill = 99.0
    assert StateReader(writing.commit(2).path)("b", "master", 0, 1).item() == 3.0


def damages(state: Path) -> list[tuple[str, Path]]:
    return [(kind, file) for file in sorted(state.iterdir()) for kind in ("cut", "flip", "flip the last", "delete")]


def damage(kind: str, file: Path) -> None:
    content = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2 if kind == "flip" else -1] ^= 1
        file.write_bytes(content)


def test_every_damage_of_every_file_is_detected_and_the_state_before_it_used(states, tmp_path, caplog):
    newest = list_states(states)[-1]
    assert verify(newest) == []
    found = damages(newest)
    assert len(found) == 8
    for kind, file in found:
        copy = tmp_path / "copy"
        shutil.copytree(states, copy)
        damage(kind, copy / newest.name / file.name)
        assert verify(copy / newest.name), f"{kind} of {file.name} was not noticed"
        with caplog.at_level(logging.WARNING, "bmscale"):
            logging.getLogger("bmscale").propagate = True
            assert find_usable(copy) == copy / "step-00000005", (kind, file.name)
        assert "damaged, so the state before it is used" in caplog.text
        assert "damaged-step-00000010" in names(copy)
        damage(kind, copy / "step-00000005" / file.name)
        with pytest.raises(BadInput, match="holds no training state that is whole"):
            find_usable(copy)
        shutil.rmtree(copy)


def test_a_run_never_starts_anew_in_silence(states):
    assert find_usable(states / "nowhere") is None
    for state in list_states(states):
        shutil.rmtree(state)
    with pytest.raises(BadInput, match="holds no training state that is whole, and the run had saved one"):
        find_usable(states)


def test_a_state_of_another_version_is_not_taken_for_damaged(states):
    path = states / "step-00000010" / "state.json"
    values = {**json.loads(path.read_text()), "format": 99}
    del values["sha256"]
    path.write_text(json.dumps({**values, "sha256": checkpoint._seal(values)}))
    with pytest.raises(BadInput, match="has format 99, this version reads 2"):
        find_usable(states)
    assert names(states) == ["latest", "step-00000005", "step-00000010"]


def test_what_was_not_committed_is_no_state(states):
    (states / ".tmp-step-00000016").mkdir()
    (states / ".tmp-step-00000016" / "rank-00000-00000.safetensors").write_bytes(b"x")
    assert find_usable(states) == states / "step-00000010"
    save(states, 20)
    assert names(states) == ["latest", "step-00000010", "step-00000020"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])  # a failure, and a death
def test_a_state_saved_again_replaces_the_first_only_when_it_is_whole(states, monkeypatch, error):
    newest = states / "step-00000010"
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.name.startswith(".tmp"):
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises((checkpoint.SaveFailed, KeyboardInterrupt)):
        save(states, 10)
    assert find_usable(states) == newest
    monkeypatch.undo()
    save(states, 10, engine=FakeEngine(77.0))
    assert StateReader(newest)("b", "master", 0, 1).item() == 77.0
    assert names(states) == ["latest", "step-00000005", "step-00000010"]


def test_a_file_system_that_cannot_be_read_now_damages_nothing(states, monkeypatch):
    def unreadable(path: Path) -> checkpoint.FileRecord:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "file_record", unreadable)
    with pytest.raises(BadInput, match="holds no training state that is whole"):
        find_usable(states)
    assert names(states) == ["latest", "step-00000005", "step-00000010"]


def test_two_whole_states_stay_whatever_is_damaged(states):
    """The damaged one does not count, so the older whole one must not go."""
    damage("flip", states / "step-00000010" / "rank-00000-00000.safetensors")
    checkpoint._known_whole.clear()
    save(states, 15)
    assert names(states) == ["latest", "step-00000005", "step-00000010", "step-00000015"]
    save(states, 20)
    assert names(states) == ["latest", "step-00000015", "step-00000020"]


def test_only_names_of_steps_are_states_and_they_are_sorted_by_number(states):
    others = ("step-backup", "step-00000010.bak", "step-99", "damaged-step-00000001.bak", ".mine-step-00000001")
    for name in others:
        shutil.copytree(states / "step-00000005", states / name)
    save(states, 99_999_999)
    save(states, 100_000_000)
    save(states, 100_000_001)
    own = ["step-100000000", "step-100000001"]
    assert [path.name for path in list_states(states)] == own
    assert find_usable(states) == states / "step-100000001"
    assert checkpoint.prune(states, 2) == []
    assert names(states) == sorted([*others, *own, "latest"])


def test_a_copy_under_another_number_is_neither_loaded_nor_removed_nor_written_over(states, caplog):
    logging.getLogger("bmscale").propagate = True
    copy = shutil.copytree(states / "step-00000005", states / "step-00000015")
    (copy / "note.txt").write_text("mine")
    assert find_usable(states) == states / "step-00000010"
    assert "step-00000015: must be called step-00000005" in caplog.text
    assert verify(copy) == [
        f"{copy}: must be called step-00000005, for it holds the state of that step; move it elsewhere"
    ]
    save(states, 15)
    (aside,) = states.glob("aside-*-step-00000015")
    assert (aside / "note.txt").read_text() == "mine"
    assert verify(states / "step-00000015") == []
    old = shutil.copytree(states / "step-00000010", states / "step-00000001")
    save(states, 20)
    assert [path.name for path in list_states(states)] == ["step-00000001", "step-00000015", "step-00000020"]
    for state in list_states(states)[1:]:
        shutil.rmtree(state)
    with pytest.raises(BadInput, match="holds no training state that is whole, and the run had saved one"):
        find_usable(states)
    assert old.is_dir()


def test_a_state_of_another_run_is_refused(tmp_path):
    for step in (5, 10):
        save(tmp_path, step, run="ours")
    assert find_usable(tmp_path, run="ours") == tmp_path / "step-00000010"
    for step in (4, 15):
        save(tmp_path / "theirs", step, run="theirs")
        shutil.copytree(tmp_path / "theirs" / checkpoint.state_name(step), tmp_path / checkpoint.state_name(step))
        with pytest.raises(BadInput, match=f"step-000000{step:02d}: was saved by another run"):
            find_usable(tmp_path, run="ours")
    assert find_usable(tmp_path, before=10, run="ours") == tmp_path / "step-00000005"  # in the midst of a training
    save(tmp_path, 20, run="ours")
    assert [path.name[-2:] for path in list_states(tmp_path)] == ["04", "10", "15", "20"]
    save(tmp_path / "old", 1)  # of a version that did not note it
    assert find_usable(tmp_path / "old", run="ours") == tmp_path / "old" / "step-00000001"


@pytest.mark.parametrize("error", [13, 5, 116])  # EACCES, EIO, ESTALE
def test_a_state_that_cannot_be_read_now_is_not_damaged(states, monkeypatch, error):
    read = Path.read_bytes

    def unreadable(path: Path) -> bytes:
        if path == states / "step-00000010" / "state.json":
            raise OSError(error, "is away", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(BadInput, match=r"step-00000010/state\.json: cannot be read: is away"):
        find_usable(states)
    save(states, 15)
    save(states, 20)
    assert names(states) == ["latest", "step-00000010", "step-00000015", "step-00000020"]
    assert find_usable(states) == states / "step-00000020"


def test_a_folder_of_states_that_cannot_be_read_is_not_empty(states, monkeypatch):
    def unreadable(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", unreadable)
    with pytest.raises(BadInput, match="state: Permission denied"):
        find_usable(states)


def test_of_a_state_that_is_a_link_the_link_is_removed(states, tmp_path):
    elsewhere = shutil.move(states / "step-00000005", tmp_path / "elsewhere")
    (states / "step-00000005").symlink_to(elsewhere)
    save(states, 15)
    (states / "damaged-step-00000003").symlink_to(elsewhere)
    (states / ".old-step-00000002").mkdir()
    assert {path.name for path in checkpoint.prune(states, 2)} == {"damaged-step-00000003", ".old-step-00000002"}
    assert names(states) == ["latest", "step-00000010", "step-00000015"]
    assert (Path(elsewhere) / "state.json").is_file()


def test_a_leftover_that_cannot_be_removed_does_not_stop_the_pruning(states, monkeypatch):
    for step in (1, 2):
        (states / f"damaged-step-{step:08d}").mkdir()
    save(states, 15, keep=9)
    remove = shutil.rmtree

    def stuck(path: Path) -> None:
        if path.name == "damaged-step-00000001":
            raise OSError(5, "Input/output error", str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", stuck)
    assert sorted(path.name for path in checkpoint.prune(states, 2)) == ["damaged-step-00000002", "step-00000005"]


def test_pruning(states):
    save(states, 15, keep=9)
    assert [path.name for path in retain(states, 2)] == ["step-00000005"]
    (states / "damaged-step-00000003").mkdir()
    assert [path.name for path in checkpoint.prune(states, 2)] == ["damaged-step-00000003"]
    with pytest.raises(BadInput, match="--keep: must be at least 2"):
        checkpoint.prune(states, 1)


def full_disk(path: Path, content: bytes) -> None:
    path.write_bytes(content[:10])
    raise OSError(28, "No space left on device", str(path))


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_leaves_the_states_before_it(states, monkeypatch, background):
    before = {path: path.read_bytes() for path in states.rglob("*") if path.is_file()}
    monkeypatch.setattr(checkpoint, "write_durably", full_disk)
    with pytest.raises(checkpoint.SaveFailed, match=r"rank 0: .*No space left on device"):
        save(states, 15, background=background)
    assert {path: path.read_bytes() for path in states.rglob("*") if path.is_file()} == before
    assert names(states) == ["latest", "step-00000005", "step-00000010"]


def test_a_disk_that_returns_other_bytes_fails_the_save(states, monkeypatch):
    write = checkpoint.write_durably
    monkeypatch.setattr(checkpoint, "write_durably", lambda path, content: write(path, b"?" + content[1:]))
    with pytest.raises(checkpoint.SaveFailed, match="gives back other bytes than were written"):
        save(states, 15)


def test_a_state_with_a_hole_is_not_committed(states):
    with pytest.raises(checkpoint.SaveFailed, match="b: the ranks wrote 0 of its 5 elements"):
        save(states, 15, engine=FakeEngine(shapes={"a": SHAPES["a"]}))
    with pytest.raises(checkpoint.SaveFailed, match="b: the ranks wrote 4 of its 5 elements"):
        save(states, 15, engine=FakeEngine(shapes={**SHAPES, "b": torch.Size([4])}))


def test_standing_after_steps():
    standing = Standing().after_step(100, skipped=False).after_step(50, skipped=True)
    assert (standing.optimizer_step, standing.data_step, standing.target_tokens) == (1, 2, 100)
    assert standing.skipped_in_a_row == 1
    assert standing.after_step(1, skipped=False).skipped_in_a_row == 0


def test_the_command(bmscale, trained, tmp_path):
    """List, verify, export, prune, as a user types them."""
    shutil.copytree(trained, tmp_path / "work")
    work = tmp_path / "work"
    rows = [json.loads(line) for line in bmscale("checkpoint", "list", "runs/tiny", folder=work).stdout.splitlines()]
    assert [row["state"] for row in rows] == ["step-00000008", "step-00000012"]
    assert rows[-1]["finished"] is True
    out = bmscale("checkpoint", "export", "runs/tiny", "--step", "8", folder=work).stdout.strip()
    assert out == "runs/tiny/model/state-00000008"
    assert bmscale("translate", out, folder=work, stdin="The dog sleeps.\n").returncode == 0
    bmscale("checkpoint", "export", "runs/tiny", "--to", "model", folder=work)
    exported, last = (work / path / "model.safetensors" for path in ("model", "runs/tiny/model/last"))
    assert exported.read_bytes() == last.read_bytes()
    none = bmscale("checkpoint", "export", "runs/tiny", "--step", "9", folder=work, check=False)
    assert none.returncode == 2
    assert "must hold a state of step 9; it has step-00000008, step-00000012" in none.stderr
    damage("flip", next((work / "runs/tiny/state/step-00000012").glob("*.safetensors")))
    verified = bmscale("checkpoint", "verify", "runs/tiny", folder=work, check=False)
    assert verified.returncode == 1
    assert [json.loads(line)["whole"] for line in verified.stdout.splitlines()] == [True, False]
    resumed = bmscale("train", "tiny.yaml", folder=work)
    assert "step-00000012: damaged, so the state before it is used" in resumed.stderr
    assert "resumed from runs/tiny/state/step-00000008" in resumed.stderr
    assert last.read_bytes() == exported.read_bytes()
    shutil.rmtree(work / "runs/tiny/state")
    refused = bmscale("train", "tiny.yaml", folder=work, check=False)
    assert refused.returncode == 2
    assert "holds no training state, and the run had saved one" in refused.stderr
