"""The papers that are reproduced here, and their figures as files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bmscale.scaling.reproduce import bansal, besiroglu, gadre, gemstones, muennighoff, porian
from bmscale.scaling.reproduce.check import Reproduction
from bmscale.scaling.reproduce.source import Source, altered, download, missing


@dataclass(frozen=True)
class Paper:
    """Its data (None: it needs none), and what fits it again: a folder of data, and whether to bootstrap."""

    source: Source | None
    reproduce: Callable[[Path, bool], Reproduction]


PAPERS = {
    "besiroglu": Paper(besiroglu.SOURCE, besiroglu.reproduce),
    "porian": Paper(porian.SOURCE, porian.reproduce),
    "gadre": Paper(gadre.SOURCE, gadre.reproduce),
    "gemstones": Paper(gemstones.SOURCE, gemstones.reproduce),
    "bansal": Paper(bansal.SOURCE, bansal.reproduce),
    "muennighoff": Paper(None, muennighoff.reproduce),
}


def prepare(names: list[str], folder: Path, fetch: bool) -> None:
    """Before any fit: every paper's data is there, or is fetched.

    Raises BadInput for data that is missing, all of it in one message, and BmscaleError where it cannot be fetched.
    """
    sources = [source for name in names if (source := PAPERS[name].source)]
    if fetch:
        for source in sources:
            download(source, folder)
    absent = [source for source in sources if not (folder / source.file).is_file()]
    if absent:
        raise missing(absent, folder)


def warnings(name: str, folder: Path) -> list[str]:
    """What to say of a data file that is not the published one."""
    source = PAPERS[name].source
    if source is None or not altered(source, folder / source.file):
        return []
    return [f"{folder / source.file}: not the published file, whose sha256 is {source.parts[0].sha256}"]


def draw(found: Reproduction, folder: Path) -> list[Path]:
    """Write the paper's picture into a folder, as PNG and SVG. Returns the files."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{found.paper}{ending}" for ending in (".png", ".svg")]
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": found.paper}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        found.draw(figure)
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files
