"""Translation quality through sacreBLEU alone: BLEU, chrF2++ and TER, with signatures and confidence intervals.

References are compared untouched: never tokenized, normalised or cut by us, because a score that was computed
against changed references cannot be compared with anybody's (Post 2018, "A Call for Clarity in Reporting BLEU Scores").
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bmscale.errors import BadInput

METRICS = ("bleu", "chrf", "ter")
DEFAULT_SEED = 12345
"""What sacreBLEU itself takes, so that our intervals equal those of its command line."""

_CHARACTER_BLEU = {
    "ja": "Japanese", "ko": "Korean", "th": "Thai", "lo": "Lao", "km": "Khmer", "my": "Burmese", "bo": "Tibetan",
}  # fmt: skip
_NO_SPACES = ("zh", "ja")


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    metrics: Sequence[str] = METRICS,
    n_bootstrap: int = 1000,
    seed: int = DEFAULT_SEED,
    target_language: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Corpus scores of N detokenized hypotheses against N references, ready for `results.json`.

    The interval is sacreBLEU's: `mean` and `plus_minus` are the mean over `n_bootstrap` resamples of the segments and
    half the width of their central 95 % (Koehn 2004); both are None when `n_bootstrap` is 0 or 1. The same seed gives
    the same interval. `target_language` (a code such as "zh" or "pt_BR") chooses the tokenizer of BLEU and TER.

    Returns, for each metric in the order asked for, the keys `name`, `score` (0 to 100 for BLEU and chrF, percent of
    edits for TER), `signature`, `mean`, `plus_minus`, `segments` and `note` (None, or why a tokenizer was chosen).

    Raises BadInput for unequal counts, nothing to score, an unknown metric or a negative count or seed.
    """
    check(hypotheses, references, metrics, n_bootstrap, seed)
    results: dict[str, dict[str, Any]] = {}
    with fixed_seed(seed):
        for name in metrics:
            metric, note = make_metric(name, target_language)
            result = metric.corpus_score(hypotheses, [references], n_bootstrap=max(1, n_bootstrap))
            sampled = n_bootstrap > 1
            results[name] = {
                "name": result.name,
                "score": float(result.score),
                "signature": str(metric.get_signature()),
                "mean": float(result._mean) if sampled else None,
                "plus_minus": float(result._ci) if sampled else None,
                "segments": len(hypotheses),
                "note": note,
            }
    return results


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """chrF2++ of each sentence (0 to 100): to find sentences worth reading, not to average; the corpus score differs.

    Raises BadInput for unequal counts.
    """
    _check_counts(hypotheses, references)
    metric, _ = make_metric("chrf", None)
    return [
        float(metric.sentence_score(hypothesis, [reference]).score)
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]


def bleu_tokenizer(target_language: str | None) -> tuple[str, str | None]:
    """The sacreBLEU tokenizer for a target language, and a note where it is not the usual one (13a).

    The choice depends on the language alone, never on what is installed or reachable, so a score can be repeated
    anywhere: the tokenizers that download a model or need a dictionary (spm, flores200, ja-mecab, ko-mecab) are not
    used.
    """
    language = _primary(target_language)
    if language == "zh":
        return "zh", "BLEU splits Chinese into characters (sacreBLEU tokenizer zh)"
    if language in _CHARACTER_BLEU:
        return "char", (
            f"BLEU is over characters for {_CHARACTER_BLEU[language]} (sacreBLEU tokenizer char): "
            "not comparable with figures of a word segmenter"
        )
    return "13a", None


def format_scores(results: dict[str, dict[str, Any]]) -> str:
    """The results of `score` as lines for a terminal: name, score, interval, signature, then the notes."""
    lines = []
    for result in results.values():
        interval = ""
        if result["mean"] is not None:
            interval = f" (μ = {result['mean']:.2f} ± {result['plus_minus']:.2f})"
        lines.append(f"{result['name']:<8} {result['score']:6.2f}{interval}  {result['signature']}")
    notes = dict.fromkeys(result["note"] for result in results.values() if result["note"])
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _primary(language: str | None) -> str:
    """`zh` of zh-Hans, zh_CN and ZH."""
    return (language or "").replace("_", "-").split("-")[0].lower()


def make_metric(name: str, target_language: str | None) -> tuple[Any, str | None]:
    """A fresh sacreBLEU metric, and a note where its tokenizer is not the usual one.

    Fresh, because instances remember the seed and the references of their last call.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    note = None
    metric: Any
    if name == "bleu":
        tokenizer, note = bleu_tokenizer(target_language)
        # force: sacreBLEU would warn of sentences that end in " ."; some corpora do.
        metric = BLEU(tokenize=tokenizer, force=True)
    elif name == "chrf":
        metric = CHRF(word_order=2)
    elif _primary(target_language) in _NO_SPACES:
        # Without this a sentence that has no spaces is one word, and TER counts wrong sentences.
        metric, note = TER(normalized=True, asian_support=True), "TER is over characters for a script without spaces"
    else:
        metric = TER()
    _give_plain_floats(metric)
    return metric, note


def _give_plain_floats(metric: Any) -> None:
    """Have one metric score its resamples in Python floats.

    sacreBLEU computes them from float32 counts, except for a resample without a single match, which is a plain 0.0;
    the `statistics.mean` that it takes of them refuses the mixture.
    """
    compute = metric._compute_score_from_stats

    def compute_plain(stats: Any) -> Any:
        result = compute(stats)
        result.score = float(result.score)
        return result

    metric._compute_score_from_stats = compute_plain


@contextmanager
def fixed_seed(seed: int) -> Iterator[None]:
    """Have sacreBLEU take this seed, which it reads from the environment only."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


def _check_counts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise BadInput("hypotheses and references must be lists of sentences; got one string: split it into lines")
    if len(hypotheses) != len(references):
        raise BadInput(
            f"every hypothesis needs one reference: got {len(hypotheses)} hypotheses and {len(references)} references;"
            " give two files with the same number of lines in the same order"
        )


def check(
    hypotheses: Sequence[str], references: Sequence[str], metrics: Sequence[str], n_bootstrap: int, seed: int
) -> None:
    """Raises BadInput for what cannot be scored; see `score`."""
    _check_counts(hypotheses, references)
    if not any(reference.strip() for reference in references):
        found = "no lines" if not references else f"{len(references)} lines, all empty"
        raise BadInput(f"there is nothing to score: the references have {found}; give at least one sentence")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise BadInput(f"metrics must be chosen from {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}")
    if n_bootstrap < 0 or seed < 0:
        raise BadInput(f"n_bootstrap and seed must be 0 or more; got {n_bootstrap} and {seed}")
