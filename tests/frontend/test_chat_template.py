"""Chat templates: what transformers' environment offers, and what the sandbox refuses."""

from __future__ import annotations

from typing import Any

import pytest

from accelgen.frontend import chat_template
from accelgen.frontend.chat_template import ChatTemplate, RenderError

MESSAGES = [{"role": "user", "content": "<b>hé</b>"}]


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "<s><b>hé</b>"),
        ("{% for m in messages %}\n  {% if m.role == 'user' %}\nU\n  {% endif %}\n{% endfor %}", "U\n"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<b>hé</b>"}'),
        ("{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% generation %}x{{ 1 + 1 }}{% endgeneration %}y", "x2y"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ range(5) | length }}{{ (range(5) | list)[-1] }}{{ range(3)[1] }}", "541"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}", "2"),
        ("{{ 'ab' * 3 }}{{ 2 * 3 }}", "ababab6"),
        ("{% if tools %}T{% endif %}{% if add_generation_prompt %}A{% endif %}", "A"),
    ],
)  # fmt: skip
def test_renders(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'other' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception('no system role') }}",
        "{{ undefined.attribute }}",
        "{{ 1 / 0 }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ],
)
def test_refuses(source: str) -> None:
    with pytest.raises(RenderError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_time_is_bounded(source: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(chat_template, "RENDER_TIMEOUT_S", 0.05)
    with pytest.raises(RenderError):
        render(source)


def test_output_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(chat_template, "MAX_OUTPUT_CHARS", 100)
    with pytest.raises(RenderError):
        render("{% for i in range(100) %}xxx{% endfor %}")


def test_broken_template() -> None:
    with pytest.raises(RenderError, match="line 2"):
        render("\n{% if %}")
