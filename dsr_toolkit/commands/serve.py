"""Serve every model of a repository over HTTP: what an Inference Endpoint does with the same handler, with requests in
batches, and what OpenAI's clients know, at /v1.

Opens at http://HOST:PORT/docs. Ctrl-C or SIGTERM: requests that were accepted are answered, within --stop-limit, then
it ends.
"""

import os
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import fields

from ..console import loading_libraries, say, step
from ..extras import needs
from ..model_check import check_dtype, check_model

HELP = "serve a repository's models over HTTP"
NEEDS = "serve"


def add_arguments(parser) -> None:
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a repository of models; default: the tiny ones")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 for any that is free")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="NAME=N",
        help="of a request, such as pixels=4000000; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--allow-missing", nargs="+", default=(), metavar="NAME",
        help='confinements of CAD programs this machine may lack, or "all"',
    )  # fmt: skip
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')
    add_scale_arguments(parser.add_argument_group("replicas"))
    add_load_arguments(parser.add_argument_group("load"))
    add_operator_arguments(parser.add_argument_group("operation"))


def add_scale_arguments(group) -> None:
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="where models run: in this process, or in replicas on Ray (default: local)",
    )  # fmt: skip
    group.add_argument("--address", help="with --engine ray: of a running cluster (default: this machine alone)")
    group.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="with --engine ray: processes with models (default: 1)"
    )
    group.add_argument(
        "--max-replicas", type=int, metavar="N", help="up to which Ray starts more under load (default: no more)"
    )
    group.add_argument(
        "--gpus-per-replica", type=float, default=0.0, metavar="G", help="GPUs of each, or a part of one (default: 0)"
    )


def add_load_arguments(group) -> None:
    group.add_argument("--max-batch", type=int, default=16, metavar="N", help="rows of a batch (default: 16)")
    group.add_argument(
        "--max-wait", type=float, default=0.02, metavar="SECONDS", help="longest wait for company (default: 0.02)"
    )
    group.add_argument(
        "--max-requests", type=int, default=64, metavar="N", help="on their way; more get a 503 (default: 64)"
    )
    group.add_argument("--workers", type=int, default=4, metavar="N", help="threads of each kind of work (default: 4)")
    group.add_argument(
        "--preload", nargs="*", default=[], metavar="NAME", help="models to load before /ready says so; default: none"
    )
    group.add_argument(
        "--max-models", type=int, metavar="N", help="in memory at a time; the one used longest ago goes (default: all)"
    )
    group.add_argument(
        "--max-model-memory", type=float, metavar="GIB", help="of the weights in memory, likewise (default: no limit)"
    )
    group.add_argument(
        "--body-memory", type=int, default=512, metavar="MIB", help="of requests being read (default: 512)"
    )
    group.add_argument(
        "--max-connections", type=int, default=1000, metavar="N", help="open at a time; more get a 503 (default: 1000)"
    )


def add_operator_arguments(group) -> None:
    group.add_argument(
        "--api-keys", metavar="FILE",
        help="keys that clients must send, `name:key` per line (default: the variable DSR_API_KEYS; else none)",
    )  # fmt: skip
    group.add_argument("--per-client", type=int, metavar="N", help="requests of one key or address at a time")
    group.add_argument("--cors", nargs="+", default=[], metavar="ORIGIN", help="whose pages may ask (default: none)")
    group.add_argument(
        "--time-limit", type=float, default=300, metavar="SECONDS", help="that an answer may take (default: 300)"
    )
    group.add_argument(
        "--read-timeout", type=float, default=20, metavar="SECONDS",
        help="within which a request has to come; large ones have more (default: 20)",
    )  # fmt: skip
    group.add_argument(
        "--stop-limit", type=float, default=30, metavar="SECONDS",
        help="after which a stopping server gives up what is under way (default: 30)",
    )  # fmt: skip
    group.add_argument("--log", choices=("text", "json"), default="text", help="form of the log (default: text)")


def run(args) -> None:
    scaled = (args.address, args.replicas, args.max_replicas, args.gpus_per_replica) != (None, 1, None, 0.0)
    if args.engine == "ray":
        needs("scale", "dsr serve --engine ray")
    elif scaled:
        raise ValueError("--address, --replicas, --max-replicas and --gpus-per-replica go with --engine ray.")
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port must lie in 0 … 65535, got {args.port}.")
    if args.max_model_memory is not None and not args.max_model_memory > 0:
        raise ValueError(f"--max-model-memory must be above 0, got {args.max_model_memory}.")
    check_dtype(args.dtype)
    check_model(args.model)
    with loading_libraries():
        from ..loading import REPOSITORY, resolve
        from ..serving import handler_module
        from ..serving.application import build
        from ..serving.front import open_sockets
        from ..serving.logs import set_up
        from ..serving.protocol import make_server
    limits = read_limits(args.limit, handler_module().Limits)
    source, stand_in = resolve(args.model, REPOSITORY)
    if stand_in:
        say(stand_in.notice)
    settings = settings_of(args, str(source), limits)
    set_up(args.log)
    with ExitStack() as stack:
        sockets = open_sockets(args.host, args.port)
        for one in sockets:
            stack.callback(one.close)
        with step(f"Opening {source}"):
            app = stack.enter_context(on_ray(args, settings)) if args.engine == "ray" else build(settings)
        handler = app.state.queue.handler
        say(f"Models: {', '.join(handler.models)}; tasks: {', '.join(handler.tasks)}")
        port = sockets[0].getsockname()[1]
        server = make_server(app, sockets, port, args.read_timeout, args.stop_limit, args.max_connections)
        say(f"Serving at http://{args.host}:{port}/docs")
        server.run()
    if not app.state.ended:  # a model does not come back from a single call: nothing else would end this process
        os._exit(1)


@contextmanager
def on_ray(args, settings: dict):
    """The application around replicas, which end with it."""
    from ..serving.on_ray import Scale, replicated

    scale = Scale(args.replicas, args.max_replicas, args.gpus_per_replica)
    with replicated(settings, scale, args.address) as app:
        # uvicorn raises a signal again when it has ended for it, and Ray's own handler would call that a failure.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        yield app


def settings_of(args, source: str, limits: dict[str, int]) -> dict:
    """What `application.build` takes, from the command line."""
    size = args.max_model_memory
    return {
        "model": source, "device": args.device, "dtype": args.dtype, "limits": limits,
        "allow_missing": "all" if "all" in args.allow_missing else tuple(args.allow_missing),
        "max_models": args.max_models, "max_model_bytes": None if size is None else int(size * 2**30),
        "preload": tuple(args.preload), "max_batch": args.max_batch, "max_wait": args.max_wait,
        "max_requests": args.max_requests, "workers": args.workers, "time_limit": args.time_limit,
        "read_timeout": args.read_timeout, "stop_limit": args.stop_limit, "body_memory": args.body_memory * 2**20,
        "per_client": args.per_client, "keys_file": args.api_keys, "cors": tuple(args.cors),
    }  # fmt: skip


def read_limits(given: list[str], limits) -> dict[str, int]:
    """`NAME=N` by name; they stand in place of what `limits`, the class, finds in the environment."""
    known, chosen = [one.name for one in fields(limits)], {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known or not value.isdigit():
            raise ValueError(f"--limit wants NAME=N with one of {', '.join(known)}, got {text!r}.")
        chosen[name] = int(value)
    limits.from_environment(**chosen)  # says now what is wrong with them
    return chosen
