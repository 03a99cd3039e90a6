"""A real frontend process between a real HTTP client and a scripted scheduler on a real socket."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs
from openai import OpenAI
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from accelgen.proto.child import endpoint_of
from accelgen.proto.config import Config, save_config
from accelgen.proto.messages import (
    Abort,
    Activate,
    Admitted,
    Body,
    Directory,
    End,
    Facts,
    Finished,
    Heartbeat,
    Hello,
    Member,
    Reason,
    Role,
    Submit,
    Tokens,
)
from accelgen.proto.sockets import Dealer, Router

CONTEXT = 512
DEADLINE_S = 10.0
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps in the sun.",
    "AccelGen keeps the objectives of every request: time to first token and time per token.",
    "Héllo wörld, 漢字 and emoji 🙂🙃, stop here. STOP! end of the text\nsystem user assistant",
]


def make_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of a few hundred tokens with chat markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            AddedToken(text, special=True, normalized=False)
            for text in ("<|begin|>", "<|im_start|>", "<|im_end|>")
        ],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_model(folder: Path, tokenizer: Tokenizer, template: str = TEMPLATE) -> Path:
    """A model folder as far as the frontend reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = tokenizer.token_to_id("<|im_end|>")
    config = {"max_position_embeddings": CONTEXT, "eos_token_id": eos}
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"bos_token": "<|begin|>", "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = DEADLINE_S) -> Any:
    """Polls until `condition` is true and returns its value."""
    deadline_s = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"timed out waiting for {what}"
        time.sleep(0.005)
    return value


Answer = Callable[[Submit], list[Body]]


class FakeScheduler:
    """Speaks the scheduler's side: `answer` maps a Submit to what is sent back at once; `send` adds more.

    `submits`, `aborts`: what the frontend sent. An Abort of the test before may come after `reset`: look for ids, do
    not compare the whole list."""

    def __init__(self, endpoint: str, epoch: int = 1, credits: int = 64, name: str = "a") -> None:
        self.submits: list[Submit] = []
        self.aborts: list[int] = []
        self.answer: Answer = lambda submit: []
        self.epoch = epoch
        self._outbox: queue.SimpleQueue[tuple[Body, int]] = queue.SimpleQueue()
        self._dealer = Dealer(endpoint, f"scheduler-{name}:{epoch}", 1000 + epoch)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.send(Activate(credits))
        self._thread.start()

    def send(self, body: Body, epoch: int | None = None) -> None:
        self._outbox.put((body, self.epoch if epoch is None else epoch))

    def reset(self) -> None:
        self.submits.clear()
        self.aborts.clear()
        self.answer = lambda submit: []
        self.send(Activate(64))

    def submit(self, count: int = 1) -> Submit:
        """The count-th Submit, waited for."""
        wait_for(lambda: len(self.submits) >= count, f"Submit {count}")
        return self.submits[count - 1]

    def close(self) -> None:
        if not self._ending.is_set():
            self._ending.set()
            self._thread.join()
            self._dealer.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._dealer.socket.poll(2)
            while (message := self._dealer.recv()) is not None:
                body = message[1]
                if isinstance(body, Submit):
                    self.submits.append(body)
                    for reply in self.answer(body):
                        self._dealer.send(reply, self.epoch)
                elif isinstance(body, Abort):
                    self.aborts += body.ids
            while not self._outbox.empty():
                self._dealer.send(*self._outbox.get())


class FakeSupervisor:
    """Owns the run directory and the listening socket, starts the frontend, tells it about the others."""

    def __init__(self, run_dir: Path, config: Config, index: int = 0) -> None:
        self.run_dir, self.config, self.index = run_dir, config, index
        save_config(config, run_dir / "config.json")
        self._router = Router(endpoint_of(run_dir, Role.SUPERVISOR), 1)
        self.listener = socket.create_server((config.host, 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = run_dir / "frontend.log"
        self.beats: list[Heartbeat] = []
        self.said: list[Body] = []
        self._orders: queue.SimpleQueue[Body] = queue.SimpleQueue()
        self._ending = threading.Event()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.process = self.start(index)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return endpoint_of(self.run_dir, Role.FRONTEND, self.index)

    def start(self, index: int) -> subprocess.Popen[bytes]:
        """A frontend process on the listening socket."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "accelgen.frontend", "--index", str(index)),
                    *("--run-dir", str(self.run_dir), "--epoch", "1", "--parent", str(os.getpid())),
                ],
                env={**os.environ, "ACCELGEN_LISTEN_FD": str(self.listener.fileno())},
                pass_fds=[self.listener.fileno()],
                stderr=log,
            )
        self.processes.append(process)
        return process

    def tell(self, body: Body) -> None:
        self._orders.put(body)

    def phase(self) -> str:
        return self.beats[-1].phase if self.beats else ""

    def stop(self) -> int:
        """Ends the frontends; the exit status of the first."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_S)
        self._ending.set()
        self._thread.join()
        self._router.close()
        self.listener.close()
        return self.process.wait(DEADLINE_S)

    def _run(self) -> None:
        peers: set[bytes] = set()
        directory: Directory | None = None
        while not self._ending.is_set():
            self._router.socket.poll(5)
            while (message := self._router.recv()) is not None:
                peer, _, body = message
                peers.add(peer)
                if isinstance(body, Heartbeat):
                    self.beats.append(body)
                else:
                    self.said.append(body)
                if isinstance(body, Hello) and directory is not None:
                    self._router.send(peer, directory)
            while peers and not self._orders.empty():
                order = self._orders.get()
                directory = order if isinstance(order, Directory) else directory
                for peer in peers:
                    self._router.send(peer, order)


def make_facts(vocab_size: int, max_model_len: int = CONTEXT) -> Facts:
    return Facts(
        model="tiny", architecture="llama", device="cpu", dtype="float32", backend="torch",
        max_model_len=max_model_len, vocab_size=vocab_size, block_size=16, num_blocks=64,
        weights_bytes=1, kv_bytes=1,
    )  # fmt: skip


def make_member(role: Role, index: int = 0, **changes: Any) -> Member:
    member = Member(
        role=role, index=index, pid=1, endpoint="", incarnation=1, epoch=1, phase="ready", progress=1,
        uptime_s=1.0, heard_s=0.0, rss_bytes=1, facts=None, gauges={},
    )  # fmt: skip
    return structs.replace(member, **changes)


SCHEDULERS = [make_member(Role.SCHEDULER, incarnation=1000 + epoch) for epoch in range(10)]
"""Every scheduler that a test may bring, as the Directory lists them."""


class Stage:
    """The frontend under test with both ends."""

    def __init__(self, supervisor: FakeSupervisor, scheduler: FakeScheduler, tokenizer: Tokenizer):
        self.supervisor, self.scheduler, self.tokenizer = supervisor, scheduler, tokenizer
        self.url = supervisor.url
        self.http = httpx.Client(base_url=self.url, timeout=10)
        self.client = OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=10)

    def learns(self, **facts: Any) -> None:
        """The supervisor tells what a worker found out."""
        found = structs.replace(make_facts(self.tokenizer.get_vocab_size()), **facts)
        members = [make_member(Role.WORKER, facts=found)]
        self.lists(*members)

    def lists(self, *members: Member) -> None:
        """The supervisor tells who is there beside the schedulers."""
        self.supervisor.tell(Directory([*members, *SCHEDULERS], ready=True, draining=False))

    def says(self, *texts: str, reason: Reason = Reason.STOP, per_token: bool = True) -> None:
        """The scheduler answers every request with `texts` (choice i with the i-th, the last one for the rest)."""

        def answer(submit: Submit) -> list[Body]:
            bodies: list[Body] = []
            ids = [submit.prompt.id, *submit.siblings]
            for index, id in enumerate(ids):
                text = texts[min(index, len(texts) - 1)]
                tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
                if reason is Reason.STOP and submit.stop_token_ids:
                    tokens = [*tokens, submit.stop_token_ids[-1]]
                bodies += self.script(id, tokens, reason, per_token)
            return bodies

        self.scheduler.answer = answer

    def script(
        self, id: int, tokens: list[int], reason: Reason = Reason.STOP, per_token: bool = True
    ) -> list[Body]:
        """Admitted, Tokens one by one or together, Finished."""
        groups = [[token] for token in tokens] if per_token else [tokens]
        return [
            Admitted(id, 0, 0.25, 3),
            *(Tokens(step, [id], [len(group)], group) for step, group in enumerate(groups)),
            Finished([End(id, reason, queue_s=0.001, cached_tokens=3, preemptions=1)]),
        ]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


OpenStage = Callable[..., AbstractContextManager[Stage]]


@pytest.fixture(scope="session")
def open_stage(tokenizer: Tokenizer, model_folder: Path) -> OpenStage:
    """A frontend for the length of a `with`; options change its configuration."""

    @contextmanager
    def opened(activated: bool = True, credits: int = 64, **settings: Any) -> Iterator[Stage]:
        # A short path: that of an ipc socket is limited to 107 bytes.
        run_dir = Path(tempfile.mkdtemp(prefix="ag", dir="/tmp"))
        supervisor = FakeSupervisor(run_dir, Config(**{"model": str(model_folder), **settings}))
        scheduler = None
        try:
            wait_for(lambda: supervisor.phase() == "waiting for scheduler", "start", 30)
            supervisor.tell(Directory(SCHEDULERS, ready=False, draining=False))
            if activated:
                scheduler = FakeScheduler(supervisor.endpoint, credits=credits)
                wait_for(lambda: supervisor.phase() == "ready", "activation")
            made = Stage(supervisor, scheduler, tokenizer)  # type: ignore[arg-type]
            made.learns()
            if activated:
                wait_for(lambda: made.http.get("/ready").status_code == 200, "readiness")
            yield made
        finally:
            if scheduler is not None:
                scheduler.close()
            supervisor.stop()
            shutil.rmtree(run_dir, ignore_errors=True)

    return opened


@pytest.fixture
def make_stage(open_stage: OpenStage) -> Iterator[Callable[..., Stage]]:
    """Starts frontends that end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(open_stage(**options))


class Fakes:
    """Makes the fakes one by one; all of them end with the test."""

    def __init__(self, model_folder: Path) -> None:
        self._model_folder = model_folder
        self._ends: list[Callable[[], Any]] = []

    def scheduler(self, endpoint: str, **options: Any) -> FakeScheduler:
        made = FakeScheduler(endpoint, **options)
        self._ends.append(made.close)
        return made

    def supervisor(self, **settings: Any) -> FakeSupervisor:
        run_dir = Path(tempfile.mkdtemp(prefix="ag", dir="/tmp"))
        made = FakeSupervisor(run_dir, Config(**{"model": str(self._model_folder), **settings}))
        self._ends += [made.stop, lambda: shutil.rmtree(run_dir, ignore_errors=True)]
        return made

    def close(self) -> None:
        for end in self._ends:
            end()


@pytest.fixture
def fakes(model_folder: Path) -> Iterator[Fakes]:
    made = Fakes(model_folder)
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared_stage(open_stage: OpenStage) -> Iterator[Stage]:
    with open_stage() as opened:
        yield opened


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    """The frontend that most tests share; at the end nothing of the test may be left open in it."""
    shared_stage.scheduler.reset()
    yield shared_stage
    assert shared_stage.supervisor.process.poll() is None, "the frontend died"


@pytest.fixture(scope="session")
def wait() -> Callable[..., Any]:
    return wait_for
