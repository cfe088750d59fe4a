"""An older export makes room for a new one, and nothing else does."""

import json
from pathlib import Path

import pytest

from bmscale.deployment.place import check_place, sha256_of
from bmscale.errors import BadInput

CARD = "# A model\n"


def report(*files: str) -> str:
    keys = dict.fromkeys(("format", "model", "artefact", "gate"))
    return json.dumps({**keys, "files": list(files), "card_sha256": sha256_of(CARD.encode())})


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def folder(tmp_path) -> Path:
    out: Path = tmp_path / "out"
    out.mkdir()
    (out / "model.bin").touch()
    (out / "README.md").write_text(CARD)
    (out / "export.json").write_text(report("README.md", "export.json", "model.bin"))
    return out


@pytest.fixture
def file(tmp_path) -> Path:
    out: Path = tmp_path / "a.argosmodel"
    out.touch()
    (tmp_path / "a.README.md").write_text(CARD)
    (tmp_path / "a.export.json").write_text(report("a.README.md", "a.export.json", "a.argosmodel"))
    return out


def test_an_export_makes_room(model, folder, file):
    assert check_place(folder, "", model) == folder
    assert check_place(file, ".argosmodel", model) == file
    assert check_place(model.parent / "free", "", model) == model.parent / "free"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("export.json", "{}", "is no export"),
        ("export.json", "[", "is no export"),
        ("notes.txt", "", "holds more than an export, such as notes.txt"),
        (".git/HEAD", "", "holds more than an export, such as .git"),
        ("README.md", CARD + "Mine.", "its README.md was edited"),
    ],
)
def test_a_folder_with_anything_else_does_not(name, text, said, model, folder):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(BadInput, match=said):
        check_place(folder, "", model)


def test_a_link_to_an_export_does_not(model, folder):
    link = model.parent / "link"
    link.symlink_to(folder)
    with pytest.raises(BadInput, match="is no export"):
        check_place(link, "", model)


def test_what_lies_where_report_and_card_go_is_kept(model, file):
    (model.parent / "a.README.md").write_text("Mine.")
    with pytest.raises(BadInput, match=r"its a\.README\.md was edited"):
        check_place(file, ".argosmodel", model)
    file.unlink()
    (model.parent / "a.export.json").unlink()
    with pytest.raises(BadInput, match="is no export"):
        check_place(file, ".argosmodel", model)


def test_a_model_folder_is_no_place(model):
    for out in (model, model / "export", model / ".." / model.name / "x"):
        with pytest.raises(BadInput, match="must not lie in the model's own folder"):
            check_place(out, "", model)


def test_links_in_a_circle_are_no_place(model, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in (tmp_path / "loop", tmp_path / "loop" / "x"):
        with pytest.raises(BadInput, match="--out: must name where to write"):
            check_place(out, "", model)
