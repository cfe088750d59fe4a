import numpy as np
import pytest

from bmscale.data.rows import RowPlan, split_rows, token_mixture
from bmscale.data.steps import Mixture
from bmscale.errors import BadInput


class Documents:
    """Documents of numbers that are all different, so that each can be found again."""

    def __init__(self, count: int, seed: int = 0) -> None:
        lengths = np.random.default_rng(seed).integers(3, 40, count)
        ends = np.cumsum(lengths)
        self.lengths = lengths.astype(np.int32)
        self.tokens = [np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]

    def document(self, i: int) -> np.ndarray:
        return self.tokens[i]


def plan_of(documents: Documents, **options) -> RowPlan:
    return RowPlan(documents.lengths, **{"sequence_length": 16, "seed": 3, "tokens_per_step": 64, **options})


def rows_of_epoch(plan: RowPlan, documents: Documents, epoch: int = 0):
    first = plan.first_step_of_epoch(epoch)
    for step in range(first, first + plan.steps_in_epoch(epoch)):
        found, rows = plan.rows(step)
        assert found == epoch
        for row in rows:
            yield plan.read(documents, epoch, row)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_no_token_is_lost_or_repeated(causal, count):
    documents = Documents(count)
    plan = plan_of(documents, causal=causal)
    for epoch in (0, 1):
        rows = list(rows_of_epoch(plan, documents, epoch))
        assert all(len(row.tokens) == 16 for row in rows[:-1])
        read = np.concatenate([row.tokens for row in rows])
        predicted = np.concatenate([row.next_tokens for row in rows])
        everything = np.concatenate(documents.tokens)
        if not causal:
            assert sorted(read) == sorted(everything)
        else:  # all but the last one are read
            assert len(read) == len(everything) - 1
            assert set(read) < set(everything)
        # Each token but the first of its document is predicted once, from the one before it.
        firsts = {int(document[0]) for document in documents.tokens}
        assert sorted(predicted[predicted >= 0]) == sorted(set(everything.tolist()) - firsts)
        kept = predicted >= 0
        assert np.array_equal(predicted[kept], read[kept] + 1)


def test_a_row_tells_its_documents_apart():
    documents = Documents(30)
    owner = {int(token): number for number, document in enumerate(documents.tokens) for token in document}
    for row in rows_of_epoch(plan_of(documents), documents):
        owners = [owner[int(token)] for token in row.tokens]
        assert row.segments[0] == 1
        changes = np.diff(owners) != 0
        assert np.array_equal(np.diff(row.segments), changes.astype(int))


def test_the_plan_is_a_pure_function_of_the_step():
    documents = Documents(40)
    one, other = plan_of(documents), plan_of(documents)
    late = other.first_step_of_epoch(2) + 1
    assert other.rows(late) == one.rows(late)
    epoch, rows = one.rows(late)
    for row in rows:
        assert np.array_equal(one.read(documents, epoch, row).tokens, other.read(documents, epoch, row).tokens)
    first, second = (np.concatenate([row.tokens for row in rows_of_epoch(one, documents, n)]) for n in (0, 1))
    assert not np.array_equal(first, second)
    seeded = np.concatenate([row.tokens for row in rows_of_epoch(plan_of(documents, seed=4), documents)])
    assert not np.array_equal(first, seeded)


def test_counts_of_a_step_are_those_of_its_rows():
    documents = Documents(60)
    plan = plan_of(documents)
    for step in range(plan.first_step_of_epoch(2)):
        epoch, rows = plan.rows(step)
        read = [plan.read(documents, epoch, row) for row in rows]
        assert plan.predicted_tokens(step) == sum(int((row.next_tokens >= 0).sum()) for row in read)
        pieces = [int(count) for row in read for count in np.unique(row.segments, return_counts=True)[1]]
        assert sorted(plan.pieces(step)) == sorted(pieces)
        assert sorted(plan.pieces(step, joined=True)) == sorted(len(row.tokens) for row in read)


def test_rows_are_dealt_out_evenly():
    for count in range(1, 40):
        for world in (1, 2, 3):
            rounds = split_rows(range(5, 5 + count), rows_per_batch=4, world_size=world)
            assert all(len(ranks) == world for ranks in rounds)
            assert [row for ranks in rounds for rows in ranks for row in rows] == list(range(5, 5 + count))
            sizes = [len(rows) for ranks in rounds for rows in ranks]
            assert max(sizes) <= 4
            assert max(sizes) - min(sizes) <= 1
            assert len(rounds) == -(-count // (4 * world))


def test_shares_are_of_the_tokens():
    sizes, tokens = [100, 100], [1000, 9000]  # documents of 10 and of 90 tokens
    mixture = token_mixture(tokens, sizes, [0.5, 0.5])
    drawn = np.array(mixture.quotas) * np.array([10, 90])
    assert drawn[0] == pytest.approx(drawn[1], rel=0.02)


def test_a_mixture_draws_its_documents():
    documents = Documents(40)
    mixture = Mixture.by_weight([10, 30], [1.0, 1.0])
    plan = plan_of(documents, mixture=mixture, causal=False)
    read = np.concatenate([row.tokens for row in rows_of_epoch(plan, documents)])
    border = int(documents.tokens[10][0])
    firsts = {int(document[0]) for document in documents.tokens}
    begun = [int(token) for token in read if int(token) in firsts]
    assert sum(token < border for token in begun) == sum(token >= border for token in begun) == 20


def test_what_cannot_be_planned_is_said():
    with pytest.raises(BadInput, match=r"training\.tokens_per_step: must hold a row .* 16 tokens; got 8"):
        plan_of(Documents(3), tokens_per_step=8)
    with pytest.raises(BadInput, match="at least one document"):
        RowPlan(np.empty(0, np.int32), sequence_length=16, seed=0, tokens_per_step=64)
