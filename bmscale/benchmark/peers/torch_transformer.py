"""Peer: what one writes oneself with PyTorch, torch.nn.Transformer in a plain loop over sorted token batches.

Run: INTERPRETER torch_transformer.py SPEC.json RESULT.json

Equal: widths, layers, heads, one V x D matrix for both embeddings and the head, pre-norm, dropout on embeddings and
residual branches only, AdamW (fused), gradients clipped to norm 1, cross-entropy without smoothing, and the target
tokens of an update: pairs are sorted by length, cut into batches of about `tokens_per_step` target tokens each, and
the batches are shuffled anew each epoch.
Not equal: sinusoidal positions, LayerNorm, ReLU and biases, as torch.nn.Transformer has them; one update is one batch
of sentences of like length, where bmscale draws an update's sentences at random; no torch.compile, since every batch
has a shape of its own.
"""

import math
import random
import warnings
from collections.abc import Iterator

from protocol import END, PAD, START, Meter, Pairs, Spec, encode, packages, read_spec, write_result

with packages():
    import sentencepiece  # noqa: F401 - protocol.encode needs it
    import torch
    from torch import nn


class Translator(nn.Module):
    """torch.nn.Transformer with tied embeddings, sinusoids and a head."""

    positions: torch.Tensor

    def __init__(self, spec: Spec, longest: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.vocabulary_size, spec.hidden_size, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=spec.hidden_size**-0.5)
        self.scale = math.sqrt(spec.hidden_size)
        self.dropout = nn.Dropout(spec.dropout)
        warnings.filterwarnings("ignore", message="enable_nested_tensor")  # an optimisation of inference
        self.transformer = nn.Transformer(
            d_model=spec.hidden_size,
            nhead=spec.heads,
            num_encoder_layers=spec.encoder_layers,
            num_decoder_layers=spec.decoder_layers,
            dim_feedforward=spec.feed_forward_size,
            dropout=spec.dropout,
            batch_first=True,
            norm_first=True,
        )
        for layer in (*self.transformer.encoder.layers, *self.transformer.decoder.layers):
            layer.dropout.p = layer.self_attn.dropout = 0.0  # inside the feed-forward and on attention weights
            if isinstance(layer, nn.TransformerDecoderLayer):
                layer.multihead_attn.dropout = 0.0
        self.register_buffer("positions", sinusoids(longest, spec.hidden_size), persistent=False)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.embedding(ids) * self.scale + self.positions[: ids.shape[1]])

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Logits of every target position, for source (B, S) and decoder input (B, T) padded on the right."""
        padding = source == PAD
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        # Target padding needs no mask: it stands to the right of every position that counts.
        states = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return nn.functional.linear(states, self.embedding.weight)


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Sines and cosines of positions 0 to length - 1 (Vaswani 2017, section 3.5)."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=2).reshape(length, width)


def epochs(pairs: Pairs, tokens_per_step: int, seed: int) -> Iterator[Pairs]:
    """Batches for ever: sorted by length, cut to about `tokens_per_step` target tokens, in a new order each epoch."""
    draw = random.Random(seed)
    total = sum(len(target) + 1 for _, target in pairs)
    number = max(1, round(total / tokens_per_step))
    while True:
        draw.shuffle(pairs)
        pairs.sort(key=lambda pair: (len(pair[1]), len(pair[0])))
        batches: list[Pairs] = [[] for _ in range(number)]
        before = 0
        for pair in pairs:
            batches[before * number // total].append(pair)
            before += len(pair[1]) + 1
        draw.shuffle(batches)
        yield from filter(None, batches)


def padded(rows: list[list[int]], device: str) -> torch.Tensor:
    """Rows as one matrix, padded on the right to the longest."""
    tensors = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PAD).to(device, non_blocking=True)


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    pairs = encode(spec)
    model = Translator(spec, 1 + max(max(map(len, pair)) for pair in pairs)).to(spec.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=0.0, fused=True)
    meter = Meter(spec, torch)
    model.train()
    for batch in epochs(pairs, spec.tokens_per_step, spec.seed):
        source = padded([[*ids, END] for ids, _ in batch], spec.device)
        target = padded([[START, *ids, END] for _, ids in batch], spec.device)
        labels = target[:, 1:]
        with torch.autocast(spec.device, torch.bfloat16, enabled=spec.precision == "bf16"):
            logits = model(source, target[:, :-1])
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=PAD)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        source_tokens, target_tokens = (sum(len(pair[side]) + 1 for pair in batch) for side in (0, 1))
        meter.batch(source_tokens, target_tokens, source.numel() + labels.numel(), loss.detach() * target_tokens)
        if meter.update():
            break
    parameters = sum(parameter.numel() for parameter in model.parameters())
    write_result(spec, ["torch", "sentencepiece"], meter.result(spec.precision, parameters))


if __name__ == "__main__":
    main()
