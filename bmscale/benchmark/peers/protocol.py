"""What every peer does alike: SPEC.json in, the clock and the counts of its updates, RESULT.json out.

A peer runs in an interpreter of its own, where bmscale is not installed: the scripts of this folder import the standard
library, the system they measure, and this file, which Python finds beside the script. Importing it takes the folder off
the module search path again, since `joeynmt.py` and `eole.py` here would hide the packages of these names.
"""

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

MISSING_PACKAGE = 3
"""Exit code of a peer whose interpreter lacks a package."""
BAD_SPEC = 2
"""Exit code for a specification that cannot be run."""
START, PAD, END, UNKNOWN = range(4)
"""Ids of <s>, <pad>, </s> and <unk> in the tokenizer; words have the ids from 4 on."""
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")

Pairs = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Spec:
    """SPEC.json. Keys that a peer has no use for may be absent; keys not named here are ignored."""

    system: str
    source: str
    """Path of the source sentences, one a line, UTF-8; `target` is line-parallel."""
    tokenizer: str
    """Path of the joint SentencePiece model."""
    vocabulary_size: int
    hidden_size: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    feed_forward_size: int
    threads: int
    work: str
    """A folder that the peer may write into."""
    target: str = ""
    dropout: float = 0.0
    precision: str = "fp32"
    """fp32 or bf16; the result says what was really used."""
    tokens_per_step: int = 0
    """Target tokens with </s>, without padding, that an update has on average (systems that batch by tokens)."""
    sentences_per_step: int = 0
    """Pairs an update (systems that batch by sentences)."""
    warmup_steps: int = 0
    """Updates before the clock starts, at least one."""
    steps: int = 0
    """Updates that are timed."""
    max_seconds: float = float("inf")
    """The update that ends after so many timed seconds is the last."""
    learning_rate: float = 1e-3
    seed: int = 1
    device: str = "cpu"
    beam: int = 1
    length: int = 0
    """Tokens of every translation: decoding neither ends earlier nor goes on."""
    sentences: int = 0
    batch_sentences: int = 32
    quantization: str = "float32"


def stop(message: str, code: int) -> None:
    """End with one line on stderr, without a traceback."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def packages() -> Iterator[None]:
    """Around the imports of a peer: a package that is not there is one line and exit code 3."""
    try:
        yield
    except ImportError as error:
        lacking = error.name or str(error)
        stop(f"this interpreter lacks the package {lacking!r} ({error}): {sys.executable}", MISSING_PACKAGE)


def read_spec() -> Spec:
    """The specification that the first argument names; its work folder exists afterwards."""
    if len(sys.argv) != 3:
        stop(f"needs two arguments, SPEC.json and RESULT.json; got {len(sys.argv) - 1}", BAD_SPEC)
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        spec = Spec(**{field.name: given[field.name] for field in fields(Spec) if field.name in given})
    except TypeError as error:
        stop(f"{sys.argv[1]}: {error}", BAD_SPEC)
    Path(spec.work).mkdir(parents=True, exist_ok=True)
    return spec


def write_result(spec: Spec, distributions: list[str], result: dict[str, Any]) -> None:
    """Write RESULT.json: the result, the system's name and the versions of the named distributions."""
    versions = {name: version(name) for name in distributions}
    text = json.dumps({"system": spec.system, "versions": versions, **result}, indent=2)
    Path(sys.argv[2]).write_text(text + "\n", encoding="utf-8")


def encode(spec: Spec) -> Pairs:
    """Ids of all pairs, without </s>; a pair with an empty side is left out, as the systems do themselves."""
    source, target = (encode_lines(spec, path) for path in (spec.source, spec.target))
    if len(source) != len(target):
        stop(f"source and target must have as many lines; got {len(source)} and {len(target)}", BAD_SPEC)
    return [pair for pair in zip(source, target, strict=True) if all(pair)]


def encode_lines(spec: Spec, path: str) -> list[list[int]]:
    """Ids of every line of a file, without </s>."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=spec.tokenizer)
    specials = tuple(model.id_to_piece(number) for number in range(len(SPECIALS)))
    if specials != SPECIALS or model.get_piece_size() != spec.vocabulary_size:
        stop(
            f"{spec.tokenizer}: must have {spec.vocabulary_size} pieces that begin with {SPECIALS}; "
            f"got {model.get_piece_size()} that begin with {specials}",
            BAD_SPEC,
        )
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return model.encode(lines[:-1] if lines[-1] == "" else lines, num_threads=spec.threads)


def as_words(ids: list[int]) -> str:
    """Ids as text for a system that reads tokenized files: one word an id, split at spaces without any loss.

    Pieces themselves would not do: nothing keeps a blank of another kind out of them.
    """
    return " ".join(str(number) if number >= len(SPECIALS) else SPECIALS[number] for number in ids)


def words(spec: Spec) -> list[str]:
    """All words of `as_words` but the special ones, in the order of their ids."""
    return [str(number) for number in range(len(SPECIALS), spec.vocabulary_size)]


def batch_size_for(tokens_per_step: int, mean_tokens: Callable[[int], float]) -> int:
    """The batch size whose updates have `tokens_per_step` target tokens on average.

    Systems count padded slots of the longer side, each in its own way: `mean_tokens` says what a batch size gives, and
    grows with it. Bisected until the two sides are 1 % apart, for `mean_tokens` walks the whole corpus.
    """
    low, high = 1, 2
    while mean_tokens(high) < tokens_per_step and high < 2**24:
        low, high = high, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if mean_tokens(middle) < tokens_per_step else (low, middle)
    return min((low, high), key=lambda size: abs(mean_tokens(size) - tokens_per_step))


def peak_memory_gib() -> float:
    """The largest resident memory that this process had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / (2**30 if sys.platform == "darwin" else 2**20))


class Meter:
    """Clock and counts of a peer's training.

    The peer calls `batch` for every batch that it trains on and `update` after every optimizer step. The clock runs
    from the end of the last warm-up update to the end of the last timed one, so it holds all that happens between:
    loading, collating, forward, backward, optimizer. On a GPU it waits for the queued work at both ends.
    """

    def __init__(self, spec: Spec, torch: Any) -> None:
        if spec.warmup_steps < 1 or spec.steps < 1:
            stop(f"warmup_steps and steps must be at least 1; got {spec.warmup_steps} and {spec.steps}", BAD_SPEC)
        self.spec = spec
        self.torch = torch
        self.done = 0
        self.started = 0.0
        self.seconds = 0.0
        self.finished = False
        # Counts may be tensors on a GPU: they are added up there, and asked for at the end only.
        self.counts: list[Any] = [0, 0, 0]
        self.loss: list[Any] = [0, 0]
        self.first: list[list[Any]] = []
        self.last: deque[list[Any]] = deque(maxlen=10)

    def batch(self, source_tokens: Any, target_tokens: Any, slots: Any, nll: Any) -> None:
        """A batch's real tokens with </s>, its padded slots (source + target) and its summed loss in nats."""
        if not self.finished:
            added = (source_tokens, target_tokens, slots)
            self.counts = [total + more for total, more in zip(self.counts, added, strict=True)]
            self.loss = [self.loss[0] + nll, self.loss[1] + target_tokens]

    def update(self) -> bool:
        """An optimizer step is done; whether it was the last one."""
        if self.finished:
            return True
        self.done += 1
        if len(self.first) < 10:
            self.first.append(self.loss)
        self.last.append(self.loss)
        self.loss = [0, 0]
        if self.done == self.spec.warmup_steps:
            self.counts = [0, 0, 0]
            self.started = self._now()
        elif self.done > self.spec.warmup_steps:
            late = time.perf_counter() - self.started >= self.spec.max_seconds
            if late or self.done == self.spec.warmup_steps + self.spec.steps:
                self.seconds = self._now() - self.started
                self.finished = True
        return self.finished

    def _now(self) -> float:
        if self.spec.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def result(self, precision: str, parameters: int) -> dict[str, Any]:
        """What RESULT.json holds of a training."""
        if not self.finished:
            stop(f"training ended after {self.done} updates, before the last timed one", 1)
        memory = self.torch.cuda.max_memory_allocated() / 2**30 if self.spec.device == "cuda" else peak_memory_gib()
        source, target, slots = (int(total) for total in self.counts)
        return {
            "precision": precision,
            "parameters": parameters,
            "source_tokens": source,
            "target_tokens": target,
            "slots": slots,
            "steps": self.done - self.spec.warmup_steps,
            "seconds": self.seconds,
            "losses": [_mean(self.first), _mean(list(self.last))],
            "peak_memory_gib": memory,
        }


def _mean(losses: list[list[Any]]) -> float:
    return float(sum(float(nll) for nll, _ in losses) / sum(int(tokens) for _, tokens in losses))
