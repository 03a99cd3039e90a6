"""`accelgen bench serve` against a scripted server: what it sends, counts, reports, and makes of failures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from accelgen.scripts.bench import command as bench
from accelgen.scripts.bench_http import HttpClient, HttpError
from accelgen.scripts.bench_load import Tally
from accelgen.scripts.bench_metrics import Limits
from accelgen.scripts.bench_params import parse_goodput, parse_objectives
from accelgen.scripts.chat_objective import Objective


def run(server: Any, *args: str) -> Result:
    options = ["serve", "--url", server.url, "--random-input-len", "20", "--random-output-len", "5"]
    return CliRunner().invoke(bench, [*options, *args])


def row(table: str, label: str) -> str:
    found = re.search(rf"^{re.escape(label)}: +(\S+)$", table, re.MULTILINE)
    assert found, f"{label} is not in\n{table}"
    return found[1]


def test_the_table(server: Any) -> None:
    server.script.pause_s = (
        0.01  # chunks that come at once have no gaps: on a busy machine nothing would be judged
    )
    result = run(
        server, "--num-prompts", "12", "--num-warmups", "2", "--max-concurrency", "4", "--request-rate", "500",
        "--slo", "ttft=5000,tpot=2000", "--goodput", "ttft:0.000001", "tpot:5000", "--metric-percentiles", "50,99",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = result.stdout
    assert table.startswith("============ Serving Benchmark Result ============\n")
    assert table.endswith("\n" + "=" * 50 + "\n")
    assert row(table, "Successful requests") == "12" and row(table, "Failed requests") == "0"
    assert row(table, "Maximum request concurrency") == "4"
    assert row(table, "Request rate configured (RPS)") == "500.00"
    assert (
        row(table, "Total input tokens") == "240" and row(table, "Total generated tokens") == "60"
    )
    assert row(table, "Requests sent") == "12"
    for rule in ("every gap", "cumulative deadline", "request mean"):
        assert row(table, f"All objectives, {rule} (%)") == "100.00"
    assert row(table, "Request goodput (req/s)") == "0.00"  # judged by --goodput
    assert row(table, "By the server's own verdict (%)") == "0.00"
    assert float(row(table, "P50 ITL (ms)")) <= float(row(table, "P99 ITL (ms)"))
    order = [table.index(name) for name in ("TTFT (ms)", "TPOT (ms)", "ITL (ms)", "E2EL (ms)")]
    assert order == sorted(order)
    assert len(server.seen) == 14
    body = server.seen[-1]
    assert len(body["prompt"]) == 20 and body["max_tokens"] == 5 and body["ignore_eos"] is True
    assert body["accelgen"] == {"slo": {"ttft_ms": 5000, "tpot_ms": 2000}}
    assert "accelgen" not in server.seen[0]  # warm-ups state nothing
    measured = {tuple(one["prompt"]) for one in server.seen[2:]}
    assert len(measured) == 12 and not measured & {tuple(one["prompt"]) for one in server.seen[:2]}


def test_the_same_seed_sends_the_same(server: Any) -> None:
    for _ in range(2):
        run(
            server,
            "--num-prompts",
            "6",
            "--random-range-ratio",
            "0.5",
            "--seed",
            "3",
            "--max-concurrency",
            "1",
        )
    sent = [(one["prompt"], one["max_tokens"]) for one in server.seen]
    assert sent[:6] == sent[6:]
    assert len({len(prompt) for prompt, _ in sent}) > 1


def test_saved_results(server: Any, tmp_path: Path) -> None:
    server.script.tokens_per_chunk = 2
    result = run(
        server, "--mix", "short=0.5:10:4,long=0.5:50:8", "--num-prompts", "10", "--slo", "short:ttft=9000 tpot=5000",
        "--slo-class", "long:batch", "--save-detailed", "--result-dir", str(tmp_path / "new"),
        "--result-filename", "r.json", "--metadata", "processor=this one", "--label", "try",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "new" / "r.json").read_text())
    assert (saved["completed"], saved["failed"], saved["request_rate"]) == (10, 0, "inf")
    assert (saved["processor"], saved["label"], saved["model_id"]) == ("this one", "try", "tiny")
    assert saved["load_generator"]["tokens_per_chunk"] == 2
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert {f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p99")} <= set(saved)
    assert set(saved["slo_attainment_by_label"]) == {"short", "long"}
    assert saved["slo_attainment"]["sent"] == 10
    by_label = dict(zip(saved["labels"], saved["output_lens"], strict=True))
    assert by_label == {"short": 4, "long": 8}
    for times, length in zip(saved["token_times"], saved["output_lens"], strict=True):
        assert len(times) == length and times == sorted(times)
    classes = {len(one["prompt"]): one["accelgen"] for one in server.seen}
    assert classes == {10: {"slo": {"ttft_ms": 9000, "tpot_ms": 5000}}, 50: {"slo_class": "batch"}}


def test_a_trace_is_replayed(server: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrived_at,prompt_tokens,output_tokens\n5.0,9,2\n5.2,5000,2\n5.4,11,3\n")
    result = run(
        server, "--trace", str(trace), "--trace-scale", "2", "--save-result", "--result-dir", str(tmp_path)
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    saved = json.loads(next(tmp_path.glob("accelgen-trace-tiny-*.json")).read_text())
    assert saved["arrivals"] == "trace" and "token_times" not in saved
    assert "left out for being longer than 4096 tokens: 1 row\n" in result.stderr
    assert [(len(one["prompt"]), one["max_tokens"]) for one in server.seen] == [(9, 2), (11, 3)]
    assert 0.2 <= float(row(result.stdout, "Benchmark duration (s)")) < 5


def test_failures_are_counted_with_their_reasons(server: Any) -> None:
    server.script.status = 429
    server.script.error = {"message": "the queue is full\x1b[2J"}
    result = run(server, "--num-prompts", "5", "--slo", "ttft=9999")
    assert result.exit_code == 1
    table = result.stdout
    assert row(table, "Failed requests") == "5"
    first = "5 of 5 requests FAILED\n  5 x HTTP 429: the queue is full\n"
    assert table.split("\n", 1)[1].startswith(first)
    for label in ("Mean TTFT (ms)", "P99 E2EL (ms)", "Request throughput (req/s)", "Total input tokens",
                  "Processor time per chunk (ms)", "Output token throughput (tok/s)"):  # fmt: skip
        assert row(table, label) == "-"
    assert row(table, "All objectives (%)") == row(table, "TTFT (%)") == "0.00"
    assert row(table, "Request goodput (req/s)") == "0.00"
    warm = run(server, "--num-prompts", "5", "--num-warmups", "1")
    assert warm.exit_code == 1 and "a warm-up request failed: HTTP 429" in warm.output


def test_some_failures(server: Any) -> None:
    server.script.refused = 2
    result = run(server, "--num-prompts", "6", "--max-concurrency", "1")
    assert result.exit_code == 0
    assert "\n2 of 6 requests FAILED\n  2 x HTTP 503: starting\n" in result.stdout
    assert float(row(result.stdout, "Mean TTFT (ms)")) > 0


def test_results_without_data_are_null(server: Any, tmp_path: Path) -> None:
    server.script.status, server.script.error = 503, {"message": "the server is starting"}
    run(
        server,
        "--num-prompts",
        "2",
        "--save-result",
        "--result-dir",
        str(tmp_path),
        "--result-filename",
        "r",
    )
    saved = json.loads((tmp_path / "r").read_text())
    assert saved["mean_ttft_ms"] is None and saved["p99_tpot_ms"] is None
    assert saved["load_generator"]["tokens_per_chunk"] is None
    assert saved["failed"] == 2 and saved["failures"] == {"HTTP 503: the server is starting": 2}


@pytest.mark.parametrize(
    ("args", "shown", "absent"),
    [
        (["--slo", "ttft=5000"], ["All objectives (%)", "TTFT (%)"], ["TPOT, ", "E2EL (%)", "Goodput,"]),
        (["--slo", "e2e=5000"], ["All objectives (%)", "E2EL (%)"], ["TPOT, ", "TTFT (%)"]),
        (["--slo-class", "batch"], ["By the server's own verdict (%)"], ["All objectives", "(%):  100"]),
        (["--goodput", "tpot:5000"], ["All objectives, every gap (%)", "TPOT, every gap (%)",
                                      "Goodput, every gap (req/s)"], ["TTFT (%)", "E2EL (%)"]),
        (["--slo", "ttft=5000", "--goodput", "tpot:5000"], ["Goodput, every gap (req/s)", "TTFT (%)"], ["TPOT, "]),
    ],
)  # fmt: skip
def test_only_stated_objectives_have_rows(
    server: Any, args: list[str], shown: list[str], absent: list[str]
) -> None:
    table = run(server, "--num-prompts", "2", *args).stdout
    for label in shown:
        row(table, label)
    assert not [text for text in absent if text in table]


def test_a_server_that_judges_nothing_has_no_verdict(server: Any) -> None:
    server.script.verdict = {"slo_class": "free", "slo_met": {"ttft": None, "tpot": None}}
    assert "SLO Attainment" not in run(server, "--num-prompts", "2").stdout


@pytest.mark.parametrize("counted", [True, False])
def test_answers_in_one_chunk_have_no_tpot(server: Any, counted: bool) -> None:
    server.script.tokens_per_chunk, server.script.counted = 5, counted
    table = run(server, "--num-prompts", "3", "--slo", "ttft=9000,tpot=0.001").stdout
    assert row(table, "Mean TPOT (ms)") == row(table, "Mean ITL (ms)") == "-"
    assert row(table, "Not measurable: tokens came at once") == "3"
    assert row(table, "TPOT not judged: tokens came at once") == "3"
    assert row(table, "Request goodput (req/s)") == "-"
    assert row(table, "TTFT (%)") == "100.00"
    for rule in ("every gap", "cumulative deadline", "request mean"):
        assert row(table, f"TPOT, {rule} (%)") == row(table, f"All objectives, {rule} (%)") == "-"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"done": False}, "the stream ended without [DONE]"),
        ({"error": {"message": "worker lost"}}, "failed in mid-stream: worker lost"),
        ({"hang": True}, "no end within 0.3 s"),
    ],
)
def test_answers_that_break_off(server: Any, script: dict[str, Any], reason: str) -> None:
    for name, value in script.items():
        setattr(server.script, name, value)
    result = run(server, "--num-prompts", "2", "--request-timeout", "0.3")
    assert f"2 x {reason}" in result.stdout
    if server.script.hang:
        assert server.aborted.wait(10)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--url", "ftp://host"], "--url: ftp://host is not like"),
        (["--trace", "/nowhere", "--dataset-name", "random"], "belongs to --dataset-name trace"),
        (["--slo", "ttft=0"], "ttft: 0 is not more than 0"),
        (["--goodput", "tbt:3"], "tbt: not one of"),
        (["--goodput", "ttft:3", "oops"], "'oops' is not of the form"),
        (["oops"], "unexpected argument: oops"),
        (["--request-rate", "0"], "not a number above 0"),
        (["--request-rate", "nan"], "not a number above 0"),
        (["--trace", "/nowhere"], "there is no file /nowhere"),
        (["--dataset-name", "trace"], "name the file"),
        (["--metric-percentiles", "101"], "percentiles 0..100"),
        (["--percentile-metrics", "ttft,x"], "'x' is not one of"),
        (["--extra-body", "[]"], "not a JSON object"),
        (["--metadata", "x"], "not of the form key=value"),
        (["--header", "x=a\nb"], "not of the form key=value"),
        (["--mix", "a=1"], "not label=share"),
        (["--url", "http://127.0.0.1:1"], "cannot reach http://127.0.0.1:1"),
    ],
)
def test_options_that_cannot_be(server: Any, args: list[str], told: str) -> None:
    result = run(server, "--num-prompts", "1", *args)
    assert result.exit_code == (1 if "cannot reach" in told else 2)
    assert told in result.output
    assert server.seen == []


def test_the_help_shows_defaults() -> None:
    shown = " ".join(
        CliRunner().invoke(bench, ["serve", "--help"], terminal_width=200).output.split()
    )
    for default in (
        "(1000; of a trace or scenario: all)",
        "600.0;",
        "(the server's first)",
        "1.0;",
        "0.0;",
        "inf",
    ):
        assert f"[default: {default}" in shown or f"[default: ({default}" in shown, default


def test_interrupted(server: Any) -> None:
    server.script.hang = True
    args = ["bench", "serve", "--url", server.url, "--request-rate", "0.01", "--num-prompts", "3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "accelgen.scripts.cli", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    until_s = time.monotonic() + 20
    while not server.seen and time.monotonic() < until_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    table, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert row(table, "Not sent (interrupted)") == "2"
    assert "1 x interrupted" in table
    assert server.aborted.wait(10)


def test_objectives_of_a_mix() -> None:
    labels = ["short", "long"]
    assert parse_objectives(["ttft=1", "long:e2e=9"], ["short:chat"], labels) == {
        "short": Objective("chat", 1),
        "long": Objective(None, None, None, 9),
    }
    assert parse_goodput(["ttft:500 tpot:50", "e2el:3000"]) == Limits(0.5, 0.05, 3.0)


def event(text: str, tokens: int | None) -> bytes:
    usage = None if tokens is None else {"completion_tokens": tokens}
    return b"data: " + json.dumps({"choices": [{"text": text}], "usage": usage}).encode() + b"\n\n"


def test_tokens_are_counted_as_the_server_says() -> None:
    tally = Tally(started_s=10.0)
    tally.take(200, event("a", 1) + event("", 1), 11.0)  # the second has no token
    tally.take(200, event("bc", 4), 12.0)
    tally.take(200, event("", 5) + b"data: [DONE]\n\n", 13.0)
    tally.settle(200)
    assert (tally.chunk_s, tally.chunk_tokens, tally.error) == ([1.0, 2.0, 3.0], [1, 3, 1], "")


def test_tokens_that_no_chunk_counts_come_last() -> None:
    tally = Tally(started_s=0.0)
    tally.take(200, event("a", None), 1.0)
    tally.take(200, event("b", None), 2.0)
    tally.take(
        200, b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\ndata: [DONE]\n\n', 3.0
    )
    tally.settle(200)
    assert (tally.chunk_s, tally.chunk_tokens) == ([1.0, 2.0], [1, 4])


def test_an_answer_without_tokens_is_no_success() -> None:
    tally = Tally(started_s=0.0)
    tally.take(200, b"data: [DONE]\n\n", 1.0)
    tally.settle(200)
    assert tally.error == "the answer has no tokens"


# --- the HTTP client ---------------------------------------------------------------------------------------------


async def _posts(answers: list[bytes], count: int) -> tuple[list[tuple[int, bytes] | str], int]:
    """Posts `count` times to a server that gives `answers` in turn, byte by byte: what came, connections made."""
    connections = 0
    pending = iter(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readline():
            length = 0
            while (line := await reader.readline()) not in (b"\r\n", b""):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            await reader.readexactly(length)
            answer = next(pending)
            for byte in answer:
                writer.write(bytes([byte]))
                await writer.drain()
            if b"keep-alive" not in answer:
                writer.close()
                return

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{port}", {})
    came: list[tuple[int, bytes] | str] = []
    for _ in range(count):
        pieces: list[bytes] = []

        def on_body(status: int, piece: bytes, at_s: float, pieces: list[bytes] = pieces) -> None:
            pieces.append(piece)

        try:
            response = await client.post("/x", b"{}", on_body)
            came.append((response.status, b"".join(pieces)))
        except HttpError as error:
            came.append(str(error))
    client.close()
    listener.close()
    return came, connections


def test_http() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked += b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    sized = b"HTTP/1.1 404 No\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
    came, connections = asyncio.run(_posts([chunked, chunked, sized, cut, b"nonsense\r\n\r\n"], 5))
    assert came[:3] == [(200, b"abcd"), (200, b"abcd"), (404, b"no")]
    assert "closed the connection before" in str(came[3])
    assert "cannot read the answer" in str(came[4])
    assert connections == 3


def test_http_without_a_server() -> None:
    async def post() -> None:
        await HttpClient("http://127.0.0.1:1", {}).post("/", b"", lambda *_: None)

    with pytest.raises(HttpError, match="cannot connect"):
        asyncio.run(post())
