"""The page of a demo, and its server: the one module that needs gradio.

A visitor's student lives in the visitor's session. Everything that the page needs comes from its own server. What sets
say of themselves is text on it.
"""

import html
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image
from torch import Tensor, nn

from ..data.preprocessing import Preprocessing
from ..hub.board import BoardRow
from ..hub.cards import human_seconds
from ..hub.markdown import code, escaped, plain
from .drawings import of_canvas, of_drawing, of_upload, share_of
from .lessons import Seen, guesses
from .sets import DemoSet, find_sets

__all__ = ["build", "launch", "serve"]

PATIENCE = 60.0  # seconds of a training that nobody asked to be longer
AT_ONCE = 2  # students that train at a time; other visitors wait in line
FORGOTTEN = 3600  # seconds after which a student nobody asks is dropped
SHOWN = 5  # classes with their probabilities
TRAINED_FIRST = "Train a student first."
STOPPED = "Stopped: the student of the last point of the curve is the one that answers."

CANVAS = '<canvas width="320" height="320"></canvas><button type="button">Clear</button>'
CANVAS_STYLE = """
canvas { display: block; max-width: 100%; background: white; border: 1px solid #888; touch-action: none; }
button { margin-top: 8px; padding: 4px 16px; border: 1px solid #888; border-radius: 6px; }
"""
# Strokes an eighth as wide as the canvas are about as wide as those of the digits once they are as small.
CANVAS_SCRIPT = """
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
pen.lineWidth = canvas.width / 8;
pen.lineCap = pen.lineJoin = "round";
const place = (event) => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
let drawing = false;
const say = () => { props.value = canvas.toDataURL("image/png"); trigger("input"); };
canvas.addEventListener("pointerdown", (event) => {
    drawing = true;
    canvas.setPointerCapture(event.pointerId);
    pen.beginPath();
    pen.moveTo(...place(event));
    pen.lineTo(...place(event));
    pen.stroke();
});
canvas.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    pen.lineTo(...place(event));
    pen.stroke();
});
canvas.addEventListener("pointerup", () => { if (drawing) { drawing = false; say(); } });
element.querySelector("button").addEventListener("click", () => {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    say();
});
"""

Student = tuple[str, nn.Module]  # the name of its set, and the network


def launch(places: Sequence[str | Path], *, title: str = "Sets to try", port: int | None = None) -> None:
    """As `serve`, until the process is told to end."""
    serve(places, title=title, port=port).block_thread()


def serve(places: Sequence[str | Path], *, title: str, port: int | None = None) -> gr.Blocks:
    """The page with the sets at some places, as `find_sets` takes them, once it is served at its `local_url`.

    Args:
        places: Of the sets.
        title: Heading of the page.
        port: On this machine; a free one if not given.

    Raises:
        ValueError: As `find_sets`.
        OSError: As `find_sets`, or the port is in use.
    """
    page = build(find_sets(places), title)
    page.launch(server_port=port, prevent_thread_lock=True, quiet=True, show_error=True, **SERVED)
    return page


SHOWN_ONLY: dict[str, Any] = {"interactive": False, "show_label": False, "buttons": []}
# Nothing is asked of anybody else: no tunnel, no fonts, no links.
SERVED: dict[str, Any] = {
    "share": False,
    "ssr_mode": False,
    "mcp_server": False,
    "enable_monitoring": False,
    "footer_links": [],
    "css": "#report td, #report th { padding: 4px 8px; overflow-wrap: normal; word-break: normal; }",
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
}


def build(sets: Sequence[DemoSet], title: str) -> gr.Blocks:
    """The page with some sets, to be launched."""
    known = {each.name: each for each in sets}
    first = sets[0]
    with gr.Blocks(title=plain(title), analytics_enabled=False) as page:
        gr.Markdown(f"# {escaped(title)}\n\n{ABOUT}")
        student = gr.State(time_to_live=FORGOTTEN)
        chosen = gr.Dropdown(list(known), value=first.name, label="Set", elem_id="set", filterable=False)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(_picture(first), elem_id="picture", **SHOWN_ONLY)
            with gr.Column():
                report = gr.Markdown(_report(first), elem_id="report")
        gr.Markdown("## Train a student")
        notes = gr.Markdown(_notes(first), elem_id="notes")
        with gr.Row():
            epochs = gr.Slider(**_epochs(first), step=1, label="Epochs: passes over the set", elem_id="epochs")
            train = gr.Button("Train", variant="primary", elem_id="train")
            stop = gr.Button("Stop", elem_id="stop")
        progress = gr.HTML(_progress(None), elem_id="progress")
        curve = gr.LinePlot(_curve([]), x="epoch", y="accuracy", elem_id="curve", height=230, **_axes(first))
        gr.Markdown("## Let it name an image", elem_id="ask")
        with gr.Row():
            with gr.Column(visible=_can_draw(first)) as drawing:
                canvas = gr.HTML(
                    html_template=CANVAS,
                    css_template=CANVAS_STYLE,
                    js_on_load=CANVAS_SCRIPT,
                    label="Draw one of the classes, large",
                    show_label=True,
                    container=True,
                    padding=True,
                    elem_id="canvas",
                )
            upload = gr.Image(
                type="pil",
                image_mode=None,  # transparent parts are brought on a ground as those of real images are
                sources=["upload", "clipboard"],
                label="Or upload an image",
                elem_id="upload",
            )
            with gr.Column():
                gr.Markdown("What the student sees, and what it takes it for:")
                seen = gr.Image(elem_id="seen", height=180, **SHOWN_ONLY)
                answer = gr.Label(num_top_classes=SHOWN, show_label=False, elem_id="answer")
                said = gr.Markdown(elem_id="said")

        def choose(name: str) -> list[Any]:
            each = known[name]
            return [
                _picture(each),
                _report(each),
                _notes(each),
                gr.Slider(**_epochs(each)),
                _progress(None),
                gr.LinePlot(_curve([]), **_axes(each)),
                gr.Column(visible=_can_draw(each)),
                *(None, None, None, None, ""),
            ]

        def teach(name: str, count: float) -> Iterator[list[Any]]:
            along: list[Seen] = []
            yield [None, _progress(None, count), gr.LinePlot(_curve([]), x_lim=[0, count])]
            for seen in known[name].lesson.train(int(count), secrets.randbits(31)):
                along.append(seen)
                yield [(name, seen.student), _progress(seen), _curve(along)]

        def name_drawing(own: Student | None, name: str, drawn: str | None) -> list[Any]:
            each = known[name]
            share = share_of((each.distilled.config.get("source") or {}).get("name"))
            return _answer(own, each, lambda look: of_drawing(of_canvas(drawn), look, share=share))

        def name_upload(own: Student | None, name: str, image: Image.Image | None) -> list[Any]:
            if image is None:
                return [None, None, ""]
            return _answer(own, known[name], lambda look: of_upload(image, look))

        private: dict[str, Any] = {"api_visibility": "private"}
        answers = [seen, answer, said]
        cleared = [picture, report, notes, epochs, progress, curve, drawing, student, upload, *answers]
        training = train.click(
            teach,
            [chosen, epochs],
            [student, progress, curve],
            concurrency_limit=AT_ONCE,
            show_progress="hidden",
            trigger_mode="once",
            **private,
        )
        stop.click(_stopped, student, progress, cancels=[training], show_progress="hidden", **private)
        chosen.change(choose, chosen, cleared, cancels=[training], show_progress="hidden", **private)
        canvas.input(
            name_drawing,
            [student, chosen, canvas],
            answers,
            show_progress="hidden",
            trigger_mode="always_last",
            **private,
        )
        upload.change(name_upload, [student, chosen, upload], answers, show_progress="hidden", **private)
    return page


ABOUT = """\
A distilled set is a few images, computed to train networks on in place of a whole dataset; its report says how well
that goes. Here you train such a **student**, on the CPU of this page's server, from random weights and on the images
of the set alone. Then it names what you show it. It knows the classes of the set and nothing else: whatever it is
shown, it names one of them, and its probabilities say how it compares them, not how often it is right.
"""


# The set


def _picture(each: DemoSet) -> Image.Image:
    picture = each.distilled.grid()
    times = max(1, 600 // picture.width)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def _report(each: DemoSet) -> str:
    """What the set is, and what its report says, as Markdown."""
    distilled, config = each.distilled, each.distilled.config
    channels, height, width = distilled.pixel_values.shape[1:]
    source = (config.get("source") or {}).get("name")
    made = f"made by {escaped(config['method'])} " if config.get("method") else ""
    of = f"of {escaped(source)} " if source else ""
    about = (
        f"**{len(distilled):,} images** of {distilled.num_classes:,} classes, {height}×{width} pixels, "
        f"{'gray' if channels == 1 else 'in colour'}, {made}{of}with {distilled.label_source.kind} labels."
    )
    if not each.rows:
        return f"{about}\n\nIt was not evaluated yet."
    groups: dict[tuple[str, ...], list[BoardRow]] = {}
    for row in each.rows:
        groups.setdefault((row.student, row.protocol, row.split), []).append(row)
    parts = [about]
    for (student, protocol, split), rows in groups.items():
        lines = [
            f"| {escaped(row.set)} | {row.images:,} | {row.regime} | {100 * row.mean:.1f}{_deviation(row)} |"
            for row in sorted(rows, key=lambda row: (row.regime, row.mean))
        ]
        parts.append(
            f"Its report: students {code(student)} by the protocol {code(protocol)}, tested on {code(split)}.\n\n"
            "| set | images | labels | accuracy, % |\n|---|---:|---|---:|\n" + "\n".join(lines)
        )
    parts.append("Accuracies are means of several students; those of different labels are no contest.")
    return "\n\n".join(parts)


def _deviation(row: BoardRow) -> str:
    return "" if row.std is None else f" ± {100 * row.std:.1f}"


def _can_draw(each: DemoSet) -> bool:
    return each.distilled.preprocessing.channels == 1


# The training


def _notes(each: DemoSet) -> str:
    """What differs from the report, and how long the protocol takes here, as Markdown."""
    lesson = each.lesson
    whole, few = lesson.protocol.epochs, lesson.epochs_within(PATIENCE)
    seconds = human_seconds(lesson.seconds_per_epoch * whole)
    time = f"All {whole:,} epochs of {code(lesson.protocol.name)} take about {seconds} here, tests not counted."
    if few < whole:
        shorter = human_seconds(lesson.seconds_per_epoch * few)
        time = f"⚠ {time} The slider begins at {few:,}, about {shorter}; so short a training makes a weaker student."
    where = f"{len(lesson.tested):,} real test images, which it never learns from"
    if not lesson.tests:
        where = "the images it learns from, for real ones are not at hand: that says little of how well it names others"
    other = ["So expect another accuracy than in the report."] if lesson.notes and each.rows else []
    said = " ".join([*map(escaped, lesson.notes), *other])
    return "\n\n".join(filter(None, [said, f"{time} Its accuracy is measured on {where}."]))


def _epochs(each: DemoSet) -> dict[str, int]:
    return {"minimum": 1, "maximum": max(2, each.lesson.protocol.epochs), "value": each.lesson.epochs_within(PATIENCE)}


def _axes(each: DemoSet) -> dict[str, Any]:
    tested = "real test images" if each.lesson.tests else "the images of the set"
    title = f"Accuracy on {tested}, %"
    return {"title": title, "y_title": " ", "x_title": " ", "y_lim": [0, 100]}


def _curve(along: Sequence[Seen]) -> pd.DataFrame:
    """A curve of accuracies in percent."""
    return pd.DataFrame({"epoch": [seen.epoch for seen in along], "accuracy": [100 * seen.accuracy for seen in along]})


def _stopped(own: Student | None) -> str:
    return _bar(0, 1, STOPPED if own is not None else "No student yet.")


def _progress(seen: Seen | None, count: float | None = None) -> str:
    """A bar, and what it says in words."""
    if seen is None:
        return _bar(0, 1, "No student yet." if count is None else "A student begins.")
    words = f"Epoch {seen.epoch:,} of {seen.epochs:,}: {100 * seen.accuracy:.1f} %"
    return _bar(seen.epoch, seen.epochs, words)


def _bar(done: int, of: int, words: str) -> str:
    return f'<progress value="{done}" max="{of}" style="width: 100%"></progress><div>{html.escape(words)}</div>'


# The question


def _answer(own: Student | None, each: DemoSet, pixels_of: Callable[[Preprocessing], Tensor]) -> list[Any]:
    """What the student sees of an image, what it takes it for, and what there is to say."""
    look = each.distilled.preprocessing
    try:
        pixels = pixels_of(look)
    except ValueError as error:
        return [None, None, escaped(f"{str(error)[0].upper()}{str(error)[1:]}.")]
    seen = pixels[0].permute(1, 2, 0).squeeze(2).numpy()
    picture = Image.fromarray(seen)
    times = max(1, 160 // max(picture.size))
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    if own is None or own[0] != each.name:
        return [picture, None, TRAINED_FIRST]
    return [picture, guesses(own[1], look(pixels), each.distilled.class_names), ""]
