"""`accelgen chat` and `accelgen complete` against a scripted server: commands, errors, and a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from accelgen.proto.config import Config, default_classes, save_config
from accelgen.scripts import chat_client
from accelgen.scripts.chat import command as chat
from accelgen.scripts.chat_classes import Classes
from accelgen.scripts.chat_client import Answer, ServerError, find_classes, find_url, make_server
from accelgen.scripts.chat_loop import known_classes
from accelgen.scripts.chat_objective import NAMES, Objective, ObjectiveError, parse_objective
from accelgen.scripts.chat_session import Chat, obey
from accelgen.scripts.chat_stats import describe
from accelgen.scripts.complete import command as complete


def run(verb: Any, *args: str, said: str | bytes = "", **env: str) -> Result:
    clear = dict.fromkeys(("ACCELGEN_API_KEY", "OPENAI_API_KEY", "ACCELGEN_URL"), None)
    return CliRunner().invoke(verb, list(args), input=said, env={**clear, **env})


# --- without a server --------------------------------------------------------------------------------------------


def test_objectives() -> None:
    assert parse_objective("ttft=300 tpot=40") == Objective(None, 300, 40)
    assert parse_objective("batch,e2e_ms=60000ms") == Objective("batch", None, None, 60000)
    assert parse_objective("off") == Objective() and Objective().body() is None
    assert parse_objective("chat tpot=2.5").body() == {"slo_class": "chat", "slo": {"tpot_ms": 2.5}}
    assert str(parse_objective("chat ttft=300")) == "class chat, ttft <= 300 ms"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ttft=0", "ttft: 0 is not more than 0"),
        ("ttft=-1", "ttft"),
        ("tpot=nan", "tpot"),
        ("e2e=1e18", "at most 86400000"),
        ("e2e=soon", "e2e: 'soon' is not a number"),
        ("tbt=3", "tbt: not one of ttft, tpot, e2e"),
        ("a b", "two classes"),
        ("300", "300: an objective is of the form ttft=300"),
        ("300ms", "300ms: an objective is of the form"),
        ("ttft", "ttft: an objective is of the form"),
        ("ttft:300", "ttft:300: an objective is of the form"),
        ("tpot<40", "tpot<40: an objective is of the form"),
        ("  ", "write an objective"),
    ],
)
def test_objectives_that_cannot_be(text: str, names: str) -> None:
    with pytest.raises(ObjectiveError, match=re.escape(names)):
        parse_objective(text)


def test_commands() -> None:
    state = Chat().after("hi", "hello", Answer(sent_s=1.0, first_s=1.25, last_s=1.75, pieces=6))
    assert len(state.messages) == 2
    state, told = obey(state, "/slo ttft=300")
    assert told == "objective: ttft <= 300 ms, else that of the server's default class"
    state, told = obey(state, "/slo ttft=0")
    assert "ttft" in told and "valid: /slo ttft=300" in told and state.objective.ttft_ms == 300
    state, told = obey(state, "/system  be brief ")
    assert state.body("x")["messages"][0] == {"role": "system", "content": "be brief"}
    state, told = obey(state, "/stats")
    assert state.stats and "TTFT 250 ms · TPOT 100.0 ms · 6 tokens in 0.75 s · 8.0 tokens/s" in told
    assert obey(state, "/stats")[0].stats is False
    assert obey(state, "/stats maybe")[0] == state
    state, _ = obey(state, "/reset")
    assert state.messages == () and state.system == "be brief" and state.objective.ttft_ms == 300
    state, _ = obey(state, "/system off")
    assert len(state.body("x")["messages"]) == 1
    assert "/reset" in obey(state, "/help")[1]
    assert "/nonsense is no command" in obey(state, "/nonsense")[1]
    assert obey(state, "/exit")[0].ended


CLASSES = Classes(default_classes(), "standard")


def test_a_class_applies_to_what_is_not_stated() -> None:
    standard = "that of class standard (ttft <= 5000 ms, tpot <= 250 ms)"
    known = Chat(classes=CLASSES)
    assert obey(known, "/slo")[1] == f"objective: {standard}"
    assert obey(known, "/slo tpot=40")[1] == f"objective: tpot <= 40 ms, else {standard}"
    assert obey(known, "/slo batch")[1] == "objective: that of class batch (e2e <= 600000 ms)"
    unknown = Chat()
    assert unknown.describe_objective() == "that of the server's default class"
    learned = unknown.after("hi", "hello", Answer(verdict={"slo_class": "standard"}))
    assert learned.describe_objective() == "that of class standard"
    asked, _ = obey(unknown, "/slo chat")
    asked = asked.after("hi", "hello", Answer(verdict={"slo_class": "chat"}))
    assert asked.describe_objective() == "that of class chat"
    assert obey(asked, "/slo off")[1] == "objective: that of the server's default class"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("nope", "nope is no class of this server (batch, chat, standard)"),
        ("ttft=0.5", "ttft: 0.5 is outside of 1 to 3600000 ms (class standard)"),
        ("ttft:300", "ttft:300: an objective is of the form ttft=300"),
        ("tbt=3", "tbt: not one of ttft, tpot, e2e"),
    ],
)
def test_an_objective_that_cannot_be_is_refused_at_once(said: str, why: str) -> None:
    state, _ = obey(Chat(classes=CLASSES), "/slo chat")
    after, told = obey(state, f"/slo {said}")
    assert after == state
    assert told.startswith(why)
    assert "\nvalid: /slo ttft=300 tpot=40 e2e=9000" in told
    valid = told.partition("\nvalid: ")[2].splitlines()[0]
    assert all(f" {name}=" in valid for name in NAMES)
    assert told.endswith(
        "objective as before: that of class chat (ttft <= 1000 ms, tpot <= 100 ms)"
    )


def test_the_classes_of_a_server_of_ours(tmp_path: Path, monkeypatch: Any) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    save_config(Config(port=1234, default_class="chat"), run_dir / "config.json")
    monkeypatch.setattr(chat_client, "_live_runs", lambda: [tmp_path / "gone", run_dir])
    assert find_classes("http://127.0.0.1:1234").default == "chat"
    assert set(find_classes("http://localhost:1234").named) == {"batch", "chat", "standard"}
    assert find_classes("http://127.0.0.1:1235") == Classes()
    with pytest.raises(ServerError, match="--slo: nope is no class") as refused:
        known_classes("http://localhost:1234", Objective("nope"))
    assert refused.value.option == "--slo"


def test_one_token() -> None:
    one = Answer(0.0, 0.5, 0.5, 1, usage={"prompt_tokens": 1})
    assert "· 1 token in 0.50 s" in describe(one) and describe(one).endswith("prompt 1 token")


def test_an_exchange_without_answer_is_forgotten() -> None:
    assert Chat().after("hi", "", Answer()).messages == ()


def test_stats_name_the_verdict_safely() -> None:
    said = describe(
        Answer(
            verdict={
                "slo_class": "a\x1b[2Jb",
                "slo_met": {"ttft": True, "tpot": False, "e2e": None},
            }
        )
    )
    assert said == "no text came (0 tokens)\nserver: class ab · objectives: ttft met, tpot MISSED"


def test_urls() -> None:
    assert make_server("localhost:80/v1/", None).url == "http://localhost:80"
    assert make_server("https://host/base/v1", None).url == "https://host/base"
    for wrong in ("ftp://host", "http://", "http://host:port", "http://host:99999"):
        with pytest.raises(ServerError, match="--url"):
            make_server(wrong, None)
    with pytest.raises(ServerError, match="--api-key"):
        make_server("http://host", "key\nevil: header")


def test_default_url_without_a_running_server(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    assert find_url() == "http://127.0.0.1:8000"


# --- one shot ----------------------------------------------------------------------------------------------------


def test_quick(server: Any) -> None:
    server.script.pieces = ["Hel\x1b[3", "1mlo\x1b]0;", "title\x07", " there\ud83d"]
    result = run(
        chat, "--url", server.url, "-q", "hi", "--system-prompt", "be brief", "--slo", "chat tpot=40",
        "--max-tokens", "9", "--seed", "3", "--temperature", "0",
    )  # fmt: skip
    assert result.exit_code == 0
    assert result.stdout == "Hello there\ufffd\n"
    assert server.seen == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi"},
            ],
            "max_tokens": 9,
            "seed": 3,
            "temperature": 0.0,
            "accelgen": {"slo_class": "chat", "slo": {"tpot_ms": 40}},
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_piped_lines_are_a_conversation(server: Any) -> None:
    result = run(chat, "--url", server.url, said="one\\\nline\n/stats on\ntwo\n\n/exit\nnever\n")
    assert result.exit_code == 0
    assert result.stdout == "Hello there!\nHello there!\n"
    assert "TTFT" in result.stderr and "tpot MISSED" in result.stderr
    said = [message["content"] for message in server.seen[-1]["messages"]]
    assert said == ["one\nline", "Hello there!", "two"]


def test_a_refused_objective_is_taken_back(server: Any) -> None:
    """The server is not one of ours here: it alone knows its classes."""
    server.script.classes = ["chat"]
    result = run(chat, "--url", server.url, said="/slo chat\none\n/slo nope\ntwo\nthree\n/slo\n")
    assert result.exit_code == 0
    assert "400: 'nope' is not one of chat" in result.stderr
    assert result.stderr.count("objective as before: that of class chat") == 1
    sent = [one["accelgen"]["slo_class"] for one in server.seen]
    assert sent == ["chat", "nope", "chat"]
    for verb, args in ((chat, ["-q", "x"]), (complete, ["x"])):
        assert run(verb, "--url", server.url, "--slo", "nope", *args).exit_code == 2


def test_complete(server: Any) -> None:
    result = run(complete, "--url", server.url, "--stats", "--stop", "END", "a prompt")
    assert (result.exit_code, result.stdout) == (0, "Hello there!\n")
    assert "TTFT" in result.stderr
    assert server.seen[-1]["prompt"] == "a prompt" and server.seen[-1]["stop"] == ["END"]
    result = run(complete, "--url", server.url, "-", said="piped é".encode())
    assert server.seen[-1]["prompt"] == "piped é"


def test_prompts_that_cannot_be(server: Any) -> None:
    for verb in (chat, complete):
        for wrong in (
            ["--url", "ftp://host"],
            ["--slo", "ttft=0"],
            ["--api-key", "k\n"],
            ["--seed", "-1"],
        ):
            assert run(verb, "--url", server.url, *wrong, said="x").exit_code == 2
    assert "not UTF-8 at byte 1" in run(complete, "--url", server.url, "-", said=b"a\xff").output
    assert "empty" in run(complete, "--url", server.url, "-").output
    assert "empty" in run(chat, "--url", server.url, "-q", "").output
    assert server.seen == []


@pytest.mark.parametrize("verb", [chat, complete])
def test_the_help_shows_defaults(verb: Any) -> None:
    shown = " ".join(CliRunner().invoke(verb, ["--help"], terminal_width=200).output.split())
    assert "[default: (the one running here, else http://127.0.0.1:8000)]" in shown
    assert "[default: (those of the server's default class)]" in shown
    assert shown.count("[default: (the server's); ") == 3


def test_keys(server: Any) -> None:
    server.script.api_key = "right"
    assert run(chat, "--url", server.url, "-q", "x", ACCELGEN_API_KEY="right").exit_code == 0
    assert run(chat, "--url", server.url, "-q", "x", OPENAI_API_KEY="right").exit_code == 0
    refused = run(chat, "--url", server.url, "-q", "x", "--api-key", "wrong")
    assert refused.exit_code == 1
    assert "401: invalid API key (the server wants an API key" in refused.output


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            {"status": 400, "error": {"message": "too long\x1b[2J", "param": "prompt"}},
            "400: too long (prompt)",
        ),
        (
            {"status": 429, "error": {"message": "full"}, "headers": {"retry-after": "7"}},
            "429: full (try again in 7 s)",
        ),
        ({"error": {"message": "worker\nlost"}}, "the server failed: worker lost"),
        ({"done": False}, "closed the connection in the middle of the answer"),
    ],
)
def test_what_the_server_refuses(server: Any, script: dict[str, Any], told: str) -> None:
    for name, value in script.items():
        setattr(server.script, name, value)
    for verb, args in ((chat, ["-q", "x"]), (complete, ["x"])):
        result = run(verb, "--url", server.url, *args)
        assert result.exit_code == 1
        assert told in result.stderr and result.stderr.count("\n") == 1


def test_no_server() -> None:
    result = run(chat, "--url", "http://127.0.0.1:1", "-q", "x")
    assert result.exit_code == 1
    assert "cannot reach http://127.0.0.1:1" in result.stderr and result.stderr.count("\n") == 1


# --- a terminal --------------------------------------------------------------------------------------------------


class Terminal:
    """`accelgen chat` in a pseudo-terminal."""

    def __init__(self, url: str, state: Path) -> None:
        self.fd, child_fd = pty.openpty()
        termios.tcsetwinsize(self.fd, (30, 100))
        env = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(state)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "accelgen.scripts.cli", "chat", "--url", url],
            stdin=child_fd, stdout=child_fd, stderr=child_fd, env=env, start_new_session=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(child_fd)
        self.shown = ""

    def wait_for(self, text: str) -> str:
        """Reads until `text` is shown; what came up to it, which is then forgotten."""
        until_s = time.monotonic() + 20
        while text not in self.shown:
            assert time.monotonic() < until_s, f"{text!r} never came: {self.shown!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                came = os.read(self.fd, 65536).decode(errors="replace")
                self.shown += came
                if "\x1b[6n" in came:  # where is the cursor?
                    self.type("\x1b[3;1R")
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_in_a_terminal(server: Any, tmp_path: Path) -> None:
    server.script.pieces = ["An\x1b]0;evil\x07", "swer ", "one"]
    terminal = Terminal(server.url, tmp_path)
    try:
        terminal.wait_for("Ctrl-D ends")
        terminal.wait_for("/help")  # the line below the prompt: it is ready
        terminal.type("first\\\rsecond\x1b\rthird\r")
        streamed = terminal.wait_for("Answer one")
        assert "evil" not in streamed and "\x1b]0;" not in streamed
        assert server.seen[-1]["messages"][-1]["content"] == "first\nsecond\nthird"
        terminal.type("/slo ttft=300 tpot=40\r")
        terminal.wait_for("objective: ttft <= 300 ms, tpot <= 40 ms")
        terminal.type("\x1b[200~pasted\nlines\x1b[201~\r")
        terminal.wait_for("Answer one")
        assert server.seen[-1]["messages"][-1]["content"] == "pasted\nlines"
        assert server.seen[-1]["accelgen"] == {"slo": {"ttft_ms": 300, "tpot_ms": 40}}

        server.script.hang = True
        terminal.type("long one\r")
        terminal.wait_for("Answer one")
        terminal.type("\x03")
        terminal.wait_for("[stopped]")
        assert server.aborted.wait(10)
        server.script.hang = False
        terminal.wait_for("/help")
        terminal.type("go on\r")
        terminal.wait_for("Answer one")
        assert (
            len(server.seen[-1]["messages"]) == 7
        )  # the stopped answer belongs to the conversation
        terminal.wait_for("/help")
        terminal.type("\x04")
        assert terminal.process.wait(10) == 0
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
            terminal.process.wait()
        os.close(terminal.fd)
    history = tmp_path / "accelgen" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+pasted" in history.read_text()
