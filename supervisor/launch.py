"""From a configuration to a running server: checks, listening socket, run directory, processes, and the way back."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config, save_config
from accelgen.proto.logs import configure_logs
from accelgen.proto.recorder import start_recorder
from accelgen.supervisor import preflight
from accelgen.supervisor.children import Children, Command, component_command
from accelgen.supervisor.core import SupervisorCore
from accelgen.supervisor.detach import detach
from accelgen.supervisor.display import display_for
from accelgen.supervisor.linux import check_platform
from accelgen.supervisor.listener import is_loopback, listen, url_of
from accelgen.supervisor.members import Assignment, all_seats
from accelgen.supervisor.process import Display, Supervisor
from accelgen.supervisor.rundir import CONFIG, RunDir

Check = Callable[[Config], tuple[Config, int]]


def check_config(config: Config) -> tuple[Config, int]:
    """`config` completed by the preflight checks, and the model's context in tokens (0: not stated)."""
    config, checkpoint = preflight.check(config)
    return config, checkpoint.context_tokens


def serve(
    config: Config,
    detached: bool = False,
    command: Command = component_command,
    check: Check = check_config,
) -> int:
    """Starts a server and stays until it ends; returns the exit status. With `detached`, the server goes on in a
    session of its own, and this returns as soon as it is ready or has failed.

    Raises StartError for everything that is known to be wrong before a process is started."""
    started_s = now_s()
    check_platform()
    drafter = config.drafter  # as it was named: of a hub's model the folder's name is a number
    config, context_tokens = check(config)
    listener = listen(config.host, config.port)
    run_dir = RunDir.create(config.run_dir)
    port = listener.getsockname()[1]
    config = msgspec.structs.replace(config, port=port, run_dir=str(run_dir.path))
    facts = {**_facts(config, listener, context_tokens), "drafter": Path(drafter).name}

    def supervise(display: Display) -> int:
        return _supervise(config, facts, run_dir, listener, command, display, started_s)

    return detach(supervise) if detached else supervise(display_for(sys.stdout))


def _supervise(
    config: Config,
    facts: dict[str, Any],
    run_dir: RunDir,
    listener: socket.socket,
    command: Command,
    display: Display,
    started_s: float,
) -> int:
    run_dir.holder()
    save_config(config, run_dir.path / CONFIG)
    with (run_dir.logs / "supervisor.log").open("w") as stream:
        configure_logs("supervisor", config.log_level, stream)
        start_recorder(config.recorder_events, config.recorder_bytes)
        core = SupervisorCore(
            assignment=Assignment(
                config.policy,
                config.policy_params,
                config.memory,
                config.memory_params,
                config.routing,
            ),
            seats=all_seats(config.frontends, config.replicas),
            pid=os.getpid(),
            started_s=started_s,
            facts=facts,
            drain_s=config.shutdown_timeout_s,
        )
        children = Children(run_dir.path, listener.fileno(), config.replicas, command)
        structlog.get_logger().info("config", **msgspec.to_builtins(config))
        end = Supervisor(core, children, run_dir, listener, display).run()
    if end.status == 0:
        run_dir.remove()
    else:
        run_dir.keep()
    display.end(end.status, end.line, run_dir.logs if end.status else None)
    return end.status


def _facts(config: Config, listener: socket.socket, context_tokens: int) -> dict[str, Any]:
    """What the Directory tells everyone about the server as a whole."""
    return {
        "url": url_of(listener),
        "model": config.served_model_name,
        "policy": config.policy,
        "policy_params": config.policy_params,
        "memory": config.memory,
        "memory_params": config.memory_params,
        "routing": config.routing,
        "run_dir": config.run_dir,
        "context_tokens": context_tokens,  # what the model allows; a worker's facts say what there is room for
        "shutdown_timeout_s": config.shutdown_timeout_s,
        "needs_key": bool(config.api_key_file),
        "open_to_others": not (config.api_key_file or is_loopback(listener)),
    }
