"""The page in a real browser: it says what the board says, to everybody, and finds the host again.

Needs `pip install playwright axe-playwright-python` and a Chromium of the system; without, what can
be tested of the page without a browser is in test_model_js.py.
"""

import asyncio
import shutil
import threading
from contextlib import contextmanager

import pytest
from tests.unit.web.cast import Seen

from atoll import events
from atoll.web.admin import Admin
from atoll.web.server import serving

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install -e '.[browser]'"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="no axe: pip install -e '.[browser]'"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
PATIENCE_MS = 60_000
TOKEN = "a" * 64


class Dashboard:
    """A dashboard that is served by a thread; `do` lets something happen in its run."""

    def __init__(self, seen: Seen, *, operator=None, port=0):
        self.seen, self.port = seen, port
        self._operator = operator
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self):
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        admin = Admin(self._operator, token=TOKEN) if self._operator else None
        async with serving(
            self.seen.board,
            host="127.0.0.1",
            port=self.port,
            on_failure=pytest.fail,
            admin=admin,
        ) as self.port:
            self._started.set()
            await self._ended.wait()

    def start(self):
        self._thread.start()
        assert self._started.wait(30)

    def do(self, *what):
        async def act():
            what[0](*what[1:])

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(30)

    def end(self):
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()


@contextmanager
def served(seen, **options):
    dashboard = Dashboard(seen, **options)
    dashboard.start()
    try:
        yield dashboard
    finally:
        dashboard.end()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Return a function that opens the page; it fails the test if the page reports any error."""
    contexts, errors = [], []

    def open_page(dashboard, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"http://127.0.0.1:{dashboard.port}/")
        page.wait_for_selector('[data-state="live"]')
        return page

    requested: list[str] = []
    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert {url.split("/")[2].split(":")[0] for url in requested} <= {"127.0.0.1"}


def has_count(page, selector, number):
    sync_api.expect(page.locator(selector)).to_have_count(number, timeout=PATIENCE_MS)


def text_of(page, selector):
    return " ".join(page.inner_text(selector).split())


def test_the_page_says_what_the_journal_says_and_follows_it(seen, opened):
    with served(seen) as dashboard:
        page = opened(dashboard)
        assert "2 of 50 rounds committed" in text_of(page, "#progress-text")
        names = page.locator("#peers-table tbody .who").all_inner_texts()
        assert sorted(names) == ["peer-0", "peer-1", "peer-2"]
        assert page.locator("#ring .island").count() == 3
        anna = next(iter(seen.board.fold.peers))
        dashboard.do(seen.lost, anna)
        page.wait_for_selector('#ring .island[data-doing="away"]')
        page.wait_for_selector("text=Cut off for now: peer-0.")
        assert "away" in text_of(page, '#peers-table tr:has-text("peer-0")')
        dashboard.do(seen.passes, 40.0)
        dashboard.do(seen.tick)
        page.locator("#rounds-table button").last.click()
        page.wait_for_selector("#rounds-table .details li")
        roster = text_of(page, "#rounds-table .details")
        assert all(name in roster for name in names)
        page.locator("#journal").scroll_into_view_if_needed()
        page.wait_for_selector(f'#journal-table td[title="{seen.entries[-1].hash}"]')


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1360, 900), (390, 844)])
def test_axe_finds_nothing(seen, opened, scheme, width, height):
    """The accessibility rules of axe-core, with a run that has concerns, and before it begins."""
    for run in (seen, Seen.new(min_peers=2)):
        if run is seen:
            first, second, _ = run.board.fold.peers
            run.lost(first)
            place(run, second, "Lisbon, PT")
        with served(run) as dashboard:
            size = {"width": width, "height": height}
            page = opened(dashboard, viewport=size, color_scheme=scheme)
            for summary in page.locator("summary").all():
                summary.click()
            found = axe.Axe().run(page).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def place(run, peer, words):
    run.report(events.PeerJoined(peer=peer, name="", device="cpu", reachable=True, place=words))


def test_peers_are_on_the_map_where_they_say_that_they_are(seen, opened):
    first, second, third = seen.board.fold.peers
    with served(seen) as dashboard:
        page = opened(dashboard)
        page.wait_for_selector("#map-empty:visible")
        dashboard.do(place, seen, first, "Lisbon, PT")
        page.wait_for_selector('#map text:has-text("Lisbon, PT")')
        dashboard.do(place, seen, second, "Porto, Portugal")
        page.wait_for_selector('#map text:has-text("Portugal")')
        dashboard.do(place, seen, third, "a boat")
        page.wait_for_selector('#places li:has-text("a boat")')
        has_count(page, "#map .spot", 1)
        said = [text_of(page, f"#places li:nth-child({row})") for row in (1, 2)]
        assert said == ["Portugal 2 peers, 67 %", "a boat 1 peer, 33 %"]


def test_a_name_is_text_whatever_it_is(opened):
    seen = Seen.new()
    name = '<img src=x onerror="document.title=1">&amp;'
    seen.admit("7" * 32, name)
    with served(seen) as dashboard:
        page = opened(dashboard)
        assert page.locator("#peers-table tbody .who").inner_text() == name
        assert page.locator("img").count() == 0


def test_the_page_finds_a_host_that_was_started_again(seen, opened):
    with served(seen) as dashboard:
        page = opened(dashboard)
        port = dashboard.port
    page.wait_for_selector('[data-state="lost"]')
    seen.gather(1, start=3)
    with served(seen, port=port):
        page.wait_for_selector('[data-state="live"]')
        page.wait_for_selector('#peers-table tbody .who:has-text("peer-3")')


def test_everything_can_be_reached_from_the_keyboard(seen, opened):
    with served(seen) as dashboard:
        page = opened(dashboard)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the run"
        page.locator("#peers-table th button", has_text="Name").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector('#peers-table th[aria-sort="ascending"]:has-text("Name")')
        names = page.locator("#peers-table tbody .who").all_inner_texts()
        assert names == sorted(names)
        page.locator("#filter").fill("peer-2")
        has_count(page, "#peers-table tbody tr", 1)


def test_a_thousand_peers_are_drawn_and_found(opened):
    seen = Seen.new()
    peers = seen.crowd(1000)
    with served(seen) as dashboard:
        page = opened(dashboard)
        has_count(page, "#ring .island", 1000)
        dashboard.do(seen.lost, peers[-1])
        page.wait_for_selector('#ring .island[data-doing="away"]', state="attached")
        page.locator("#filter").fill("peer-999")
        has_count(page, "#peers-table tbody tr", 1)


def test_the_operator_signs_in_the_browser(seen, opened):
    from tests.unit.web.test_admin import Noting

    operator = Noting()
    with served(seen, operator=operator) as dashboard:
        page = opened(dashboard)
        page.locator("#operate summary").click()
        page.locator("#token").fill("wrong")
        page.get_by_role("button", name="Pause").click()
        page.wait_for_selector("text=Not done: this is not the operator's signature")
        page.locator("#token").fill(TOKEN)
        page.get_by_role("button", name="Pause").click()
        page.wait_for_selector("text=no new round begins; those")
        page.locator("#target").fill("peer-1")
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Remove the peer").click()
        page.wait_for_selector("text=is out of the run")
        page.get_by_role("button", name="Make an invite").click()
        page.wait_for_selector("text=atoll join atoll1...")
    second = list(seen.board.fold.peers)[1]
    assert operator.asked == ["pause", ("remove", second, ""), ("invite", 1, 7.0)]
