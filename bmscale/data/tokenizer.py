"""SentencePiece tokenizers: training them, and encoding with them.

SentencePiece runs with the identity normaliser. Its own NFKC rules would change the text (½ -> 1/2, ™ -> TM), so that
decoding the tokens of a reference would not give the reference back.

Translation has a joint tokenizer of both languages, for text that `clean.normalise` has been over:
`decode(encode(normalise(text))) == normalise(text)` for every text without an unknown character.

Documents are what a model must reproduce, so their tokenizer is lossless: `decode(encode(text)) == text` for every
string, and `decode_bytes(encode_bytes(data)) == data` for every bytes. What has no piece is spelt in bytes.

Paper: Kudo and Richardson, "SentencePiece", EMNLP 2018 demonstrations (arXiv 1808.06226).
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece
from pydantic import Field

from bmscale.config import Config
from bmscale.data.corpus import LocalPath
from bmscale.errors import BadInput

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>")
MASK = 4
MASK_PIECE = "<mask>"
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]

# The sums of the EM steps depend on how the sentences are dealt out to threads, and the number is stored in the model:
# it is a constant, not the number of cores, so that the same text gives the same tokenizer on every machine.
TRAINER_THREADS = 8
# SentencePiece silently skips longer lines (4,192 bytes by default); cleaning has bounded them already.
LONGEST_LINE_BYTES = 1 << 20
# A space is U+2581 to SentencePiece, which therefore reads the character itself as a space; the others are single bytes
# that are no UTF-8, as Python's surrogateescape has them.
_SPELT = re.compile("[\u2581\udc80-\udcff]+")
_NO_TEXT = re.compile("[\u2581\ud800-\udfff]")
# The trainer skips every line with a tab, U+2047 (its mark of an unknown piece) or NUL, and a piece should not hold the
# end of a line: an encoded text has these in bytes.
_NOT_TRAINED_ON = re.compile("[\0\t\n\r\u2047\u2581\ud800-\udfff]+")
# Text that a lossless tokenizer gives back: SentencePiece's own rules would change every part of it.
_PROBE = "  \ufb01 e\u0301\u00a0\u00bd\u2122  \r\n\t<s> a "
SAMPLED_BEST = 64  # the l of Kudo 2018, who found no difference to sampling from all segmentations


class TokenizerConfig(Config):
    """Training of the joint tokenizer, or the path of a ready one."""

    path: LocalPath | None = None
    """A ready SentencePiece model with <s> 0, <pad> 1, </s> 2, <unk> 3; the keys below are then not used."""
    type: Literal["unigram", "bpe", "word"] = "unigram"
    """unigram, bpe with byte fallback (no unknown pieces: rare characters are spelt in bytes), or word: a piece is what
    stands between two spaces, for the synthetic corpus."""
    vocabulary_size: int = Field(default=8_000, ge=16, le=1_000_000)
    """Pieces of both languages together, the four special ones included."""
    character_coverage: float = Field(default=1.0, ge=0.98, le=1.0)
    """Share of characters that get a piece of their own; 0.9995 for Chinese or Japanese, 1 for small alphabets."""
    sample_sentences: int = Field(default=1_000_000, gt=0)
    """At most this many sentences, both sides counted, drawn from the cleaned text to train on; also at most 80 MB of
    text, because unigram training needs some twenty times that in memory."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw."""


class LosslessTokenizerConfig(TokenizerConfig):
    """Training of a tokenizer of documents, or the path of a ready one that spells in bytes what has no piece."""

    path: LocalPath | None = None
    """A ready SentencePiece model with <s> 0, <pad> 1, </s> 2, <unk> 3, all 256 byte pieces and the options that
    keep spaces as they are; the keys below are then not used."""
    type: Literal["unigram", "bpe"] = "unigram"
    """unigram or bpe; both spell rare characters in bytes."""
    vocabulary_size: int = Field(default=8_000, ge=16, le=1_000_000)
    """Pieces, the five special ones and 256 bytes included."""
    character_coverage: float = Field(default=0.9995, ge=0.98, le=1.0)
    """Share of characters that get a piece of their own; the others are spelt in bytes."""
    sample_sentences: int = Field(default=1_000_000, gt=0)
    """At most this many texts, drawn to train on; also at most 80 MB of text, because unigram training needs some
    twenty times that in memory."""


def language_tag(language: str) -> str:
    """The piece at the beginning of a source that says what to translate it into: `<2de>` (Johnson 2017)."""
    return f"<2{language}>"


def train_tokenizer(
    sentences: Iterable[str], config: TokenizerConfig, tags: Sequence[str] = (), *, lossless: bool = False
) -> bytes:
    """Train on texts and return the serialized SentencePiece model.

    `tags` become pieces of their own, behind the special ones, wherever they stand in a text. The texts are normalised
    sentences, source and target alike, or with `lossless` any texts: then every string can be encoded and decoded
    without loss, and <mask> has the id 4.

    The same sentences in the same order give the same bytes. Raises BadInput when the text does not support
    `vocabulary_size` pieces, or has more characters than pieces.
    """
    model = io.BytesIO()
    options: dict[str, Any] = {}
    if lossless:
        sentences = _lines(sentences)
        options = {
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,  # of several spaces: the indentation of code
            "control_symbols": [MASK_PIECE],
        }
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.type,
            vocab_size=config.vocabulary_size,
            character_coverage=config.character_coverage,
            byte_fallback=lossless or config.type == "bpe",
            normalization_rule_name="identity",
            bos_id=BOS,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            bos_piece=SPECIAL_PIECES[BOS],
            pad_piece=SPECIAL_PIECES[PAD],
            eos_piece=SPECIAL_PIECES[EOS],
            unk_piece=SPECIAL_PIECES[UNK],
            user_defined_symbols=list(tags),
            num_threads=TRAINER_THREADS,
            max_sentence_length=LONGEST_LINE_BYTES,
            minloglevel=2,
            **options,
        )
    except (RuntimeError, OSError) as error:
        raise BadInput(_training_failure(str(error), config)) from None
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The parts of texts that the trainer can read."""
    for text in texts:
        for part in _NOT_TRAINED_ON.split(text):
            for start in range(0, len(part), LONGEST_LINE_BYTES // 4):
                yield part[start : start + LONGEST_LINE_BYTES // 4]


def _training_failure(message: str, config: TokenizerConfig) -> str:
    key, asked = "data.tokenizer.vocabulary_size", config.vocabulary_size
    if most := re.search(r"value <= (\d+)", message):
        return f"{key}: the training text supports at most {int(most[1]):,} pieces, got {asked:,}; ask for fewer"
    if least := re.search(r"(\d+) vs (\d+)\.", message):
        return (
            f"{key}: must be at least {int(least[2]):,}, the characters of the training text and the special pieces, "
            f"got {asked:,}; ask for more, or lower data.tokenizer.character_coverage"
        )
    return f"data.tokenizer: training failed on this text with {key} {asked:,}: {message}"


class Tokenizer:
    """Text to token ids and back."""

    bos_id, pad_id, eos_id, unk_id = BOS, PAD, EOS, UNK

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        """Raises BadInput, under `name`, for bytes that are no SentencePiece model with our special ids."""
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        except RuntimeError:
            processor = None
        if processor is None:
            raise BadInput(f"{name}: not a SentencePiece model, or a damaged one ({len(model):,} bytes)")
        given = [processor.id_to_piece(i) for i in range(min(len(SPECIAL_PIECES), processor.get_piece_size()))]
        ids = (processor.bos_id(), processor.pad_id(), processor.eos_id(), processor.unk_id())
        if tuple(given) != SPECIAL_PIECES or ids != (BOS, PAD, EOS, UNK):
            raise BadInput(
                f"{name}: the first four pieces must be {', '.join(SPECIAL_PIECES)} with their roles, "
                f"got {', '.join(given)} and the ids bos {ids[0]}, pad {ids[1]}, eos {ids[2]}, unk {ids[3]}; "
                "train with bos_id=0 pad_id=1 eos_id=2 unk_id=3"
            )
        self.name = name
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocabulary_size = int(processor.get_piece_size())
        self._processor = processor
        self._scores = np.array([processor.get_score(i) for i in range(self.vocabulary_size)])

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a model file, `spiece.model` of a prepared folder or of a model folder. Raises BadInput."""
        try:
            file = Path(path)
            if file.exists() and not file.is_file():  # a pipe would block for ever
                raise BadInput(f"{path}: the tokenizer must be a regular file; give a spiece.model")
            model = file.read_bytes()
        except OSError as error:
            raise BadInput(f"{path}: the tokenizer cannot be read: {error.strerror}") from None
        return cls(model, str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of one text, </s> appended."""
        return [*self._ids(text), EOS]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, </s> appended."""
        # One thread: processes split the work, and its default of all cores would start a thread pool in each.
        if not self.is_lossless or not any(map(_NO_TEXT.search, texts)):
            ids: list[list[int]] = self._processor.encode(list(texts), add_eos=True, num_threads=1)
            return ids
        return [self.encode(text) for text in texts]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes, without </s>: what is UTF-8 as its text, everything else byte by byte. Needs
        `is_lossless`."""
        ids: list[int] = []
        text, start = data.decode("utf-8", "surrogateescape"), 0
        for spelt in _SPELT.finditer(text):
            ids += self._processor.encode(text[start : spelt.start()])
            ids += [self._byte_ids[byte] for byte in spelt[0].encode("utf-8", "surrogateescape")]
            start = spelt.end()
        return ids + list(self._processor.encode(text[start:]))

    def _ids(self, text: str) -> list[int]:
        if self.is_lossless and _NO_TEXT.search(text):
            return self.encode_bytes(text.encode("utf-8", "surrogatepass"))
        ids: list[int] = self._processor.encode(text)
        return ids

    @property
    def mask_id(self) -> int | None:
        """The id of <mask>, which hides a token from a masked language model; None where there is none."""
        found = int(self._processor.piece_to_id(MASK_PIECE))
        return found if found != UNK and self._processor.is_control(found) else None

    @cached_property
    def is_lossless(self) -> bool:
        """Whether every text comes back as it was: byte pieces, and no change of spaces or characters."""
        if UNK in self._byte_ids:
            return False
        return b"".join(map(self._spellings.__getitem__, self._processor.encode(_PROBE))) == _PROBE.encode()

    @cached_property
    def _byte_ids(self) -> list[int]:
        ids = [int(self._processor.piece_to_id(piece)) for piece in BYTE_PIECES]
        return [i if self._processor.is_byte(i) else UNK for i in ids]

    @cached_property
    def _spellings(self) -> list[bytes]:
        """The bytes that each id stands for; none for the special ones."""
        pieces = self.pieces(range(self.vocabulary_size))
        spellings = [piece.replace("\u2581", " ").encode() for piece in pieces]
        for byte, i in enumerate(self._byte_ids):
            spellings[i] = bytes([byte])
        for i in range(self.vocabulary_size):
            if self._processor.is_control(i):
                spellings[i] = b""
        spellings[UNK] = " \u2047 ".encode()
        return spellings

    @property
    def is_unigram(self) -> bool:
        """Whether the model is a unigram one, whose segmentations have probabilities; those of others have not."""
        try:
            self._processor.nbest_encode("", nbest_size=1)
        except RuntimeError:  # a model of words or characters, which has one segmentation of a text
            return False
        # A unigram model's scores are log-probabilities, a BPE model's are the ranks of merges: 0, -1, -2, …
        scores = self._scores[len(SPECIAL_PIECES) :]
        return not np.array_equal(scores, np.round(scores))

    def sample(self, text: str, alpha: float, generator: np.random.Generator) -> list[int]:
        """Ids of one normalised text in a segmentation drawn from its SAMPLED_BEST best ones, </s> appended.

        A segmentation of probability p is drawn with p^alpha (Kudo 2018, section 3.1). SentencePiece could draw from
        all of them, but its generator gives other draws in every process. Needs a unigram model.
        """
        best = self._processor.nbest_encode(text, nbest_size=SAMPLED_BEST)
        if not best:
            return [EOS]
        scores = alpha * np.array([self._scores[ids].sum() for ids in best])
        shares = np.exp(scores - scores.max())
        return [*best[generator.choice(len(best), p=shares / shares.sum())], EOS]

    def has_piece(self, piece: str) -> bool:
        """Whether `piece` is one of the vocabulary."""
        return bool(self._processor.piece_to_id(piece) != UNK)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens leave nothing behind, an unknown piece leaves ' ⁇ '.

        Bytes that are no UTF-8, which a model may write, become U+FFFD.
        """
        if not self.is_lossless:
            return str(self._processor.decode([int(i) for i in ids]))
        data = self.decode_bytes(ids)
        try:
            return data.decode("utf-8", "surrogatepass")  # JSON can hold half a character
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for, joined: the text of some ids is that of the ones before and that of the ones
        after, so that text can be written while it is made. Needs `is_lossless`."""
        return b"".join([self._spellings[int(i)] for i in ids])

    def require(self, *, mask: bool = False) -> None:
        """Raises BadInput, under the tokenizer's name, where it is not lossless, or with `mask` has no <mask>."""
        if not self.is_lossless:
            raise BadInput(
                f"{self.name}: a tokenizer of documents must give every text back, with all 256 byte pieces and spaces "
                "as they are; train it with --byte_fallback --normalization_rule_name=identity "
                "--add_dummy_prefix=false --remove_extra_whitespaces=false, or let `bmscale prepare` train one"
            )
        if mask and self.mask_id is None:
            raise BadInput(
                f"{self.name}: a tokenizer of a masked language model must have the control symbol {MASK_PIECE}; train "
                f"it with --control_symbols={MASK_PIECE}, or let `bmscale prepare` train one"
            )

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id, as SentencePiece spells it."""
        return [str(self._processor.id_to_piece(int(i))) for i in ids]

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes, str]]:
        return Tokenizer, (self.model, self.name)
