"""The page in headless Chromium: what people do with it, and what the browser sends and stores."""

import contextlib
import csv
import io
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from helpers import free_port
from PIL import Image

from dfganext import cli, demo
from dfganext.data import discovery
from dfganext.demo import page as demo_page
from dfganext.demo import uploads
from dfganext.demo.uploads import Uploads

api = pytest.importorskip("playwright.sync_api")

THREE = ("a.png", "b.png", "broken.jpg")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(model):
    """A running demo: its address, and the folder of uploads."""
    made, ready, stop = [], threading.Event(), threading.Event()
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "Uploads", lambda: made.append(Uploads()) or made[0])
        arguments = (str(model), port, lambda url: ready.set(), stop)
        thread = threading.Thread(target=demo.serve, args=arguments)
        thread.start()
        assert ready.wait(60)
        yield f"http://127.0.0.1:{port}", made[0].folder
        stop.set()
        thread.join(60)
    assert not made[0].folder.exists()


@pytest.fixture
def opened(browser, served):
    """A function that opens the page; at the end, nothing was sent to another host, and no error was logged."""
    with contextlib.ExitStack() as stack:
        wrong = []

        def open_page(width=1280, height=900, query="", **options):
            context = browser.new_context(viewport={"width": width, "height": height}, locale="en-US", **options)
            stack.callback(context.close)
            page = context.new_page()
            page.on("requestfinished", lambda request: wrong.extend(other_host(request.url)))
            page.on("websocket", lambda socket: wrong.extend(other_host(socket.url)))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(served[0] + query)
            page.wait_for_selector(".df-picker")
            return page

        yield open_page
    assert wrong == []


def other_host(url):
    parts = urlsplit(url)
    return [] if parts.scheme in ("data", "blob") or parts.hostname == "127.0.0.1" else [url]


def choose(page, folder, names=THREE):
    page.set_input_files(".df-picker input[type=file]", [folder / name for name in names])
    return answered(page, names)


def answered(page, names):
    page.wait_for_function(
        "count => document.querySelectorAll('.df-card').length === count && !document.querySelector('.pending')",
        arg=len(names),
    )
    return [text.strip() for text in page.locator(".df-card .df-decision").all_inner_texts()]


def predicted(folder, model, names, monkeypatch, *options):
    """The text of the CSV file that `dfganext predict` writes."""
    monkeypatch.chdir(folder)
    cli.main(["predict", *names, "--csv", "../rows.csv", "--model", str(model), *options])
    return Path("../rows.csv").read_text()


def test_images_are_chosen_and_the_csv_is_that_of_predict(opened, served, pictures, model, monkeypatch, capsys):
    page = opened()
    assert page.title() == demo_page.TITLE and page.get_attribute("html", "lang") == "en"
    names = sorted(path.name for path in pictures.iterdir())
    shown = choose(page, pictures, names)
    with page.expect_download() as download:
        page.click("text=Download CSV")
    found = Path(download.value.path()).read_text()
    assert found == predicted(pictures, model, names, monkeypatch)
    assert download.value.suggested_filename == "predictions.csv"
    decisions = [row["decision"] or "unreadable" for row in csv.DictReader(io.StringIO(found))]
    assert [text.lower() for text in shown] == decisions
    assert page.locator("tbody tr").count() == len(decisions)
    assert [path for path in served[1].rglob("*") if path.is_file()] == []
    assert page.evaluate("indexedDB.databases()") == []  # where Gradio's history of runs would be
    assert page.locator(".df-status").inner_text() == page.locator("#df-summary").inner_text()


def test_images_are_dropped_and_pasted(opened, pictures):
    page = opened()
    data = list((pictures / "a.png").read_bytes())
    transfer = page.evaluate_handle(
        "bytes => { const all = new DataTransfer(); all.items.add(new File([new Uint8Array(bytes)], 'dropped.png')); return all; }",
        data,
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    assert "df-dragging" in page.get_attribute("body", "class")
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    answered(page, ["dropped.png"])
    assert page.locator(".df-card h3").inner_text() == "dropped.png"
    assert "df-dragging" not in page.get_attribute("body", "class")
    page.evaluate(
        "bytes => { const all = new DataTransfer(); all.items.add(new File([new Uint8Array(bytes)], 'pasted.png'));"
        " document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: all })); }",
        data,
    )
    page.wait_for_selector("h3:has-text('pasted.png')")


def opacity(page):
    return float(page.evaluate("getComputedStyle(document.querySelector('.df-heat')).opacity"))


def test_the_keyboard_reaches_everything_and_moves_the_slider(opened, pictures):
    page = opened()
    choose(page, pictures, ["a.png"])
    assert opacity(page) == 0.6
    page.focus(".df-picker input[type=file]")
    reached = []
    for _ in range(5):
        reached.append(page.evaluate("document.activeElement.outerHTML"))
        page.keyboard.press("Tab")
    names = ('type="file"', "df-stability", "data-target", "Download CSV", 'type="range"')
    assert all(name in html for name, html in zip(names, reached, strict=True)), reached
    page.focus(".df-slider input")
    page.keyboard.press("ArrowLeft")
    assert opacity(page) == pytest.approx(0.55)
    page.keyboard.press("Home")
    assert opacity(page) == 0
    choose(page, pictures, ["b.png", "a.png"])
    assert opacity(page) == 0  # the strength that was chosen last
    assert {slider.input_value() for slider in page.locator(".df-slider input").all()} == {"0"}


def test_stability_is_checked_for_the_images_on_the_page(opened, served, pictures, model, monkeypatch, capsys):
    page = opened()
    choose(page, pictures)
    assert page.locator(".df-copies").count() == 0
    page.check(".df-stability")
    page.wait_for_selector(".df-copies")
    assert page.locator(".df-copies").count() == 2
    assert page.locator(".df-copies li").count() == 6
    with page.expect_download() as download:
        page.click("text=Download CSV")
    found = Path(download.value.path()).read_text()
    assert found == predicted(pictures, model, THREE, monkeypatch, "--stability")


def test_the_model_card_is_shown_and_loads_nothing(opened, pictures):
    page = opened()
    choose(page, pictures, ["a.png"])
    with page.expect_event("requestfailed", lambda request: other_host(request.url)) as refused:
        page.click(".df-toolbar >> text=Model card")
    assert (refused.value.url, refused.value.failure) == ("https://example.org/a.png", "csp")
    page.wait_for_selector("#df-model-card h1:text-is('A small model')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(opened, pictures, scheme):
    page = opened(query=f"?__theme={scheme}")
    choose(page, pictures)
    assert ("dark" in (page.get_attribute("body", "class") or "").split()) == (scheme == "dark")
    low = page.evaluate(
        """() => {
          const numbers = color => color.match(/[\\d.]+/g).map(Number);
          const light = color => { const [r, g, b] = numbers(color).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const ground = node => { for (; node; node = node.parentElement) {
            const color = getComputedStyle(node).backgroundColor, all = numbers(color);
            if (all.length === 3 || all[3] === 1) return color; } return "rgb(255, 255, 255)"; };
          const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), low = [];
          while (walker.nextNode()) {
            const node = walker.currentNode.parentElement;
            if (!walker.currentNode.textContent.trim() || !node.offsetParent) continue;
            const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
            const contrast = (a + 0.05) / (b + 0.05);
            if (contrast < 4.5) low.push([walker.currentNode.textContent.trim().slice(0, 40), contrast]);
          }
          return low;
        }"""
    )
    assert low == []


def test_a_dark_system_gets_the_dark_page(opened):
    page = opened(color_scheme="dark")
    page.wait_for_selector("body.dark")
    shot = Image.open(io.BytesIO(page.screenshot()))
    assert max(shot.convert("RGB").getpixel((2, 2))) < 60


def test_a_phone_does_not_scroll_sideways(opened, pictures):
    page = opened(width=390, height=844, is_mobile=True, has_touch=True)
    page.check(".df-stability")
    long = pictures / f"{'long-' * 30}.png"
    shutil.copyfile(pictures / "a.png", long)
    choose(page, pictures, [*THREE, long.name])
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".df-pictures figure").first.bounding_box()["width"] > 130


def test_too_large_and_too_many_files_are_not_sent(opened, served, pictures, monkeypatch):
    page = opened()
    sent = []
    page.on("request", lambda request: sent.extend([request.url] if "/upload" in request.url else []))
    many = page.evaluate_handle(
        "count => { const all = new DataTransfer(); for (let i = 0; i < count; i++) all.items.add(new File(['x'], `${i}.png`));"
        " return all; }",
        demo_page.MAX_FILES + 1,
    )
    page.dispatch_event("body", "drop", {"dataTransfer": many})
    page.wait_for_selector("text=101 images are more than 100: choose fewer")
    large = page.evaluate_handle(
        "size => { const file = new File(['x'], 'large.png'); Object.defineProperty(file, 'size', { value: size });"
        " return { files: [file], types: ['Files'] }; }",
        discovery.MAX_FILE_BYTES + 1,
    )
    page.evaluate(
        "transfer => { const event = new Event('drop', { cancelable: true }); event.dataTransfer = transfer;"
        " document.dispatchEvent(event); }",
        large,
    )
    page.wait_for_selector(f".df-card >> text=No decision: {discovery.TOO_LARGE}")
    assert sent == []


def test_several_people_at_once(opened, pictures):
    pages = [opened() for _ in range(3)]
    names = ["a.png", "a.png", "b.png"]  # the same file from two people: neither may remove the other's
    for page, name in zip(pages, names, strict=True):
        page.set_input_files(".df-picker input[type=file]", [pictures / name])
    for page, name in zip(pages, names, strict=True):
        answered(page, [name])
        assert page.locator(".df-card h3").inner_text() == name
        assert page.locator(".df-heat").count() == 1


def test_a_failure_is_reported_in_the_status_line(opened, pictures, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(demo_page.render, "results", fail)
    page = opened()
    page.set_input_files(".df-picker input[type=file]", [pictures / "a.png"])
    page.wait_for_selector(f".df-status >> text={demo_page.FAILED}")
