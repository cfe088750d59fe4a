"""Translation with PyTorch: token ids to token ids, through `generate` of transformers.

`translate_ids` works on a live module, so that the training loop can call it. What comes out for one input does not
depend on what else is translated with it, but for float rounding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from bmscale.data.batch import make_batch
from bmscale.data.tokenizer import BOS, EOS, PAD
from bmscale.errors import BadInput
from bmscale.inference.likelihood import log_probabilities, pair_batches
from bmscale.inference.prefix import ForcePrefixes, Prefix
from bmscale.inference.search import SearchOptions, check_search
from bmscale.model.folder import ModelFolder, load_model

_TYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _EndAtLimit(LogitsProcessor):
    """Lets a row take nothing but </s> once it has its own most tokens.

    A limit of the batch would make a translation depend on the longest source beside it. The score of </s> stays the
    model's, so that a hypothesis which had to be ended is not preferred for it.
    """

    def __init__(self, limits_R: torch.Tensor) -> None:
        self.limits_R = limits_R

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # input_ids begins with the decoder start, so its length is the number of the token to come.
        ended_R = input_ids.shape[1] >= self.limits_R
        forced_RV = torch.full_like(scores, -torch.inf)
        forced_RV[:, EOS] = scores[:, EOS]
        return torch.where(ended_R[:, None], forced_RV, scores)  # type: ignore[return-value]


def translate_ids(
    model: Any, sources: Sequence[Sequence[int]], options: SearchOptions | None = None, *, synced: bool = False
) -> list[list[int]]:
    """Translate sources, each a list of ids that ends in </s>, into lists of ids without special tokens at the ends.

    The best of `n_best_ids` for each source, which has the rest of the contract.
    """
    return [found[0] for found in n_best_ids(model, sources, 1, options, synced=synced)]


def n_best_ids(
    model: Any,
    sources: Sequence[Sequence[int]],
    n: int,
    options: SearchOptions | None = None,
    *,
    prefixes: Sequence[Prefix] | None = None,
    continuing_V: torch.Tensor | None = None,
    synced: bool = False,
) -> list[list[list[int]]]:
    """At most n different translations of each source, best first, and at least one.

    `model` is a transformers encoder-decoder, on any device; its training mode is restored. A source is a list of ids
    that ends in </s>, a translation one without special tokens at the ends. The order is kept. There are fewer than n
    where the search found no more. An empty source, or one of </s> alone, has its prefix as its only translation, by
    default an empty list. `prefixes`, one a source, come with `continuing_V` of `Prefixes`. Raises BadInput for more
    beams than pieces, or an n that is larger than the beam.

    `synced=True` is for a model whose weights are partitioned over ranks (ZeRO-3), where each forward is a collective:
    all ranks call this together, with different sources, and make the same number of forwards; a rank with fewer
    batches goes along on a batch of one </s>.
    """
    options = options or SearchOptions()
    check_search(n, options, model.config.vocab_size)
    synced = synced and torch.distributed.is_available() and torch.distributed.is_initialized()
    begun = prefixes or [Prefix()] * len(sources)
    results = [[list(prefix.ids)] for prefix in begun]
    wanted = [index for index, source in enumerate(sources) if any(token != EOS for token in source)]
    batches = _batches(wanted, sources, options)
    rounds = _most_of_all_ranks(len(batches), model.device) if synced else len(batches)
    training = model.training
    model.eval()
    try:
        for number in range(rounds):
            rows = batches[number] if number < len(batches) else []
            given = [sources[row] for row in rows] or [[EOS]]
            heads = [begun[row] for row in rows] or [Prefix()]
            forced = None
            if continuing_V is not None and any(head.ids for head in heads):
                beams = [head for head in heads for _ in range(options.beam_size)]
                forced = ForcePrefixes(beams, continuing_V, model.device)
            found = _search(model, given, [len(head.ids) for head in heads], options, n, forced, synced)
            for row, hypotheses in zip(rows, found[: len(rows)], strict=True):
                results[row] = hypotheses
    finally:
        model.train(training)
    return results


def _batches(wanted: list[int], sources: Sequence[Sequence[int]], options: SearchOptions) -> list[list[int]]:
    """Indices of sources grouped by length, longest first: too large a batch fails at once, not after an hour."""
    batches: list[list[int]] = []
    for index in sorted(wanted, key=lambda index: -len(sources[index])):
        # The first of a batch is its longest, and so its width.
        width = len(sources[batches[-1][0]]) if batches else 0
        if not batches or (len(batches[-1]) + 1) * width * options.beam_size > options.max_batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def _most_of_all_ranks(count: int, device: torch.device) -> int:
    most = torch.tensor(count, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


def _search(
    model: Any,
    sources: list[Sequence[int]],
    forced_lengths: list[int],
    options: SearchOptions,
    n: int,
    forced: ForcePrefixes | None,
    synced: bool,
) -> list[list[list[int]]]:
    """One batch through `generate`, which ends for every row at its own limit."""
    width = max(map(len, sources))
    source_BS = torch.full((len(sources), width), PAD)
    real_BS = torch.zeros_like(source_BS)
    for row, source in enumerate(sources):
        source_BS[row, : len(source)] = torch.tensor(source)
        real_BS[row, : len(source)] = 1
    positions = model.config.max_position_embeddings
    limits = [
        options.limit(len(source), length, positions) for source, length in zip(sources, forced_lengths, strict=True)
    ]
    limits_R = torch.tensor(limits, device=model.device).repeat_interleave(options.beam_size)
    config = GenerationConfig(
        num_beams=options.beam_size,
        num_return_sequences=n,
        length_penalty=options.length_penalty if options.beam_size > 1 else None,
        do_sample=False,
        max_length=max(limits) + 1,  # the decoder start counts
        decoder_start_token_id=EOS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    # no_grad, not inference_mode: under ZeRO-3 gathered weights would stay inference tensors in training.
    with torch.no_grad():
        target_BT = model.generate(
            input_ids=source_BS.to(model.device),
            attention_mask=real_BS.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([*([forced] if forced else []), _EndAtLimit(limits_R)]),
            synced_gpus=synced,
        )
    rows = [row[1:] for row in target_BT.tolist()]
    return [_hypotheses(rows[start : start + n]) for start in range(0, len(rows), n)]


def _hypotheses(rows: list[list[int]]) -> list[list[int]]:
    """The ids before the first </s> of each row, each once, in their order.

    A search that had fewer ways than beams to go fills up with rows that never ended, or with copies.
    """
    ended = [tuple(row[: row.index(EOS)]) for row in rows if EOS in row]
    return [list(ids) for ids in dict.fromkeys(ended)] or [rows[0]]


class TorchBackend:
    """A transformers encoder-decoder as a backend (search.py)."""

    name = "torch"

    def __init__(self, model: Any) -> None:
        """`model`: one of bmscale.model, on any device, in evaluation mode."""
        self.model = model
        self.positions = int(model.config.max_position_embeddings)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | ModelFolder, device: Any = "auto", compute_type: str = "auto"
    ) -> "TorchBackend":
        """Open a model folder; `compute_type` is float32, the default, bfloat16 or float16.

        Raises BadInput for a folder that is damaged, a device that is not there or another compute type.
        """
        place, dtype = find_device(None if device == "auto" else device), find_dtype(compute_type)
        return cls(load_model(folder, place, dtype))

    def search(
        self,
        sources: Sequence[Sequence[int]],
        n: int,
        options: SearchOptions,
        prefixes: Sequence[Prefix],
        continuing: torch.Tensor,
    ) -> list[list[list[int]]]:
        """See `Backend`."""
        return n_best_ids(self.model, sources, n, options, prefixes=prefixes, continuing_V=continuing)

    def log_probabilities(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], max_batch_tokens: int = 8192
    ) -> list[float]:
        """See `Backend`."""
        return log_probabilities(self.model, sources, targets, max_batch_tokens)

    @torch.no_grad()
    def next_log_probabilities(
        self, sources: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """See `Backend`."""
        found: list[np.ndarray] = [np.zeros(0)] * len(sources)
        targets = [[*prefix, EOS] for prefix in prefixes]
        for rows in pair_batches(sources, targets, 8192):
            states_BTD = self._decode(rows, sources, targets).last_hidden_state
            for place, row in enumerate(rows):
                logits_V = self.model.lm_head(states_BTD[place, None, len(prefixes[row]), None])[0, 0]
                found[row] = logits_V.float().log_softmax(-1).cpu().numpy()
        return found

    @torch.no_grad()
    def attention(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Backend`."""
        found = [np.zeros((len(target) - 1, len(source) - 1)) for source, target in zip(sources, targets, strict=True)]
        layer = max(0, self.model.config.num_decoder_layers - 2)
        for rows in pair_batches(sources, targets, 2048):
            weights_BHTS = self._decode(rows, sources, targets, output_attentions=True).cross_attentions[layer]
            for place, row in enumerate(rows):
                height, width = found[row].shape
                found[row] = weights_BHTS[place, :, :height, :width].float().mean(0).cpu().numpy()
        return found

    def _decode(
        self, rows: list[int], sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], **options: Any
    ) -> Any:
        batch = make_batch(*([np.array(side[row]) for row in rows] for side in (sources, targets)))
        batch = batch.to(self.model.device)
        return self.model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=batch.decoder_input_ids,
            use_cache=False,
            **options,
        )


def find_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else a GPU where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device: '{device}' cannot be used here: {str(error).splitlines()[0]}") from None
    if chosen.type == "meta":
        raise BadInput("device: 'meta' cannot be used here: it holds no values; give cpu or cuda")
    return chosen


def find_dtype(compute_type: str) -> torch.dtype:
    """The type asked for; auto is float32. Raises BadInput for one that PyTorch does not compute in."""
    if compute_type not in _TYPES:
        raise BadInput(
            f"compute type: must be one of {', '.join(_TYPES)} with torch; got {compute_type}: int8 is computed by "
            "CTranslate2, bmscale export MODEL --to ctranslate2"
        )
    return _TYPES[compute_type]
