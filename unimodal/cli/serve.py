"""`unimodal serve`: a model behind OpenAI's HTTP API, and a web page to chat on."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from unimodal.cli.progress import Reporter
from unimodal.cli.shared import Cache, Compress, Model, Weights, check_compress, check_ways, load_model

#: settings → their options, where these are called otherwise: those of lists are given once for each
SINGULAR = {"aliases": "alias", "allow_hosts": "allow-host", "allow_origins": "allow-origin", "cache_mb": "cache"}


def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(metavar="H", help="The address to listen at; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="K", help="What clients must send; or set UNIMODAL_API_KEY.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", metavar="NAME", help="Another name that requests may call the model.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="H", help="A public name under which it is reached, as by a proxy."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="URL", help="Pages of another server that may use it; * is any."),
    ] = None,
    max_batch: Annotated[int, typer.Option(metavar="N", help="Requests that are answered at once.")] = 32,
    cache_mb: Annotated[
        float | None,
        typer.Option("--cache", metavar="MIB", help="For keys and values of all requests; else half of what is free."),
    ] = None,
    queue_limit: Annotated[int, typer.Option(metavar="N", help="Requests that may wait; more are refused.")] = 64,
    timeout_s: Annotated[float, typer.Option(metavar="S", help="The longest that one request may take.")] = 120.0,
    head_timeout_s: Annotated[float, typer.Option(metavar="S", help="For the head of a request to arrive.")] = 10.0,
    grace_s: Annotated[float, typer.Option(metavar="S", help="For requests to end in when told to stop.")] = 10.0,
    max_connections: Annotated[int, typer.Option(metavar="N", help="Connections that may be open.")] = 1000,
    max_body_mb: Annotated[float, typer.Option(metavar="MB", help="The largest request.")] = 32.0,
    allow_remote_urls: Annotated[
        bool, typer.Option("--allow-remote-urls", help="Fetch media from public http(s) addresses, too.")
    ] = False,
    compress: Compress = None,
    allow_compress: Annotated[
        bool, typer.Option("--allow-compress", help="Let a request choose in the field `compress`.")
    ] = False,
    weights: Weights = "auto",
    kv: Cache = "model",
) -> None:
    """Serve a model over HTTP: OpenAI's API and a web chat."""
    from pydantic import ValidationError

    from unimodal.serve.settings import ServeConfig, listen, read_key

    check_ways(None, weights, kv)
    methods = check_compress(compress, None, weights, kv) or ()
    try:
        config = ServeConfig(
            host=host,
            port=port,
            api_key=read_key() if api_key is None else api_key,  # an empty one is no open door
            aliases=tuple(alias or ()),
            allow_hosts=tuple(allow_host or ()),
            allow_origins=tuple(allow_origin or ()),
            max_batch=max_batch,
            cache_mb=cache_mb,
            queue_limit=queue_limit,
            timeout_s=timeout_s,
            head_timeout_s=head_timeout_s,
            grace_s=grace_s,
            max_connections=max_connections,
            max_body_mb=max_body_mb,
            allow_remote_urls=allow_remote_urls,
            compress=methods,
            allow_compress=allow_compress,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, told = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        raise ValueError(f"--{SINGULAR.get(field, field).replace('_', '-')} is not usable: {told}") from None
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{error.name} is missing; install the server's parts: pip install 'unimodal[serve]'"
        ) from None
    sock = listen(config)  # before seconds of loading; who connects meanwhile waits
    with Reporter() as report:
        report("starting")
        from unimodal.pipeline.compression import load_methods

        load_methods(methods)  # what cannot be used is told before seconds of loading
        loaded = load_model(model, report, weights, kv)
        from unimodal.serve.server import create_app, make_server

        report("loading the tokenizers")
        server = make_server(create_app(loaded, config))
    address = sock.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"{loaded.folder.name} is served at http://{shown}:{address[1]} (Ctrl-C ends)", file=sys.stderr, flush=True)
    if config.api_key is None and not address[0].startswith("127.") and address[0] != "::1":
        print("anybody who reaches this address may use it; --api-key restricts that", file=sys.stderr, flush=True)
    with sock:
        server.run(sockets=[sock])
