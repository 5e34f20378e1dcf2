"""What the page consists of, without what it does."""

from typing import Any

import gradio as gr

from mllm.chat.engine import Engine
from mllm.chat.sampling import Sampling
from mllm.chat.web import show

HINT = (
    "Pictures come before the text, in order. To put them elsewhere write "
    "<code>[1]</code>, <code>[2]</code> … where they belong: "
    "<code>Is [1] larger than [2]?</code> Add them with the clip, or paste or drag them."
)

# A shot's button tells its number.
REMOVES = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-shot]');
  if (button) trigger('select', {place: Number(button.dataset.shot)});
});
"""

# The end of the conversation stays in sight, unless the reader scrolled up.
FOLLOWS = """
const chat = document.getElementById('chat');
let isAtEnd = true;
chat.setAttribute('role', 'log');
chat.addEventListener('scroll', () => {
  isAtEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 60;
});
const follow = () => { if (isAtEnd) chat.scrollTop = chat.scrollHeight; };
new MutationObserver(follow).observe(chat, {childList: true, subtree: true, characterData: true});
chat.addEventListener('load', follow, true);
"""

# The transcript goes from the answer to a file of the reader's, without one on the server.
DOWNLOADS = """
(text) => {
  if (!text) return '';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'chat.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return '';
}
"""

# Name and what it means, in the order of `Sampling`'s fields.
CONTROLS = {
    "temperature": "0: the likeliest token",
    "top_p": "likeliest tokens up to this share",
    "top_k": "so many likeliest; 0: all",
    "beams": "with temperature 0",
    "max_new_tokens": "longest answer",
    "seed": "each retry takes the next",
}


class Parts:
    """Builds the page's components, to be made within `gr.Blocks`.

    Args:
        system: text that the field begins with.
    """

    def __init__(self, engine: Engine, system: str, sampling: Sampling) -> None:
        self._head(engine)
        with gr.Row():
            with gr.Column(scale=7, min_width=340):
                self._conversation()
            with gr.Column(scale=4, min_width=300):
                self._side(system, sampling)

    def _head(self, engine: Engine) -> None:
        name = engine.description["name"]
        kind = "follows instructions" if engine.template == "instruction" else "continues documents"
        words = f"{name} · {engine.description['fingerprint'][:12]} · {kind} · {engine.device}"
        gr.HTML(f"<h1>mllm chat</h1><p>{show.escaped(words)}</p>", elem_id="head")

    def _conversation(self) -> None:
        # Two parts: a growing answer leaves the pictures before it alone.
        with gr.Column(elem_id="chat"):
            self.turns = gr.HTML(elem_classes="plain", js_on_load=FOLLOWS)
            self.answer = gr.HTML(elem_classes="plain", elem_id="answer")
        self.notice = gr.HTML(elem_id="notice", visible=False)
        with gr.Group(visible=False, elem_id="full") as self.full:
            self.full_words = gr.HTML(padding=True)
            with gr.Row():
                self.drop = gr.Button("Leave the oldest turns out", variant="primary", size="sm")
                self.shorten = gr.Button("Shorten the answer", size="sm")
                self.cancel = gr.Button("Cancel", size="sm")
        self.box = gr.MultimodalTextbox(
            elem_id="box",
            label="Your turn",
            show_label=False,
            placeholder="Ask about pictures, or anything else",
            file_count="multiple",
            file_types=["image"],
            max_plain_text_length=1_000_000,  # else a long paste becomes a file
            max_lines=8,
            autofocus=True,
        )
        gr.HTML(f'<p class="hint">{HINT}</p>')
        with gr.Row(elem_id="actions"):
            self.stop = gr.Button(
                "Stop", size="sm", min_width=72, interactive=False, variant="stop"
            )
            self.retry = gr.Button("Retry", size="sm", min_width=72)
            self.undo = gr.Button("Undo", size="sm", min_width=72)
            self.clear = gr.Button("Clear", size="sm", min_width=72)
        self.meter = gr.HTML(elem_id="meter")

    def _side(self, system: str, sampling: Sampling) -> None:
        with gr.Accordion("Shots: teach by example", elem_id="shots-panel"):
            self.shots = gr.HTML(elem_id="shots", js_on_load=REMOVES)
            self.shot_box = gr.MultimodalTextbox(
                elem_id="shot-box",
                label="Shot",
                show_label=False,
                placeholder="Picture(s) and text",
                file_count="multiple",
                file_types=["image"],
                max_plain_text_length=1_000_000,
                submit_btn=False,
            )
            with gr.Row():
                self.shot_answer = gr.Textbox(
                    label="Answer of the shot",
                    show_label=False,
                    placeholder="Its answer",
                    container=False,
                    scale=3,
                    min_width=120,
                    elem_id="shot-answer",
                )
                self.add_shot = gr.Button("Add shot", size="sm", min_width=90, scale=1)
        with gr.Accordion("System text", open=bool(system)):
            self.system = gr.Textbox(
                system,
                label="System text",
                show_label=False,
                lines=2,
                container=False,
                placeholder="Stands before the conversation",
                elem_id="system",
            )
        with gr.Accordion("Sampling", open=False, elem_id="sampling"):
            self.controls = _controls(sampling)
        with gr.Accordion("Rank candidates", open=False, elem_id="rank-panel"):
            self.candidates = gr.Textbox(
                show_label=False,
                label="Candidates",
                placeholder="red | green | blue",
                container=False,
                elem_id="candidates",
            )
            self.rank = gr.Button("Rank", size="sm")
            gr.HTML(
                '<p class="hint">As answers to what is in the box, or else to the last turn.</p>'
            )
            self.ranking = gr.HTML(elem_id="ranking")
        with gr.Accordion("Transcript", open=False, elem_id="transcript-panel"):
            with gr.Row():
                self.save = gr.Button("Download", size="sm", min_width=100)
                self.load = gr.UploadButton(
                    "Open …", size="sm", min_width=100, file_types=[".json"], elem_id="load"
                )
            self.transcript = gr.Textbox(visible="hidden", show_label=False)

    @property
    def longest(self) -> Any:
        return self.controls[list(CONTROLS).index("max_new_tokens")]

    @property
    def shown(self) -> list[Any]:
        """All that a handler may change."""
        single = (value for value in vars(self).values() if isinstance(value, gr.blocks.Block))
        return [*single, *self.controls]


def _controls(sampling: Sampling) -> list[Any]:
    values = sampling.values
    made = []
    for names in (("temperature", "top_p"), ("top_k", "beams"), ("max_new_tokens", "seed")):
        with gr.Row():
            for name in names:
                is_whole = isinstance(values[name], int)
                field = gr.Number(
                    values[name],
                    label=name,
                    info=CONTROLS[name],
                    precision=0 if is_whole else None,
                    step=1 if is_whole else 0.05,
                    min_width=110,
                )
                made.append(field)
    return made
