"""`bmscale evaluate` and `bmscale translate` on a trained run."""

import json
import math

import pytest

from bmscale.data.shards import PairShards
from bmscale.evaluation.loss import validation_loss
from bmscale.model.folder import load_model


def test_results_hold_scores_with_signatures_and_intervals(bmscale, trained):
    result = bmscale("evaluate", "runs/tiny", "--beam-size", "2", folder=trained)
    shown = json.loads(result.stdout)
    assert shown == json.loads((trained / "runs/tiny/results.json").read_text())
    test = shown["test"]["toy-test"]
    assert test["pairs"] == 20
    assert test["search"]["beam_size"] == 2
    assert {"bleu", "chrf", "ter"} == test["scores"].keys()
    for score in test["scores"].values():
        assert "version:" in score["signature"]
        assert score["plus_minus"] >= 0
    assert 0 < test["loss"] < 7
    assert len((trained / "runs/tiny/translations/toy-test.txt").read_text().splitlines()) == 20


def test_validation_loss_is_that_of_training(bmscale, trained):
    """The best model, loaded in a fresh process, has the loss with which it was chosen."""
    results = json.loads(bmscale("evaluate", "runs/tiny", folder=trained).stdout)
    provenance = json.loads((trained / "runs/tiny/model/best/provenance.json").read_text())
    assert results["validation"]["loss"] == pytest.approx(provenance["validation"]["loss"], abs=1e-5)


def test_a_test_file_of_ones_own(bmscale, trained):
    (trained / "mine.tsv").write_text("The dog sleeps.\tDer Hund schläft.\nThe cat runs.\tDie Katze läuft.\n")
    results = json.loads(bmscale("evaluate", "runs/tiny", "--test", "mine.tsv", folder=trained).stdout)
    assert results["test"]["mine"]["pairs"] == 2


def test_loss_does_not_depend_on_batches_or_ranks(trained):
    import torch

    model = load_model(trained / "runs/tiny/model/best")
    shards = PairShards.open(trained / "prepared/valid")
    with torch.no_grad():
        large = validation_loss(model, shards, 100_000)
        small = validation_loss(model, shards, 100)
        halves = [validation_loss(model, shards, 300, rank=rank, world_size=2) for rank in (0, 1)]
    assert small.nll == pytest.approx(large.nll, rel=1e-5)
    assert sum(half.nll for half in halves) == pytest.approx(large.nll, rel=1e-5)
    assert large.tokens == shards.target_lengths.sum()
    assert large.perplexity == pytest.approx(math.exp(large.nll))


def test_translate_keeps_lines(bmscale, trained):
    odd = "The dog sleeps.\n\n  \n" + "word " * 3000 + "\n\u2028\ud7ff😀\n"
    result = bmscale("translate", "runs/tiny/model/best", "--beam-size", "1", folder=trained, stdin=odd)
    lines = result.stdout.split("\n")
    assert len(lines) == 6
    assert lines[1] == lines[2] == lines[5] == ""


def test_a_reference_longer_than_every_limit_counts_in_whole(bmscale, trained):
    """The loss of the test set is that of `translate --score`, for a reference of more tokens than positions too."""
    long = "Der Hund schläft. " * 400
    (trained / "long.tsv").write_text(f"The dog sleeps.\tDer Hund schläft.\nThe dog sleeps.\t{long}\nThe cat.\t\n")
    results = json.loads(
        bmscale("evaluate", "runs/tiny", "--test", "long.tsv", "--beam-size", "1", folder=trained).stdout
    )
    stdin = (trained / "long.tsv").read_text()
    scored = bmscale("translate", "runs/tiny/model/best", "--score", folder=trained, stdin=stdin).stdout
    rows = [line.split("\t") for line in scored.splitlines()]
    tokens = [int(count) for _, count in rows]
    assert tokens[1] > 1024  # the model's positions
    assert tokens[2] == 1
    loss = -sum(float(value) for value, _ in rows) / sum(tokens)
    assert results["test"]["long"]["loss"] == pytest.approx(loss, abs=1e-5)
    refused = bmscale(
        "translate", "runs/tiny/model/best", "--score", folder=trained, stdin="a\tb\nno tab\n", check=False
    )
    assert refused.returncode == 2
    assert "line 2: must be a source, one tab and its target; got 0 tabs: 'no tab'" in refused.stderr


def test_n_best_lists_and_prefixes_from_the_command_line(bmscale, trained):
    stdin = "The dog sleeps.\n\nThe cat runs.\n"
    (trained / "prefixes.txt").write_text("Der Hund\n\nDie\n")
    model = ["translate", "runs/tiny/model/best", "--beam-size", "3"]
    plain = bmscale(*model, folder=trained, stdin=stdin).stdout.splitlines()
    rows = [
        line.split(" ||| ")
        for line in bmscale(*model, "--n-best", "2", folder=trained, stdin=stdin).stdout.splitlines()
    ]
    assert [row[0] for row in rows] == ["0", "0", "1", "2", "2"]
    assert [rows[0][1], rows[2][1], rows[3][1]] == plain
    assert float(rows[0][2]) >= float(rows[1][2])
    forced = bmscale(*model, "--prefixes", "prefixes.txt", folder=trained, stdin=stdin).stdout.splitlines()
    assert forced[0].startswith("Der Hund")
    assert forced[1] == ""
    assert forced[2].startswith("Die")
