"""Texts of a study: what a step holds is what the step plan makes of it."""

from pathlib import Path

import numpy as np
import pytest

from bmscale.config import Document, validate
from bmscale.data.manifest import MANIFEST
from bmscale.data.prepare import DataConfig
from bmscale.data.steps import Lengths, StepPlan
from bmscale.data.synthetic import chunks
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, TranslationExperiment, read_experiment
from bmscale.scaling.lengths import PAIRS, measure
from bmscale.scaling.runs import prepare
from bmscale.training.pair_data import PairData
from bmscale.training.row_data import RowData


def experiment(folder: Path, train: list[dict[str, object]], **training: object) -> Experiment:
    values = {
        "data": {
            "source_language": "de",
            "target_language": "en",
            "directory": str(folder / "data"),
            "train": train,
            "valid": train[0],
            "tokenizer": {
                "type": "word",
                "vocabulary_size": 260 if "synthetic" in train[0] and len(train) == 1 else 90,
            },
        },
        "model": {"preset": "vanilla", "hidden_size": 16, "num_attention_heads": 2},
        "training": {"tokens_per_step": 500, "max_steps": 10, **training},
    }
    return validate(TranslationExperiment, Document(values))


def synthetic(pairs: int) -> Lengths:
    return np.concatenate([chunk.lengths + 1 for chunk in chunks("train", pairs)])


@pytest.mark.parametrize("tokens_per_step", [500, 1024, 5000, 20_000])
def test_synthetic_pairs_are_measured_without_being_prepared(tmp_path, tokens_per_step):
    texts = measure(experiment(tmp_path, [{"synthetic": "train", "pairs": 10**8}], tokens_per_step=tokens_per_step))
    assert texts.targets is not None
    assert len(texts.targets) >= PAIRS
    more = synthetic(10 * PAIRS)
    plan = StepPlan(more, more, seed=7, tokens_per_step=tokens_per_step)
    whole = [int(more[plan.pairs(step)].sum()) for step in range(plan.steps_in_epoch(0) - 1)]
    assert texts.tokens_per_step == pytest.approx(np.mean(whole), rel=1e-3)
    assert texts.read_per_step == texts.tokens_per_step < tokens_per_step - 1  # whole bundles of whole pairs


@pytest.mark.parametrize(("pairs", "tokens_per_step", "steps"), [(2000, 8192, 4), (4 * PAIRS, 1_000_000, 4)])
def test_the_short_step_of_a_small_corpus_counts(tmp_path, pairs, tokens_per_step, steps):
    asked = experiment(tmp_path, [{"synthetic": "train", "pairs": pairs}], tokens_per_step=tokens_per_step)
    tokens = synthetic(pairs).sum()
    assert measure(asked).tokens_per_step == pytest.approx(tokens / steps)
    assert tokens / steps < 0.97 * tokens_per_step


def corpora(folder: Path) -> list[dict[str, object]]:
    """A corpus of short pairs and one of long ones, 300 of each."""
    for name, words in (("short", 2), ("long", 12)):
        lines = [f"{name} {k}\t{' '.join(f'{name[0]}{(k * 7 + n) % 40}' for n in range(words))}\n" for k in range(300)]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    return [{"path": str(folder / f"{name}.tsv"), "name": name} for name in ("short", "long")]


def prepared(folder: Path, train: list[dict[str, object]], **training: object) -> Experiment:
    asked = experiment(folder, train, **training)
    assert isinstance(asked.data, DataConfig)
    prepare(asked.data)
    return asked


def test_pairs_of_people_are_measured_as_they_are_drawn(tmp_path):
    """A mixture that has nine tenths of its pairs from the corpus of long ones."""
    train, means = corpora(tmp_path), []
    for weights in ({"short": 1, "long": 1}, {"short": 1, "long": 9}):
        asked = prepared(tmp_path, train, sampling={"weights": weights})
        texts, plan = measure(asked), PairData(asked).plan()
        steps = [plan.pairs(step) for step in range(plan.steps_in_epoch(0))]
        lengths = plan.target_lengths[np.concatenate(steps)]
        assert texts.targets is not None
        assert sorted(texts.targets) == sorted(lengths)
        assert texts.tokens_per_step == pytest.approx(lengths.sum() / len(steps))
        means.append(texts.targets.mean())
    assert means == pytest.approx([3 * 0.5 + 13 * 0.5, 3 * 0.1 + 13 * 0.9], abs=0.1)


def test_of_many_pairs_some_are_planned(tmp_path, monkeypatch):
    asked = prepared(tmp_path, corpora(tmp_path), tokens_per_step=200)
    all_of_them = measure(asked).tokens_per_step
    monkeypatch.setattr("bmscale.scaling.lengths.PAIRS", 400)
    monkeypatch.setattr("bmscale.scaling.lengths.STEPS", 10)
    assert measure(asked).tokens_per_step == pytest.approx(all_of_them, rel=0.03)
    assert all_of_them < 0.98 * 200


def test_a_synthetic_corpus_beside_another_is_measured_with_it(tmp_path):
    train: list[dict[str, object]] = [
        {"synthetic": "train", "pairs": pairs, "seed": seed, "name": f"drawn{seed}"}
        for seed, pairs in enumerate((300, 200))
    ]
    with pytest.raises(BadInput, match="must be prepared before"):
        measure(experiment(tmp_path, train))
    texts = measure(prepared(tmp_path, train))
    assert texts.targets is not None
    assert 300 < len(texts.targets) <= 500


@pytest.mark.parametrize(
    "other",
    [
        *(
            {"tokenizer": {"type": "bpe", "vocabulary_size": 300}},
            {"tokenizer": {"type": "word", "vocabulary_size": 90}},
        ),
        *({"max_target_tokens": 12}, {"language_tags": True}),
    ],
)
def test_where_a_token_is_no_syllable_the_data_is_measured(tmp_path, other):
    values = experiment(tmp_path, [{"synthetic": "train", "pairs": 300}]).model_dump(exclude_unset=True)
    asked = validate(TranslationExperiment, Document({**values, "data": {**values["data"], **other}}))
    with pytest.raises(BadInput, match="must be prepared before"):
        measure(asked)


def test_a_damaged_manifest_is_refused(tmp_path):
    asked = prepared(tmp_path, corpora(tmp_path))
    (tmp_path / "data" / MANIFEST).write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match=MANIFEST):
        measure(asked)


@pytest.mark.parametrize("joined", [False, True])
def test_rows_are_whole_and_their_first_tokens_are_not_learnt(tmp_path, joined):
    values = (
        *(f"data.directory={tmp_path}/data", "data.train.documents=300", "data.tokenizer.vocabulary_size=320"),
        *("data.valid.documents=20", "training.tokens_per_step=1000", "training.sequence_length=300"),
        f"training.attend_across_documents={str(joined).lower()}",
    )
    asked = read_experiment("toy-text", list(values))
    prepare(asked.data)
    data = RowData(asked)
    plan, texts = data.plan(), measure(asked)
    shape = asked.model.build(asked.data.tokenizer.vocabulary_size)
    read = [data.read_step(plan, step, shape, 0, 1) for step in range(plan.steps_in_epoch(0))]
    assert texts.tokens_per_step == pytest.approx(np.mean([step.target_tokens for step in read]))
    assert texts.read_per_step == pytest.approx(np.mean([step.tokens for step in read]))
    assert texts.tokens_per_step < texts.read_per_step <= 900
