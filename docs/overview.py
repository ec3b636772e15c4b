"""Draw the front page's figure, docs/images/overview.png: python docs/overview.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from sat_interp import SelfAblatingTransformer

PROMPT = "One day, Anna and Tom went to the park. Tom gave a ball to"
LAYER = 3
CLEAN, ABLATED, GATES = "#0072B2", "#D55E00", "#009E73"


def main() -> None:
    """Draw both panels and save them."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.9), width_ratios=(1, 1.25), layout="constrained"
    )
    draw_block(left)
    draw_masks(right)
    path = Path(__file__).parent / "images" / "overview.png"
    figure.savefig(path, dpi=130, pil_kwargs={"optimize": True})


def draw_block(axes: Axes) -> None:
    """Draw one block of the model: two streams, and the gates between them."""
    axes.set(xlim=(0, 10), ylim=(0, 8), title="One block, two streams")
    axes.axis("off")
    for y, color, name in ((6.4, CLEAN, "clean stream"), (1.6, ABLATED, "ablated stream")):
        axes.annotate(
            "", (9.9, y), (0.1, y), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2.5}
        )
        axes.text(0.1, y + 0.35, name, color=color, fontsize=11, weight="bold")
    box(axes, 5.2, 6.4, "attention + MLP", "all units", CLEAN)
    box(axes, 5.2, 1.6, "attention + MLP", "k units per token", ABLATED)
    box(axes, 2.2, 4.0, "gates", "score every unit", GATES, width=2.9)
    arrow(axes, (2.2, 6.3), (2.2, 4.75))
    bent = {"arrowstyle": "-|>", "color": GATES, "lw": 1.6, "connectionstyle": "arc3,rad=-0.3"}
    axes.annotate("", (4.6, 2.4), (3.7, 4.0), arrowprops=bent)
    axes.text(4.9, 3.75, "masks: keep the k best", color=GATES, fontsize=10)
    for y in (6.4, 1.6):
        axes.text(9.9, y - 0.75, "next token", fontsize=10, ha="right")


def box(
    axes: Axes, x: float, y: float, first: str, second: str, color: str, width: float = 3.6
) -> None:
    """Draw a box with two lines of text, its middle at (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.7),
            width,
            1.4,
            boxstyle="round,pad=0.05",
            zorder=3,
            fc="white",
            ec=color,
            lw=1.6,
        )
    )
    axes.text(x, y + 0.22, first, ha="center", va="center", fontsize=10, weight="bold", zorder=4)
    axes.text(x, y - 0.3, second, ha="center", va="center", fontsize=10, zorder=4)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow to the gates."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GATES, "lw": 1.6})


def draw_masks(axes: Axes) -> None:
    """Draw which neurons each token of a sentence keeps."""
    model = SelfAblatingTransformer.from_pretrained("demo:local-k4")
    out = model.dual(model.to_tokens(PROMPT))
    mask = out.neuron_masks[0, :, LAYER].T > 0
    kept = mask.any(1).nonzero()[:, 0]
    answers = [
        model.tokenizer.decode([int(logits[0, -1].argmax())]).strip()
        for logits in (out.clean_logits, out.ablated_logits)
    ]
    axes.imshow(
        mask[kept].numpy(), aspect="auto", cmap="Oranges", vmin=0, vmax=1.3, interpolation="nearest"
    )
    labels = [token.strip() for token in model.to_str_tokens(PROMPT)]
    axes.set_xticks(range(1, len(labels)), labels[1:], rotation=60, ha="right", fontsize=9)
    axes.set_xlim(0.5, len(labels) - 0.5)
    axes.set_yticks([])
    axes.set_ylabel(f"{len(kept)} of {len(mask)} neurons, layer {LAYER}", fontsize=10)
    axes.set_title(
        f"demo:local-k4: the {int(mask.sum(0)[0])} neurons each token keeps\n"
        f"next token, clean: {answers[0]}; ablated: {answers[1]}",
        fontsize=11,
    )


if __name__ == "__main__":
    main()
