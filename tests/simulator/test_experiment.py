"""Settings and results: repeatable, kept, found again, made anew when anything has changed; several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from accelgen.proto.messages import Sample
from accelgen.proto.profiles import Profile, save_profile
from accelgen.simulator import crew
from accelgen.simulator.capacity import find_capacity
from accelgen.simulator.crew import Crew, CrewError
from accelgen.simulator.experiment import Result, Setting, Store, key_of, run_setting, simulate
from accelgen.simulator.scenarios import ScenarioError, make_scenario
from accelgen.simulator.times import Rule
from accelgen.simulator.traces import VARIABLE


def setting(**fields: Any) -> Setting:
    scenario = make_scenario(
        {
            "about": "x", "model": "llama-3-8b", "hardware": "a100", "rates": [1.0], "seeds": [0], "max_tokens": 64,
            "parts": [{"name": "a", "source": "synthetic:azure2023_code", "ttft": {"base_s": 0.5}}],
            **fields.pop("scenario", {}),
        }
    )  # fmt: skip
    given = {"policy": "sarathi", "rate": 4.0, "requests": 30, **fields}
    return Setting(name="s", scenario=scenario, **given)


def figures(result: Result) -> dict[str, Any]:
    """All that must repeat: not the real time that decisions took."""
    found = msgspec.to_builtins(result)
    for key in ("wall_s", "key"):
        del found[key]
    del found["summary"]["decisions"]
    return found  # type: ignore[no-any-return]


def test_a_setting_repeats_itself() -> None:
    told = []
    first = run_setting(setting(requests=60), lambda ended, of: told.append((ended, of)))
    assert figures(first) == figures(run_setting(setting(requests=60)))
    assert first.summary is not None and first.summary.sent == 60
    assert told and all(ended <= of == 60 for ended, of in told)
    other = run_setting(setting(requests=60, seed=1))
    assert figures(other) != figures(first)


def test_a_scenario_may_have_a_drafter() -> None:
    """More is drafted where more is accepted; a slow drafter is used less, and the key of the result says all of it."""
    drafted, keys = [], []
    for drafts in (
        {},
        {"acceptance": 0.2},
        {"acceptance": 0.9},
        {"acceptance": 0.9, "draft_ms": 50.0},
    ):
        result, run = simulate(setting(scenario=drafts))
        assert result.summary is not None and result.summary.unfinished == 0
        drafted.append(run.workers[0].drafted)
        keys.append(result.key)
    assert drafted[0] == 0 < drafted[1] < drafted[2] > drafted[3] and len({*keys}) == 4
    with pytest.raises(ScenarioError, match="acceptance: distserve has no drafter"):
        run_setting(setting(policy="distserve", scenario={"acceptance": 0.5}))


def test_a_run_ends_when_enough_is_out_of_reach() -> None:
    result = run_setting(setting(rate=500.0, requests=400, enough=0.9))
    assert result.given_up and result.summary is not None and result.summary.unfinished
    assert result.attainment(Rule.MEAN) < 0.9
    full = run_setting(setting(rate=500.0, requests=400))
    assert not full.given_up and full.attainment(Rule.MEAN) < 0.9


def test_keys_follow_setting_trace_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert key_of(setting()) == key_of(setting())
    changed = [
        setting(rate=5.0),
        setting(seed=1),
        setting(policy="vllm"),
        setting(params={"chunk_size": 64}),
    ]
    assert len({key_of(one) for one in [setting(), *changed]}) == 5
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(
        "accelgen.simulator.experiment._file_digest", lambda path: path.read_bytes()
    )
    trace = {"parts": [{"name": "a", "source": "t"}]}
    (tmp_path / "t.csv").write_text("prompt_tokens,output_tokens\n1,1\n")
    before = key_of(setting(scenario=trace))
    (tmp_path / "t.csv").write_text("prompt_tokens,output_tokens\n1,2\n")
    assert key_of(setting(scenario=trace)) != before
    before = key_of(setting(scenario=trace, stand_ins=True))  # nothing stands in for it
    (tmp_path / "t.csv").write_text("prompt_tokens,output_tokens\n1,3\n")
    assert key_of(setting(scenario=trace, stand_ins=True)) != before


def test_keys_follow_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "accelgen.simulator.experiment._file_digest", lambda path: path.read_bytes()
    )
    path, keys = tmp_path / "p.json", set()
    for run_s in (0.1, 0.2):
        samples = [Sample(tokens, 0, 0, 0.0, run_s) for tokens in (1, 2, 3)]
        save_profile(Profile("m", "cpu", "float32", "today", samples), path)
        scenario = {"profile_file": str(path), "kv_blocks": 512}
        keys.add(key_of(setting(scenario=scenario)))
    assert len(keys) == 2


def test_keys_of_a_policy_do_not_depend_on_others() -> None:
    from accelgen.simulator.experiment import _imports, modules_read

    source = b"import os\nfrom accelgen.a.b import c\nif True:\n    from accelgen.d import (\n        e\n    )\n"
    assert _imports(source) == ["accelgen.a.b", "accelgen.d"]
    read = {path.name for path in modules_read("sarathi")}
    assert {"sarathi.py", "shared.py", "core.py", "run.py", "worker.py", "messages.py"} <= read
    assert not {"vllm.py", "accelgen.py", "slack.py"} & read


def test_results_are_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    result = run_setting(setting())
    assert store.load(result.key) is None
    store.save(result)
    assert store.load(result.key) == result
    [path] = (tmp_path / "runs").iterdir()
    path.write_text(path.read_text()[:-100])
    assert store.load(result.key) is None


def test_a_crew_runs_settings_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with Crew(1, store) as crew:
        first = crew.run(setting())
        again = crew.run(setting())
        other = crew.run(setting(policy="vllm"))  # the same process goes on
        assert first == again and other.setting.policy == "vllm"
        assert figures(first) == figures(run_setting(setting()))
        bad = setting(scenario={"parts": [{"name": "a", "source": "no such trace"}]})
        with pytest.raises(ValueError, match="no such trace"):
            crew.run(bad)
    with Crew(1, store) as crew:
        assert crew.run(setting()) == first and not crew._processes
    with pytest.raises(CrewError, match="interrupted"):
        crew.run(setting(seed=3))


def test_what_a_policy_prints_is_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_setting(setting())

    def chatty(setting: Setting, progress: object) -> Result:
        print("planning")
        return result

    monkeypatch.setattr(crew, "run_setting", chatty)
    monkeypatch.setattr("sys.stdin", [msgspec.json.encode(setting()).decode()])
    crew.main()
    assert msgspec.json.decode(capsys.readouterr().out, type=Result) == result


def test_capacity_is_where_attainment_ends() -> None:
    found = find_capacity(lambda rate: 1.0 if rate <= 3.3 else 0.5, 0.99, first=1.0, most=100.0)
    assert 3.2 < found.rate <= 3.3 < (found.above or 0) < 3.4
    assert [rate for rate, _ in found.tried[:3]] == [1.0, 2.0, 4.0]
    found = find_capacity(lambda rate: 1 - rate, 0.95, first=1.0, most=100.0)
    assert found.rate == pytest.approx(0.05, abs=1e-3)  # down from a first rate that is too high
    assert find_capacity(lambda rate: 1.0, 0.9, first=1.0, most=3.0).rate == 3.0
    found = find_capacity(lambda rate: 0.0, 0.9, first=1.0, most=3.0)
    assert (found.rate, found.above) == (0.0, 1 / 64)
