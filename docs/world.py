"""Writes what the dashboard's map is drawn from: src/atoll/web/static/world.js.

    npm install world-atlas i18n-iso-countries
    python docs/world.py node_modules > src/atoll/web/static/world.js

The coasts and countries are those of Natural Earth (public domain), from world-atlas; the codes and
English names those of ISO 3166, from i18n-iso-countries. The coasts become one SVG path, half a
degree fine.
"""

import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

Point = tuple[float, float]  # longitude, latitude
PER_DEGREE = 2  # units of the picture
NORTH, SOUTH = 84, -57  # what it shows: nobody trains in Antarctica
COARSE = 0.25  # degrees that a coast may be wrong by
LEAST = 1.5  # square degrees of an island that is drawn
ALSO = {"gb": ("england", "scotland", "wales"), "us": ("america",)}


def rings(topology: dict[str, Any], geometry: dict[str, Any]) -> Iterator[list[Point]]:
    """Yield the outer ring of each polygon of a geometry (TopoJSON 2.1)."""
    kind = geometry["type"]
    for polygon in geometry["arcs"] if kind == "MultiPolygon" else [geometry["arcs"]]:
        ring: list[Point] = []
        for number in polygon[0]:
            arc = decoded(topology, number)
            ring += arc[1:] if ring else arc
        yield unwrapped(ring)


def unwrapped(ring: list[Point]) -> list[Point]:
    """Return a ring that may leave the map in the east in place of one that jumps across it."""
    points = ring[:1]
    for lon, lat in ring[1:]:
        points.append((lon + 360 * round((points[-1][0] - lon) / 360), lat))
    lons = [lon for lon, _ in points]
    turns = round((min(lons) + max(lons)) / 2 / 360)
    return [(lon - 360 * turns, lat) for lon, lat in points]


def decoded(topology: dict[str, Any], number: int) -> list[Point]:
    """Return an arc's points; a negative number: of an arc that is run through backwards."""
    (kx, ky), (dx, dy) = topology["transform"]["scale"], topology["transform"]["translate"]
    x = y = 0
    points = []
    for step_x, step_y in topology["arcs"][number if number >= 0 else ~number]:
        x, y = x + step_x, y + step_y
        points.append((x * kx + dx, y * ky + dy))
    return points if number >= 0 else points[::-1]


def area(ring: list[Point]) -> float:
    """Return the signed area, in square degrees of the plane."""
    pairs = zip(ring, ring[1:] + ring[:1], strict=True)
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) / 2


def centre(ring: list[Point]) -> Point:
    """Return the centroid of what a ring encloses."""
    pairs = [*zip(ring, ring[1:] + ring[:1], strict=True)]
    whole = 6 * area(ring)
    x = sum((x0 + x1) * (x0 * y1 - x1 * y0) for (x0, y0), (x1, y1) in pairs) / whole
    y = sum((y0 + y1) * (x0 * y1 - x1 * y0) for (x0, y0), (x1, y1) in pairs) / whole
    return x, y


def coarse(points: list[Point]) -> list[Point]:
    """Return fewer points of a line, the others no further away than `COARSE` (Douglas-Peucker)."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    far, at = 0.0, 0
    for index, (x, y) in enumerate(points[1:-1], start=1):
        if length:
            away = abs((x1 - x0) * (y0 - y) - (x0 - x) * (y1 - y0)) / length
        else:
            away = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
        if away > far:
            far, at = away, index
    if far <= COARSE:
        return [points[0], points[-1]]
    return coarse(points[: at + 1])[:-1] + coarse(points[at:])


def path(topology: dict[str, Any]) -> str:
    """Return the coasts as an SVG path of whole numbers, each relative to the one before."""
    said = []
    for geometry in topology["objects"]["land"]["geometries"]:
        for ring in rings(topology, geometry):
            if abs(area(ring)) < LEAST or max(lat for _, lat in ring) < SOUTH:
                continue
            points = [
                (round(PER_DEGREE * (lon + 180)), round(PER_DEGREE * (NORTH - max(lat, SOUTH))))
                for lon, lat in coarse(ring)
            ]
            steps = [
                (x - x0, y - y0) for (x0, y0), (x, y) in pairwise(points[:-1]) if (x, y) != (x0, y0)
            ]
            line = f"M{points[0][0]} {points[0][1]}l" + " ".join(f"{x} {y}" for x, y in steps)
            said.append(line.replace(" -", "-") + "z")
    return "".join(said)


def countries(packages: Path) -> Iterator[tuple[str, str, Point, list[str]]]:
    """Yield each country: code, name, the middle of its largest part, and what it is called."""
    atlas = json.loads((packages / "world-atlas/countries-50m.json").read_text("utf-8"))
    folder = packages / "i18n-iso-countries"
    codes = json.loads((folder / "codes.json").read_text("utf-8"))
    names = json.loads((folder / "langs/en.json").read_text("utf-8"))["countries"]
    numbers = {number: (two, three) for two, three, number, *_ in codes}
    for geometry in atlas["objects"]["countries"]["geometries"]:
        own = geometry["properties"]["name"]
        two, three = numbers.get(
            geometry.get("id", ""), ("XK", "XKX") if own == "Kosovo" else ("", "")
        )
        if not two:
            continue
        called = names.get(two, own)
        known = [three, *(called if isinstance(called, list) else [called]), own]
        middle = centre(max(rings(atlas, geometry), key=lambda ring: abs(area(ring))))
        yield two.lower(), own, middle, [*known, *ALSO.get(two.lower(), ())]


def script(packages: Path) -> str:
    """Return the module."""
    land = json.loads((packages / "world-atlas/land-110m.json").read_text("utf-8"))
    lines = [
        "// Made by docs/world.py from Natural Earth's map, which is in the public domain.",
        "",
        "/** The size of the picture, and where the equirectangular projection puts a place. */",
        f"export const SIZE = [{360 * PER_DEGREE}, {(NORTH - SOUTH) * PER_DEGREE}];",
        f"export const x = (lon) => {PER_DEGREE} * (lon + 180);",
        f"export const y = (lat) => {PER_DEGREE} * ({NORTH} - lat);",
        "",
        "/** The coasts, as an SVG path. */",
        f'export const LAND = "{path(land)}";',
        "",
        "/** Each country: its name, latitude and longitude of its middle, what it is called. */",
        "export const COUNTRIES = {",
    ]
    for code, own, (lon, lat), names in sorted(countries(packages)):
        plain = dict.fromkeys(re.sub(r"[^\w ]", "", name.lower()) for name in names)
        row = [own, round(lat, 1), round(lon, 1), list(plain)]
        lines.append(f"  {code}: {json.dumps(row, ensure_ascii=False)},")
    return "\n".join([*lines, "};", ""])


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(script(Path(sys.argv[1])))
