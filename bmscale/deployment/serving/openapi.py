"""What /openapi.json says of the routes whose bodies are read by hand."""

from collections.abc import Sequence
from typing import Any

_ERRORS = {
    400: "Invalid request", 401: "API key missing or invalid (OpenAI's routes)",
    403: "Invalid API key, or a page of a site that may not ask",
    404: "No such model", 408: "The body came too slowly", 413: "Too large, or too much for a request's time",
    415: "Neither JSON nor a form", 429: "Slow down", 500: "Failed", 503: "Too late, or shutting down",
}  # fmt: skip
_SOME_TEXT = {"type": "string", "minLength": 1}
_SOME_TEXTS = {"oneOf": [_SOME_TEXT, {"type": "array", "minItems": 1, "items": {"type": "string"}}]}
_KEY = {"description": "looked at where the server has keys"}
_TEXT_OR_TEXTS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _operation(summary: str, body: dict[str, Any], answer: dict[str, Any], *, forms: bool) -> dict[str, Any]:
    kinds = ["application/json", *(["application/x-www-form-urlencoded"] if forms else [])]
    request = {"required": True, "content": {kind: {"schema": body} for kind in kinds}}
    error = _object(["error"], error={"type": "string"} if forms else _object(["message"], message={"type": "string"}))
    responses: dict[int | str, dict[str, Any]] = {
        code: {"description": text, "content": {"application/json": {"schema": error}}}
        for code, text in _ERRORS.items()
    }
    responses[200] = {"description": "Done", "content": {"application/json": {"schema": answer}}}
    return {"summary": summary, "openapi_extra": {"requestBody": request}, "responses": responses}


# [target word, source word, weight], words counted from 0
_LINK = {"type": "array", "minItems": 3, "maxItems": 3, "items": {"type": "number"}}
_WORDS = {"type": "array", "items": {"type": "string"}}
_ALIGNMENT = _object(
    ["source", "target", "links"], source=_WORDS, target=_WORDS, links={"type": "array", "items": _LINK}
)
_ALIGNMENTS = {"type": "array", "items": {"oneOf": [_ALIGNMENT, {"type": "null"}]}}


def translate(sources: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """The route that translates from and into these languages."""
    return _operation(
        "Translate text",
        _object(
            ["q", "source", "target"],
            q=_SOME_TEXTS,
            source={"type": "string", "enum": list(sources), "description": "code of a language, or auto"},
            target={"type": "string", "enum": list(targets), "description": "code of a language"},
            format={"type": "string", "enum": ["text", "html"]},
            alternatives={"type": "integer", "minimum": 0},
            alignments={"type": "boolean", "description": "links between the words of text and translation"},
            api_key=_KEY,
        ),
        _object(
            ["translatedText"],
            translatedText=_TEXT_OR_TEXTS,
            alignments={
                "oneOf": [_ALIGNMENTS, {"type": "array", "items": _ALIGNMENTS}],
                "description": "where they were asked for: of each part that was translated by itself, in order",
            },
        ),
        forms=True,
    )


DETECT = _operation(
    "Detect the language of a text",
    _object(["q"], q=_SOME_TEXT, api_key=_KEY),
    {
        "type": "array",
        "items": _object(["confidence", "language"], confidence={"type": "number"}, language={"type": "string"}),
    },
    forms=True,
)

COMPLETIONS = _operation(
    "Write on from a prompt",
    _object(
        ["model"],
        model={"type": "string"},
        prompt=_TEXT_OR_TEXTS,
        max_tokens={"type": "integer", "minimum": 1},
        temperature={"type": "number"},
        top_p={"type": "number"},
        n={"type": "integer", "minimum": 1},
        seed={"type": "integer", "minimum": 0},
        stop=_TEXT_OR_TEXTS,
        echo={"type": "boolean"},
        stream={"type": "boolean"},
    ),
    _object(["id", "choices"], id={"type": "string"}, choices={"type": "array"}),
    forms=False,
)
