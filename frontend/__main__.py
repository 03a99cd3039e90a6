"""The frontend process: HTTP on the socket it was given, a Router for the scheduler, a beat for the supervisor."""

from __future__ import annotations

import asyncio
import os
import socket

import uvloop
import zmq

from accelgen.frontend.app import make_app
from accelgen.frontend.http_server import HttpServer, make_server
from accelgen.frontend.journal import Journal
from accelgen.frontend.keys import Gate
from accelgen.frontend.link import Link
from accelgen.frontend.metrics import Metrics
from accelgen.frontend.model_files import ModelError, read_model
from accelgen.frontend.service import Service
from accelgen.frontend.tokenizer import TextCodec
from accelgen.proto.child import Child
from accelgen.proto.clocks import now_s
from accelgen.proto.key_file import KeyFileError, read_keys
from accelgen.proto.messages import Reason, Role
from accelgen.proto.sockets import Router

LISTEN_FD = "ACCELGEN_LISTEN_FD"
TICK_S = 0.2
LOADING_BOUND_S = 600.0  # a tokenizer may have to be fetched
LAST_WORDS_S = 0.2  # for streams that are cut off to say so


def main() -> None:
    child = Child.from_command_line(Role.FRONTEND)
    child.stop_timeout_s = (
        child.config.shutdown_timeout_s
    )  # what SIGTERM means; Stop brings its own
    child.phase("loading tokenizer", LOADING_BOUND_S)
    try:
        keys = read_keys(child.config.api_key_file, child.config.admin_key_file)
        model = read_model(child.config.model, child.config.served_model_name)
        codec = TextCodec(model, child.config.think_tokens)
    except (KeyFileError, ModelError) as error:
        child.fail(str(error))
        return
    listener = socket.socket(fileno=int(os.environ[LISTEN_FD]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        metrics = Metrics()
        link = Link(
            Router(child.endpoint, child.incarnation),
            Journal(codec.tokenizer, child.incarnation, child.config.max_replays),
            metrics,
            {name: one.max_queue_ms / 1000 for name, one in child.config.slo_classes.items()},
        )
        service = Service(child, model, codec, link, metrics)
        runner.run(serve(service, make_server(make_app(service, Gate(*keys))), listener))
    child.link.close()
    zmq.Context.instance().term()


async def serve(service: Service, server: HttpServer, listener: socket.socket) -> None:
    """Runs until the supervisor says Stop (or SIGTERM comes) and open calls have ended or run out of time."""
    supervisor, loop = service.child.link.socket.fileno(), asyncio.get_running_loop()
    service.link.start()
    loop.add_reader(supervisor, _hear, service)  # a scheduler is obeyed as soon as it is listed
    service.child.phase("waiting for scheduler", 5.0)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await _tend(service, serving)
    service.link.fail_all(Reason.REFUSED_DRAINING)
    await asyncio.sleep(LAST_WORDS_S)
    server.should_exit = True
    while not serving.done():
        service.child.beat()
        await asyncio.wait([serving], timeout=TICK_S)
    loop.remove_reader(supervisor)
    service.link.stop()
    serving.result()


def _hear(service: Service) -> None:
    """Reads what the supervisor says."""
    service.child.hear()
    service.link.learn(service.child.directory)
    service.swaps.take()


async def _tend(service: Service, serving: asyncio.Task[None]) -> None:
    """The steady work beside HTTP: heartbeats, gauges, readiness; ends when the process shall end."""
    child, link = service.child, service.link
    child.gauges = service.samples
    announced = False
    deadline_s: float | None = None
    while not serving.done():
        child.beat()
        _hear(service)
        link.drain()
        link.tend()
        if link.failure is not None:
            child.fail(f"the frontend failed: {type(link.failure).__name__}: {link.failure}")
        if link.active and not announced:
            child.phase("ready", 5.0)
            announced = True
        if child.stopping and deadline_s is None:
            link.refuse_new()
            deadline_s = now_s() + child.stop_timeout_s
            child.phase("stopping", child.stop_timeout_s + 5.0)
        if deadline_s is not None and (not link.journal.open_calls or now_s() >= deadline_s):
            return
        await asyncio.sleep(TICK_S)


if __name__ == "__main__":
    main()
