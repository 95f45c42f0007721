"""Text that means harm or breaks tools: sent safely, shown as text, read back equal (or as documented)."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
from campaigns import answer, choice, tasks, text
from fixtures.campaigns import judged

from align.core.files import write_jsonl
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.interface.config import Interface
from annotation.interface.render import visible
from annotation.label_studio.studio import Studio
from annotation.store.store import Store

HOSTILE = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "html": "<b>bold</b> &amp; <style>*{display:none}</style> </textarea></pre></div>",
    "braces": "{{7*7}} ${jndi:x} $prompt_html {% raw %} %(a)s",
    "right to left": "שלום \u202eevil\u202c مرحبا",
    "surrogate": "half \ud800 of a pair",
    "nul": "before\x00after",
    "link": "[press](javascript:alert(1)) ![pixel](http://beacon.invalid/pixel.png)",
    "formula": "=cmd|' /C calc'!A0",
    "long": "long words and more. " * 50_000,
}
REPLACED = {"surrogate": "half \ufffd of a pair", "nul": "before\ufffdafter"}  # what cannot be stored becomes U+FFFD


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A comparison for each text, in the prompt's place and in an answer's."""
    rows = [
        {
            "prompt_id": f"p{number}",
            "prompt": [{"role": "user", "content": f"question {number} {spelled[:200]}"}],
            "responses": [
                {"messages": [{"role": "assistant", "content": content}], "origin": "run", "ended": True}
                for content in (f"a good answer {spelled}", "a bad answer")
            ],
        }
        for number, spelled in enumerate(HOSTILE.values())
    ]
    write_jsonl(tmp_path / "candidates.jsonl", rows)
    interface = Interface(rationale=True, improve=True)
    return Campaign(
        name=f"hostile {tmp_path.name}"[:50],
        feedback=tmp_path / "feedback.db",
        candidates=[tmp_path / "candidates.jsonl"],
        interface=interface,
    )


def test_hostile_text_is_text_all_the_way(campaign: Campaign, studio: Studio) -> None:
    assert push(campaign, studio).new == len(HOSTILE)
    shown = tasks(studio, campaign)
    for number, (name, spelled) in enumerate(HOSTILE.items()):
        task = shown[str(number)]
        left = "a good answer" in task.data["response_a_html"]
        page = task.data["response_a_html" if left else "response_b_html"]
        lowered = page.lower()
        assert not any(bad in lowered for bad in ("<script", "<img", "<style", "</textarea", 'href="javascript'))
        plain = html.unescape(page)
        if name in ("script", "braces", "right to left", "formula"):
            assert visible(spelled) in plain, name
        expected = REPLACED.get(name, spelled)
        assert "\x00" not in page and "\ud800" not in page
        replies = [choice("-2" if left else "2"), text("rationale", expected[:1000]), text("improved", expected)]
        answer(studio, task, replies)
    found = pull(campaign, studio)
    assert found.outcomes == {"judgment": len(HOSTILE)}
    said_of = judged(campaign)
    for number, (name, spelled) in enumerate(HOSTILE.items()):
        judgment, best = said_of[str(number)]
        expected = REPLACED.get(name, spelled)
        assert judgment.improved == expected and judgment.rationale == expected[:1000], name
        assert best is not None and best == f"a good answer {spelled}", name
    assert push(campaign, studio).new == 0
    with Store.open(campaign.feedback) as store:
        assert store.verify().ok


def test_what_people_type_is_kept_without_what_cannot_be_stored(campaign: Campaign, studio: Studio) -> None:
    push(campaign, studio)
    task = tasks(studio, campaign)["0"]
    answer(studio, task, [choice("0"), text("rationale", "nul \x00 here")])
    pull(campaign, studio)
    assert judged(campaign)["0"][0].rationale == "nul \ufffd here"
