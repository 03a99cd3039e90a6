"""The one clear line about a process that ended or went silent."""

from __future__ import annotations

import signal

from accelgen.supervisor.members import Occupant


def describe_death(dead: Occupant, oom_kills: int) -> str:
    """Why `dead` ended, in one line: its own last word if it had one, else what the kernel tells.

    `oom_kills`: how often the kernel's out-of-memory killer has struck since the server started."""
    assert dead.exit_status is not None
    if dead.failure:
        return f"{dead.seat.name}: {dead.failure}"
    who = f"{dead.seat.name} (pid {dead.pid})"
    if dead.killed_for:
        return f"{who} {dead.killed_for}"
    if dead.exit_status < 0:
        line = f"{who} was killed by {_signal_name(-dead.exit_status)} in phase '{dead.phase}'"
        if dead.exit_status == -signal.SIGKILL and oom_kills:
            line += (
                f"; the kernel's out-of-memory killer struck meanwhile"
                f" (it last had {dead.rss_bytes / 2**20:,.0f} MiB resident)"
            )
        return line
    line = f"{who} ended by itself with status {dead.exit_status} in phase '{dead.phase}'"
    return f"{line}: {dead.last_words}" if dead.last_words else line


def describe_silence(silent: Occupant, silence_s: float) -> str:
    """Why a process that said nothing for `silence_s` seconds was killed (read after its name)."""
    return (
        f"was silent for {silence_s:.1f} s in phase '{silent.phase}', where it had announced"
        f" {silent.bound_s:.1f} s at most: hung, killed"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
