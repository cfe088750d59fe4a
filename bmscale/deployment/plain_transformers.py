"""What a user of an exported folder does, with transformers alone: a script that answers questions as JSON lines.

It runs in a process of its own in which bmscale cannot be imported (hugging_face.py starts it), so that an artefact
that needs our package shows here. One question a line on standard input, `{"folder", "ask", "texts"}`, its answer on
standard output; `{"error": …}` where something was raised. What each question means stands at `formats.Candidate`.
"""

import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

GREEDY_TOKENS = 32
ROWS = 16  # of a batch


class _Without:
    """A finder that knows one package as absent."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: Any) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}: an exported folder must load without it", name=name)


class Folder:
    """An exported folder as transformers opens it."""

    def __init__(self, path: str) -> None:
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        config = json.loads((Path(path) / "config.json").read_bytes())
        self.kind = next(kind for kind in _HEADS if config["architectures"][0].endswith(kind))
        options = {"trust_remote_code": True} if "auto_map" in config else {}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
        auto_class = getattr(transformers, _HEADS[self.kind])
        self.model = auto_class.from_pretrained(path, dtype=torch.float32, use_safetensors=True, **options).eval()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """What the folder's tokenizer makes of each text."""
        return [list(self.tokenizer(text).input_ids) for text in texts]

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        found: list[list[float]] = []
        for rows in _chunks(pairs):
            sources, targets = [source for source, _ in rows], [target for _, target in rows]
            if self.kind == "ForConditionalGeneration":
                found += self._of_targets(sources, self.ids(targets))
            elif self.kind == "ForCausalLM":
                found += self._of_documents([[*ids, self.tokenizer.eos_token_id] for ids in self.ids(targets)])
            elif self.kind == "ForMaskedLM":
                found += [self._of_hidden(ids)[0] for ids in self.ids(targets)]
            else:
                batch = self.tokenizer(targets, padding=True, return_tensors="pt")
                found += self.model(**batch).logits.log_softmax(-1).tolist()
        return found

    def _of_targets(self, sources: list[str], targets: list[list[int]]) -> list[list[float]]:
        import torch

        batch = self.tokenizer(sources, padding=True, return_tensors="pt")
        start, pad = self.model.generation_config.decoder_start_token_id, self.tokenizer.pad_token_id
        width = max(map(len, targets))
        inputs = torch.tensor([[start, *ids[:-1], *[pad] * (width - len(ids))] for ids in targets])
        logits = self.model(**batch, decoder_input_ids=inputs, use_cache=False).logits
        return _picked(logits, targets)

    def _of_documents(self, documents: list[list[int]]) -> list[list[float]]:
        import torch

        width = max(map(len, documents)) - 1
        pad = self.tokenizer.pad_token_id
        inputs = torch.tensor([[*ids[:-1], *[pad] * (width + 1 - len(ids))] for ids in documents])
        return _picked(self.model(input_ids=inputs, use_cache=False).logits, [ids[1:] for ids in documents])

    def _of_hidden(self, ids: list[int]) -> tuple[list[float], list[int]]:
        """Log-probabilities of the hidden tokens of one text, and what is most probable in their places."""
        import torch

        places = hidden_positions(len(ids))
        shown = torch.tensor([ids])
        shown[0, places] = self.tokenizer.mask_token_id
        logits = self.model(input_ids=shown).logits[0, places]
        wanted = torch.tensor(ids)[places]
        return logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0].tolist(), logits.argmax(-1).tolist()

    def greedy(self, lines: Sequence[str]) -> list[str]:
        if self.kind == "ForConditionalGeneration":
            return self._translate(lines, num_beams=1, length_penalty=None)
        if self.kind == "ForMaskedLM":
            hidden = [self._of_hidden(ids)[1] for ids in self.ids(lines)]
            return [" ".join(self.tokenizer.convert_ids_to_tokens(ids)) for ids in hidden]
        if self.kind == "ForSequenceClassification":
            best = [row.index(max(row)) for row in self.log_probabilities([("", line) for line in lines])]
            return [str(self.model.config.id2label[number]) for number in best]
        texts = []
        for rows in _chunks(lines):
            batch = self.tokenizer(list(rows), padding=True, return_tensors="pt")
            batch.pop("token_type_ids", None)
            whole = self.model.generate(**batch, do_sample=False, max_new_tokens=GREEDY_TOKENS)
            before = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]
            after = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in whole]
            texts += [text[len(prompt) :] for prompt, text in zip(before, after, strict=True)]
        return texts

    def translate(self, lines: Sequence[str]) -> list[str]:
        return self._translate(lines)

    def _translate(self, lines: Sequence[str], **search: Any) -> list[str]:
        import torch
        from transformers import LogitsProcessor, LogitsProcessorList

        end = self.tokenizer.eos_token_id

        class EndAtLimit(LogitsProcessor):
            """Each row ends at three tokens for each of its source and ten more, as the Translator's do."""

            def __init__(self, limits: torch.Tensor) -> None:
                self.limits = limits

            def __call__(self, input_ids: Any, scores: Any) -> Any:
                forced = torch.full_like(scores, -torch.inf)
                forced[:, end] = scores[:, end]
                return torch.where((input_ids.shape[1] >= self.limits)[:, None], forced, scores)

        texts = []
        beams = search.get("num_beams") or self.model.generation_config.num_beams or 1
        for rows in _chunks(lines):
            batch = self.tokenizer(list(rows), padding=True, return_tensors="pt")
            batch.pop("token_type_ids", None)
            longest = self.model.generation_config.max_length
            limits = (batch["attention_mask"].sum(1) * 3 + 10).clamp(max=longest)
            found = self.model.generate(
                **batch,
                do_sample=False,
                max_length=int(limits.max()) + 1,
                logits_processor=LogitsProcessorList([EndAtLimit(limits.repeat_interleave(beams))]),
                **search,
            )
            texts += [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in found]
        return texts


_HEADS = {
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
}
"""The Auto class of a model, by how the name of its class ends."""


def hidden_positions(length: int) -> list[int]:
    """Which of the tokens of `<s> text </s>` are hidden from a masked language model: every seventh, at least one."""
    return list(range(min(3, length // 2), length - 1, 7)) or [length // 2]


def _chunks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))


def _picked(logits: Any, targets: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the target tokens, given logits (B, T, V) of rows that are padded behind them."""
    import torch

    found = []
    for row, ids in zip(logits, targets, strict=True):
        log_p = row[: len(ids)].log_softmax(-1)
        found.append(log_p.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist())
    return found


def answer(folders: dict[str, Folder], question: dict[str, Any]) -> Any:
    """What one question is answered; folders stay open."""
    path = question["folder"]
    if path not in folders:
        folders.clear()
        folders[path] = Folder(path)
    return getattr(folders[path], question["ask"])(question["texts"])


def main() -> None:
    """Answer until standard input ends."""
    sys.meta_path.insert(0, _Without("bmscale"))
    import torch

    # Only answers may go where answers are read.
    answers, sys.stdout = sys.stdout, sys.stderr
    folders: dict[str, Folder] = {}
    for line in sys.stdin:
        try:
            with torch.inference_mode():
                said = {"answer": answer(folders, json.loads(line))}
        except Exception:  # of any library: the other side raises it again
            said = {"error": traceback.format_exc()}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
