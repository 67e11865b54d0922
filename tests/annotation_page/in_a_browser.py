"""The pages as people use them: with a mouse, in headless Chromium."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from alseg.annotation_page.desk import Desk
from alseg.annotation_page.review_desk import ReviewDesk
from alseg.annotation_page.server import start
from tests.waiting import wait_for


def until(condition: Callable[[], Any], what: str, seconds: float = 300.0) -> Any:
    """What the condition gives, once it gives something."""
    return wait_for(condition, seconds, what)


class Page:
    """A tab with the page in it, and what a person does there."""

    def __init__(self, browser: Any, address: str, annotator: str) -> None:
        from selenium.webdriver import ActionChains

        self.browser, self.actions = browser, ActionChains
        browser.switch_to.new_window("tab")
        self.tab = browser.current_window_handle
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get(address)
        until(lambda: self.find("#name-dialog[open]"), "the question for a name")
        field = self.find("#name")[0]
        field.clear()
        field.send_keys(annotator)
        self.press("#name-dialog .primary")

    def find(self, selector: str) -> list[Any]:
        self.browser.switch_to.window(self.tab)
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def fresh(self, act: Callable[[], Any]) -> Any:
        """What comes of an act, again if the page renews its elements meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException

        def results() -> list[Any]:
            try:
                return [act()]
            except (StaleElementReferenceException, IndexError):  # such as the list of cases
                return []

        return until(results, "elements that stay")[0]

    def press(self, selector: str) -> None:
        self.fresh(lambda: self.find(selector)[0].click())

    def text(self, selector: str) -> str:
        text: str = self.fresh(lambda: " ".join(found.text for found in self.find(selector)))
        return text

    def run(self, script: str) -> Any:
        self.browser.switch_to.window(self.tab)
        return self.browser.execute_script(script)

    def wait_for(self, case_id: str) -> None:
        until(
            lambda: self.run("return document.body.dataset.open") == case_id,
            f"{case_id}; the page says {self.text('#message')} {self.text('#cover')}",
        )

    def key(self, keys: str) -> None:
        self.find("#canvas")
        self.actions(self.browser).send_keys(keys).perform()

    def stroke(self, *points: tuple[int, int]) -> None:
        """Drag the mouse from one point to the next; they are relative to the middle."""
        canvas = self.find("#canvas")[0]
        actions = self.actions(self.browser, duration=20)
        actions.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
        for (x, y), (to_x, to_y) in pairwise(points):
            actions.move_by_offset(to_x - x, to_y - y)
        actions.release().perform()

    def drag_right(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Drag with the right button; points are relative to the middle."""
        canvas = self.find("#canvas")[0]
        actions = self.actions(self.browser, duration=20)
        actions.move_to_element_with_offset(canvas, *start)
        actions.w3c_actions.pointer_action.pointer_down(button=2)
        actions.move_by_offset((end[0] - start[0]) // 2, (end[1] - start[1]) // 2)
        actions.move_by_offset((end[0] - start[0]) // 2, (end[1] - start[1]) // 2)
        actions.w3c_actions.pointer_action.pointer_up(button=2)
        actions.perform()

    def drawing(self) -> np.ndarray:
        """What is drawn, in the order of axes of the page."""
        dims = self.run("return [...viewer.nv.back.dims].slice(1, 4)")
        coded = self.run(
            "let t = ''; for (const v of viewer.nv.drawBitmap) t += String.fromCharCode(v);"
            "return btoa(t)"
        )
        return np.frombuffer(base64.b64decode(coded), np.uint8).reshape(dims, order="F")

    def drawn_grey_values(self) -> dict[int, set[float]]:
        """The grey values that the viewer shows at the voxels of each class."""
        found: dict[str, list[float]] = self.run(
            "const nv = viewer.nv, [, nx, ny, nz] = nv.back.dims, found = {}; let i = 0;"
            "for (let z = 0; z < nz; z++) for (let y = 0; y < ny; y++)"
            " for (let x = 0; x < nx; x++, i++) { const v = nv.drawBitmap[i];"
            " if (v) (found[v] ??= []).push(nv.back.getValue(x, y, z)); } return found"
        )
        return {int(value): set(greys) for value, greys in found.items()}

    def wait_until_saved(self) -> None:
        until(lambda: "draft saved" in self.text("#saved"), "the draft to be saved")

    def submit(self) -> None:
        self.press("#submit")
        until(lambda: self.find("#submit-dialog[open]"), "the question whether to submit")
        self.press("#submit-ok")


def errors(browser: Any) -> list[str]:
    """What the console holds against the page, such as a violated policy; no refusals."""
    log = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in log if "Failed to load resource" not in message]


@contextmanager
def served(desk: Desk | ReviewDesk) -> Iterator[str]:
    address, server = start(desk, 8765)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
