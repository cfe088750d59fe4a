"""Peer: CTranslate2, decoding with a Transformer of random weights in the given shape.

Run: INTERPRETER ctranslate2_decode.py SPEC.json RESULT.json

Equal: widths, layers, heads, one V x D matrix for both embeddings and the head, the same sentences, beam and threads,
and the length: every translation is forced to exactly `length` tokens (min and max decoding length), so that the work
does not depend on what random weights would say. Sentences are tokenized beforehand; sorting and batching them is
CTranslate2's and is timed, as is all else of translate_batch.
Not equal: pre-norm with LayerNorm, sinusoids, ReLU and biases, the Vaswani shape that its kernels were made for. Its
int8 holds for weights and activations of matrix products; the rest is float32. The clock starts after one batch that
is not counted.
"""

import time
from pathlib import Path
from typing import Any

from protocol import END, SPECIALS, Spec, encode_lines, packages, peak_memory_gib, read_spec, stop, words, write_result

with packages():
    import ctranslate2
    import numpy
    import sentencepiece  # noqa: F401 - protocol.encode_lines needs it
    from ctranslate2.specs import TransformerSpec


def build(spec: Spec, folder: Path) -> int:
    """Write a model of random weights into the folder. Returns its number of parameters."""
    draw = numpy.random.default_rng(spec.seed)
    width, inner = spec.hidden_size, spec.feed_forward_size
    parameters = 0

    def array(*shape: int, std: float) -> Any:
        nonlocal parameters
        parameters += int(numpy.prod(shape))
        return draw.normal(0.0, std, shape).astype(numpy.float32)

    def linear(part: Any, rows: int, columns: int) -> None:
        part.weight = array(rows, columns, std=columns**-0.5)
        part.bias = array(rows, std=0.02)

    def norm(part: Any) -> None:
        part.gamma, part.beta = 1 + array(width, std=0.02), array(width, std=0.02)

    def attention(part: Any, fused: tuple[int, ...]) -> None:
        norm(part.layer_norm)
        for matrix, multiple in zip(part.linear, fused, strict=True):
            linear(matrix, multiple * width, width)

    model = TransformerSpec.from_config((spec.encoder_layers, spec.decoder_layers), spec.heads, pre_norm=True)
    shared = array(spec.vocabulary_size, width, std=width**-0.5)
    model.encoder.embeddings[0].weight = model.decoder.embeddings.weight = model.decoder.projection.weight = shared
    for stack in (model.encoder, model.decoder):
        norm(stack.layer_norm)
        for layer in stack.layer:
            attention(layer.self_attention, (3, 1))  # query, key and value in one matrix; output
            if stack is model.decoder:
                attention(layer.attention, (1, 2, 1))  # query; key and value in one; output
            norm(layer.ffn.layer_norm)
            linear(layer.ffn.linear_0, inner, width)
            linear(layer.ffn.linear_1, width, inner)
    vocabulary = [*SPECIALS, *words(spec)]
    model.register_source_vocabulary(vocabulary)
    model.register_target_vocabulary(vocabulary)
    model.validate()
    model.optimize(quantization=spec.quantization)
    folder.mkdir(exist_ok=True)
    model.save(str(folder))
    return parameters


def main() -> None:
    spec = read_spec()
    if min(spec.length, spec.sentences, spec.batch_sentences, spec.beam) < 1:
        stop("beam, length, sentences and batch_sentences must be at least 1", 2)
    names = [*SPECIALS, *words(spec)]
    lines = [ids for ids in encode_lines(spec, spec.source) if ids][: spec.sentences]
    sources = [[names[number] for number in (*ids, END)] for ids in lines]
    folder = Path(spec.work) / "model"
    parameters = build(spec, folder)
    translator = ctranslate2.Translator(
        str(folder), device=spec.device, compute_type=spec.quantization, inter_threads=1, intra_threads=spec.threads
    )

    def translate(batch: list[list[str]]) -> int:
        results = translator.translate_batch(
            batch,
            max_batch_size=spec.batch_sentences,
            beam_size=spec.beam,
            min_decoding_length=spec.length,
            max_decoding_length=spec.length,
            max_input_length=0,
        )
        return sum(len(result.hypotheses[0]) for result in results)

    translate(sources[: spec.batch_sentences])
    start = time.perf_counter()
    generated = translate(sources)
    seconds = time.perf_counter() - start
    result = {
        "precision": translator.compute_type,
        "parameters": parameters,
        "sentences": len(sources),
        "source_tokens": sum(map(len, sources)),
        "generated_tokens": generated,
        "seconds": seconds,
        "peak_memory_gib": peak_memory_gib(),
    }
    write_result(spec, ["ctranslate2", "numpy", "sentencepiece"], result)


if __name__ == "__main__":
    main()
