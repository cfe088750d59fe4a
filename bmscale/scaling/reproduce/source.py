"""Where the data of a paper is: repository, commit, path, licence and hash; and how it comes into a folder.

The data is not ours to ship. A file here is the source's own, byte by byte, or made of some of its files by `convert`.
"""

import csv
import hashlib
import http.client
import json
import logging
import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bmscale.errors import BadInput, BmscaleError

log = logging.getLogger("bmscale")

LARGEST = 2**25  # bytes of one file: the largest that is fetched here has 1.3 MB


@dataclass(frozen=True)
class Part:
    """A file of the source's repository, and the SHA-256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """The data of one paper."""

    paper: str
    repository: str
    commit: str
    licence: str
    parts: tuple[Part, ...]
    file: str
    """Its place in the data folder."""
    convert: Callable[[Mapping[str, bytes]], bytes] | None = None
    """From the parts by their paths to the file; None where the file is the only part."""

    def url(self, part: Part) -> str:
        """Where a part is downloaded from: always https."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{quote(part.path)}"

    def describe(self) -> str:
        """Source, paths, licence and hashes, over several lines."""
        how = "is this file" if self.convert is None else "is made of these files"
        lines = [f"{self.file} {how} of github.com/{self.repository} at {self.commit}, licence {self.licence}:"]
        return "\n".join([*lines, *(f"  {part.path}  sha256 {part.sha256}" for part in self.parts)])


def missing(sources: Sequence[Source], folder: Path) -> BadInput:
    """The error that says where to get data that is not there."""
    papers = ", ".join(source.paper for source in sources)
    return BadInput(
        "\n".join(
            (
                f"{folder}: must have the data of {papers}; got no {', '.join(source.file for source in sources)}.",
                *(source.describe() for source in sources),
                "Fetch it with --download, or name with --data the folder that has it.",
            )
        )
    )


def find(source: Source, folder: Path) -> Path:
    """The data file. Raises BadInput, with where to get it, where there is none."""
    path = folder / source.file
    if not path.is_file():
        raise missing([source], folder)
    return path


@dataclass(frozen=True)
class Row:
    """A line of a data file."""

    place: str
    """File and line, for messages."""
    values: Mapping[str, Any]

    def text(self, column: str) -> str:
        """Raises BadInput where there is no such column."""
        if self.values.get(column) is None:
            raise BadInput(f"{self.place}: must have the column {column}; got {', '.join(map(str, self.values))}")
        return str(self.values[column])

    def number(self, column: str) -> float:
        """Raises BadInput for anything but a finite number above 0."""
        given = self.text(column)
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise BadInput(f"{self.place}: {column} must be a number above 0; got '{given}'")
        return value


def read_rows(source: Source, folder: Path) -> list[Row]:
    """The lines of the data file, CSV with a header or JSONL. Raises BadInput where it is missing or neither."""
    path = find(source, folder)
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            if path.suffix == ".jsonl":
                rows = [Row(f"{path}:{number}", dict(json.loads(line))) for number, line in enumerate(file, 1)]
            else:
                reader = csv.DictReader(file)
                rows = [Row(f"{path}:{reader.line_num}", row) for row in reader]
        except (ValueError, TypeError, RecursionError, csv.Error) as error:
            raise BadInput(f"{path}: must be {path.suffix.removeprefix('.').upper()} as published; {error}") from error
    if not rows:
        raise BadInput(f"{path}: must have lines; got none")
    return rows


def altered(source: Source, path: Path) -> bool:
    """Whether a file that should be the source's own, byte by byte, is not."""
    return source.convert is None and hashlib.sha256(path.read_bytes()).hexdigest() != source.parts[0].sha256


def download(source: Source, folder: Path) -> None:
    """Fetch the data where it is not there yet; the parts' hashes must be right before anything reads them.

    Raises BmscaleError where a part cannot be fetched, is too large or has another hash.
    """
    path = folder / source.file
    if path.is_file():
        return
    contents = {part.path: _fetch(source, part) for part in source.parts}
    data = contents[source.parts[0].path] if source.convert is None else source.convert(contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)
    log.info("%s: fetched from github.com/%s (licence %s)", path, source.repository, source.licence)


def _fetch(source: Source, part: Part) -> bytes:
    url = source.url(part)
    try:
        with _opener().open(url, timeout=60) as response:
            data: bytes = response.read(LARGEST + 1)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise BmscaleError(
            f"{url}: could not be fetched ({getattr(error, 'reason', error)}). Without a network put it there by hand."
            f"\n{source.describe()}"
        ) from error
    if len(data) > LARGEST:
        raise BmscaleError(f"{url}: must have at most {LARGEST} bytes; got more. Nothing was kept.")
    found = hashlib.sha256(data).hexdigest()
    if found != part.sha256:
        raise BmscaleError(f"{url}: must have the sha256 {part.sha256}; got {found}. Nothing was kept.")
    return data


def _opener() -> urllib.request.OpenerDirector:
    """Opens https and nothing else, through the proxy of the environment; it follows no redirection."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
