"""`bmscale compare A B … --test FILE`: is the difference between translations more than chance?

Two paired tests, both sacreBLEU's own: bootstrap resampling (Koehn 2004, "Statistical Significance Tests for Machine
Translation Evaluation") and approximate randomisation (Riezler and Maxwell 2005, "On Some Pitfalls in Automatic
Evaluation and Significance Testing for MT"). Each system is tested against the first, the baseline; with several
systems the p-values are not corrected for their number.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmscale.data.corpus import CorpusConfig, describe, read_lines, read_pairs
from bmscale.errors import BadInput
from bmscale.evaluation.evaluate import model_of
from bmscale.evaluation.scores import DEFAULT_SEED, check, fixed_seed, make_metric
from bmscale.experiment import Experiment, RunFolder, TranslationEvaluationConfig
from bmscale.inference.search import SearchOptions
from bmscale.inference.translator import Translator
from bmscale.model.folder import CONFIG, ModelFolder, open_model_folder

log = logging.getLogger("bmscale")

TESTS = {"bootstrap": "bs", "randomisation": "ar"}


@dataclass(frozen=True)
class System:
    """One of the sides of a comparison, checked and not yet translated."""

    name: str
    """As it was given."""
    model: ModelFolder | None = None
    """None for a file of translations."""
    search: SearchOptions = field(default_factory=SearchOptions)
    languages: tuple[str | None, str | None] = (None, None)
    """Source and target, where the model says."""

    def translations(self, sources: Sequence[str], target_language: str | None, device: str | None) -> list[str]:
        """One for each source: of the model, or the lines of the file. Raises BadInput for a file of other length."""
        if self.model is not None:
            log.info("translating with %s: %d sentences, beam %d", self.name, len(sources), self.search.beam_size)
            translator = Translator.from_pretrained(self.model, device=device)
            if translator.tagged_languages:
                translator = translator.into(target_language)
            return translator.translate(sources, **vars(self.search))
        lines = list(read_lines(Path(self.name)))
        if len(lines) != len(sources):
            raise BadInput(
                f"{self.name}: must have one translation a line for each sentence of the test set, {len(sources):,}; "
                f"got {len(lines):,} lines"
            )
        return lines

    def describe(self) -> dict[str, Any]:
        """What the results say of where its translations come from."""
        if self.model is None:
            return {"system": self.name}
        step = self.model.provenance.get("step")
        return {"system": self.name, "model": str(self.model.path), "step": step, "search": vars(self.search)}


def open_system(
    name: str,
    *,
    read_experiment: Callable[[RunFolder], Experiment],
    which: str = "best",
    with_given: Callable[[SearchOptions], SearchOptions] = lambda search: search,
) -> System:
    """A run folder (its model `which`), a model folder, or a file of translations, one a line.

    A run is searched as its `evaluation` says, another model by the defaults of `SearchOptions`; `with_given` puts
    options over both. `read_experiment` opens the record of a run. Raises BadInput for anything else, and for what is
    damaged.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        if not path.is_file():
            raise BadInput(f"{name}: must be a run folder, a model folder, or a file of translations; there is no such")
        return System(str(path))
    search = SearchOptions()
    if not (path / CONFIG).is_file():
        run = RunFolder(path)
        experiment = read_experiment(run)
        config = experiment.evaluation
        if not isinstance(config, TranslationEvaluationConfig):
            raise BadInput(f"{name}: must be a run of task translation; it is one of {experiment.task}")
        search = SearchOptions(config.beam_size, config.length_penalty, config.max_batch_tokens)
        path = model_of(run, which)
    model = open_model_folder(path)
    languages = (model.provenance.get("source_language"), model.provenance.get("target_language"))
    return System(name, model, with_given(search), languages)


def compare(
    systems: Sequence[System],
    test: CorpusConfig,
    *,
    source_language: str | None = None,
    target_language: str | None = None,
    metrics: Sequence[str] = ("bleu", "chrf"),
    device: str | None = None,
) -> dict[str, Any]:
    """Translate a test set with each system where it is not translated yet, and test each against the first.

    References are compared untouched. Languages are those of the models unless given; the target language chooses the
    tokenizer of BLEU. Returns `test`, `sha256` and `segments` of the test set, `target_language`, `systems` (what each
    is), and `metrics`: the result of `paired_tests`.

    Raises BadInput for fewer than two systems, one given twice, models of different languages, a test set that cannot
    be read, and a file of translations that has not one line for each of its sentences.
    """
    names = [system.name for system in systems]
    if len(names) < 2 or len(set(names)) < len(names):
        raise BadInput(f"compare: must have at least two different systems, the baseline first; got {', '.join(names)}")
    source_language = source_language or _language(systems, 0)
    target_language = target_language or _language(systems, 1)
    if target_language is None:
        log.warning("the target language is not known: BLEU takes tokenizer 13a; give --target-language to choose")
    pairs = list(read_pairs(test, source_language or "source", target_language or "target"))
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    # Files first: one of the wrong length is found before anything is translated.
    order = sorted(systems, key=lambda system: system.model is not None)
    translated = {system.name: system.translations(sources, target_language, device) for system in order}
    found = paired_tests(
        [(name, translated[name]) for name in names], references, metrics=metrics, target_language=target_language
    )
    for line in format_comparison(found).splitlines():
        log.info("%s", line)
    return {
        "test": test.short_name,
        "path": describe(test),
        "sha256": hashlib.sha256("".join(f"{s}\t{t}\n" for s, t in pairs).encode("utf-8", "replace")).hexdigest(),
        "segments": len(pairs),
        "target_language": target_language,
        "systems": [system.describe() for system in systems],
        "metrics": found,
    }


def _language(systems: Sequence[System], side: int) -> str | None:
    """The language that all models have in common. Raises BadInput where they differ."""
    found = {system.languages[side]: system.name for system in systems if system.languages[side]}
    if len(found) > 1:
        given = ", ".join(f"{name} has '{language}'" for language, name in found.items())
        raise BadInput(f"compare: the {('source', 'target')[side]} language must be the same for all models; {given}")
    return next(iter(found), None)


def paired_tests(
    systems: Sequence[tuple[str, Sequence[str]]],
    references: Sequence[str],
    *,
    metrics: Sequence[str] = ("bleu", "chrf"),
    n_bootstrap: int = 1000,
    n_trials: int = 10_000,
    seed: int = DEFAULT_SEED,
    target_language: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Test N translations of each system against those of the first, given N references.

    For each metric: `name`, `signatures` (by test), `note`, and `systems`, a list of `system`, `score`, `difference`
    (to the baseline), `identical` (whether its translations are the baseline's), `mean` and `plus_minus` (over
    `n_bootstrap` resamples: mean, and half the width of the central 95 %) and `p_values` (by test; two-sided, so also
    for a system that is worse; None for the baseline, 1 where scores are equal). The tests are `bootstrap` with
    `n_bootstrap` resamples and `randomisation` with `n_trials` trials. The same seed gives the same values.

    Raises BadInput for fewer than two systems, unequal counts, nothing to score, an unknown metric, or counts and a
    seed below 1.
    """
    from sacrebleu.significance import PairedTest

    if len(systems) < 2:
        raise BadInput(f"compare: must have at least two systems, the baseline first; got {len(systems)}")
    if min(n_bootstrap, n_trials, seed) < 1:  # sacreBLEU takes 0 for its default, and a seed of 0 for none
        raise BadInput(f"n_bootstrap, n_trials and seed must be 1 or more; got {n_bootstrap}, {n_trials} and {seed}")
    for _, hypotheses in systems:
        check(hypotheses, references, metrics, n_bootstrap, seed)
    results: dict[str, dict[str, Any]] = {}
    named: list[tuple[str, Sequence[str]]] = [(name, list(hypotheses)) for name, hypotheses in systems]
    with fixed_seed(seed):
        for metric in metrics:
            signatures: dict[str, str] = {}
            p_values: dict[str, list[float | None]] = {}
            rows: list[Any] = []
            for test, kind in TESTS.items():
                made, note = make_metric(metric, target_language)
                samples = n_bootstrap if kind == "bs" else n_trials
                # One process: forks of one that runs threads of torch may hang.
                found, scores = PairedTest(named, {metric: made}, [list(references)], kind, samples, n_jobs=1)()
                ((name, signature),) = found.items()
                tested: list[Any] = scores[name]
                signatures[test] = str(signature)
                p_values[test] = [_p_value(row, tested[0]) for row in tested]
                rows = rows or tested  # the first test is the one with intervals
            results[metric] = {
                "name": name,
                "signatures": signatures,
                "note": note,
                "systems": [
                    {
                        "system": systems[number][0],
                        "score": float(row.score),
                        "difference": float(row.score - rows[0].score),
                        "identical": number > 0 and named[number][1] == named[0][1],
                        "mean": float(row.mean),
                        "plus_minus": float(row.ci),
                        "p_values": {test: p_values[test][number] for test in TESTS},
                    }
                    for number, row in enumerate(rows)
                ],
            }
    return results


def _p_value(row: Any, baseline: Any) -> float | None:
    """How probable so large a difference is by chance. One of 0 is never exceeded by none: p is 1, where sacreBLEU,
    which counts larger differences alone, gives its smallest."""
    if row is baseline:
        return None
    return 1.0 if row.score == baseline.score else float(row.p_value)


def format_comparison(results: dict[str, dict[str, Any]]) -> str:
    """The result of `paired_tests` as tables for a terminal, one a metric, with signatures and notes below."""
    lines = []
    width = max(len("baseline: "), *(len(row["system"]) for row in next(iter(results.values()))["systems"]))
    width += len("baseline: ")
    for result in results.values():
        lines.append(f"{result['name']:<{width}}  score  (μ ± 95 %)         difference  p bootstrap  p randomisation")
        for number, row in enumerate(result["systems"]):
            label = f"baseline: {row['system']}" if number == 0 else row["system"]
            interval = f"({row['mean']:.2f} ± {row['plus_minus']:.2f})"
            line = f"{label:<{width}} {row['score']:6.2f}  {interval:<17}"
            if number:
                line += f"  {row['difference']:+10.2f}  {_p(row, 'bootstrap'):>11}  {_p(row, 'randomisation'):>15}"
            lines.append(line.rstrip())
        lines += [f"  {test}: {signature}" for test, signature in result["signatures"].items()]
    notes = dict.fromkeys(result["note"] for result in results.values() if result["note"])
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _p(row: dict[str, Any], test: str) -> str:
    """A p-value, marked where it is below 0.05."""
    value = row["p_values"][test]
    return "identical " if row["identical"] else f"{value:.4f}{'*' if value < 0.05 else ' '}"
