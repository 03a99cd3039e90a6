"""The admin routes: closed to everyone but admin keys, and swaps as the supervisor answers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from accelgen.frontend.app import make_routes
from accelgen.frontend.keys import OPEN_PATHS
from accelgen.proto.messages import Directory, Member, Role, Swap, Swapped

API, ADMIN = "api-key-0123456789abc", ["admin-key-0123456789", "older-admin-key-01234"]
PATH = "/admin/v1/policy"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}".strip()}


@pytest.fixture(scope="module")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("keys")
    for name, keys in (("api", [API]), ("admin", ADMIN)):
        (folder / name).write_text("\n".join(keys))
        (folder / name).chmod(0o600)
    return {"api_key_file": str(folder / "api"), "admin_key_file": str(folder / "admin")}


@pytest.fixture(scope="module")
def closed(open_stage: Callable[..., Any], key_files: dict[str, str]) -> Iterator[Any]:
    with open_stage(**key_files) as opened:
        yield opened


@pytest.fixture
def admin(closed: Any) -> Iterator[httpx.Client]:
    closed.supervisor.said.clear()
    with httpx.Client(base_url=closed.url, headers=bearer(ADMIN[0]), timeout=10) as http:
        yield http


def routes() -> list[tuple[str, str]]:
    """Every registered method and path."""
    found = [r for r in make_routes(None, True).routes if isinstance(r, Route)]  # type: ignore[arg-type]
    return [(method, route.path) for route in found for method in sorted(route.methods or ())]


def test_there_are_admin_routes() -> None:
    assert {("GET", PATH), ("POST", PATH)} <= set(routes())
    without = make_routes(None, False).routes  # type: ignore[arg-type]
    assert not [r for r in without if isinstance(r, Route) and "admin" in r.path]


@pytest.mark.parametrize("method, path", [*routes(), ("GET", "/admin/v1/none"), ("PUT", PATH)])
@pytest.mark.parametrize("key", [None, "wrong-key-0123456789", "", API, *ADMIN])
def test_every_route_with_every_key(closed: Any, method: str, path: str, key: str | None) -> None:
    headers = {} if key is None else bearer(key)
    reply = closed.http.request(method, path.replace("{model:path}", "tiny"), headers=headers)
    is_admin = path.startswith("/admin/")
    if path in OPEN_PATHS:
        expected = "open"
    elif key in ADMIN:
        expected = "open" if is_admin else "other kind"
    elif key == API:
        expected = "other kind" if is_admin else "open"
    else:
        expected = "unknown"
    status = {"other kind": 403, "unknown": 401}.get(expected)
    if status is None:
        assert reply.status_code not in (401, 403)
        return
    assert reply.status_code == status
    if method != "HEAD":
        error = reply.json()["error"]
        kind = {403: "permission_error", 401: "authentication_error"}[status]
        assert error["type"] == kind and set(error) == {"message", "type", "param", "code"}
        assert ("admin key" in error["message"]) == is_admin


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("key", ["", ADMIN[0]])
def test_without_admin_keys_there_is_nothing(stage: Any, method: str, key: str) -> None:
    reply = stage.http.request(method, PATH, headers=bearer(key), json={"policy": "vllm"})
    nothing = stage.http.request(method, "/none", headers=bearer(key))
    assert (reply.status_code, reply.content) == (404, nothing.content)


@pytest.mark.parametrize("path", [f"{PATH}/", "/admin//v1/policy", "/admin/v1/%70olicy"])
def test_other_spellings_open_nothing(closed: Any, path: str) -> None:
    assert closed.http.get(path, headers=bearer(API)).status_code == 403


def asked(stage: Any, wait: Any, number: int = 1) -> Swap:
    """The number-th Swap that the supervisor has heard."""
    said = stage.supervisor.said
    wait(lambda: sum(isinstance(one, Swap) for one in said) >= number, "Swap")
    return [one for one in said if isinstance(one, Swap)][number - 1]


def test_a_swap(closed: Any, admin: httpx.Client, wait: Any) -> None:
    body = {"policy": "accelgen", "params": {"gamma_s": 1.5}, "dry_run": True}
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(admin.post, PATH, json=body)
        swap = asked(closed, wait)
        assert (swap.policy, swap.params, swap.dry_run) == ("accelgen", {"gamma_s": 1.5}, True)
        assert not reply.done()
        closed.supervisor.tell(Swapped(True, "somebody else's", swap.ticket + 1))
        closed.supervisor.tell(Swapped(True, "has taken over", swap.ticket))
        assert reply.result(10).status_code == 200
    assert reply.result().json() == {"done": True, "policy": "accelgen", "detail": "has taken over"}


@pytest.mark.parametrize("policy", [None, "vllm"])
def test_a_swap_of_the_routing(
    closed: Any, admin: httpx.Client, wait: Any, policy: str | None
) -> None:
    body = {"routing": "prefix-affinity:share=0.5"}
    named = body if policy is None else {"policy": policy, **body}
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(admin.post, PATH, json=named)
        swap = asked(closed, wait)
        assert (swap.policy, swap.params, swap.routing) == (policy or "", {}, body["routing"])
        closed.supervisor.tell(Swapped(True, "has taken over", swap.ticket))
        assert reply.result(10).json() == {"done": True, "detail": "has taken over", **named}


@pytest.mark.parametrize("policy", [None, "vllm"])
def test_a_swap_of_the_memory_policy(
    closed: Any, admin: httpx.Client, wait: Any, policy: str | None
) -> None:
    body = {"memory": "cacheopt", "memory_params": {"reserve": 32, "pad": False}}
    named = body if policy is None else {"policy": policy, **body}
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(admin.post, PATH, json=named)
        swap = asked(closed, wait)
        assert (swap.policy, swap.memory) == (policy or "", "cacheopt")
        assert swap.memory_params == {"reserve": 32, "pad": False}
        closed.supervisor.tell(Swapped(True, "done", swap.ticket))
        assert reply.result(10).status_code == 200


def test_parameters_choose_the_memory_policy_that_the_policy_brings(
    closed: Any, admin: httpx.Client, wait: Any
) -> None:
    with ThreadPoolExecutor(1) as pool:
        body = {"policy": "cacheopt", "memory_params": {"reserve": 32}}
        reply = pool.submit(admin.post, PATH, json=body)
        swap = asked(closed, wait)
        assert (swap.policy, swap.memory) == ("cacheopt", "cacheopt")
        assert swap.memory_params == {"reserve": 32}
        closed.supervisor.tell(Swapped(True, "done", swap.ticket))
        assert reply.result(10).json()["memory"] == "cacheopt"


def test_a_swap_that_is_refused(closed: Any, admin: httpx.Client, wait: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(admin.post, PATH, json={"policy": "vllm"})
        swap = asked(closed, wait)
        assert (swap.params, swap.dry_run) == ({}, False)
        closed.supervisor.tell(Swapped(False, "scheduler-1: no such pivot", swap.ticket))
        refusal = reply.result(10)
    assert refusal.status_code == 409
    error = refusal.json()["error"]
    assert error["message"] == "scheduler-1: no such pivot" and error["code"] == "swap_refused"


def test_two_at_once_get_their_own_answers(closed: Any, admin: httpx.Client, wait: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(admin.post, PATH, json={"policy": "vllm"})
        one = asked(closed, wait)
        second = pool.submit(admin.post, PATH, json={"policy": "sarathi"})
        other = asked(closed, wait, 2)
        assert one.ticket != other.ticket
        closed.supervisor.tell(Swapped(False, "another swap is under way", other.ticket))
        assert second.result(10).status_code == 409 and not first.done()
        closed.supervisor.tell(Swapped(True, "done", one.ticket))
        assert first.result(10).json()["policy"] == "vllm"


def test_a_client_that_leaves_is_not_missed(closed: Any, admin: httpx.Client, wait: Any) -> None:
    with pytest.raises(httpx.ReadTimeout):
        admin.post(PATH, json={"policy": "vllm"}, timeout=0.3)
    swap = asked(closed, wait)
    closed.supervisor.tell(Swapped(True, "done", swap.ticket))
    test_a_swap_that_is_refused_later(closed, admin, wait)


def test_a_swap_that_is_refused_later(closed: Any, admin: httpx.Client, wait: Any) -> None:
    before = sum(isinstance(one, Swap) for one in closed.supervisor.said)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(admin.post, PATH, json={"policy": "sarathi"})
        swap = asked(closed, wait, before + 1)
        closed.supervisor.tell(Swapped(False, "no", swap.ticket))
        assert reply.result(10).status_code == 409


@pytest.mark.parametrize(
    "body, param, says",
    [
        ({}, "policy", "is required"),
        ({"policy": "sarati"}, "policy", "there is no policy 'sarati'; did you mean sarathi?"),
        ({"policy": "xyzzy"}, "policy", "known: accelgen, "),
        ({"policy": ""}, "policy", "at least 1 character"),
        ({"policy": "x" * 201}, "policy", "at most 200 characters"),
        ({"policy": "a\0b"}, "policy", "there is no policy"),
        ({"policy": 3}, "policy", "must be a valid string"),
        ({"policy": "vllm", "dry": True}, "dry", "unknown field: dry"),
        ({"policy": "vllm", "dry_run": 1}, "dry_run", "must be a valid boolean"),
        ({"policy": "vllm", "params": [1]}, "params", "must be an object"),
        ({"policy": "vllm", "params": {"x": [1]}}, "params.x", "must be a number"),
        ({"policy": "vllm", "params": {"x": None}}, "params.x", "must be a number"),
        ({"policy": "vllm", "params": {"x": "y" * 501}}, "params.x", "at most 500"),
        ({"policy": "vllm", "params": {"x": 2**64}}, "params.x", "must be a number"),
        ({"policy": "vllm", "params": dict.fromkeys(map(str, range(33)), 1)}, "params", "most 32"),
        ({"params": {"x": 1}}, "policy", "is required"),
        ({"routing": "planned", "params": {"x": 1}}, "params", "of which policy? State it, too"),
        ({"routing": ""}, "routing", "at least 1 character"),
        ({"routing": "x" * 501}, "routing", "at most 500 characters"),
        ({"routing": 3}, "routing", "must be a valid string"),
        ({"routing": "leastload"}, "routing", "no routing 'leastload'; did you mean least-load?"),
        ({"routing": "a\0b"}, "routing", "there is no routing"),
        ({"routing": "prefix-affinity:share=2"}, "routing", "share: 2, must be at most 1"),
        ({"policy": "vllm", "routing": "planned:x=1"}, "routing", "has no parameter 'x'"),
        ({"policy": "accelgen", "params": {"gama_s": 1}}, "params", "no parameter 'gama_s'; it has"),
        ({"policy": "accelgen", "params": {"gamma_s": "x"}}, "params", "must be a number, got 'x'"),
        ({"policy": "vllm", "memory": "cacheop"}, "memory", "did you mean cacheopt?"),
        ({"policy": "vllm", "memory": "x"}, "memory", "no memory policy 'x'; known: cacheopt, on-demand"),
        ({"policy": "vllm", "memory": 1}, "memory", "must be a valid string"),
        ({"routing": "planned", "memory_params": {"reserve": 1}}, "memory_params",
         "of which memory policy? State `policy` or `memory`, too"),
        ({"policy": "vllm", "memory_params": {"reserve": 1}}, "memory_params",
         "on-demand has no parameter 'reserve'; it has none (it is the one of vllm; another one can be named)"),
        ({"policy": "cacheopt", "memory_params": {"reserv": 1}}, "memory_params",
         "cacheopt has no parameter 'reserv'"),
        ({"policy": "vllm", "memory": "cacheopt", "memory_params": {"reserve": None}},
         "memory_params.reserve", "must be a number"),
        ({"policy": "vllm", "memory": "cacheopt", "memory_params": {"reserv": 1}}, "memory_params",
         "cacheopt has no parameter 'reserv'; it has pad (True)"),
        ({"policy": "vllm", "memory": "cacheopt", "memory_params": {"reserve": -1}}, "memory_params",
         "reserve: -1 tokens, must be at least 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(
    closed: Any, admin: httpx.Client, body: Any, param: str, says: str
) -> None:
    reply = admin.post(PATH, json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param and says in error["message"]
    assert not [one for one in closed.supervisor.said if isinstance(one, Swap)]


def test_a_number_beyond_all_is_named_as_such(closed: Any, admin: httpx.Client) -> None:
    body = b'{"policy": "sarathi", "params": {"chunk_size": 1e400}}'
    reply = admin.post(PATH, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "params.chunk_size: must be a finite number"


def test_which_policy_is_in_office(
    closed: Any, admin: httpx.Client, wait: Any, make_schedulers: Any
) -> None:
    facts = {"policy": "sarathi", "policy_params": {"chunk": 256}, "policy_s": 12.5}
    facts["routing"] = "least-load"
    swap = {"policy": "vllm", "dry_run": False, "stage": "preparing"}
    members = make_schedulers(("ready", 7, 3.5), ("standby", 8, 1.0))
    facts |= {"swap": swap, "rolled_back": "other: no"}
    closed.supervisor.tell(Directory(members, True, False, facts))
    found = wait(lambda: (r := admin.get(PATH).json())["policy"] == "sarathi" and r, "facts")
    assert {"accelgen", "sarathi", "vllm"} <= set(found.pop("installed"))
    assert {"planned", "round-robin", "least-load"} <= set(found.pop("installed_routings"))
    assert found == {
        "policy": "sarathi", "params": {"chunk": 256}, "epoch": 7, "active_for_s": 12.5,
        "process_for_s": 3.5, "swap": swap, "rolled_back": "other: no", "routing": "least-load",
        "memory": "cacheopt", "memory_params": {}, "installed_memory": ["cacheopt", "on-demand"],
    }  # fmt: skip
    closed.supervisor.tell(Directory([], False, False, {"policy": "vllm", "swap": None}))
    found = wait(lambda: (r := admin.get(PATH).json())["policy"] == "vllm" and r, "facts")
    assert (found["epoch"], found["swap"], found["rolled_back"]) == (None, None, None)
    assert found["routing"] == "planned"  # nothing was said of it
    assert found["memory"] == ""
    chosen = {"policy": "edf", "memory": "on-demand", "memory_params": {}}
    closed.supervisor.tell(Directory(members, True, False, chosen))
    found = wait(lambda: (r := admin.get(PATH).json())["policy"] == "edf" and r, "facts")
    assert found["memory"] == "on-demand"


@pytest.fixture
def make_schedulers() -> Callable[..., list[Member]]:
    def make(*facts: tuple[str, int, float]) -> list[Member]:
        return [
            Member(
                Role.SCHEDULER,
                i,
                1,
                "",
                5 + i,
                epoch,
                phase,
                1,
                up_s,
                0.0,
                1,
                None,
                {'accelgen:scheduler_memory_info{memory="cacheopt"}': 1.0},
            )
            for i, (phase, epoch, up_s) in enumerate(facts)
        ]

    return make


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that says nothing: an error after a bounded time, and the next answer still finds its call."""
    import asyncio

    from accelgen.frontend import admin as module
    from accelgen.frontend.admin import SwapBody, Swaps
    from accelgen.frontend.errors import ApiError

    class Quiet:
        """As much of a Child as a swap needs."""

        swapped: list[Swapped] = []
        sent: list[Swap] = []

        @property
        def link(self) -> Any:
            return self

        def send(self, body: Swap) -> None:
            self.sent.append(body)

        def hear(self) -> None:
            if len(self.sent) == 2:
                self.swapped += [Swapped(True, "late", 1), Swapped(True, "mine", 2)]

    monkeypatch.setattr(module, "ANSWER_S", 0.05)

    async def twice() -> dict[str, Any]:
        swaps = Swaps(Quiet())  # type: ignore[arg-type]
        with pytest.raises(ApiError) as timeout:
            await swaps.ask(SwapBody(policy="vllm"))
        assert timeout.value.status == 504
        return await swaps.ask(SwapBody(policy="vllm"))

    assert asyncio.run(twice())["detail"] == "mine"


def test_a_key_cannot_be_both(
    fakes: Any, key_files: dict[str, str], tmp_path: Path, wait: Any
) -> None:
    both = {"api_key_file": key_files["api_key_file"], "admin_key_file": key_files["api_key_file"]}
    supervisor = fakes.supervisor(**both)
    assert supervisor.process.wait(20) == 1
    assert "has a key of api_key_file, too" in supervisor.log.read_text()
