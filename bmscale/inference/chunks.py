"""Lines as they come from a pipe, in chunks, so that memory is bounded however many come."""

import itertools
from collections.abc import Iterable, Iterator

from bmscale.errors import BadInput


def with_prefixes(lines: Iterable[str], prefixes: Iterable[str] | None) -> Iterator[tuple[str, str]]:
    """Each line with its prefix, by default empty. Raises BadInput where one of the two ends before the other."""
    if prefixes is None:
        yield from ((line, "") for line in lines)
        return
    for number, (line, prefix) in enumerate(itertools.zip_longest(lines, prefixes)):
        if line is None or prefix is None:
            few, many = ("sentences", "prefixes") if line is None else ("prefixes", "sentences")
            raise BadInput(
                f"prefixes: must be as many lines as the sentences; the {few} end after line {number}, and there are "
                f"more {many}: give an empty line where the search is to be free"
            )
        yield line, prefix


def in_chunks(
    rows: Iterable[tuple[str, str]], chunk_lines: int, chunk_characters: int
) -> Iterator[list[tuple[str, str]]]:
    """Rows in lists of `chunk_lines`, or fewer once they hold `chunk_characters`. Raises BadInput for less than 1."""
    if chunk_lines < 1 or chunk_characters < 1:
        raise BadInput(f"chunk_lines, chunk_characters: must be at least 1; got {chunk_lines}, {chunk_characters}")
    chunk: list[tuple[str, str]] = []
    held = 0
    for row in rows:
        chunk.append(row)
        held += sum(map(len, row))
        if len(chunk) >= chunk_lines or held >= chunk_characters:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
