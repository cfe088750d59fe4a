"""A translation model as an .argosmodel, for Argos Translate and for LibreTranslate, which installs them by a fork.

It is a zip archive of one folder: `metadata.json`, `sentencepiece.model`, `README.md`, and `model/`, a CTranslate2
model. Argos encodes a sentence with SentencePiece, adds nothing, and takes the text of what comes back; CTranslate2
puts </s> behind the source because the model's own config.json says so. It splits paragraphs with models that it
downloads itself, and writes every underscore of a translation as a space. Source: `package.py` and `translate.py` of
argostranslate 1.11.
"""

import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from bmscale.deployment.ctranslate2_candidate import TranslationCandidate
from bmscale.deployment.ctranslate2_format import CTranslate2Format
from bmscale.errors import BadInput
from bmscale.inference.ctranslate2_folder import TOKENIZER_FILE, open_ctranslate2_folder
from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.folder import ModelFolder

ARGOS_VERSION = "1.11"
"""The version of Argos Translate that packages were tried with."""
_LANGUAGES = """
ar Arabic, bg Bulgarian, bn Bengali, ca Catalan, cs Czech, da Danish, de German, el Greek, en English, eo Esperanto,
es Spanish, et Estonian, eu Basque, fa Persian, fi Finnish, fr French, ga Irish, gl Galician, he Hebrew, hi Hindi,
hr Croatian, hu Hungarian, id Indonesian, is Icelandic, it Italian, ja Japanese, ko Korean, lt Lithuanian, lv Latvian,
mt Maltese, nb Norwegian, nl Dutch, pl Polish, pt Portuguese, ro Romanian, ru Russian, sk Slovak, sl Slovenian,
sq Albanian, sr Serbian, sv Swedish, sw Swahili, ta Tamil, th Thai, tr Turkish, uk Ukrainian, ur Urdu, vi Vietnamese,
zh Chinese
"""
_NAMES = dict(entry.split() for entry in _LANGUAGES.split(","))
_README = """\
# {from_name} to {to_name}

A translation model for Argos Translate, trained with bmscale.

Install: `argospm install {name}` or `argostranslate.package.install_from_path("{name}")`.
"""


class ArgosFormat(CTranslate2Format):
    """`--to argos`."""

    name = "argos"
    library = "argostranslate"
    suffix = ".argosmodel"

    def check(self, model: ModelFolder) -> None:
        """Raises BadInput for a model that is none of one source and one target language."""
        if not isinstance(model.config, EncoderDecoderConfig):
            raise BadInput(f"{model.path}: argos is for translation; got a model of {model.task.noun}")
        if model.provenance.get("language_tags"):
            raise BadInput(
                f"{model.path}: argos is for models of one target language; this one finds its language in a tag "
                "before the source, and Argos puts none there: train one for a single direction, or export it to "
                "ctranslate2"
            )
        for key in ("source_language", "target_language"):
            if not model.provenance.get(key):
                raise BadInput(f"{model.path}/provenance.json: {key} must say a language code, such as en, for argos")
        codes = _codes(model)
        for code in codes:
            if not re.fullmatch("[a-z]{2,3}", code):
                raise BadInput(
                    f"{model.path}/provenance.json: languages must be codes of two or three letters for argos, which "
                    f"makes names of files of them; got {code!r:.40}"
                )
        if codes[0] == codes[1]:
            raise BadInput(
                f"{model.path}/provenance.json: source and target must be two languages for argos, which knows no "
                f"regions; got {codes[0]} for both"
            )

    def write(self, model: ModelFolder, target: Path) -> None:
        """Write the archive. Raises BadInput where `target` exists, and as `check` does."""
        self.check(model)
        if target.exists():
            raise BadInput(f"{target}: exists already; give a name that is free, or remove it")
        metadata = self._metadata(model)
        top = f"{metadata['from_code']}_{metadata['to_code']}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".argos-") as scratch:
            exported = Path(scratch) / "model"
            super().write(model, exported)
            readme = _README.format(**metadata, name=f"translate-{top}.argosmodel")
            try:
                with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                    archive.writestr(f"{top}/metadata.json", json.dumps(metadata, indent=2, ensure_ascii=False))
                    archive.writestr(f"{top}/README.md", readme)
                    archive.write(exported / TOKENIZER_FILE, f"{top}/sentencepiece.model")
                    for file in sorted(exported.iterdir()):
                        if file.name != TOKENIZER_FILE:
                            archive.write(file, f"{top}/model/{file.name}")
            except BaseException:
                target.unlink(missing_ok=True)
                raise

    def _metadata(self, model: ModelFolder) -> dict[str, Any]:
        codes = _codes(model)
        names = [_NAMES.get(code, code) for code in codes]
        return {
            "package_version": "1.0",
            "argos_version": ARGOS_VERSION,
            "from_code": codes[0],
            "from_name": names[0],
            "to_code": codes[1],
            "to_name": names[1],
        }

    def open(self, target: Path) -> TranslationCandidate:
        """Unpack the archive as Argos does and open what is in it. Raises BadInput for another one."""
        with tempfile.TemporaryDirectory(prefix="argos-") as scratch:
            with zipfile.ZipFile(target) as archive:
                archive.extractall(scratch)
            (top,) = Path(scratch).iterdir()
            # The one file that Argos has in another place and under another name.
            shutil.copyfile(top / "sentencepiece.model", top / "model" / TOKENIZER_FILE)
            return TranslationCandidate(open_ctranslate2_folder(top / "model"))  # which is in memory from here on

    def usage(self, model: ModelFolder) -> str:
        """How to install the package."""
        codes = self._metadata(model)
        return f'''\
With the package argostranslate:

```python
import argostranslate.package, argostranslate.translate

argostranslate.package.install_from_path("NAME.argosmodel")
print(argostranslate.translate.translate("A sentence.", "{codes["from_code"]}", "{codes["to_code"]}"))
```

Argos splits paragraphs into sentences with a model that it downloads when it is first asked. It does not normalise
text as training did (Unicode NFC, single spaces), and writes an underscore as a space.
'''

    def describe(self, target: Path) -> dict[str, Any]:
        """What the report says of the archive."""
        return {**super().describe(target), "layout": "Argos package, CTranslate2", "argos_version": ARGOS_VERSION}


def _codes(model: ModelFolder) -> list[str]:
    """Of source and target, without region and script."""
    given = [str(model.provenance[key]) for key in ("source_language", "target_language")]
    return [re.split("[-_]", code)[0].lower() for code in given]


def make(**options: str) -> ArgosFormat:
    """The format with its option `compute_type`. Raises BadInput for another value."""
    return ArgosFormat(**options)
