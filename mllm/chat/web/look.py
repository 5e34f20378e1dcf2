"""Colours and widths of the page. Fonts are those of the reader's machine."""

from typing import Any

FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
MONOSPACED = ["ui-monospace", "Menlo", "Consolas", "monospace"]


def theme() -> Any:
    import gradio as gr

    return gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        font=FONTS,  # strings: gradio loads GoogleFont objects from elsewhere
        font_mono=MONOSPACED,
    ).set(
        block_border_width="1px",
        block_shadow="none",
        input_border_width="1px",
        input_background_fill="*neutral_50",
        button_secondary_border_color="*border_color_primary",
        block_title_background_fill="none",
        block_title_text_color="*body_text_color",
        block_title_text_weight="500",
        block_title_padding="0",
        layout_gap="10px",
    )


CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#head, #notice, #meter, .plain { padding: 0 !important; }
#head h1 { font-size: 1.25rem; margin: 0; }
#head p { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: .85rem;
  overflow-wrap: anywhere; }

#chat { height: clamp(280px, 56vh, 720px); overflow-y: auto; flex-wrap: nowrap; gap: 0;
  padding: 14px; border: 1px solid var(--border-color-primary); border-radius: var(--block-radius);
  background: var(--block-background-fill); }
#chat > * { flex: 0 0 auto; }
#chat .turn { width: fit-content; max-width: 86%; padding: 8px 12px; margin: 0 0 10px;
  border-radius: 12px; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; }
#chat .user { margin-left: auto; background: var(--primary-100); color: #134e4a;
  border-bottom-right-radius: 3px; }
#chat .model { background: var(--neutral-100); color: var(--neutral-800);
  border-bottom-left-radius: 3px; }
.dark #chat .user { background: #134e4a; color: #ccfbf1; }
.dark #chat .model { background: var(--neutral-700); color: var(--neutral-100); }
#chat .dropped { opacity: .45; }
#chat .turn > * { vertical-align: middle; }
#chat .turn > * + * { margin-left: 6px; }
#chat img { display: inline-block; max-height: 150px; max-width: 100%; width: auto; margin: 3px 0;
  border-radius: 8px; background: #fff; }
#chat .note { opacity: .6; font-size: .85em; }
#chat .left-out { text-align: center; font-size: .8rem; margin: 0 0 10px;
  color: var(--body-text-color-subdued); border-bottom: 1px dashed var(--border-color-primary); }
#chat .waiting { animation: waiting 1.2s infinite; }
#chat .running::after { content: "▍"; animation: waiting 1.2s infinite; }
@keyframes waiting { 50% { opacity: .3; } }
@media (prefers-reduced-motion: reduce) { #chat * { animation: none !important; } }
#chat .empty { text-align: center; margin-top: 18vh; }

.meter > div { display: flex; height: 8px; border-radius: 4px; overflow: hidden;
  background: var(--border-color-primary); }
.meter i { display: block; height: 100%; }
.meter i.pictures, .meter .key.pictures::before { background: #0d9488; }
.meter i.text, .meter .key.text::before { background: #6366f1; }
.meter i.answer, .meter .key.answer::before { background: #cbd5e1; }
.meter.over i.answer, .meter.over .key.answer::before { background: #dc2626; }
.meter p { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0 0; font-size: .8rem;
  color: var(--body-text-color-subdued); }
.meter .key::before { content: ""; display: inline-block; width: 8px; height: 8px;
  border-radius: 2px; margin-right: 5px; }

.notice, .full { padding: 8px 12px; border-radius: 8px; font-size: .9rem;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.notice.error { background: #fef2f2; color: #991b1b; border: 1px solid #fecaca; }
.notice.note { background: #f0fdfa; color: #115e59; border: 1px solid #99f6e4; }
.full { background: #fffbeb; color: #92400e; border: 1px solid #fde68a; }
.dark .notice.error { background: #450a0a; color: #fecaca; border-color: #7f1d1d; }
.dark .notice.note { background: #042f2e; color: #99f6e4; border-color: #115e59; }
.dark .full { background: #451a03; color: #fde68a; border-color: #92400e; }
.hint { font-size: .8rem; color: var(--body-text-color-subdued); margin: 0; }
.hint code { font-family: var(--font-mono); }

ol.shots { list-style: none; margin: 0; padding: 0; }
ol.shots li { display: flex; align-items: center; gap: 8px; padding: 6px 0;
  border-bottom: 1px solid var(--border-color-primary); }
ol.shots .content { flex: 1; display: flex; flex-wrap: wrap; align-items: center; gap: 6px;
  min-width: 0; overflow-wrap: anywhere; font-size: .9rem; }
ol.shots .content > * { min-width: 0; }
ol.shots img { width: 44px; height: 44px; object-fit: cover; border-radius: 6px; margin: 0; }
ol.shots .arrow { color: var(--body-text-color-subdued); }
ol.shots button { border: 0; background: none; cursor: pointer; padding: 4px 8px;
  border-radius: 6px; color: var(--body-text-color-subdued); }
ol.shots button:hover, ol.shots button:focus-visible { background: #fee2e2; color: #991b1b; }
p.empty { color: var(--body-text-color-subdued); font-size: .85rem; margin: 0; }

table.ranking { width: 100%; border-collapse: collapse; font-size: .9rem; margin: 0; }
table.ranking, table.ranking :is(thead, tr, th, td) { border: 0 !important; }
table.ranking th { text-align: left; font-weight: 500; color: var(--body-text-color-subdued); }
table.ranking td, table.ranking th { padding: 3px 6px 3px 0 !important; }
table.ranking td:first-child { overflow-wrap: anywhere; }
table.ranking td:nth-child(n+3) { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
table.ranking th:nth-child(n+3) { text-align: right; }
table.ranking .bar { width: 40%; }
table.ranking .bar i { display: block; height: 8px; min-width: 2px; border-radius: 4px;
  background: #0d9488; }
"""
