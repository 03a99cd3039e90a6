"""What `accelgen profile` says about itself and about settings that cannot be."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from accelgen.scripts.profile import command


def test_help() -> None:
    shown = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "Nothing else should be running" in shown and "next start of a server" in shown
    assert "[default: 60.0;" in shown and "[default: 8192]" in shown


@pytest.mark.parametrize(
    "args",
    [["--dtype", "float8"], ["--max-num-seqs", "0"], ["--budget-s", "1"]],
)
def test_settings_that_cannot_be(args: list[str]) -> None:
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 2, result.output
    assert args[1] in result.output
