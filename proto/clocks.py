"""The one clock: seconds of CLOCK_MONOTONIC, comparable between processes of one host and never across hosts."""

from __future__ import annotations

import time

now_s = time.monotonic
