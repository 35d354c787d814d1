"""The page as a web server of which nothing leaves the machine.

No script, font or picture comes from elsewhere, and the browser is told to refuse any that would.
Tests: tests/app/test_browser.py.
"""

import socket
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from causalmm.app import fragments
from causalmm.app.gate import Gate
from causalmm.app.limits import Limits

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Content-Security-Policy. Gradio's own scripts are inline and evaluate templates."""
_CLOSING_SECONDS = 3


class Headers:
    """ASGI middleware that adds `POLICY`, and says nowhere from which page a link was followed."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Of ASGI."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"same-origin"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def application(blocks: gr.Blocks, folder: Path, limits: Limits) -> FastAPI:
    """The page's application; uploaded files lie in `folder`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, folder=folder, limits=limits)
    app.add_middleware(Headers)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=limits.file_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        # Names of fonts, not gradio's classes for them, which load from elsewhere.
        theme=gr.themes.Default(
            font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
        ).set(
            block_info_text_color="*neutral_600",
            block_info_text_color_dark="*neutral_300",
            body_text_color_subdued="*neutral_600",
            body_text_color_subdued_dark="*neutral_300",
        ),
        css=fragments.style(),
    )


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until interrupted."""
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=_CLOSING_SECONDS, access_log=False
    )
    uvicorn.Server(config).run(sockets=[listening])
