"""Between reading and encoding: lines of what was kept, a sample of them to train the tokenizer on, and chunks."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BmscaleError

SAMPLE_BYTES = 80_000_000  # of text to train the tokenizer on: 1.6 GiB in the trainer, whatever the sentences' length
CHUNK_BYTES = 4_000_000

Item = TypeVar("Item")


def chunks(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """Lists of `most` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, most)):
        yield chunk


def bounded_chunks(
    items: Iterable[Item],
    most: int,
    size_of: Callable[[Item], int] = len,  # type: ignore[assignment]
) -> Iterator[list[Item]]:
    """Lists of at most `most` items, each ended by the item that brings its size to CHUNK_BYTES."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if len(chunk) == most or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def sample(spool: Path, lines: int, most: int, seed: int) -> Iterator[bytes]:
    """A random draw of the spool's lines, in their order: at most `most` of them, and about SAMPLE_BYTES."""
    wanted = max(1, min(most, SAMPLE_BYTES * lines // spool.stat().st_size))
    chosen = np.ones(lines, dtype=bool)
    if lines > wanted:
        chosen = np.zeros(lines, dtype=bool)
        chosen[np.random.default_rng(seed).choice(lines, wanted, replace=False, shuffle=False)] = True
    with spool.open("rb") as file:
        yield from itertools.compress(file, chosen)


@lru_cache(maxsize=1)
def loaded_tokenizer(model: Path, sha256: str) -> Tokenizer:
    """Each worker loads the model once; the hash is in the key because a path may come to hold another model."""
    tokenizer = Tokenizer.load(model)
    if tokenizer.sha256 != sha256:
        raise BmscaleError(f"{model}: changed while it was in use")
    return tokenizer
