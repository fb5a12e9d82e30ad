"""The demo: a page on which visitors train a student on a distilled set and let it name images. `page` needs gradio."""
