"""A chat template that never ends, or writes without end, costs a bounded time and one line."""

from __future__ import annotations

import resource
import signal
import threading
from typing import Any

import pytest
from conftest import CHATML_OWN, make_tokenizer

from align.core.config import BadInput
from align.model import chat_template as templates
from align.model.chat import Chat, Unusable

LONG = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
END = "{% endfor %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set n = namespace(text='aaaaaaaa') %}{% for a in range(60) %}{% set n.text = n.text + n.text %}{% endfor %}"
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    monkeypatch.setattr(templates, "LENGTH", 1000)
    monkeypatch.setattr(templates, "MEMORY", 1 << 28)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (LONG + END, "does not come to an end .0.5 s of processor time"),
        (LONG + "{{ a }}" + END, "does not come to an end|needs more than 256 MiB"),
        ("{% macro again(n) %}{{ again(n) }}{{ again(n) }}{% endmacro %}{{ again(1) }}", "RecursionError"),
        ("{{ 10 ** (10 ** 9) }}", "does not come to an end|needs more than|refuses it"),
        ("{{ 'a' * 10 ** 12 }}", "needs more than 256 MiB for one conversation"),
        ("{{ '%1000000000000d' % 1 }}", "needs more than 256 MiB for one conversation"),
        ("{{ 'a' | center(10 ** 12) }}", "needs more than 256 MiB for one conversation"),
        (DOUBLING, "does not come to an end|needs more than 256 MiB"),
        ("{{ 'a' * 1001 }}", "writes 1,001 characters for one conversation"),
    ],
)
def test_a_template_without_end_is_named(template: str, problem: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(BadInput, match=problem) as refused:
        Chat(make_tokenizer(template))
    assert "\n" not in str(refused.value)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_one_that_ends_only_for_some_stops_the_run_where_it_does_not() -> None:
    """Five seconds a row of ten thousand would be half a day: the row is not merely dropped."""
    chat = Chat(make_tokenizer("{% if messages|length > 2 %}" + LONG + END + "{% endif %}" + CHATML_OWN))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert chat.prompt_ids(turns[:1])
    with pytest.raises(BadInput, match="does not come to an end"):
        chat.prompt_ids(turns)
    refusing = Chat(make_tokenizer(CHATML_OWN + "{% if messages|length > 2 %}{{ raise_exception('no') }}{% endif %}"))
    with pytest.raises(Unusable, match="refuses it"):
        refusing.prompt_ids(turns)


def test_a_template_renders_in_another_thread_too() -> None:
    """Signals reach the main thread alone, so time is not limited elsewhere; what is rendered is the same."""
    chat = Chat(make_tokenizer())
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(chat.render([{"role": "user", "content": "a"}])))
    thread.start()
    thread.join()
    assert found == [chat.render([{"role": "user", "content": "a"}])]
