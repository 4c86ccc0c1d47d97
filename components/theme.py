"""The look of the page: Gradio theme, style sheet and the few lines of script. Nothing here is fetched from a network."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, sizes

STYLE = Path(__file__).with_name("style.css")

brick = colors.Color(
    name="brick",
    c50="#fbf3ef",
    c100="#f6e3da",
    c200="#ecc6b5",
    c300="#dfa389",
    c400="#cd7b59",
    c500="#b5532f",
    c600="#a04828",
    c700="#833b22",
    c800="#6a311e",
    c900="#57291b",
    c950="#30150d",
)


def theme() -> gr.themes.Base:
    """Warm greys, one brick-red accent, the system's own fonts, thin borders instead of shadows."""
    base = gr.themes.Base(
        primary_hue=brick,
        secondary_hue=brick,
        neutral_hue=colors.stone,
        radius_size=sizes.radius_md,
        font=["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Helvetica", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    return base.set(
        body_background_fill="#faf9f7",
        body_background_fill_dark="#171513",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1f1c1a",
        background_fill_secondary="#f5f3f0",
        background_fill_secondary_dark="#262320",
        border_color_primary="#e5e1dc",
        border_color_primary_dark="#38332f",
        body_text_color="#292524",
        body_text_color_dark="#ece8e3",
        body_text_color_subdued="#6f6862",
        body_text_color_subdued_dark="#a8a099",
        block_background_fill="*background_fill_primary",
        block_background_fill_dark="*background_fill_primary",
        block_border_width="1px",
        block_border_color="*border_color_primary",
        block_shadow="none",
        block_shadow_dark="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*body_text_color_subdued",
        block_label_text_size="*text_sm",
        block_label_text_weight="500",
        block_title_text_color="*body_text_color",
        block_title_text_size="*text_sm",
        block_title_text_weight="600",
        block_info_text_color="*body_text_color_subdued",
        block_info_text_size="*text_xs",
        input_background_fill="*background_fill_primary",
        input_background_fill_dark="*background_fill_secondary",
        input_border_color="*border_color_primary",
        input_border_color_focus="*primary_400",
        input_shadow_focus="0 0 0 3px rgba(181, 83, 47, .15)",
        button_primary_background_fill="*primary_500",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="*background_fill_primary",
        button_secondary_background_fill_dark="*background_fill_secondary",
        button_secondary_border_color="*border_color_primary",
        button_secondary_border_color_dark="*border_color_primary",
        button_border_width="1px",
        button_primary_border_color="*primary_500",
        button_secondary_background_fill_hover="*background_fill_secondary",
        button_secondary_background_fill_hover_dark="#332e2a",
        button_large_radius="*radius_md",
        button_large_padding="9px 18px",
        button_large_text_size="*text_md",
        button_large_text_weight="600",
        slider_color="*primary_500",
        checkbox_background_color_selected="*primary_500",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_label_background_fill="*background_fill_primary",
        checkbox_label_background_fill_dark="*background_fill_secondary",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="#3a2a22",
        checkbox_label_border_color="*border_color_primary",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
    )


def css() -> str:
    """The page's style sheet."""
    return STYLE.read_text(encoding="utf-8")
