"""What the page shows, and which event each part of it begins. Tests: tests/app/test_browser.py."""

import gradio as gr

from causalmm.app import controls
from causalmm.app.conversation import CAUSALMM, PLAIN
from causalmm.app.events import OWN, Events
from causalmm.app.limits import MIB
from causalmm.presets.registry import PRESETS


def build_page(events: Events) -> gr.Blocks:
    """The page's components, wired to the events; its queue is bounded by their limits."""
    name, session = next(iter(events.sessions.items()))
    config, limits = session.request.config, events.limits
    folder_limits = (min(60, limits.kept_seconds), limits.kept_seconds)
    with gr.Blocks(title="CausalMM", analytics_enabled=False, delete_cache=folder_limits) as blocks:
        blocks.state_session_capacity = limits.sessions
        gr.Markdown(
            "# CausalMM\nAsk a vision-language model about pictures: its plain answer, and the "
            "one with counterfactual attention contrasted away."
        )
        state = gr.State(None, time_to_live=limits.kept_seconds)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                model = gr.Dropdown(
                    list(events.sessions), value=name, label="Model", filterable=False,
                    elem_id="model", visible=len(events.sessions) > 1,
                )  # fmt: skip
                pictures = gr.Gallery(
                    label=f"Pictures, at most {limits.pictures}, of {limits.file_bytes // MIB} "
                    "MiB each",
                    file_types=["image"], sources=["upload", "clipboard"], type="filepath",
                    columns=4, fit_columns=False, height=170, object_fit="contain",
                    interactive=True, buttons=[], elem_id="pictures",
                )  # fmt: skip
                video = gr.File(
                    label="Video, after the pictures", file_types=["video"], height=100,
                    elem_id="video", visible=events.reads_video(name),
                )  # fmt: skip
                drawn = gr.Dataset(
                    label="Examples", components=["image"], type="index", layout="gallery",
                    samples=[[each.file] for each in events.examples], elem_id="examples",
                )  # fmt: skip
                question = gr.Textbox(
                    label="Question", elem_id="question", max_lines=4, autofocus=True,
                    max_length=limits.characters,
                )  # fmt: skip
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=80)
                    follow = gr.Button("Follow up", elem_id="follow", min_width=110)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    preset = gr.Dropdown(
                        [("own settings", OWN), *((each, each) for each in PRESETS)],
                        value=session.request.preset or OWN, label="preset",
                        info="a published method, whose settings are then shown below",
                        filterable=False, elem_id="preset",
                    )  # fmt: skip
                    new_tokens = gr.Number(
                        min(session.request.max_new_tokens, limits.new_tokens), precision=0,
                        label="max_new_tokens", elem_id="max-new-tokens",
                        info=f"tokens of an answer, from 1 to {limits.new_tokens:,}",
                    )  # fmt: skip
                    chosen = [controls.control(each, config) for each in controls.FIELDS]
            with gr.Column(scale=3, min_width=280):
                error = gr.HTML(elem_id="error")
                with gr.Row():
                    chats = [
                        gr.Chatbot(
                            label=label, height=None, min_height=150, max_height=480,
                            render_markdown=False, buttons=["copy"],
                            latex_delimiters=[], elem_id=f"answer-{which}", layout="bubble",
                            feedback_options=None, min_width=250,
                        )
                        for which, label in ((PLAIN, "Plain"), (CAUSALMM, "CausalMM"))
                    ]  # fmt: skip
                status = gr.Markdown(elem_id="status")
                tokens = gr.HTML(elem_id="tokens")
                with gr.Accordion("Vision attention", open=False, elem_id="attention"):
                    number = gr.Number(
                        1, precision=0, label="Picture", elem_id="attention-picture",
                        info="counted from 1; a video's frames come after the pictures",
                    )  # fmt: skip
                    draw = gr.Button("Draw", elem_id="draw")
                    maps = gr.HTML(elem_id="maps")

        asked = [model, pictures, video, question, state, new_tokens, preset, *chosen]
        told = [*chats, tokens, status, error, state]
        # They wait for each other in events.turns.
        queued = {"concurrency_limit": None, "api_visibility": "private"}
        shown = {"show_progress": "hidden", "api_visibility": "private"}
        for trigger, asks in (
            (ask.click, events.ask),
            (question.submit, events.ask),
            (follow.click, events.follow_up),
        ):
            trigger(asks, asked, told, **queued, show_progress="minimal", show_progress_on=status)
        stop.click(events.stop, None, None, queue=False, **shown)
        draw.click(events.draw, [*asked, number], [maps, error], **queued)
        model.change(events.show_model, model, [preset, *chosen, video], queue=False, **shown)
        preset.input(events.show_preset, [preset, model], chosen, queue=False, **shown)
        drawn.select(events.show_example, drawn, [pictures, question], queue=False, **shown)
        blocks.unload(events.stop)
    blocks.queue(max_size=limits.sessions)
    return blocks
