"""A bar chart of the memory modes of training."""

from pathlib import Path

from matplotlib.patches import Patch

from gpu_reporting.rows import KnownRows
from tresnet_jax.plotting import new_figure, save_figure

PANELS = {
    'temporaries, GB': lambda figures: figures['temp_bytes'] / 1e9,
    'moved, GB': lambda figures: figures['traffic_bytes'] / 1e9,
    'largest batch in 16 GB': lambda figures: figures['largest']['16 GB'],
}


def draw_memory_modes(rows: KnownRows, path: Path) -> None:
    """Write a PNG of the rows that have a largest batch: one group of bars per model, one bar per mode."""
    shown = [(row.program, figures) for row, figures in rows if row.largest]
    models = list(dict.fromkeys(program.model for program, _ in shown))
    modes = list(dict.fromkeys((program.abn_memory, program.remat) for program, _ in shown))
    places, ticks, place = [], [], 0.0
    for model in models:
        count = sum(program.model == model for program, _ in shown)
        ticks.append(place + (count - 1) / 2)
        places += [place + i for i in range(count)]
        place += count + 1
    colours = [f'C{modes.index((program.abn_memory, program.remat))}' for program, _ in shown]
    figure = new_figure(9, 0.2 * place + 1.6)
    for axis, (title, value) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        values = [value(figures) for _, figures in shown]
        axis.barh(places, values, height=0.9, color=colours)
        for y, number in zip(places, values, strict=True):
            axis.text(number, y, f' {number:.3g}' if number < 100 else f' {number:.0f}', va='center', fontsize=7)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.18)
        axis.set_yticks(ticks, models)
        axis.tick_params(labelsize=8)
    figure.axes[0].invert_yaxis()
    program = shown[0][0]
    handles = [Patch(color=f'C{i}') for i in range(len(modes))]
    figure.legend(handles, [name + ', remat' * remat for name, remat in modes], loc='outside lower center', ncols=6,
                  fontsize=8)  # fmt: skip
    figure.suptitle(
        f'training step, {program.batch} images of {program.image_size} pixels, {program.dtype}', fontsize=10
    )
    save_figure(figure, path, dpi=120)
