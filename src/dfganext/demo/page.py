"""The page: Gradio's blocks, theme and event. Nothing in it is loaded from another host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from dfganext.data.discovery import MAX_FILE_BYTES, TOO_LARGE, Unread, printable
from dfganext.demo import render
from dfganext.demo.analysis import Analyser
from dfganext.demo.facts import Facts
from dfganext.demo.uploads import Uploads

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TITLE = "DF-GANeXt: real, fake, or unsure"

MAX_FILES = 100
"""In one request."""
MAX_WAITING = 32
"""Requests in the queue; further ones are refused."""
MAX_RUNNING = 4
"""Requests that are answered at the same time. They share batches; see `inference.batching`."""

FONTS = ("system-ui", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif")
MONOSPACED = ("ui-monospace", "Menlo", "Consolas", "monospace")

CONTENT_SECURITY_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; form-action 'self'; frame-ancestors 'none'"
"""Browsers then load nothing from another host, and send nothing there. Gradio's components need the 'unsafe' ones."""

FAILED = "There was no answer. If too many requests are waiting, try again in a minute."

IN_MEMORY = (
    "Images are kept in this computer's memory until they have been read. They are not stored, and not sent elsewhere."
)
ON_DISK = "Images are in a temporary folder of this computer until they have been read. They are not kept, and not sent elsewhere."


class Page:
    """The page of one model. `answer` is its only event."""

    def __init__(self, analyser: Analyser, facts: Facts, uploads: Uploads) -> None:
        self.analyser, self.facts, self.uploads = analyser, facts, uploads

    def answer(self, request: dict[str, Any] | None, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        """The results for uploaded images, as HTML. Their files are removed.

        Args:
            request: files, a list of {name, path}; without a path where the browser did not send the file (too_large or failed).
                stability: whether to decide on copies too.
        """
        files = list((request or {}).get("files", []))
        stability = bool((request or {}).get("stability"))
        try:
            if len(files) > MAX_FILES:
                return render.alert(f"{len(files)} images are more than {MAX_FILES}: choose fewer.")
            if not files:
                return ""
            files.sort(key=lambda file: str(file.get("name")))
            found = []
            for result in self.analyser.analyse(self._contents(files), stability):
                found.append(result)
                progress((len(found), len(files)), desc="Predicting")
            return render.results(found, self.facts, stability)
        finally:
            for file in files:
                self.uploads.discard(str(file.get("path", "")))

    def _contents(self, files: list[dict[str, Any]]) -> Iterator[tuple[str, bytes | Unread]]:
        """Name and content of each file, read when it is asked for."""
        for file in files:
            name = printable(str(file.get("name") or "image"))
            if file.get("too_large"):
                yield name, Unread(TOO_LARGE, temporary=False)
            elif file.get("failed") or not file.get("path"):
                yield name, Unread("the upload failed", temporary=True)
            else:
                yield name, self.uploads.take(str(file["path"]))

    def blocks(self) -> gr.Blocks:
        """The page as Gradio's blocks."""
        with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
            gr.HTML(_heading(self.facts), padding=False)
            picker = gr.HTML(
                {},
                html_template=render.asset("picker.html"),
                js_on_load=render.asset("picker.js"),
                max_bytes=MAX_FILE_BYTES,
                max_files=MAX_FILES,
                apply_default_css=False,
                padding=False,
            )
            results = gr.HTML(
                "",
                js_on_load=render.asset("results.js"),
                apply_default_css=False,
                padding=False,
                elem_id="df-answer",
            )
            gr.HTML(render.model(self.facts), apply_default_css=False, padding=False)
            if self.facts.card:
                with gr.Accordion("Model card", open=False, elem_id="df-model-card", elem_classes="df-model"):
                    gr.Markdown(self.facts.card)
            gr.HTML(
                f"<footer>{IN_MEMORY if self.uploads.in_memory else ON_DISK}</footer>",
                apply_default_css=False,
                padding=False,
            )
            event = picker.submit(
                self.answer,
                picker,
                results,
                api_visibility="private",
                trigger_mode="multiple",
                concurrency_limit=MAX_RUNNING,
            )
            event.failure(None, js=f"() => {{ document.querySelector('.df-status').textContent = {FAILED!r}; }}")
        return blocks.queue(max_size=MAX_WAITING, api_open=False)


def theme() -> gr.themes.Base:
    """Gradio's theme with fonts of the system: the default would load its own."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACED)


def launch_options() -> dict[str, Any]:
    """Arguments of `Blocks.launch` other than the address."""
    from starlette.middleware import Middleware

    return {
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "ssr_mode": False,
        "run_history": False,  # by default, the browser stores inputs and outputs
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
        "footer_links": [],
        "max_file_size": MAX_FILE_BYTES,
        "theme": theme(),
        "css": render.asset("style.css"),
        "app_kwargs": {"middleware": [Middleware(SecurityHeaders)], "docs_url": None, "redoc_url": None},
    }


class SecurityHeaders:
    """ASGI middleware that adds `CONTENT_SECURITY_POLICY` to every answer."""

    HEADERS = (
        (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def _heading(facts: Facts) -> str:
    return (
        "<header class='df-heading'><h1>Real, fake, or unsure?</h1>"
        "<p>DF-GANeXt tells face images made by a GAN from photographs. It does not detect face swaps, video or images of diffusion "
        "models. A decision is a statistical statement about an image file, not evidence about a person.</p></header>"
    )
