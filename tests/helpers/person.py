"""Somebody with a browser: signs in, picks a profile, and works in JupyterLab as a user would."""

import json
import re
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Locator, Page, expect

from helpers.stack import PASSWORD, Stack

IMAGES = Path(__file__).resolve().parents[2] / "build" / "screenshots"
SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden)"
FIRST_START = 240_000  # ms: the base of environments may have to be made


def run_cell(cell: Locator) -> Locator:
    """Runs a code cell, again where JupyterLab ignored it: before its kernel is connected it runs and says nothing."""
    prompt = cell.locator(".jp-InputPrompt").first
    for _ in range(12):
        cell.locator(".cm-content").first.click()
        cell.page.keyboard.press("Control+Enter")
        try:
            expect(prompt).not_to_have_text(re.compile(r"^\[ \]"), timeout=5_000)
            return cell
        except AssertionError:
            continue
    raise AssertionError("JupyterLab ran nothing for a minute")


class Person:
    """One browser window. Everything is found by role, label or text, as a person finds it."""

    def __init__(self, chromium: Browser, stack: Stack, name: str, language: str, scheme: str) -> None:
        self.stack, self.name = stack, name
        self.context = chromium.new_context(
            viewport={"width": 1280, "height": 860},
            locale={"en": "en-GB", "ja": "ja-JP"}[language],
            color_scheme="dark" if scheme == "dark" else "light",
        )
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))

    def close(self) -> None:
        """Closes the window, as one who goes home."""
        self.context.close()

    def shot(self, name: str, what: Locator | None = None) -> None:
        """A picture for the README and docs, under build/screenshots."""
        IMAGES.mkdir(parents=True, exist_ok=True)
        (what or self.page).screenshot(path=IMAGES / f"{name}.png")

    # --- the Hub
    def go(self, path: str) -> None:
        self.page.goto(self.stack.url + path)

    def open_link(self, link: str) -> None:
        """Opens a sign-in link or an invitation, and chooses name and password where asked."""
        page = self.page
        page.goto(link)
        if page.locator("input[name=again]").count():
            if page.locator("input[name=name]:not([readonly])").count():
                page.fill("input[name=name]", self.name)
            page.fill("input[name=password]", PASSWORD)
            page.fill("input[name=again]", PASSWORD)
        page.locator("form button.primary").first.click()
        page.wait_for_url(re.compile("/hub/(home|spawn)"))

    def join(self) -> None:
        """Becomes a user: the administrator where there is none, else by an invitation."""
        known = {u["name"] for u in json.loads(self.stack.run("users", "--json"))}
        if not known:
            self.open_link(self.stack.run("link"))
        elif self.name in known:
            self.open_link(self.stack.run("link", self.name))
        else:
            self.open_link(self.stack.run("invite", self.name))

    def pick(self, profile: str) -> None:
        """Chooses a profile card and starts the server."""
        self.page.get_by_role("radio", name=profile).first.check(force=True)
        self.page.locator("form button.primary").first.click()

    def start_server(self, profile: str = "Small") -> None:
        """From the picker into JupyterLab."""
        self.go("hub/spawn")
        self.pick(profile)
        self.wait_for_lab()

    def wait_for_lab(self) -> None:
        self.page.wait_for_url(re.compile(r"/user/[^/]+/lab"), timeout=FIRST_START)
        expect(self.page.locator(".jp-DirListing-item").first).to_be_visible(timeout=90_000)

    def stop_server(self) -> None:
        """As with the button on the Hub's home page."""
        self.go("hub/home")
        self.page.get_by_role("button", name="Stop").first.click()
        expect(self.page.get_by_role("link", name="Start").first).to_be_visible(timeout=60_000)

    # --- JupyterLab
    def open_notebook(self, name: str, *sources: str) -> None:
        """Opens a notebook from the file browser; with sources, one that holds these cells."""
        if sources:
            kernel = {"name": "python3", "display_name": "Python 3 (default)", "language": "python"}
            cells = [nbformat.v4.new_code_cell(s) for s in sources]
            notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
            (self.stack.settings.homes.of(self.name).path / name).write_text(nbformat.writes(notebook), "utf-8")
            self.page.get_by_role("button", name=re.compile("Refresh the file browser")).click()
        item = self.page.locator(".jp-DirListing-item", has_text=name).first
        item.dblclick()
        expect(self.page.locator(f"{SHOWN} .jp-Cell").first).to_be_visible(timeout=60_000)
        # Before its kernel is connected, JupyterLab runs nothing and says nothing.
        connected = self.page.get_by_role("button", name=re.compile(r"Python 3 \(default\) \| Idle"))
        expect(connected).to_be_visible(timeout=90_000)

    def run_cell(self, n: int = 0) -> Locator:
        """Runs the code cell `n` of the notebook in front; returns the cell."""
        return run_cell(self.page.locator(f"{SHOWN} .jp-CodeCell").nth(n))

    def terminal(self) -> None:
        """Opens a terminal from a new launcher."""
        self.page.get_by_role("button", name=re.compile("New Launcher")).first.click()
        self.page.locator('.jp-LauncherCard[data-category="Other"]:visible', has_text="Terminal").first.click()
        expect(self.page.locator(".jp-Terminal:visible .xterm-screen").last).to_be_visible(timeout=30_000)
