"""`accelgen trace` over dumps made by hand: what it shows of each kind of life a request can have."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from accelgen.proto.messages import (
    Abort,
    Activate,
    Admitted,
    Batch,
    End,
    Finished,
    Fork,
    KvReport,
    Lookup,
    Objective,
    Plan,
    Prompt,
    Reason,
    Resync,
    StepResult,
    Submit,
    Tokens,
)
from accelgen.scripts.trace import command

sys.path.insert(0, str(Path(__file__).parent))
from recorded_server import Process

FIRST, SECOND = 7_000_000_000_000_000_001, 7_000_000_000_000_000_002
PROMPT = 20


class Server:
    """Five processes, and the round of an iteration."""

    def __init__(self) -> None:
        self.frontend, self.scheduler = Process("frontend-0", 11), Process("scheduler-0", 12)
        self.kv, self.worker = Process("kvmanager-0", 13), Process("worker-0", 14)
        self.supervisor = Process("supervisor-0", 15)

    def call(self, ms: float = 0.0, ids: tuple[int, ...] = (FIRST,), **values: Any) -> None:
        self.frontend.fact(
            ms + 1, "call opened", request="theirs", answer="cmpl-ours", ids=list(ids),
            received_s=1000.0 + ms / 1e3, prompts=[PROMPT], n=len(ids), max_tokens=[64],
            slo_class="chat", stream=True, **values,
        )  # fmt: skip

    def submit(
        self, ms: float, term: int = 1, generated: int = 0, siblings: tuple[int, ...] = ()
    ) -> None:
        prompt = Prompt(FIRST, [5] * (PROMPT + generated), generated=generated)
        submit = Submit(prompt, 64, [], Objective(), "chat", 0.0, list(siblings))
        self.frontend.says(ms, self.scheduler, submit, term)
        self.scheduler.says(ms + 0.2, self.kv, Lookup([prompt], generated > 0), term)
        self.hit(ms + 0.4, 16 + generated, term)
        self.scheduler.says(ms + 0.6, self.frontend, Admitted(FIRST, 0, 0.025, 16), term)

    def hit(self, ms: float, tokens: int, term: int = 1) -> None:
        self.kv.says(ms, self.scheduler, KvReport(-1, 9, 0, 0, [], [FIRST], [tokens], []), term)

    def step(
        self, ms: float, number: int, start: int, count: int, tokens: int = 1, term: int = 1, **special: Any
    ) -> None:  # fmt: skip
        """An iteration with another request beside ours; `dropped`, `failed`, `preempt`, `swap_out`, `swap_in`,
        `unswapped`, `forks`, `undelivered`."""
        ids, starts, counts = [1, special.get("id", FIRST)], [50, start], [1, count]
        plan = Plan(
            number, ids, starts, counts, [], [], [], special.get("forks", []), [],
            special.get("preempt", []), [], 0.01, 1.0, [],
            special.get("swap_out", []), special.get("swap_in", []),
        )  # fmt: skip
        self.scheduler.says(ms, self.kv, plan, term)
        dropped = [FIRST] if special.get("dropped") else []
        report = KvReport(
            number, 9, 0, 0, dropped, [], [], [], unswapped=special.get("unswapped", [])
        )
        self.kv.says(ms + 0.2, self.scheduler, report, term)
        if dropped:
            return
        batch = Batch(number, [], ids, starts, counts, [0, 0], [0, 0], [], [], [], [], 0.01, 1.0)
        self.kv.says(ms + 0.2, self.worker, batch, term)
        failed = [FIRST] if special.get("failed") else []
        got = [0, 0] if failed else [1, tokens]
        result = StepResult(
            number, ids, got, [3] * sum(got), failed, ["out of\x1b luck"] * len(failed), [], 0.0, 0.0098,
        )  # fmt: skip
        self.worker.says(ms + 10, self.scheduler, result, term)
        if tokens and not failed and not special.get("undelivered"):
            self.scheduler.says(
                ms + 10.2, self.frontend, Tokens(number, ids, got, [3] * sum(got)), term
            )

    def end(self, ms: float, reason: Reason = Reason.LENGTH, term: int = 1, **more: Any) -> None:
        end = End(FIRST, reason, queue_s=0.002, **more)
        self.scheduler.says(ms, self.frontend, Finished([end]), term)

    def dump(self, folder: Path, without: str = "") -> None:
        for one in (self.frontend, self.scheduler, self.kv, self.worker, self.supervisor):
            if not without or not one.name.startswith(without):
                one.dump(folder)


@pytest.fixture
def server() -> Server:
    return Server()


def trace(folder: Path, name: str = "cmpl-ours", *options: str) -> Result:
    return CliRunner().invoke(command, [name, "--folder", str(folder), *options])


def lines(result: Result) -> list[str]:
    """Without numbers of milliseconds, columns separated by one blank."""
    assert result.exit_code == 0, result.output
    return [re.sub(r"\s+", " ", line).strip() for line in result.output.splitlines() if line]


def whats(result: Result) -> list[str]:
    """What happened, line by line."""
    found = (re.match(r" *[\d,.]+  (.{21})", f"{line:<40}") for line in result.output.splitlines())
    return [match[1].strip() for match in found if match]


def simple(server: Server, tokens: int = 10) -> None:
    server.call()
    server.submit(1.5)
    server.step(3, 40, 16, 4)
    for i in range(1, tokens):
        server.step(3 + 11 * i, 40 + i, PROMPT + i - 1, 1)
    server.end(3 + 11 * tokens)


def test_a_simple_life(server: Server, tmp_path: Path) -> None:
    simple(server)
    server.dump(tmp_path)
    said = lines(trace(tmp_path))
    assert said[0] == "cmpl-ours x-request-id theirs"
    assert said[1].endswith("frontend-0: 20 prompt tokens, at most 64 new, class chat, streamed")
    assert said[3:] == [
        "0.0 received",
        "1.5 submitted epoch 1",
        "1.7 looked up on replica 0",
        "1.9 cached 16 of 20 tokens",
        "2.1 admitted replica 0, first token predicted after 25.0 ms",
        "3.3 step 40 prompt 16..20 of 20, batch of 2 with 5 tokens, ran 9.8 ms",
        "13.3 first token",
        "24.3 steps 41..49 9 tokens, one every 11.0 ms (longest 11.0), batches of 2",
        "113.0 ended length, 10 tokens, queued 2.0 ms",
    ]


@pytest.mark.parametrize("name", ["theirs", str(FIRST)])
def test_other_names_of_the_same(server: Server, tmp_path: Path, name: str) -> None:
    simple(server)
    server.dump(tmp_path)
    assert trace(tmp_path, name).output == trace(tmp_path).output


def test_every_decode_by_itself(server: Server, tmp_path: Path) -> None:
    simple(server, tokens=5)
    server.dump(tmp_path)
    said = whats(trace(tmp_path, "theirs", "--full"))
    assert said[5:] == [
        "step 40",
        "first token",
        "step 41",
        "step 42",
        "step 43",
        "step 44",
        "ended",
    ]


@pytest.mark.parametrize("without", ["scheduler", "kvmanager", "worker"])
def test_what_one_has_lost_another_knows(server: Server, tmp_path: Path, without: str) -> None:
    """Of a process that was killed nothing is left; the others have heard most of it."""
    simple(server)
    server.dump(tmp_path, without)
    said = whats(trace(tmp_path))
    assert said[:3] == ["received", "submitted", "looked up"] and said[-1] == "ended"
    assert "steps 41..49" in said


def test_without_the_frontend_a_number_is_known(server: Server, tmp_path: Path) -> None:
    simple(server)
    server.dump(tmp_path, "frontend")
    assert trace(tmp_path).exit_code == 1
    said = lines(trace(tmp_path, str(FIRST)))
    assert said[0] == f"request {FIRST}: its call is not in the recorder any more"
    assert said[2] == "0.0 submitted epoch 1"  # the scheduler has heard of it


def test_preempted_and_resumed(server: Server, tmp_path: Path) -> None:
    server.call()
    server.submit(1.5)
    server.step(3, 40, 16, 4)
    server.step(14, 41, 20, 1)
    server.step(25, 42, 51, 1, id=2, preempt=[FIRST])
    server.hit(26, 16)
    server.step(36, 43, 16, 6)
    server.step(47, 44, 22, 1, dropped=True)
    server.step(58, 45, 22, 1)
    server.end(70, preemptions=1)
    server.dump(tmp_path)
    said = lines(trace(tmp_path))
    assert "25.0 preempted before step 42" in said
    assert "26.0 cached 16 of 22 tokens" in said
    assert any(
        "step 43, resumed 16..22: prompt of 20 and what followed, batch" in line for line in said
    )
    assert any(
        line.startswith("47.0 step 44 token 22") and "did not fit, dropped" in line for line in said
    )
    assert said[-1] == "70.0 ended length, 4 tokens, queued 2.0 ms, preempted 1 time"


def test_swapped_out_and_in(server: Server, tmp_path: Path) -> None:
    server.call()
    server.submit(1.5)
    server.step(3, 40, 16, 4)
    server.step(14, 41, 51, 1, id=2, swap_out=[FIRST])
    server.step(25, 42, 52, 1, id=2, swap_in=[FIRST])
    server.step(36, 43, 20, 1)
    server.step(47, 44, 53, 1, id=2, swap_out=[FIRST], unswapped=[FIRST])
    server.dump(tmp_path)
    said = lines(trace(tmp_path))
    assert "14.0 swapped out its KV is copied to the host beside step 41" in said
    assert "25.0 swapped in its KV is copied from the host beside step 42" in said
    assert any("step 43, resumed" in line for line in said)
    assert "47.2 not swapped out no room on the host: its KV was dropped" in said


def test_across_a_death_of_the_scheduler(server: Server, tmp_path: Path) -> None:
    """Both epochs; what was computed and never arrived is not counted."""
    server.call()
    server.submit(1.5)
    server.step(3, 40, 16, 4)
    server.step(14, 41, 20, 1)
    server.step(25, 42, 21, 1, undelivered=True)
    server.supervisor.fact(30, "exit", child="scheduler-0", pid=99, status=-9)
    server.supervisor.fact(35, "start", child="scheduler-0", pid=100, epoch=2)
    dead, server.scheduler = server.scheduler, Process("scheduler-0", 22)
    server.scheduler.says(500, server.kv, Activate(), 2)
    server.kv.says(500.5, server.worker, Resync("routine"), 2)
    server.scheduler.says(501, server.frontend, Activate(9), 2)
    server.submit(510, 2, generated=2)
    for i in range(5):
        server.step(520 + 11 * i, 43 + i, 22 + i, 1, term=2)
    server.end(600, term=2)
    server.dump(tmp_path)
    assert not list(tmp_path.glob(f"*{dead.incarnation}*"))
    said = lines(trace(tmp_path))
    at = said.index("30.0 scheduler-0 died pid 99, SIGKILL")
    assert said[at - 2] == "24.3 pause no token for 506.0 ms"
    assert said[at - 1].startswith("25.3 step 42 token 21") and "not delivered" in said[at - 1]
    assert said[at + 1 : at + 6] == [
        "35.0 scheduler-0 started pid 100",
        "500.0 epoch 2 a scheduler takes over",
        "510.0 submitted again epoch 2, with 2 tokens generated",
        "510.2 looked up on replica 0, taken over",
        "510.4 cached 18 of 22 tokens",
    ]
    assert said[-2].endswith(
        "steps 43..47 5 tokens, one every 11.0 ms (longest 11.0), batches of 2"
    )
    assert said[-1] == "600.0 ended length, 7 tokens, queued 2.0 ms"


def test_something_lost(server: Server, tmp_path: Path) -> None:
    server.call()
    server.submit(1.5)
    server.step(3, 40, 16, 4)
    server.worker.says(20, server.scheduler, Resync("a gap"))
    server.scheduler.says(21, server.frontend, Activate(9), 2)
    server.submit(22, 2, generated=1)
    server.end(30, term=2)
    server.dump(tmp_path)
    said = lines(trace(tmp_path))
    assert "20.1 resync wanted by worker-0: a gap" in said
    assert said.index("20.1 resync wanted by worker-0: a gap") + 1 == said.index(
        "21.0 epoch 2 a scheduler takes over"
    )


def test_choices_of_a_call(server: Server, tmp_path: Path) -> None:
    server.call(ids=(FIRST, SECOND))
    server.submit(1.5, siblings=(SECOND,))
    server.step(3, 40, 16, 4)
    server.step(14, 41, 20, 1, id=SECOND, forks=[Fork(SECOND, FIRST, 19)])
    server.end(30)
    server.dump(tmp_path)
    said = lines(trace(tmp_path))
    assert ", 2 choices, " in said[1]
    first, second = (
        said.index(f"choice 0, request {FIRST}"),
        said.index(f"choice 1, request {SECOND}"),
    )
    assert "13.3 first token" in said[first:second]
    assert f"1.5 submitted epoch 1, as a sibling of {FIRST}" in said[second:]
    assert f"14.0 forked from {FIRST}, with 19 tokens" in said[second:]
    [one] = json.loads(trace(tmp_path, str(SECOND), "--json").output)
    assert [choice["request"] for choice in one["choices"]] == [str(SECOND)]


def test_ends_of_all_kinds(server: Server, tmp_path: Path) -> None:
    server.call()
    server.submit(1.5)
    server.step(3, 40, 16, 4, failed=True)
    server.end(15, Reason.FAILED, detail="out of\x1b luck")
    server.dump(tmp_path)
    said = lines(trace(tmp_path))
    assert said[-2].endswith("failed: out of\\x1b luck")  # nothing speaks to the terminal
    assert said[-1] == "15.0 ended failed: out of\\x1b luck, 0 tokens, queued 2.0 ms"


def test_a_client_that_leaves(server: Server, tmp_path: Path) -> None:
    server.call()
    server.submit(1.5)
    server.step(3, 40, 16, 4)
    server.frontend.fact(20, "client gone", answer="cmpl-ours")
    server.frontend.fact(20, "client gone", answer="cmpl-another")
    server.frontend.says(20.1, server.scheduler, Abort([FIRST]))
    server.end(20.5, Reason.ABORTED)
    server.dump(tmp_path)
    assert whats(trace(tmp_path))[-3:] == ["client gone", "aborted", "ended"]


def test_refused_at_the_door(server: Server, tmp_path: Path) -> None:
    server.frontend.fact(
        5, "call refused", request="theirs", answer="cmpl-ours", received_s=1000.0, prompts=[3],
        n=1, max_tokens=[5], slo_class="chat", stream=False, status=429, cause="saturated",
    )  # fmt: skip
    server.dump(tmp_path)
    assert lines(trace(tmp_path))[-1] == "5.0 refused by the frontend: 429, saturated"
    [one] = json.loads(trace(tmp_path, "theirs", "--json").output)
    assert one["refused"] and one["status"] == 429 and one["choices"] == []


def test_as_json(server: Server, tmp_path: Path) -> None:
    simple(server)
    server.dump(tmp_path)
    [one] = json.loads(trace(tmp_path, "theirs", "--json").output)
    assert (one["id"], one["request_id"], one["frontend"]) == ("cmpl-ours", "theirs", "frontend-0")
    [choice] = one["choices"]
    assert (choice["request"], choice["prompt_tokens"]) == (str(FIRST), PROMPT)
    steps = [event for event in choice["history"] if event["what"] == "step"]
    assert [step["step"] for step in steps] == list(range(40, 50))
    first = steps[0]
    assert (first["start"], first["count"], first["batch"], first["batch_tokens"]) == (16, 4, 2, 5)
    assert (first["planned_ms"], first["began_ms"], first["delivered_ms"]) == (3.0, 3.3, 13.3)
    assert choice["history"][-1]["reason"] == "length"


def test_an_unknown_request(server: Server, tmp_path: Path) -> None:
    simple(server)
    server.dump(tmp_path)
    for name in ("nobody", "12345", "\x1b[31m"):
        done = trace(tmp_path, name)
        assert done.exit_code == 1 and done.output.count("\n") == 1
        assert "no process remembers" in done.output and "frontend-0" in done.output
        assert "\x1b" not in done.output


def test_damaged_dumps(server: Server, tmp_path: Path) -> None:
    simple(server)
    server.dump(tmp_path)
    (tmp_path / "alien.msgpack").write_text("hello")
    [path] = tmp_path.glob("worker-0-*")
    path.write_bytes(path.read_bytes()[:-30])
    done = trace(tmp_path)
    assert done.exit_code == 0
    assert "alien.msgpack: not a dump" in done.stderr and "cut off after" in done.stderr
    assert whats(done)[-1] == "ended"


def test_no_dumps(tmp_path: Path) -> None:
    done = trace(tmp_path)
    assert done.exit_code == 1
    assert f"there is no dump of a flight recorder in {tmp_path}" in done.output
