"""Interfaces and tasks that Label Studio would refuse are refused before anything is sent, by name."""

from __future__ import annotations

from typing import Any

import pytest

from align.core.config import BadInput
from align.core.records import Comparison
from annotation.interface.config import Interface, labeling_config, task_data
from annotation.label_studio.validation import check_interface

OURS: list[dict[str, Any]] = [
    {},
    {"ratings": ("helpful",), "rationale": True, "flags": ("unsafe",), "improve": True},
    {"kind": "ranking", "k": 4},
    {"kind": "thumbs"},
    {"kind": "labels", "labels": ("yes", "no")},
]


def task(interface: Interface) -> dict[str, Any]:
    answers = [{"messages": [{"role": "assistant", "content": f"{n}"}]} for n in range(interface.n_responses)]
    prompt = [{"role": "user", "content": "hello"}]
    comparison = Comparison.model_validate({"prompt": prompt, "responses": answers})
    return task_data(interface, comparison, list(range(len(answers))), "", False, key="k")


@pytest.mark.parametrize("settings", OURS)
def test_our_own_interfaces_and_tasks_are_taken(settings: dict[str, Any]) -> None:
    interface = Interface(**settings)
    check_interface(labeling_config(interface), [task(interface)])


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('toName="response_a"', 'toName="nothing"', 'toName="nothing" not found'),
        ('name="prompt"', 'name="history"', "non-unique names"),
        ("</View>", "", "does not accept the labelling interface"),
    ],
)
def test_an_interface_that_is_none_is_refused(before: str, after: str, told: str) -> None:
    config = labeling_config(Interface())
    assert before in config
    with pytest.raises(BadInput, match=told) as error:
        check_interface(config.replace(before, after))
    assert "\n" not in str(error.value)


def test_a_task_is_refused_by_what_it_lacks() -> None:
    data = task(Interface())
    del data["prompt_html"]
    with pytest.raises(BadInput, match="task k: lacks what the labelling interface shows: prompt_html$"):
        check_interface(labeling_config(Interface()), [task(Interface()), data])
