"""The Hub's pages in a real Chromium: by keyboard, without JavaScript, in two languages, and while figures change."""

import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from helpers.hub import PASSWORD, PROFILES, Hub, Visitor

pytestmark = pytest.mark.browser

QUICK = """
import http.server, os, urllib.parse
where = urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<h1>here is the server</h1>")
http.server.ThreadingHTTPServer(("127.0.0.1", where.port), Server).serve_forever()
"""
GPUS = """
  - slug: gpu
    name: GPU
    resources: {cpu: 1, memory: 256M, gpus: 2, gpu_kind: Fake H100}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("pages") / "data"
    env = {"KAJIYA_FAKE_GPUS": "2xFake H100:80G"}
    cmd = [sys.executable, "-P", "-c", QUICK]
    with Hub(root, cmd=cmd, profiles=PROFILES.rstrip() + GPUS, prepare_seconds=1.5, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def admin(hub: Hub) -> Visitor:
    return hub.first("meister")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1180, "height": 900}, locale="en-US")
    yield context.new_page()
    context.close()


def sign_in(page: Page, hub: Hub, admin: Visitor, name: str) -> None:
    hub.person(admin, name)
    page.goto(hub.url + "hub/login?next=%2Fhub%2Fspawn")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/hub/spawn**")


def test_from_the_invitation_to_the_server_by_keyboard_alone(hub: Hub, admin: Visitor, page: Page) -> None:
    page.goto(admin.invite())
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("keys")
    for field in ("#password", "#again"):
        page.locator(field).focus()
        page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/hub/spawn**")
    expect(page.get_by_role("radio", name="Small", exact=True)).to_be_checked()
    page.get_by_role("radio", name="Small", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Flexible")).to_be_checked()
    cache = page.get_by_role("group", name="Cache")
    expect(cache).to_be_hidden()
    page.get_by_role("radio", name="Little").focus()
    page.keyboard.press("ArrowRight")
    expect(cache).to_be_visible()
    expect(page.locator('[data-profile="flexible"] [data-gives="memory"]')).to_have_text("1 GiB")
    page.keyboard.press("Enter")
    page.wait_for_url("**/spawn-pending/**")
    steps = page.locator("#steps")
    expect(steps).to_contain_text("Making your environment")
    expect(page.get_by_role("progressbar")).to_be_visible()
    page.wait_for_url("**/user/keys/**", timeout=30_000)
    expect(page.get_by_role("heading")).to_have_text("here is the server")
    page.goto(hub.url + "hub/home")
    expect(page.locator(".servers")).to_contain_text("running")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".servers")).to_contain_text("stopped", timeout=20_000)
    page.goto(hub.url + "hub/spawn")
    expect(page.get_by_role("radio", name="Flexible")).to_be_checked()
    expect(page.get_by_role("radio", name="Much")).to_be_checked()


def test_figures_change_while_the_page_is_open_and_nothing_moves(hub: Hub, admin: Visitor, page: Page) -> None:
    sign_in(page, hub, admin, "watcher")
    page.evaluate(
        """() => {
            window.moved = 0;
            new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) window.moved += entry.value;
            }).observe({ type: "layout-shift" });
        }"""
    )
    gpu = page.locator('[data-profile="gpu"]')
    expect(gpu).to_contain_text("2 of 2 free")
    gpu.locator("label").first.click()
    expect(page.get_by_role("button", name="Start my server")).to_be_enabled()
    taker = hub.person(admin, "taker")
    assert taker.spawn(profile="gpu").status_code == 302
    expect(gpu).to_contain_text("0 of 2 free", timeout=20_000)
    expect(gpu).to_contain_text("Not enough GPUs")
    expect(page.get_by_role("button", name="Start my server")).to_be_disabled()
    taker.call("DELETE", "hub/api/users/taker/server")
    expect(gpu).to_contain_text("2 of 2 free", timeout=20_000)
    expect(page.get_by_role("button", name="Start my server")).to_be_enabled()
    assert page.evaluate("window.moved") == 0


def test_all_of_it_works_without_javascript(hub: Hub, admin: Visitor, chromium: Browser) -> None:
    context = chromium.new_context(java_script_enabled=False, locale="ja-JP")
    page = context.new_page()
    page.goto(admin.invite(name="静か"))
    page.locator("#password").fill(PASSWORD)
    page.locator("#again").fill(PASSWORD)
    page.get_by_role("button", name="アカウントを作成").click()
    expect(page.get_by_role("heading", name="プロファイルを選ぶ")).to_be_visible()
    page.locator("label", has_text="Flexible").click()
    page.get_by_role("button", name="サーバーを起動").click()
    expect(page.get_by_role("heading", name="サーバーを起動しています")).to_be_visible()
    expect(page.get_by_role("heading", name="here is the server")).to_be_visible(timeout=30_000)
    context.close()


def test_a_failure_stands_on_the_page_and_leads_back(hub: Hub, admin: Visitor, page: Page) -> None:
    sign_in(page, hub, admin, "unlucky")
    flag = hub.root / "break-environment"
    flag.touch()
    try:
        page.get_by_role("button", name="Start my server").click()
        expect(page.get_by_role("heading", name="Your server did not start")).to_be_visible(timeout=20_000)
        expect(page.locator("#steps")).to_contain_text("no route to the index")
    finally:
        flag.unlink()
    page.get_by_role("link", name="Choose again").click()
    expect(page.get_by_role("heading", name="Choose a profile")).to_be_visible()


def test_a_start_can_be_called_off(hub: Hub, admin: Visitor, page: Page) -> None:
    sign_in(page, hub, admin, "undecided")
    page.get_by_role("button", name="Start my server").click()
    page.wait_for_url("**/spawn-pending/**")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_url("**/hub/home")
    expect(page.locator(".servers")).to_contain_text("stopped", timeout=20_000)


def test_nobody_is_shown_what_a_hostile_name_holds(hub: Hub, admin: Visitor, page: Page) -> None:
    alerts: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto(admin.invite())
    for field, text in (("#name", "<img src=x onerror=alert(1)>"), ("#password", PASSWORD), ("#again", PASSWORD)):
        page.locator(field).fill(text)
    page.get_by_role("button", name="Create my account").click()
    expect(page.get_by_role("alert")).to_contain_text("letters and digits of any script")
    assert alerts == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_follow_the_system_and_can_be_switched(hub: Hub, chromium: Browser, scheme: str) -> None:
    context = chromium.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(hub.url + "hub/login")

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    first = background()
    assert (sum(map(int, first[4:-1].split(","))) < 200) is (scheme == "dark")
    page.get_by_role("button", name="Switch between light and dark").click()
    second = background()
    assert second != first
    page.reload()
    assert background() == second, "the choice is remembered"
    context.close()
