"""Models for other people: serve."""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bmscale.commands.arguments import Commands, add, with_given
from bmscale.errors import BadInput

if TYPE_CHECKING:
    from bmscale.deployment.serving.batching import BatchLimits
    from bmscale.deployment.serving.limits import Limits

log = logging.getLogger("bmscale")

_OPTIONS = {
    "timeout_seconds": "--timeout", "max_wait_seconds": "--max-wait-ms", "max_batch_slots": "--max-batch-tokens",
    "max_queue_slots": "--max-queue-tokens", "compute type": "--compute-type",
} | {
    name: "--" + name.replace("_", "-")
    for name in (
        "max_characters", "max_requests", "max_connections", "requests_per_minute", "beam_size", "length_penalty",
        "device",
    )
}  # fmt: skip


def add_serve(commands: Commands) -> None:
    """`bmscale serve`."""
    parser = add(
        commands,
        "serve",
        "serve models over HTTP: translation as LibreTranslate's clients speak it, language models as OpenAI's do, "
        "and a page to try them on. SIGTERM or Ctrl-C ends it after what was accepted is answered",
        _serve,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folders, such as runs/toy/model/best")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: this machine only)")
    parser.add_argument("--port", type=int, default=5000, help="0 takes one that is free (default: 5000)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument(
        "--backend", choices=("auto", "torch", "ctranslate2"), default="auto",
        help="what computes; auto is CTranslate2 for folders of bmscale export --to ctranslate2, else PyTorch",
    )  # fmt: skip
    parser.add_argument(
        "--compute-type", default="auto", metavar="TYPE",
        help="float32, bfloat16, float16, and with CTranslate2 also int8, int8_float32, …; auto is float32 with "
        "PyTorch and what the folder was exported in with CTranslate2",
    )  # fmt: skip
    parser.add_argument("--beam-size", type=int, help="hypotheses kept; 1 is greedy")
    parser.add_argument("--length-penalty", type=float, help="exponent of the length; above 1 favours long ones")
    parser.add_argument("--api-keys", metavar="FILE", help="keys, one a line, of which requests must have one")
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL",
        help="another web site whose pages may ask, such as https://example.org; * for all (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="a name under which the server is called, beside localhost; behind a proxy, the proxy's (default: any, "
        "but on this machine only localhost)",
    )  # fmt: skip
    batching = parser.add_argument_group("batching")
    batching.add_argument(
        "--max-batch-tokens",
        type=int,
        metavar="N",
        help="tokens of a batch, what may be written counted, times beams; 1: no batching (default: 32768)",
    )
    batching.add_argument(
        "--max-wait-ms", type=float, metavar="MS", help="a request waits so long for company (default: 5)"
    )
    batching.add_argument(
        "--max-queue-tokens", type=int, metavar="N",
        help="as many that wait for a model; more are answered with 429 (default: 800000)",
    )  # fmt: skip
    bounds = parser.add_argument_group("limits of a request")
    bounds.add_argument("--max-characters", type=int, metavar="N", help="of its texts (default: 50000)")
    bounds.add_argument("--max-requests", type=int, metavar="N", help="at the same time (default: 512)")
    bounds.add_argument(
        "--max-connections", type=int, metavar="N", help="open, also those that ask for nothing (default: 1024)"
    )
    bounds.add_argument(
        "--requests-per-minute", type=float, metavar="N", help="of one key or address (default: as many as come)"
    )
    bounds.add_argument("--timeout", type=float, metavar="SECONDS", help="for its answer (default: 60)")


def _serve(options: argparse.Namespace) -> None:
    try:
        from bmscale.deployment.serving.limits import Keys
        from bmscale.deployment.serving.metrics import Metrics
        from bmscale.deployment.serving.running import bind, is_loopback, run
        from bmscale.deployment.serving.server import Service, make_app
        from bmscale.deployment.serving.sites import Sites
    except ModuleNotFoundError as error:
        raise BadInput(f"serve: needs {error.name}, which is not installed: pip install 'bmscale[serve]'") from None
    from bmscale.deployment.serving.models import open_models
    from bmscale.inference.translator import SearchOptions

    with _names_of_options():
        limits, batches = _limits(options)
        search = with_given(SearchOptions(), options)
    keys = Keys.read(options.api_keys) if options.api_keys else None
    bound = bind(options.host, options.port)  # an address that is taken shows before models are loaded
    with bound:
        sites = Sites.of(options.allow_origin, options.allow_host, loopback=is_loopback(bound))
        metrics = Metrics()
        with _names_of_options():
            models = open_models(
                options.models,
                backend=options.backend,
                device=options.device,
                compute_type=options.compute_type,
                search=search,
                limits=batches,
                observer=metrics.observer,
            )
        for (source, target), model in models.pairs.items():
            log.info("%s translates %s to %s", model.name, source, target)
        for name in models.language_models:
            log.info("%s writes on from prompts", name)
        if keys is None and not is_loopback(bound):
            log.warning("anyone who reaches %s can use the server; --api-keys FILE asks for a key", options.host)
        service = Service(models, limits, keys, metrics)
        if run(make_app(service, sites), bound, limits):
            log.info("everything that was accepted is answered")
        else:
            log.warning("the time was over before everything that was accepted was answered")


@contextlib.contextmanager
def _names_of_options() -> Iterator[None]:
    """Mistakes are told by the names that the command line has."""
    try:
        yield
    except BadInput as error:
        name, colon, rest = str(error).partition(":")
        if name not in _OPTIONS:
            raise
        raise BadInput(f"{_OPTIONS[name]}{colon}{rest}") from None


def _limits(options: argparse.Namespace) -> tuple["Limits", "BatchLimits"]:
    from bmscale.deployment.serving.batching import BatchLimits
    from bmscale.deployment.serving.limits import Limits

    wait = None if options.max_wait_ms is None else options.max_wait_ms / 1000
    of_request = {
        "max_characters": options.max_characters,
        "max_requests": options.max_requests,
        "max_connections": options.max_connections,
        "requests_per_minute": options.requests_per_minute,
        "timeout_seconds": options.timeout,
    }
    of_batch = {
        "max_batch_slots": options.max_batch_tokens,
        "max_wait_seconds": wait,
        "max_queue_slots": options.max_queue_tokens,
    }
    return (
        Limits(**{name: value for name, value in of_request.items() if value is not None}),
        BatchLimits(**{name: value for name, value in of_batch.items() if value is not None}),
    )
