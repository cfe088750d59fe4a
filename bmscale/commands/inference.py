"""What a model is for: translate, generate, predict."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bmscale.commands.arguments import Commands, add, add_search, check_file, stdin_lines, with_given, write
from bmscale.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bmscale.inference.translator import Translator

log = logging.getLogger("bmscale")


def add_translate(commands: Commands) -> None:
    """`bmscale translate`."""
    parser = add(commands, "translate", "translate standard input to standard output, one sentence a line", _translate)
    parser.add_argument(
        "model", metavar="MODEL", help="a model folder, such as runs/toy/model/best, or one exported to ctranslate2"
    )
    parser.add_argument("--to", metavar="CODE", help="language to translate into, for a model of several")
    parser.add_argument(
        "--n-best", type=int, metavar="N", help="N translations a line as `index ||| translation ||| score`, best first"
    )
    parser.add_argument(
        "--alternatives",
        type=int,
        metavar="N",
        help="as --n-best, but N translations that part ways at their first piece, or at the first behind the prefix",
    )
    parser.add_argument(
        "--prefixes", metavar="FILE", help="beginnings that the translations must have, one a line, empty for none"
    )
    parser.add_argument(
        "--score",
        action="store_true",
        help="translate nothing: read `source TAB target`, write `log-probability TAB tokens` (nats, </s> counted)",
    )
    parser.add_argument(
        "--paragraphs", action="store_true", help="a line is a paragraph: translate its sentences one by one"
    )
    parser.add_argument(
        "--align",
        metavar="FILE",
        help="draw which source pieces each piece was made of (.png, .svg or .pdf; the first 12 translations)",
    )
    add_search(parser)
    _add_backend(parser)


def _add_backend(parser: argparse.ArgumentParser) -> None:
    """Options for the engine that opens a folder."""
    parser.add_argument("--backend", default="auto", help="torch or ctranslate2 (default: what the folder is of)")
    parser.add_argument(
        "--compute-type",
        metavar="TYPE",
        default="auto",
        help="float32, bfloat16, float16, and with ctranslate2 int8 and others "
        "(default: float32, with ctranslate2 what the folder is in)",
    )


def _translate(options: argparse.Namespace) -> None:
    from bmscale.data.corpus import read_lines
    from bmscale.inference.alignment import check_picture
    from bmscale.inference.lines import alternative_lines, n_best_lines, scored_lines
    from bmscale.inference.search import SearchOptions
    from bmscale.inference.translator import Translator

    _check_together(options)
    if options.align is not None:
        check_file("--align", options.align)
        check_picture(Path(options.align))
    search = vars(with_given(SearchOptions(), options))
    translator = Translator.from_pretrained(
        options.model, options.backend, options.device or "auto", options.compute_type
    ).into(options.to)
    lines = stdin_lines()
    chunk = 1 if sys.stdin.isatty() else 512
    prefixes = None if options.prefixes is None else read_lines(Path(options.prefixes))
    if options.score:
        output = scored_lines(translator, lines, chunk_lines=chunk)
    elif options.n_best is not None or options.alternatives is not None:
        listed = n_best_lines if options.n_best is not None else alternative_lines
        n = options.alternatives if options.n_best is None else options.n_best
        output = listed(translator, lines, n, prefixes=prefixes, chunk_lines=chunk, **search)
    else:
        given: list[str] = []
        lines = _first(lines, given) if options.align is not None else lines
        output = translator.translate_stream(
            lines, prefixes=prefixes, chunk_lines=chunk, paragraphs=options.paragraphs, **search
        )
        if options.align is not None:
            output = _drawn(translator, given, output, Path(options.align))
    for line in output:
        write(line + "\n")


def _check_together(options: argparse.Namespace) -> None:
    """Raises BadInput for options that do not go with each other."""
    wants = {name: getattr(options, name) for name in ("n_best", "alternatives", "prefixes", "align")}
    given = [f"--{name.replace('_', '-')}" for name, value in wants.items() if value is not None]
    given += ["--paragraphs"] if options.paragraphs else []
    searched = ("beam_size", "length_penalty")
    given_search = [f"--{name.replace('_', '-')}" for name in searched if getattr(options, name) is not None]
    if options.score and (given or given_search):
        raise BadInput(
            f"--score: scores the targets that it is given and searches for none; leave {(given + given_search)[0]} out"
        )
    lists = {"--n-best", "--alternatives", "--align", "--paragraphs"} & set(given)
    if len(lists) > 1:
        raise BadInput(f"{', '.join(sorted(lists))}: go each by itself; give one of them")


def _first(lines: "Iterable[str]", kept: list[str]) -> "Iterator[str]":
    """The same lines; the first of them, as many as one picture takes, are kept as well."""
    from bmscale.inference.alignment import MOST_PICTURED

    for line in lines:
        if len(kept) < MOST_PICTURED:
            kept.append(line)
        yield line


def _drawn(translator: "Translator", sources: list[str], output: "Iterable[str]", path: Path) -> "Iterator[str]":
    """The same translations; the first of them are drawn once all are there."""
    from bmscale.inference.alignment import draw_alignments

    kept: list[str] = []
    for line in output:
        if len(kept) < len(sources):
            kept.append(line)
        yield line
    drawn = draw_alignments(translator.align(sources[: len(kept)], kept), path)
    log.info("%s: %d of %d translations; empty and very long ones are left out", path, drawn, len(kept))


def add_generate(commands: Commands) -> None:
    """`bmscale generate`."""
    parser = add(
        commands,
        "generate",
        "write on from prompts with a language model: standard input, one prompt a line, or --prompt. "
        "One prompt's text is shown as it is written, those of several as a JSON object a line",
        _generate,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model folder, such as runs/toy/model/best, or one exported to ctranslate2"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the one prompt; may be empty")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens of a text (default: 100)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the most probable token (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most probable tokens (default: all)")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the most probable tokens of this share (default: 0.95)"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1 avoids what was said before (default: 1)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="a prompt and a seed give one text, in any company (default: 0)"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="texts a prompt (default: 1)")
    parser.add_argument("--json", action="store_true", help='{"prompt": …, "text": …} a line, for one prompt too')
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    _add_backend(parser)


def _generate(options: argparse.Namespace) -> None:
    from itertools import chain, islice

    from bmscale.inference.generator import Generator, check_samples
    from bmscale.inference.sampling import SamplingOptions

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    sampling = SamplingOptions(**given)
    check_samples(options.samples, sampling)
    generator = Generator.from_pretrained(
        options.model, options.backend, options.device or "auto", options.compute_type
    )
    prompts = stdin_lines() if options.prompt is None else iter([options.prompt])
    at_terminal = options.prompt is None and sys.stdin.isatty()
    first = [] if at_terminal else list(islice(prompts, 2))
    prompts = chain(first, prompts)
    if options.json or len(first) > 1:
        chunk = 1 if at_terminal else 64
        for prompt, texts in generator.stream_lines(prompts, sampling, samples=options.samples, chunk_prompts=chunk):
            for found in texts:
                write(json.dumps({"prompt": prompt, "text": found.text}, ensure_ascii=False) + "\n")
        return
    for prompt in prompts:
        for sample in range(options.samples):
            write("---\n" if sample else "")
            generator.stream(prompt, sampling, out=write, sample=sample)
            write("\n")


def add_predict(commands: Commands) -> None:
    """`bmscale predict`."""
    parser = add(
        commands, "predict", "label standard input, one text a line, as `label TAB probability` a line", _predict
    )
    parser.add_argument("model", metavar="MODEL", help="the model folder of a classifier")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="the N most probable labels, all in one line")
    parser.add_argument("--json", action="store_true", help='{"text": …, "labels": [{"label": …, "probability": …}]}')
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def _predict(options: argparse.Namespace) -> None:
    from bmscale.inference.classifier import Classifier

    classifier = Classifier.from_pretrained(options.model, device=options.device)
    cut = 0
    chunk = 1 if sys.stdin.isatty() else 512
    for text, found in classifier.predict_stream(stdin_lines(), options.top, chunk_texts=chunk):
        cut += found.was_cut
        ranked = [(label, round(p, 6)) for label, p in zip(found.labels, found.probabilities, strict=True)]
        if options.json:
            labels = [{"label": label, "probability": probability} for label, probability in ranked]
            write(json.dumps({"text": text, "labels": labels}, ensure_ascii=False) + "\n")
        else:
            write("\t".join(f"{label}\t{probability:.6f}" for label, probability in ranked) + "\n")
    if cut:
        longest = classifier.max_tokens
        log.warning("texts that were cut: %d; the model reads %d tokens of a text, <s> and </s> counted", cut, longest)
