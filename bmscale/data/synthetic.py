"""A corpus for scaling studies: as many sentence pairs as wanted, whose irreducible loss is known exactly.

The toy corpus is nearly deterministic: a model soon knows all of it, and a power law of its loss means little. Here
there is always more to know, and what cannot be known is put in by a rule:

- A text is syllables with a space between, 256 of them; three make a word, so there are 2^24 = 16,777,216 types. The
  `word` tokenizer makes one piece of each syllable, so that a loss a token is a loss a syllable.
- The words of a source are drawn independently by rank from a Zipfian law, P(rank >= r) = (1 + r / OFFSET)^-TAIL. The
  spelling of a rank is a random one.
- Each word has a translation of its own. Its first two syllables, the stem, depend on the word alone. The third, the
  ending, agrees with the last syllable of the target before it, of which there are CLASSES kinds: by the table of the
  word's declension, or, for one in IRREGULAR pairs of word and kind, by an ending of that pair's own. All tables are
  random, so that they can only be learnt by heart, the frequent entries first: what is still unknown falls as a power
  of the entries that a model has room for, and of the tokens that it saw (Hutter 2021, arXiv 2102.04074; Michaud 2023,
  arXiv 2303.13506).
- Each target syllable is then replaced, with probability NOISE, by one drawn evenly from all 256. So every target
  token has a known distribution given the source and the targets before it: 1 - NOISE + NOISE/256 on one syllable,
  NOISE/256 on each other; and </s> is certain, since a target has as many words as its source.

The irreducible loss is therefore the entropy of that distribution, for every syllable, and 0 for </s>.

Everything is a pure function of (seed, split, number of the pair): a generator of pairs needs no state, and pair
1,000,000 costs what pair 0 costs. The draws are those of SplitMix64 (Steele 2014), the same on every machine. Splits
are independent, not disjoint: a short pair of frequent words may be in several.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYLLABLES = 256
SYLLABLES_PER_WORD = 3
TYPES = SYLLABLES**SYLLABLES_PER_WORD
LEAST_WORDS, MOST_WORDS = 3, 6
TAIL, OFFSET = 0.4, 3.0
"""Exponent of the tail of the words' ranks, whose inverse, 2.5, `ranks` has written out; the rank around which it
begins."""
CLASSES, DECLENSIONS = 16, 32
IRREGULAR = 0.25
NOISE = 0.05
SPLITS = ("train", "valid", "test")
CHUNK = 4096
"""Pairs that are drawn at once."""

_ONSETS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_RHYMES = ("a", "e", "i", "o", "u", "an", "en", "in", "on", "un", "ar", "er", "ir", "or", "ur", "al")
SPELLINGS = tuple(onset + rhyme for onset in _ONSETS for rhyme in _RHYMES)
"""The syllables by number."""

Words = NDArray[np.uint64]
_GOLDEN = 0x9E3779B97F4A7C15
_WRAP = 2**64


def syllable_entropy() -> float:
    """The entropy of a target syllable given everything before it and the source (nats)."""
    right, wrong = 1 - NOISE + NOISE / SYLLABLES, NOISE / SYLLABLES
    return -right * math.log(right) - (SYLLABLES - 1) * wrong * math.log(wrong)


def irreducible_loss() -> float:
    """What no model's loss can be below on endless data (nats a target token, </s> counted).

    The loss is a sum over tokens divided by their number, so lengths enter by their means.
    """
    syllables = mean_tokens() - 1
    return syllable_entropy() * syllables / (syllables + 1)


def mean_tokens() -> float:
    """The mean length of a source, and of a target, with </s>."""
    return SYLLABLES_PER_WORD * (LEAST_WORDS + MOST_WORDS) / 2 + 1


@dataclass(frozen=True)
class Chunk:
    """Some pairs in a row; a pair is a row of each array, S is the longest in syllables."""

    lengths: NDArray[np.int64]
    """Syllables of each source, and of each target."""
    sources: NDArray[np.uint8]
    """(pairs, S), 0 behind the end."""
    clean: NDArray[np.uint8]
    """The targets' likeliest syllables, given the targets before them."""
    targets: NDArray[np.uint8]

    def nats(self) -> float:
        """-log of the probability of all targets under the true distribution; </s> adds nothing."""
        inside = np.arange(self.targets.shape[1]) < self.lengths[:, None]
        right = int(((self.targets == self.clean) & inside).sum())
        wrong = int(inside.sum()) - right
        return -right * math.log(1 - NOISE + NOISE / SYLLABLES) - wrong * math.log(NOISE / SYLLABLES)


def synthetic_pairs(split: str, pairs: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """The first `pairs` (source, target) texts of a split; splits and seeds are drawn independently of each other."""
    spelling = np.array(SPELLINGS)
    for chunk in chunks(split, pairs, seed):
        sources, targets = (spelling[side].tolist() for side in (chunk.sources, chunk.targets))
        for length, source, target in zip(chunk.lengths.tolist(), sources, targets, strict=True):
            yield " ".join(source[:length]), " ".join(target[:length])


def irreducible_loss_of(split: str, pairs: int, seed: int = 0) -> dict[str, Any]:
    """What is known of the loss on the first `pairs` of a split, in nats a target token with </s>.

    `expected` is that over all that these sources could have been translated as; `drawn` is what the true distribution
    itself scores on the targets that were drawn, from which a validation loss on few tokens should be judged.
    """
    syllables, nats = 0, 0.0
    for chunk in chunks(split, pairs, seed):
        syllables += int(chunk.lengths.sum())
        nats += chunk.nats()
    tokens = syllables + pairs
    return {"expected": syllable_entropy() * syllables / tokens, "drawn": nats / tokens, "target_tokens": tokens}


def chunks(split: str, pairs: int, seed: int = 0) -> Iterator[Chunk]:
    """The first `pairs` of a split, CHUNK at a time."""
    language = Language(seed)
    for first in range(0, pairs, CHUNK):
        yield language.draw(split, first, min(CHUNK, pairs - first))


class Language:
    """Lexicon and grammar of a seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        kinds = 1 / np.arange(1, CLASSES + 1)
        even = _uniform(self._numbers("classes", np.arange(SYLLABLES)))
        self._class = np.searchsorted(np.cumsum(kinds / kinds.sum()), even).clip(max=CLASSES - 1)
        table = self._numbers("regular endings", np.arange(DECLENSIONS * CLASSES))
        self._regular = (table % SYLLABLES).astype(np.uint8).reshape(DECLENSIONS, CLASSES)

    def draw(self, split: str, first: int, count: int) -> Chunk:
        """Pairs `first` to `first + count` of a split."""
        pair = self._numbers(f"pairs of {split}", np.arange(first, first + count))
        words = LEAST_WORDS + (_draw(pair, 0) % (MOST_WORDS - LEAST_WORDS + 1)).astype(np.int64)
        shape = count, MOST_WORDS, SYLLABLES_PER_WORD
        sources, clean, targets = (np.zeros(shape, np.uint8) for _ in range(3))
        before = np.zeros(count, np.int64)  # the kind of the last syllable; before the first word it is 0
        for place in range(MOST_WORDS):
            at = 1 + place * (1 + SYLLABLES_PER_WORD)
            rank = ranks(_uniform(_draw(pair, at)))
            sources[:, place] = spelled(self._scrambled(rank))
            clean[:, place] = self._translation(rank, before)
            for syllable in range(SYLLABLES_PER_WORD):
                noise = _uniform(_draw(pair, at + 1 + syllable)) / NOISE
                replaced = np.minimum(noise * SYLLABLES, SYLLABLES - 1).astype(np.uint8)
                targets[:, place, syllable] = np.where(noise < 1, replaced, clean[:, place, syllable])
            before = self._class[targets[:, place, -1]]
        flat = [side.reshape(count, -1) for side in (sources, clean, targets)]
        lengths = SYLLABLES_PER_WORD * words
        for side in flat:
            side[np.arange(side.shape[1]) >= lengths[:, None]] = 0
        return Chunk(lengths, *flat)

    def _translation(self, rank: Words, kind: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(pairs, 3): stem and ending of words whose target before ends in a syllable of `kind`."""
        of_word = self._numbers("stems", rank)
        own = self._numbers("irregular endings", rank * np.uint64(CLASSES) + kind.astype(np.uint64))
        declension = (of_word >> np.uint64(16)) % np.uint64(DECLENSIONS)
        ending = np.where(
            _uniform(own) < IRREGULAR,
            (own % np.uint64(SYLLABLES)).astype(np.uint8),  # the lowest bits, of which _uniform uses none
            self._regular[declension.astype(np.int64), kind],
        )
        stem = (of_word % np.uint64(SYLLABLES), (of_word >> np.uint64(8)) % np.uint64(SYLLABLES))
        return np.stack([*(part.astype(np.uint8) for part in stem), ending], axis=1)

    def _scrambled(self, rank: Words) -> Words:
        """The spelling of each rank as a number below TYPES: a bijection, by two rounds of steps that are ones."""
        mask, number = np.uint64(TYPES - 1), rank
        for turn in range(2):
            factor, shift = self._numbers("spellings", np.arange(2 * turn, 2 * turn + 2))
            number = (number * (factor | np.uint64(1)) + shift) & mask
            number = number ^ (number >> np.uint64(11))
        return number

    def _numbers(self, what: str, index: NDArray[Any]) -> Words:
        """One random number for each index, of a sequence of its own by its name."""
        name = hashlib.sha256(f"{self._seed} {what}".encode()).digest()
        start = np.uint64(int.from_bytes(name[:8], "little"))
        return _mixed(start + index.astype(np.uint64) * np.uint64(_GOLDEN))


def ranks(even: NDArray[np.float64]) -> Words:
    """Ranks of words, 0 the most frequent, of numbers in [0, 1): P(rank >= r) = (1 + r / OFFSET)^-TAIL."""
    left = 1 - even
    # left^(-1 / TAIL) by operations that IEEE 754 rounds correctly: `**` is libm's, and differs between machines.
    drawn = OFFSET * (1 / (left * left * np.sqrt(left)) - 1)
    return np.minimum(drawn, TYPES - 1).astype(np.uint64)


def spelled(words: Words) -> NDArray[np.uint8]:
    """(words, 3): the syllables of words, by number."""
    shifts = np.array([16, 8, 0], np.uint64)
    return ((words[:, None] >> shifts) % np.uint64(SYLLABLES)).astype(np.uint8)


def _draw(key: Words, number: int) -> Words:
    """Number `number` of the sequence that begins at each key."""
    return _mixed(key + np.uint64((number + 1) * _GOLDEN % _WRAP))


def _mixed(bits: Words) -> Words:
    """The output function of SplitMix64; products wrap at 64 bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _uniform(bits: Words) -> NDArray[np.float64]:
    """Numbers in [0, 1) of the upper 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
