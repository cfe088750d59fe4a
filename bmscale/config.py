"""Reading an experiment: YAML, presets and `key.sub=value` overrides into strict pydantic models.

1. `load` finds the file (or the preset of that name) and follows its `preset:` and `extends:` keys downwards.
2. Later layers win key by key: preset, extended file, file, command line. Every value remembers where it was written.
3. `validate` makes a pydantic model of the result and turns each mistake into one line: file:line, key path, what must
   hold, what was given, and the nearest key there is.
"""

import difflib
import re
import types
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bmscale.errors import BadInput

KeyPath = tuple[str, ...]
MOST_LEVELS = 20
PRESETS = Path(__file__).parent / "presets"

# ds_configs, launch and slurm lie beside the package in a clone, and inside it where pip put it.
_SHIPPED = (Path(__file__).parent.parent, Path(__file__).parent / "shipped")


def shipped_file(folder: str, name: str) -> Path | None:
    """A file of `ds_configs`, `launch` or `slurm`, in a clone or in an installed package; None if there is none."""
    candidates = (root / folder / name for root in _SHIPPED if (root / "ds_configs" / "zero2.json").is_file())
    return next((path for path in candidates if path.is_file()), None)


def shipped_names(folder: str) -> list[str]:
    """The names of the files in one of these folders."""
    root = next(root for root in _SHIPPED if (root / "ds_configs" / "zero2.json").is_file())
    return sorted(path.name for path in (root / folder).iterdir() if path.is_file())


class Config(BaseModel):
    """Base of every configuration section: unknown keys are errors, values never change after validation.

    A section lives beside the component that it configures, with a docstring under each field that gives its unit.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `no` is a word (Norwegian!), 12:30:00 a time, 3e-4 a number."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own spelling of a class table


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+(?:_[0-9]+)*$", "-+0123456789"),
    ("float", r"^[-+]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("merge", r"^(?:<<)$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _decimal(kind: type) -> Callable[[yaml.SafeLoader, yaml.ScalarNode], Any]:
    """The base class reads 010 as octal and 1:30 as minutes; here a number is decimal."""
    return lambda loader, node: kind(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal(int))
_Loader.add_constructor("tag:yaml.org,2002:float", _decimal(float))


@dataclass
class Document:
    """Values of one or more merged layers, and for each key path where it was last written (`file:line`)."""

    values: dict[str, Any] = field(default_factory=dict)
    where: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """The place of the nearest enclosing key that was written somewhere, or an empty string."""
        if path not in self.where:  # an override below this key is the likelier culprit than the file above it
            below = [where for key, where in self.where.items() if key[: len(path)] == path and "override" in where]
            if below:
                return below[-1]
        for length in range(len(path), -1, -1):
            if path[:length] in self.where:
                return self.where[path[:length]]
        return ""

    def layer(self, other: "Document") -> "Document":
        """This document with `other` on top: mappings merge, everything else is replaced."""
        return Document(_merge(self.values, other.values), {**self.where, **other.where})


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def read_yaml(path: Path) -> Document:
    """Read one YAML file. Raises BadInput for a missing file, bad UTF-8, bad YAML or a key given twice."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: must be UTF-8; byte {error.start} is {error.object[error.start]:#04x}") from None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Document({}, {(): str(path)})
        if not isinstance(root, yaml.MappingNode):
            raise BadInput(f"{path}:{root.start_mark.line + 1}: must be a mapping of keys to values")
        where: dict[KeyPath, str] = {(): str(path)}
        _record(root, (), where, path)
        loader.flatten_mapping(root)
        return Document(loader.construct_document(root), where)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BadInput(f"{path}{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        # What PyYAML's constructors raise for `!!int abc` and its like.
        raise BadInput(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadInput(f"{path}: nested deeper than {MOST_LEVELS} levels") from None


def _record(node: yaml.Node, path: KeyPath, where: dict[KeyPath, str], file: Path) -> None:
    """Note the line of every key below `node`, refusing keys given twice (PyYAML would keep the last in silence)."""
    if len(path) > MOST_LEVELS:
        raise BadInput(
            f"{file}:{node.start_mark.line + 1}: nested deeper than {MOST_LEVELS} levels, or an alias of itself"
        )
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            where[(*path, str(index))] = f"{file}:{child.start_mark.line + 1}"
            _record(child, (*path, str(index)), where, file)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, str):
                raise BadInput(f"{file}:{line}: a key must be a plain word")
            if key in seen:
                raise BadInput(f"{file}:{line}: key '{key}' is given twice (first on line {seen[key]}); keep one")
            seen[key] = line
            where[(*path, key)] = f"{file}:{line}"
            _record(value_node, (*path, key), where, file)


def read_overrides(overrides: Iterable[str]) -> Document:
    """Turn `training.seed=3` into a layer; the value is read as YAML. Raises BadInput when there is no `=`."""
    document = Document()
    for text in overrides:
        name, separator, value_text = text.partition("=")
        path = tuple(name.strip().split("."))
        if not separator or not all(path):
            raise BadInput(f"override '{text}': must have the form key.sub=value, such as training.seed=3")
        try:
            value = yaml.load(value_text, Loader=_Loader)
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise BadInput(f"override '{text[:80]}': the value is not YAML; put it in quotes") from None
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        document = document.layer(Document(nested, {path: f"override '{text[:80]}'"}))
    return document


def preset_names(directory: Path = PRESETS) -> list[str]:
    """The named experiments that come with the package."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def load(config: str, overrides: Iterable[str] = ()) -> Document:
    """The merged document of an experiment.

    `config` is a YAML file or the name of a shipped preset, which a folder of that name does not hide. Raises BadInput
    naming the nearest preset or file.
    """
    path = Path(config)
    if path.is_file():
        document = _read_chain(path, ())
    elif config.endswith((".yaml", ".yml")) and not path.is_dir():
        raise BadInput(f"{config}: no such file{suggest(config, _neighbours(path))}")
    elif path.is_dir() and config not in preset_names():
        inside = sorted(str(file) for file in path.glob("*.y*ml") if file.is_file()) if config else []
        nearest = f"; did you mean '{inside[0]}'?" if inside else ""
        what = f"the folder {config}" if config else "an empty name"
        names = ", ".join(preset_names())
        raise BadInput(f"CONFIG: must be a YAML file or the name of a preset ({names}); got {what}{nearest}")
    else:
        document = _read_preset(config, "")
    return document.layer(read_overrides(overrides))


def _neighbours(path: Path) -> list[str]:
    return [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []


def _read_preset(name: str, place: str) -> Document:
    names = preset_names()
    if name not in names:
        at = f"{place}: preset: " if place else ""
        hint = "" if place else " and no such file"
        raise BadInput(
            f"{at}'{name}': no preset of that name{hint}{suggest(name, names)} (presets: {', '.join(names)})"
        )
    return read_yaml(PRESETS / f"{name}.yaml")


def _read_chain(path: Path, above: tuple[Path, ...]) -> Document:
    """One file over the preset and the file that it names."""
    if path.resolve() in above:
        raise BadInput(f"{path}: extends itself through {' -> '.join(str(file) for file in above)}")
    document = read_yaml(path)
    base = Document()
    for key in ("preset", "extends"):
        value = document.values.pop(key, None)
        if value is None:
            continue
        place = document.place((key,))
        if not isinstance(value, str):
            raise BadInput(f"{place}: {key}: must be one name; got {value!r}")
        if key == "preset":
            base = base.layer(_read_preset(value, place))
        else:
            below = path.parent / value
            if not below.is_file():
                raise BadInput(f"{place}: extends: no such file: {below}{suggest(str(below), _neighbours(below))}")
            base = base.layer(_read_chain(below, (*above, path.resolve())))
    return base.layer(document)


Section = TypeVar("Section", bound=BaseModel)


def validate(section: type[Section], document: Document) -> Section:
    """Make the model, or raise BadInput with one line for every mistake."""
    try:
        return section.model_validate(document.values)
    except ValidationError as error:
        lines = [_render(section, document, item) for item in error.errors()]
        raise BadInput("\n".join(dict.fromkeys(lines))) from None


def _render(section: type[BaseModel], document: Document, item: Any) -> str:
    """One mistake as `place: key.path: what must hold; got …`."""
    *outer, last = item["loc"] or ("",)
    # An unknown key is shown whatever it looks like; elsewhere pydantic adds names of types to the location.
    kept = [part for part in outer if _is_key(part)] + (
        [last] if item["type"] == "extra_forbidden" or _is_key(last) else []
    )
    path = tuple(str(part) for part in kept)
    name, place = ".".join(path), document.place(path)
    prefix = f"{place}: {name}" if name else place
    kind, given = item["type"], item["input"]
    if kind == "extra_forbidden":
        known = _keys(section, path[:-1])
        listed = f" (keys here: {', '.join(known)})" if known else ""
        return f"{prefix}: unknown key{suggest(path[-1], known)}{listed}"
    if kind == "missing":
        return f"{prefix}: must be given"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should be", "must be")
    shown = "" if isinstance(given, dict) else f"; got {given!r}"
    nearest = suggest(given, _choices(item)) if isinstance(given, str) else ""
    return f"{prefix}: {message}{shown}{nearest}"


def _choices(item: Any) -> list[str]:
    """The words that a choice allows, out of pydantic's message."""
    text = str(item.get("ctx", {}).get("expected", ""))
    return [word.strip(" '") for word in text.replace(" or ", ",").split(",") if word.strip()]


def _is_key(part: object) -> bool:
    """Whether a part of pydantic's location is a key of ours, and not the name of a union's member or a validator."""
    return isinstance(part, int) or (isinstance(part, str) and part.isidentifier() and not part[0].isupper())


def _keys(section: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys of the section that `path` leads to."""
    current: Any = section
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = _section_type(current.model_fields[part].annotation)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _section_type(annotation: Any) -> Any:
    """The section inside `Section | None`, `list[Section]` and the like."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        for inner in map(_section_type, get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                return inner
    return None


def suggest(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'nearest'?`, or an empty string where nothing is near."""
    nearest = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
