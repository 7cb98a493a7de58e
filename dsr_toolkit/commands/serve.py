"""Serve every model of a repository over HTTP: what an Inference Endpoint does with the same handler, with requests in
batches.

Opens at http://HOST:PORT/docs. Ctrl-C or SIGTERM: requests that were accepted are answered, then it ends.
"""

from dataclasses import fields, replace
from pathlib import Path

from ..console import say, step

HELP = "serve a repository's models over HTTP"
NEEDS = "serve"


def add_arguments(parser) -> None:
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a repository of models; default: the tiny ones")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 for any that is free")
    parser.add_argument("--max-batch", type=int, default=16, metavar="N", help="rows of a batch (default: 16)")
    parser.add_argument(
        "--max-wait", type=float, default=0.02, metavar="SECONDS", help="longest wait for company (default: 0.02)"
    )
    parser.add_argument(
        "--max-requests", type=int, default=64, metavar="N", help="on their way; more get a 503 (default: 64)"
    )
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="threads that read media (default: 4)")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=N",
        help="of a request, such as pixels=4000000; may be repeated",
    )
    parser.add_argument(
        "--preload",
        nargs="*",
        default=[],
        metavar="NAME",
        help="models to load before the first request; default: none",
    )
    parser.add_argument(
        "--allow-missing",
        nargs="+",
        default=(),
        metavar="NAME",
        help='confinements of CAD programs this machine may lack, or "all"',
    )
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')


def run(args) -> None:
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port must lie in 0 … 65535, got {args.port}.")
    with step("Loading libraries"):
        import uvicorn

        from ..loading import DTYPES, REPOSITORY, resolve
        from ..serving import handler_module
        from ..serving.application import create_app
        from ..serving.batching import BatchingQueue
    if args.dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {args.dtype!r}.")

    endpoint = handler_module()
    limits = read_limits(args.limit, endpoint.Limits)
    source, stand_in = resolve(args.model, REPOSITORY)
    if not Path(source).is_dir():
        from huggingface_hub import snapshot_download

        with step(f"Fetching {source}"):
            source = snapshot_download(source)
    if stand_in:
        say(stand_in.notice)
    handler = endpoint.EndpointHandler(
        source, limits, args.device, args.dtype,
        "all" if "all" in args.allow_missing else args.allow_missing,
    )  # fmt: skip
    for name in args.preload:
        if name not in handler.models:
            raise ValueError(f"--preload knows the models {', '.join(handler.models)}, got {name!r}.")
        with step(f"Loading {name}"):
            handler.processor(name), handler.model(name)
    queue = BatchingQueue(handler, args.max_batch, args.max_wait, args.max_requests, args.workers)
    say(f"Models: {', '.join(handler.models)}; tasks: {', '.join(handler.tasks)}")
    uvicorn.Server(uvicorn.Config(create_app(queue), host=args.host, port=args.port, log_level="info")).run()


def read_limits(given: list[str], limits):
    """`NAME=N` in place of what `limits`, the class, finds in the environment."""
    known, chosen = [one.name for one in fields(limits)], {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known or not value.isdigit():
            raise ValueError(f"--limit wants NAME=N with one of {', '.join(known)}, got {text!r}.")
        chosen[name] = int(value)
    return replace(limits.from_environment(), **chosen)
