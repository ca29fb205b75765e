"""Looks at the dashboard in a real browser, as one of its readers would.

    page.py CHECK URL FOLDER [ARGUMENT...]

Playwright drives the Chromium that CHROMIUM names. Whatever the check: nothing is asked of another host, and neither the
page nor its policy has anything to complain about. Pictures are left in FOLDER.
"""

import contextlib
import os
import re
import sys
import urllib.parse

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

WAIT_MS = 120_000
PHONE, LAPTOP, WALL = (390, 844), (1280, 900), (2560, 1440)
# Chromium asks hosts of its own for this and that, and as root it has no sandbox.
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--no-sandbox"]


class Reader:
    """A browser's tab on the page, and what went wrong in it."""

    def __init__(self, browser, url, size, theme):
        self.url = url
        # A locale of its own: the machine's may be one that browsers do not know.
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, locale="en-US", reduced_motion="reduce")
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints = []
        self.requests = 0
        # Refused answers are told there, too, and some checks are about them; so is our own look at the canvas.
        self.page.on("console", lambda message: self._complain(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self._complain(str(error)))
        self.page.on("dialog", lambda dialog: self._complain(f"dialog: {dialog.message}"))
        self.page.on("request", self._request)
        self.page.goto(url)

    def _complain(self, text):
        if "Failed to load resource" not in text and "willReadFrequently" not in text:
            self.complaints.append(text)

    def _request(self, request):
        self.requests += 1
        if urllib.parse.urlsplit(request.url).netloc != urllib.parse.urlsplit(self.url).netloc:
            self._complain(f"asks another host: {request.url}")

    def state(self, state):
        expect(self.page.locator("#state")).to_have_attribute("data-state", state, timeout=WAIT_MS)

    def says(self, text):
        expect(self.page.locator("#concerns")).to_contain_text(text, timeout=WAIT_MS)

    def tile(self, name):
        return self.page.locator(".tile", has=self.page.locator("dt", has_text=re.compile(f"^{name}$"))).locator("dd").first

    def close(self, picture):
        self.page.screenshot(path=picture, full_page=True)
        self.page.context.close()
        assert not self.complaints, self.complaints


@contextlib.contextmanager
def reading(browser, url, picture, size=LAPTOP, theme="light"):
    reader = Reader(browser, url, size, theme)
    yield reader
    reader.close(picture)


def steady(browser, url, folder):
    """Under load: in both themes, from phone to wall, everything is there and fits."""
    for theme, size in [("light", LAPTOP), ("dark", LAPTOP), ("dark", PHONE), ("light", PHONE), ("light", WALL)]:
        with reading(browser, url, f"{folder}/steady-{theme}-{size[0]}.png", size, theme) as reader:
            page = reader.page
            reader.state("healthy")
            expect(page.locator("#batches tbody tr").first).to_contain_text("completed")
            expect(reader.tile("Committed")).not_to_have_text("0/s")
            expect(reader.tile("Ack, P99")).to_have_text(re.compile(r"^[\d.,]+ (µs|ms|s)$"))
            assert page.locator("#charts canvas").count() == page.locator("#charts figure").count() == 12
            expect(page.locator("#charts figure").first).to_contain_text(re.compile(r"committed [\d,.]*[1-9]"))
            wait_for_line(page)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{size}: it scrolls sideways"
            violations = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
            assert violations.violations_count == 0, violations.generate_report()


def wait_for_line(page):
    """Until the first chart's canvas has the colour of its first line."""
    page.wait_for_function("""() => {
        const canvas = document.querySelector("#charts canvas");
        const colour = getComputedStyle(document.documentElement).getPropertyValue("--blue").trim();
        const wanted = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        for (let at = 0; at < data.length; at += 4) {
            // Its edges are blended with what is beneath.
            if (wanted.every((part, index) => Math.abs(data[at + index] - part) < 40) && data[at + 3] > 120) return true;
        }
        return false;
    }""")


def keyboard(browser, url, folder):
    """By keyboard alone: skip link, values of a second, pause, theme, look-back."""
    with reading(browser, url, f"{folder}/keyboard.png") as reader:
        page = reader.page
        reader.state("healthy")
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        chart = page.get_by_role("img", name=re.compile("^Events per second"))
        chart.focus()
        for key in ["ArrowLeft", "ArrowLeft", "ArrowRight"]:
            page.keyboard.press(key)
        expect(chart).to_have_attribute("aria-label", re.compile(r"at \d\d:\d\d:\d\d: accepted [\d,.]+/s"))
        expect(page.locator("#charts figure").nth(1).locator(".at")).to_have_text(re.compile(r"^at \d\d:\d\d:\d\d$"))
        page.get_by_role("radio", name="1 min").focus()
        page.keyboard.press("Space")
        expect(page.get_by_role("radio", name="1 min")).to_be_checked()
        page.get_by_role("combobox", name="Theme").select_option("dark")
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        reader.state("healthy")
        page.get_by_role("button", name="Pause").press("Enter")
        expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "true")
        page.wait_for_load_state("networkidle")
        before = reader.requests
        page.wait_for_timeout(2500)
        assert reader.requests == before, "a paused page asks for nothing"


def outage(browser, url, folder):
    """While PostgreSQL is away."""
    for theme in ["light", "dark"]:
        with reading(browser, url, f"{folder}/outage-{theme}.png", theme=theme) as reader:
            reader.state("degraded")
            reader.says("PostgreSQL is unavailable")
            reader.says("safe in the journal")
            expect(reader.page.locator("#said")).to_have_text("PostgreSQL is unavailable.")
            expect(reader.tile("PostgreSQL")).to_have_text("failing")
            expect(reader.tile("Waiting")).not_to_have_text("0")
            expect(reader.page.locator("#batches tbody tr").first).to_contain_text("queued")


def well(browser, url, folder):
    """Nothing is wrong, and nothing waits."""
    with reading(browser, url, f"{folder}/well.png") as reader:
        reader.state("healthy")
        expect(reader.page.locator("#concerns")).to_have_text("None.")
        expect(reader.tile("Waiting")).to_have_text("0")


def refused(browser, url, folder, message):
    """Events that PostgreSQL refuses: the reason is there as text, whatever is in it."""
    with reading(browser, url, f"{folder}/refused.png") as reader:
        reader.says("PostgreSQL is rejecting events")
        expect(reader.page.locator("#dead-letters tbody tr").first).to_contain_text(message)
        expect(reader.page.locator("#troubled tbody tr").first).to_contain_text(re.compile("partial|failed"))


def key(browser, url, folder, token, *hidden):
    """A server with keys asks for one, says what is wrong with it, and shows what it may show."""
    with reading(browser, url, f"{folder}/key.png") as reader:
        page = reader.page
        field = page.get_by_label("API key with the scope metrics")
        expect(field).to_be_focused()
        violations = Axe().run(page)
        assert violations.violations_count == 0, violations.generate_report()
        field.fill("ingestd_wrong")
        page.get_by_role("button", name="Show the metrics").click()
        expect(page.locator("#key-reason")).to_contain_text("is unknown to this server")
        field.fill(token)
        field.press("Enter")
        reader.state("healthy")
        expect(field).to_be_hidden()
        expect(page.locator("#batches")).to_contain_text("mine")
        shown = page.content()
        assert token not in shown
        for text in hidden:
            assert text not in shown, f"{text} is not for this key"
        page.reload()
        reader.state("healthy")


def gone(browser, url, folder):
    """The page says when its server does not answer, and goes on when it does: the test stops and continues it."""
    with reading(browser, url, f"{folder}/gone.png") as reader:
        reader.state("healthy")
        print("stop it", flush=True)
        reader.state("away")
        reader.says("This node is not responding")
        print("continue it", flush=True)
        reader.state("healthy")


CHECKS = {check.__name__: check for check in [steady, keyboard, outage, well, refused, key, gone]}


def main(check, url, folder, *arguments):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=QUIET, timeout=WAIT_MS)
        CHECKS[check](browser, url, folder, *arguments)
        browser.close()


main(*sys.argv[1:])
