"""The wire: message types, framing, sockets, and what every process shares. Imports nothing of ours."""
