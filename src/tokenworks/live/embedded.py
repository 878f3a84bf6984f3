"""The embedded worker: llama.cpp's server in a process of its own, which dies with its factory.

Run by ``tokenworks.live.workers`` as ``python -m tokenworks.live.embedded``, never by hand. It
listens on a free port of 127.0.0.1, prints one JSON line on stdout when it can serve, and lives
until SIGTERM, until its stdin closes or until its parent dies, whichever comes first.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import threading
from typing import Final

import xllamacpp

KEY_VARIABLE: Final = "TOKENWORKS_WORKER_KEY"
"""The environment variable that holds the API key; arguments show up in ``ps``, this doesn't."""

KEY_LEN_MIN: Final = 16
CACHE_RAM_MIB_MAX: Final = 64
"""Host memory for prompts that left their slot; llama.cpp's own default is 8 GiB."""

HTTP_THREADS_PER_SLOT: Final = 2
"""One for a slot's stream, one for a request that waits for a slot or an idle connection."""

HTTP_THREADS_SPARE: Final = 8
"""Left for health checks, metrics and refusals while every stream is busy."""

SOCKET_TIMEOUT_S_MAX: Final = 600
SSE_PING_S: Final = 30
PR_SET_PDEATHSIG: Final = 1
EXIT_ORPHANED: Final = 3
EXIT_NO_ENGINE: Final = 4
STDIN_CHUNK_BYTES: Final = 4096


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The worker's settings from its command line; argparse exits with status 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog="tokenworks.live.embedded", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="path of a GGUF file, already verified")
    parser.add_argument("--alias", required=True, help="the model name that the API shows")
    parser.add_argument("--slots", type=_positive, required=True, help="sequences at once")
    parser.add_argument(
        "--context-tokens", type=_positive, required=True, help="KV tokens of all slots"
    )
    parser.add_argument(
        "--threads", type=_positive, required=True, help="CPU threads for the model"
    )
    parser.add_argument(
        "--clients", type=_positive, default=1, help="processes that send it requests"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value!r}")
    return value


def engine_parameters(settings: argparse.Namespace, api_key: str) -> xllamacpp.CommonParams:
    """What llama.cpp is told, each departure from its defaults with its reason."""
    p = xllamacpp.CommonParams()
    p.model.path = settings.model
    p.model_alias = {settings.alias}
    p.n_ctx = settings.context_tokens
    p.n_parallel = settings.slots
    # With one KV buffer for all slots, attention reads everybody's tokens for each (64 slots:
    # 480 tokens/s against 1,220), and a buffer that fills up ends every running answer.
    p.kv_unified = False
    p.cont_batching = True
    p.cache_prompt = True
    p.cache_ram_mib = CACHE_RAM_MIB_MAX
    p.ctx_shift = False  # silently forgetting a prompt's start is worse than a refusal
    p.fit_params = False  # the factory sized it; a second opinion only costs start time
    p.cpuparams.n_threads = settings.threads
    p.cpuparams_batch.n_threads = settings.threads
    p.hostnames = ["127.0.0.1"]
    p.port = 0
    p.api_keys = [api_key]
    threads = HTTP_THREADS_PER_SLOT * settings.clients
    p.n_threads_http = settings.slots * threads + HTTP_THREADS_SPARE
    p.timeout_read = SOCKET_TIMEOUT_S_MAX
    p.timeout_write = SOCKET_TIMEOUT_S_MAX
    p.sse_ping_interval = SSE_PING_S
    p.endpoint_slots = True
    p.endpoint_metrics = True
    p.endpoint_props = False  # POST /props would let a client change the server
    p.sampling.temp = 0.0  # greedy unless a request says otherwise: foreman copies
    p.use_jinja = True  # tool calls are parsed with the model's own template
    p.warmup = True
    p.ui = False
    p.cors_origins = ""  # browsers have no business here
    p.cors_credentials = False
    p.offline = True
    p.verbosity = -1
    return p


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies, and watch stdin for its end.

    Each guards a gap of the other: the kernel's signal is Linux only and is lost if the parent
    died before we asked; the pipe stays open if some other process inherited its far end.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    threading.Thread(target=_exit_at_end_of_stdin, name="stdin-watch", daemon=True).start()


def _exit_at_end_of_stdin() -> None:
    try:
        while os.read(0, STDIN_CHUNK_BYTES):
            pass
    finally:
        os._exit(EXIT_ORPHANED)  # nobody is left to wait for a clean end


def main(arguments: list[str]) -> int:
    """Serve until told to stop, and then end the process with status 0.

    Returns:
        The exit status of a worker that did not start.
    """
    # Whatever the engine prints must not be mistaken for the ready line.
    report = os.dup(1)
    os.dup2(2, 1)
    # Blocked in every thread and waited for below: a handler could run just before a wait begins,
    # and the wait would never end. A SIGTERM that comes during loading is kept until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    settings = parse_arguments(arguments)
    api_key = os.environ.pop(KEY_VARIABLE, "")
    if len(api_key) < KEY_LEN_MIN:
        sys.stderr.write(f"{KEY_VARIABLE} must hold at least {KEY_LEN_MIN} characters\n")
        return 2
    die_with_parent()
    try:
        server = xllamacpp.Server(engine_parameters(settings, api_key))
    except RuntimeError as error:  # the engine's only word for a wrong file or too little memory
        sys.stderr.write(f"the engine did not start with {vars(settings)!r}: {error}\n")
        return EXIT_NO_ENGINE
    ready = {"ready": True, "address": server.listening_address, "pid": os.getpid()}
    os.write(report, json.dumps(ready).encode() + b"\n")
    os.close(report)
    signal.sigwait({signal.SIGTERM})
    # The server's own end waits for ever when it comes before its loop has begun, and there is
    # nothing to save: the kernel closes the sockets.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
