"""`accelgen profile`: measures, fits, and leaves a file that the scheduler reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from accelgen.proto.profiles import load_profile
from accelgen.scheduler.cost_model import fit


def test_profile_of_the_bundled_model(tmp_path: Path) -> None:
    sizes = ["--kv-blocks", "128", "--max-num-seqs", "4", "--max-num-batched-tokens", "128"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "accelgen.scripts.cli", "profile", "--budget-s", "3", *sizes],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "accelgen" / "profiles").glob("*.json")
    assert str(path) in done.stdout and "Pivot forward size" in done.stdout
    profile = load_profile(path)
    assert profile.device == "cpu" and profile.dtype == "bfloat16"
    assert any(s.prefill_tokens for s in profile.samples)
    assert any(s.decode_seqs for s in profile.samples)
    assert all(s.run_s > 0 for s in profile.samples) and fit(profile.samples).a >= 0
    for out in (True, False):  # both curves of swapping
        curve = [s for s in profile.swaps if s.out is out]
        assert [s.blocks for s in curve] == [2**i for i in range(len(curve))] and len(curve) >= 3
        assert all(s.run_s > 0 for s in curve)
        assert {s.bytes for s in curve} == {s.blocks * curve[0].bytes for s in curve}
    assert "Swapping KV" in done.stdout
    before = json.loads(path.read_text())
    del before["swaps"]  # as files were before there was swapping
    path.write_text(json.dumps(before))
    older = load_profile(path)
    assert older.swaps == [] and older.samples == profile.samples
