"""What `bmscale translate` writes besides translations: n-best lists, and scores of given pairs, as lines of text."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bmscale.errors import BadInput
from bmscale.inference.chunks import in_chunks, with_prefixes
from bmscale.inference.translator import Hypothesis, Translator

_CHUNK_CHARACTERS = 1_000_000


def n_best_lines(
    translator: Translator,
    lines: Iterable[str],
    n: int,
    *,
    prefixes: Iterable[str] | None = None,
    chunk_lines: int = 512,
    **options: Any,
) -> Iterator[str]:
    """`index ||| translation ||| score` for the n best of each line, best first, as Moses and Marian write it.

    The index counts lines from 0; the score is that of `Hypothesis`. Lines come and go in chunks and `options` are
    those of `Translator.translate_n_best`, which also says what is raised.
    """
    return _listed(translator.translate_n_best, lines, n, prefixes, chunk_lines, options)


def alternative_lines(
    translator: Translator,
    lines: Iterable[str],
    n: int,
    *,
    prefixes: Iterable[str] | None = None,
    chunk_lines: int = 512,
    **options: Any,
) -> Iterator[str]:
    """The same of `Translator.translate_alternatives`."""
    return _listed(translator.translate_alternatives, lines, n, prefixes, chunk_lines, options)


def _listed(
    translate: Callable[..., list[list[Hypothesis]]],
    lines: Iterable[str],
    n: int,
    prefixes: Iterable[str] | None,
    chunk_lines: int,
    options: dict[str, Any],
) -> Iterator[str]:
    translate([], n, **options)  # a mistake in them shows before the first line comes
    index = 0
    for chunk in in_chunks(with_prefixes(lines, prefixes), chunk_lines, _CHUNK_CHARACTERS):
        texts, begun = zip(*chunk, strict=True)
        for hypotheses in translate(texts, n, prefixes=begun, **options):
            for hypothesis in hypotheses:
                yield f"{index} ||| {hypothesis.text} ||| {hypothesis.score:.6f}"
            index += 1


def scored_lines(
    translator: Translator, lines: Iterable[str], *, chunk_lines: int = 512, max_batch_tokens: int = 8192
) -> Iterator[str]:
    """`log-probability TAB tokens` for each line `source TAB target`, in order; see `Score`.

    Raises BadInput, naming the line, for one without a single tab; scores of earlier chunks have been given by then.
    """
    for chunk in in_chunks(_pairs(lines), chunk_lines, _CHUNK_CHARACTERS):
        sources, targets = zip(*chunk, strict=True)
        for score in translator.score(sources, targets, max_batch_tokens):
            yield f"{score.log_probability:.6f}\t{score.tokens}"


def _pairs(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, start=1):
        sides = line.split("\t")
        if len(sides) != 2:
            raise BadInput(
                f"line {number}: must be a source, one tab and its target; got {len(sides) - 1} tabs: {line[:80]!r}"
            )
        yield sides[0], sides[1]
