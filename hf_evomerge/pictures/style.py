"""Looks and how they are painted: in files, and on pages by the style sheet that is made of them
here."""

from dataclasses import dataclass

INK = "#1f2937"
_INKS = {"ink": INK, "subdued": "#566273", "paper": "#ffffff", "rule": "#e4e4e7"}
COLOURS = {
    # sources, after Okabe and Ito without yellow; their symbols tell them apart without colour
    "s0": "#0072b2",
    "s1": "#c75100",
    "s2": "#00805e",
    "s3": "#b0558d",
    "s4": "#9a6700",
    "s5": "#3a7ca5",
    # stages of a search, of no source's colour
    "ps": "#7b3fbf",
    "dfs": "#6b4e00",
    "dfs-first": "#8f6400",
    "ps-first": "#b0327a",
    "grey": "#6b7280",
    "good": "#00704f",
}
"""On white; `space_app/style.css` has lighter ones for dark pages."""

SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "up": ((0, -1.1), (1, 0.8), (-1, 0.8)),
    "down": ((0, 1.1), (1, -0.8), (-1, -0.8)),
    "diamond": ((0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)),
    "hexagon": ((-0.5, -1), (0.5, -1), (1, 0), (0.5, 1), (-0.5, 1), (-1, 0)),
    "right": ((-1, -1.3), (1, 0), (-1, 1.3)),
    "cross": ((-1, -1), (1, 1), (0, 0), (1, -1), (-1, 1), (0, 0)),
}
"""Corners of symbols whose half width is 1, downwards as on screens."""
SOURCE_SHAPES = ("circle", "square", "up", "down", "diamond", "hexagon")


@dataclass(frozen=True)
class Look:
    """Look of a mark: ``own`` is its colour, other words name colours; nothing where empty."""

    fill: str = ""
    stroke: str = ""
    width: float = 0.0
    opacity: float = 1.0
    dash: tuple[float, ...] = ()


LOOKS = {
    "arrow": Look(fill="grey"),
    "below": Look(fill="own", opacity=0.55),
    "best": Look(stroke="own", width=2.6),
    "chosen": Look(stroke="s1", width=2.2),
    "dot": Look(fill="own", opacity=0.35),
    "failed": Look(stroke="own", width=1.0),
    "flow": Look(stroke="own", opacity=0.6),
    "gridline": Look(stroke="rule", width=1.0),
    "join": Look(fill="grey"),
    "level": Look(stroke="grey", width=1.2, dash=(5, 4)),
    "markshape": Look(fill="own", stroke="paper", width=1.0),
    "markshape hollow": Look(fill="paper", stroke="own", width=2.0),
    "median": Look(stroke="own", width=1.2),
    "pad": Look(),
    "parent": Look(fill="ink", stroke="paper", width=1.0),
    "plus": Look(fill="own"),
    "point": Look(fill="own"),
    "route": Look(stroke="grey", width=1.2, opacity=0.8),
    "unused": Look(fill="grey", opacity=0.11),
    "used": Look(fill="own", opacity=0.16),
}


LETTERS = {
    "": (12.0, "normal", "ink"),
    "tick": (11.0, "normal", "subdued"),
    "title": (13.0, "bold", "ink"),
    "name": (13.0, "bold", "own"),
    "value": (12.0, "bold", "own"),
}
"""Size in pixels, weight and colour of words. With ``halo`` behind its name, a look keeps marks
away from the words."""


def paint(name: str, own: str) -> str:
    """The colour of a name, on white."""
    if name == "own":
        return COLOURS.get(own, INK)
    return (COLOURS | _INKS)[name]


def style_sheet() -> str:
    """The looks as CSS, each by the class of its name, and on light pages the colours above as
    ``--ev-NAME``."""
    variables = {name: f"--ev-{name.removeprefix('s')}" for name in COLOURS}
    colours = " ".join(f"{variables[name]}: {colour};" for name, colour in COLOURS.items())
    rules = [f".gradio-container {{ {colours} }}"]
    rules += [f".ev-{name} {{ --c: var({variable}); }}" for name, variable in variables.items()]
    variables |= {
        "own": "--c, var(--ev-grey)",
        "ink": "--body-text-color",
        "paper": "--body-background-fill",
        "rule": "--border-color-primary",
    }
    for name, look in LOOKS.items():
        fill, stroke = (
            f"var({variables[each]})" if each else "" for each in (look.fill, look.stroke)
        )
        told = {
            "fill": fill or ("none" if stroke else "transparent"),
            "stroke": stroke,
            "stroke-width": look.width or "",
        }
        told["fill-opacity" if fill else "stroke-opacity"] = (
            look.opacity if look.opacity < 1 else ""
        )
        told["stroke-dasharray"] = " ".join(map(str, look.dash))
        said = " ".join(f"{key}: {value};" for key, value in told.items() if value)
        rules.append(f".ev-{name.split()[-1]} {{ {said} }}")
    return "\n".join(rules)
