"""YAML, presets, overrides, and messages a person can act on."""

from pathlib import Path

import pytest
from pydantic import Field

from bmscale.config import Config, Document, load, read_overrides, read_yaml, validate
from bmscale.errors import BadInput


class Inner(Config):
    rate: float = Field(0.1, gt=0)
    name: str = "x"


class Outer(Config):
    seed: int = 0
    inner: Inner = Inner()
    many: list[Inner] = Field(default_factory=list)
    maybe: Inner | None = None


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("3e-4", 3e-4),
        ("1e9", 1e9),
        ("010", 10),
        ("50_000", 50_000),
        ("12:30:00", "12:30:00"),
        ("2026-11-24", "2026-11-24"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("~", None),
        ("null", None),
        ("'3'", "3"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, value):
    document = read_yaml(write(tmp_path / "x.yaml", f"key: {text}\n"))
    assert document.values["key"] == value
    assert type(document.values["key"]) is type(value)


def test_layers_win_key_by_key(tmp_path):
    write(tmp_path / "base.yaml", "seed: 1\ninner: {rate: 0.5, name: base}\n")
    top = write(tmp_path / "top.yaml", "extends: base.yaml\ninner:\n  name: top\n")
    model = validate(Outer, load(str(top), ["inner.rate=3e-4"]))
    assert (model.seed, model.inner.rate, model.inner.name) == (1, 3e-4, "top")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1\n", r"x\.yaml:1: sed: unknown key; did you mean 'seed'"),
        ("inner:\n  rat: 1\n", r"x\.yaml:2: inner\.rat: unknown key; did you mean 'rate'"),
        ("seed: 1\ninner:\n  rate: fast\n", r"x\.yaml:3: inner\.rate: must be a valid number; got 'fast'"),
        ("inner: {rate: 0}\n", r"x\.yaml:1: inner\.rate: must be greater than 0; got 0"),
        ("inner: 3\n", r"x\.yaml:1: inner: .*got 3"),
        ("many:\n  - rate: 1\n  - rates: 2\n", r"x\.yaml:3: many\.1\.rates: unknown key; did you mean 'rate'"),
        ("maybe:\n  nam: y\n", r"x\.yaml:2: maybe\.nam: unknown key; did you mean 'name'"),
        ("seed: '3'\n", r"x\.yaml:1: seed: must be a valid integer; got '3'"),
        ("seed: 1\nseed: 2\n", r"x\.yaml:2: key 'seed' is given twice \(first on line 1\)"),
        ("- 1\n", r"x\.yaml:1: must be a mapping"),
        ("seed: [1\n", r"x\.yaml:\d: not YAML"),
        ("seed: 1\n\tinner: 2\n", r"x\.yaml:2: not YAML"),
        ("preset: toyy\n", r"x\.yaml:1: preset: 'toyy': no preset of that name; did you mean 'toy'"),
        ("extends: y.yaml\n", r"x\.yaml:1: extends: no such file: .*y\.yaml"),
        ("extends: x.yaml\n", r"extends itself"),
        ("Training: 1\n", r"x\.yaml:1: Training: unknown key"),
        ("inner:\n  na-me: 1\n", r"x\.yaml:2: inner\.na-me: unknown key; did you mean 'name'"),
        ("seed: 1__0\n", r"x\.yaml:1: seed: must be a valid integer; got '1__0'"),
        ("seed: !!int abc\n", r"x\.yaml: not YAML"),
        ("inner: &a {name: *a}\n", r"not YAML|nested deeper"),
        ("seed: \0\n", r"x\.yaml: not YAML"),
        ("inner: " + "[" * 5000, r"x\.yaml: ?.*(nested|not YAML)"),
    ],
)
def test_mistakes_name_line_key_and_nearest(tmp_path, text, message):
    path = write(tmp_path / "x.yaml", text)
    with pytest.raises(BadInput, match=message):
        validate(Outer, load(str(path)))


def test_all_mistakes_are_told_at_once(tmp_path):
    path = write(tmp_path / "x.yaml", "sed: 1\ninner: {rate: -1}\n")
    with pytest.raises(BadInput) as caught:
        validate(Outer, load(str(path)))
    assert len(str(caught.value).splitlines()) == 2


def test_overrides_name_themselves():
    with pytest.raises(BadInput, match=r"override 'inner\.rat=1': inner\.rat: unknown key"):
        validate(Outer, read_overrides(["inner.rat=1"]))
    with pytest.raises(BadInput, match=r"override 'inner\.name\.x=1': inner\.name: must be a valid string"):
        validate(Outer, read_overrides(["inner.name.x=1"]))
    with pytest.raises(BadInput, match="the value is not YAML"):
        read_overrides(["seed=!!int x"])
    with pytest.raises(BadInput, match="must have the form key"):
        read_overrides(["seed"])
    with pytest.raises(BadInput, match="must have the form key"):
        read_overrides(["inner..rate=1"])


def test_not_utf8_and_missing(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(BadInput, match="must be UTF-8; byte 6 is 0xff"):
        load(str(tmp_path / "x.yaml"))
    with pytest.raises(BadInput, match=r"no such file; did you mean '.*x\.yaml'"):
        load(str(tmp_path / "xx.yaml"))
    with pytest.raises(BadInput, match="no preset of that name and no such file; did you mean 'toy'"):
        load("tyo")


def test_values_never_change():
    model = validate(Outer, Document({"seed": 3}))
    with pytest.raises(ValueError, match="frozen"):
        setattr(model, "seed", 4)  # noqa: B010 - mypy knows that it is frozen


def test_an_empty_name_and_a_folder_called_as_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"CONFIG: must be a YAML file or the name of a preset .*; got an empty name"):
        load("")
    Path("toy").mkdir()
    assert load("toy").values["name"] == "toy"
    Path("other").mkdir()
    with pytest.raises(BadInput, match=r"got the folder other$"):
        load("other")
