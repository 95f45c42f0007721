"""People at a labelling page: a real Chromium, its windows, and what a person does in one by keys and by mouse.

Where ALIGN_SCREENSHOTS names a folder, what people see is kept there as pictures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from annotation.label_studio.accounts import Account

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LOADED = """() => { const frames = [...document.querySelectorAll('.pf iframe')];
  return frames.length && frames.every(f => f.contentDocument?.readyState == 'complete'
    && f.contentDocument.body?.childElementCount && (f.style.height || !f.offsetParent)); }"""
TASK = "document.querySelector('.lsf-current-task__task-id')?.firstChild.textContent"
MOVED = f"(before) => {TASK} != before || document.body.innerText.includes('No More Tasks')"
# what the page tells a screen reader while a card is dragged; a card that still moves is out of the page's flow
OVER = "(place) => [...document.querySelectorAll('[id^=rbd-announcement]')].some(e => e.textContent.includes(place))"
AT_REST = "(card) => getComputedStyle(card).position != 'fixed' && card.style.transform in {'': 1, none: 1}"
SENT = re.compile(r"/api/(tasks/\d+/annotations|annotations/\d+)[/?]")
PATIENCE = 180_000  # milliseconds: as long as a slow machine takes


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without a screen; for one module, as its driver keeps an event loop to itself."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium; 'apt-get install chromium fonts-dejavu' brings it")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright; 'pip install playwright' brings it")
    with api.sync_playwright() as playwright:
        # scroll bars are shown, as people see them: they tell that there is more
        browser = playwright.chromium.launch(
            executable_path=path, args=FLAGS, ignore_default_args=["--hide-scrollbars"]
        )
        yield browser
        browser.close()


class Person:
    """One annotator, logged in at a window of their own."""

    def __init__(
        self, browser: Browser, url: str, account: Account, theme: Literal["Light", "Dark"], size: tuple[int, int]
    ) -> None:
        self.url, self.email = url, account.email
        self.look = f"{theme.lower()}-{size[0]}"
        context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        context.set_default_timeout(PATIENCE)
        # where the page's own switch keeps its state
        context.add_init_script(f"localStorage.setItem('preferred-color-scheme', '{theme}')")
        self.page: Page = context.new_page()
        self.page.goto(f"{url}user/login/")
        self.page.fill("input[name=email]", account.email)
        self.page.fill("input[name=password]", account.password)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(lambda address: "login" not in address)

    # --- where to ---------------------------------------------------------------------------------------------

    def begin(self, project: int) -> None:
        """Take the first task of a project's queue."""
        self.page.goto(f"{self.url}projects/{project}/data?labeling=1")
        self._settle()

    def open(self, project: int, task: int) -> None:
        """Open one task that has an answer."""
        self.page.goto(f"{self.url}projects/{project}/data?task={task}")
        self._answer_settles()

    def open_answer_of(self, project: int, task: int, email: str) -> None:
        """Open a task and, of its answers, another person's."""
        self.open(project, task)
        self.page.locator(f".lsf-annotation-button:has([alt='{email.upper()}'])").click()
        self._answer_settles()

    @property
    def has_task(self) -> bool:
        """Whether there is one on the page; else the queue is empty."""
        return self.page.locator(".pf").count() > 0

    # --- what is seen -----------------------------------------------------------------------------------------

    def box(self, name: str) -> Locator:
        """A box: guide, history, prompt, or the letter of a response."""
        if len(name) > 1:
            return self.page.locator(f".pf-{name}")
        return self.page.locator(".pf-response .pf-box").nth("abcdef".index(name))

    def text(self, name: str) -> str:
        """What can be read in a box."""
        return self.box(name).frame_locator("iframe").locator("body").inner_text().strip()

    def responses(self) -> dict[str, str]:
        """The letter of each response to what can be read of it."""
        count = self.page.locator(".pf-response").count()
        return {letter: self.text(letter) for letter in "abcdef"[:count]}

    def chosen(self) -> list[str]:
        """The marked choices, in words."""
        return [choice.split("[")[0] for choice in self.page.locator(".pf label:has(:checked)").all_inner_texts()]

    def see(self, name: str) -> None:
        """Keep a picture of the window, if pictures are wanted."""
        if folder := os.environ.get("ALIGN_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}-{self.look}.png")

    # --- what is done -----------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """A key that marks a choice."""
        before = self.chosen()
        self.page.keyboard.press(key)
        for _ in range(PATIENCE // 40):
            if self.chosen() != before:
                return
            self.page.wait_for_timeout(40)
        raise AssertionError(f"key {key} marked nothing")

    def click(self, words: str) -> None:
        """A choice, by the mouse."""
        self.page.locator(f".pf label:has(input[name={json.dumps(words)}])").click()

    def rate(self, letter: str, name: str, stars: int) -> None:
        response = self.page.locator(".pf-response").nth("abcdef".index(letter))
        response.locator(".pf-row", has_text=name).get_by_role("radio").nth(stars - 1).click()

    def write(self, name: str, text: str) -> None:
        """Type into the field of that name."""
        self.page.locator(f"textarea[name={name}]").click()
        self.page.keyboard.type(text)

    def unfold(self, name: str) -> None:
        """Click the warning of a box away."""
        self.box(name).frame_locator("iframe").locator("summary").first.click()

    def place(self, letter: str, place: int) -> None:
        """Drag the card of a response to a place of the ranking, 1 the best."""
        card = self.page.locator(f"[data-rbd-draggable-id=r{'abcdef'.index(letter)}]")
        target = self.page.locator(f"[data-rbd-droppable-id=place_{place}]")
        card.scroll_into_view_if_needed()
        start, end = card.bounding_box(), target.bounding_box()
        assert start and end
        mouse = self.page.mouse
        mouse.move(start["x"] + 20, start["y"] + start["height"] / 2)
        mouse.down()
        mouse.move(start["x"] + 40, start["y"] + start["height"] / 2, steps=4)
        mouse.move(end["x"] + 50, end["y"] + end["height"] - 20, steps=12)
        self.page.wait_for_function(OVER, arg=f"place_{place}")
        mouse.up()
        dropped = target.locator(f"[data-rbd-draggable-id=r{'abcdef'.index(letter)}]")
        self.page.wait_for_function(AT_REST, arg=dropped.element_handle())

    # --- how it is sent ---------------------------------------------------------------------------------------

    def submit(self, *, by_key: bool) -> None:
        """Send the answer and come to the next task, or to the end of the queue."""
        self._next(lambda: self.page.keyboard.press("Control+Enter") if by_key else self._button("Submit"))

    def skip(self) -> None:
        self._next(lambda: self._button("Skip"))

    def update(self) -> None:
        """Send an answer that was changed."""
        self._sent(lambda: self._button("Update"))

    def delete(self) -> None:
        """Delete the answer on the page."""
        self.page.locator(".lsf-annotation-button_selected .lsf-annotation-button__trigger").click()
        self.page.get_by_text("Delete Annotation").click()
        self._sent(lambda: self.page.get_by_test_id("dialog-ok-button").click())

    def leave(self) -> None:
        self.page.context.close()

    def _button(self, name: str) -> None:
        self.page.get_by_test_id(f"bottombar-{name.lower()}-button").click()

    def _sent(self, act: Callable[[], object]) -> None:
        with self.page.expect_response(
            lambda reply: reply.request.method != "GET" and bool(SENT.search(reply.url))
        ) as reply:
            act()
        assert reply.value.ok

    def _next(self, act: Callable[[], object]) -> None:
        before = self.page.evaluate(TASK)
        self._sent(act)
        self.page.wait_for_function(MOVED, arg=before)
        self._settle()

    def _answer_settles(self) -> None:
        """Wait for an answer that was sent before: marks made sooner are lost, or belong to no answer."""
        self.page.wait_for_selector(".lsf-annotation-button_selected")
        self.page.wait_for_selector(".pf label :checked", state="attached")
        self.page.wait_for_load_state("networkidle")
        self._settle()

    def _settle(self) -> None:
        """Wait for a task with all its pages, or for word that there is none."""
        self.page.wait_for_selector(".pf-verdict, :text('No More Tasks')")
        if self.has_task:
            self.page.wait_for_function(LOADED)
