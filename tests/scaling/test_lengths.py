"""Texts of a study: what a step holds is what the step plan makes of it."""

from pathlib import Path

import numpy as np
import pytest

from bmscale.config import Document, validate
from bmscale.data.prepare import DataConfig
from bmscale.data.steps import StepPlan
from bmscale.data.synthetic import chunks
from bmscale.experiment import Experiment, TranslationExperiment
from bmscale.scaling.lengths import PAIRS, measure
from bmscale.scaling.runs import prepare
from bmscale.training.pair_data import PairData


def experiment(folder: Path, train: list[dict[str, object]], **training: object) -> Experiment:
    values = {
        "data": {
            "source_language": "de",
            "target_language": "en",
            "directory": str(folder / "data"),
            "train": train,
            "valid": train[0],
            "tokenizer": {"type": "word", "vocabulary_size": 90},
        },
        "model": {"preset": "vanilla", "hidden_size": 16, "num_attention_heads": 2},
        "training": {"tokens_per_step": 500, "max_steps": 10, **training},
    }
    return validate(TranslationExperiment, Document(values))


@pytest.mark.parametrize("tokens_per_step", [500, 1024, 5000])
def test_synthetic_pairs_are_measured_without_being_prepared(tmp_path, tokens_per_step):
    texts = measure(experiment(tmp_path, [{"synthetic": "train", "pairs": 10}], tokens_per_step=tokens_per_step))
    assert texts.targets is not None
    assert len(texts.targets) == PAIRS
    more = np.concatenate([chunk.lengths + 1 for chunk in chunks("train", 4 * PAIRS)])
    steps = StepPlan(more, more, seed=7, tokens_per_step=tokens_per_step).steps_in_epoch(0)
    assert texts.tokens_per_step == pytest.approx(more.sum() / steps, rel=1e-3)
    assert texts.tokens_per_step < tokens_per_step - 1  # bundles of whole pairs fall short of a step


def test_pairs_of_people_are_measured_as_they_are_drawn(tmp_path):
    """A mixture that has nine tenths of its pairs from the corpus of long ones."""
    for name, words in (("short", 2), ("long", 12)):
        lines = [f"{name} {k}\t{' '.join(f'{name[0]}{(k * 7 + n) % 40}' for n in range(words))}\n" for k in range(300)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    corpora: list[dict[str, object]] = [
        {"path": str(tmp_path / f"{name}.tsv"), "name": name} for name in ("short", "long")
    ]
    means = []
    for weights in ({"short": 1, "long": 1}, {"short": 1, "long": 9}):
        asked = experiment(tmp_path, corpora, sampling={"weights": weights})
        assert isinstance(asked.data, DataConfig)
        prepare(asked.data)
        texts, plan = measure(asked), PairData(asked).plan()
        steps = [plan.pairs(step) for step in range(plan.steps_in_epoch(0))]
        lengths = plan.target_lengths[np.concatenate(steps)]
        assert texts.targets is not None
        assert sorted(texts.targets) == sorted(lengths)
        assert texts.tokens_per_step == pytest.approx(lengths.sum() / len(steps))
        means.append(texts.targets.mean())
    assert means == pytest.approx([3 * 0.5 + 13 * 0.5, 3 * 0.1 + 13 * 0.9], abs=0.1)
