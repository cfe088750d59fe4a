"""The SentencePiece model as a tokenizer of plain transformers: the same ids, and texts that decode.

Two ways, by what the vocabulary has:

- no byte pieces (a unigram tokenizer of translation): transformers' own `SentencePieceBackend`, which calls the
  SentencePiece library on `tokenizer.model`.
- byte pieces (BPE, and every tokenizer of documents): `tokenizer.json`, because `SentencePieceBackend` shows
  bytes as `<0xC3>` where it should put characters together.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bmscale.data.tokenizer import BOS, BYTE_PIECES, EOS, MASK_PIECE, PAD, SPECIAL_PIECES, UNK
from bmscale.model.folder import TOKENIZER_CONFIG, ModelFolder, write_json

MODEL_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"
_SPACE = "\u2581"
_TAG = re.compile(r"<2[^<>]+>")  # data/tokenizer.py, language_tag
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def write(model: ModelFolder, target: Path) -> None:
    """The tokenizer's files for a folder in a layout of transformers."""
    config = json.loads((model.path / TOKENIZER_CONFIG).read_bytes())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model.tokenizer))
    shutil.copyfile(model.tokenizer, target / MODEL_FILE)  # what llama.cpp and others read
    if has_bytes(processor):
        config["tokenizer_class"] = "TokenizersBackend"
        pattern = config.pop("special_tokens_pattern")
        make_json(processor, pattern).save(str(target / JSON_FILE))
    else:
        config["tokenizer_class"] = "SentencePieceBackend"
    write_json(target / TOKENIZER_CONFIG, config)


def never_written(model: ModelFolder) -> list[int]:
    """Pieces that a language model must not write: they are no text."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model.tokenizer))
    mask = int(processor.piece_to_id(MASK_PIECE))
    return [BOS, PAD, UNK, *([mask] if mask != UNK else [])]


def has_bytes(processor: Any) -> bool:
    """Whether rare characters are spelt in bytes."""
    return any(processor.is_byte(int(processor.piece_to_id(piece))) for piece in BYTE_PIECES)


def misfits(model: ModelFolder) -> list[str]:
    """What of the tokenizer has no place in transformers' own: BPE there forms a piece only by merges, and a tag has
    none."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model.tokenizer))
    pieces = (processor.id_to_piece(i) for i in range(processor.get_piece_size()))
    tag = next(filter(_TAG.fullmatch, pieces), None)
    if tag and has_bytes(processor):
        return [f"the tokenizer must have no tags of languages or no byte pieces; got both, such as {tag} and <0x00>"]
    return []


def make_json(processor: Any, pattern: str) -> Tokenizer:
    """The same tokenizer for the library `tokenizers`; `pattern` is bos, eos or bos_eos, what stands around a text."""
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    scores = [processor.get_score(i) for i in range(len(pieces))]
    is_unigram = any(score != round(score) for score in scores[len(SPECIAL_PIECES) :])
    tokenizer = Tokenizer(_unigram(pieces, scores) if is_unigram else _bpe(pieces, scores))
    # What the model was trained with shows in what it makes of spaces.
    adds_space = processor.id_to_piece(processor.encode("a")[0]).startswith(_SPACE)
    trims = processor.encode("a  b") == processor.encode("a b")
    tokenizer.normalizer = _normalizer(adds_space, trims)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if adds_space else []),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_no_special_piece(pieces, processor), "merged_with_previous")
    tokenizer.post_processor = _frame(pattern)
    special = [*SPECIAL_PIECES, *([MASK_PIECE] if MASK_PIECE in pieces else [])]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    return tokenizer


def _unigram(pieces: list[str], scores: list[float]) -> Any:
    return models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=UNK, byte_fallback=True)


def _bpe(pieces: list[str], scores: list[float]) -> Any:
    """Merges in the order of the ranks; SentencePiece joins two neighbours wherever their union is a piece."""
    rank = {piece: -score for piece, score in zip(pieces, scores, strict=True)}
    ordinary = [piece for piece in pieces if piece not in SPECIAL_PIECES and not _BYTE.fullmatch(piece)]
    merges = [
        (rank[piece], piece[:cut], piece[cut:])
        for piece in ordinary
        for cut in range(1, len(piece))
        if piece[:cut] in rank and piece[cut:] in rank
    ]
    merges.sort(key=lambda merge: (merge[0], rank[merge[1]], rank[merge[2]]))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for _, left, right in merges],
        unk_token=SPECIAL_PIECES[UNK],
        fuse_unk=True,
        byte_fallback=True,
    )


def _normalizer(adds_space: bool, trims: bool) -> Any:
    steps: list[Any] = []
    if trims:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A | \z"), "")]
    if adds_space:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _no_special_piece(pieces: list[str], processor: Any) -> Any:
    """The `<` of text that looks like a special piece: cut off behind it, the rest of the text is only text."""
    looks = [piece for i, piece in enumerate(pieces) if processor.is_control(i) or processor.is_unknown(i)]
    rest = [re.escape(piece[1:]) for piece in looks if piece.startswith("<")]
    return Regex(f"<(?=(?:{'|'.join([*rest, '0x[0-9A-F]{2}>'])}))")


def _frame(pattern: str) -> Any:
    begin = f"{SPECIAL_PIECES[BOS]} " if "bos" in pattern else ""
    end = f" {SPECIAL_PIECES[EOS]}" if "eos" in pattern else ""
    ids = [(SPECIAL_PIECES[BOS], BOS), (SPECIAL_PIECES[EOS], EOS)]
    return processors.TemplateProcessing(single=f"{begin}$A{end}", special_tokens=ids)
