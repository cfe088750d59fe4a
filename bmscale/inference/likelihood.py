"""The log-probability that a model gives to targets that are there already, in batches by length.

Nothing is cut: positions are computed and not tabled, so a pair of any length is scored in whole. This is the only
way in which pairs are scored: for the loss of `evaluate`, for `translate --score` and for hypotheses of a search.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bmscale.data.batch import make_batch


def log_probabilities(
    model: Any, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], max_batch_tokens: int = 8192
) -> list[float]:
    """log P(target | source) in nats for each pair, summed over the target's tokens, </s> counted. The order is kept.

    Each side is a list of ids that ends in </s>; `model` is a bmscale encoder-decoder on any device, in evaluation
    mode. A batch holds at most `max_batch_tokens` padded slots of source and target; a longer pair is alone in its own.
    """
    results = [0.0] * len(sources)
    with torch.no_grad():
        for rows in pair_batches(sources, targets, max_batch_tokens):
            batch = make_batch(*([np.array(side[row]) for row in rows] for side in (sources, targets)))
            batch = batch.to(model.device)
            states_BTD = model.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                decoder_input_ids=batch.decoder_input_ids,
                use_cache=False,
            ).last_hidden_state
            for place, row in enumerate(rows):
                # Row by row through the head, which never holds all logits of what it is given.
                sums = model.lm_head(states_BTD[place, None], batch.labels[place, None])
                results[row] = -float(sums.nll)
    return results


def pair_batches(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], max_batch_tokens: int
) -> list[list[int]]:
    """Indices of pairs grouped by length, longest first, at most so many padded slots of both sides in a batch."""
    batches: list[list[int]] = []
    widths = (0, 0)
    for row in sorted(range(len(sources)), key=lambda row: (-len(targets[row]), -len(sources[row]))):
        lengths = (len(sources[row]), len(targets[row]))
        wider = (max(widths[0], lengths[0]), max(widths[1], lengths[1]))
        if not batches or (len(batches[-1]) + 1) * sum(wider) > max_batch_tokens:
            batches.append([])
            wider = lengths
        batches[-1].append(row)
        widths = wider
    return batches
