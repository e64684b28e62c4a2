// The pictures: the ring of islands, and curves.

import { islands, flows, plotted, ticks, HOST, percent } from "./model.js";
import { fill, set, svg } from "./dom.js";

// --- the ring ---------------------------------------------------------------------------------

const drawn = new Map(); // number -> the island's elements

export function drawRing(place, model) {
  if (!place.firstChild) {
    place.append(svg("svg", { viewBox: "0 0 400 400", role: "img" }, [
      svg("title"), svg("circle", { class: "water", cx: 200, cy: 200, r: 118 }), svg("circle", { class: "reef", cx: 200, cy: 200, r: 150 }),
      svg("g"), svg("g"), svg("text", { class: "middle", x: 200, y: 200 }), svg("text", { class: "middle small", x: 200, y: 224 })]));
  }
  const [title, water, reef, flowing, land, middle, small] = place.firstChild.children;
  const there = islands(model);
  const isMany = there.some((island) => island.isSmall);
  place.firstChild.classList.toggle("many", isMany);
  set(reef, { r: isMany ? 180 : 150 });
  set(water, { r: isMany ? 128 : 118 });
  const where = new Map(there.map((island) => [island.number, island]));
  fill(land, there.map((island) => drawIsland(island, model)));
  for (const number of [...drawn.keys()]) if (!where.has(number)) drawn.delete(number);
  const sending = flows(model, [...where.keys()]);
  fill(flowing, sending.map(([from, to, kind], index) => drawFlow(flowing.children[index], where.get(from), where.get(to), kind)));
  const words = middleWords(model);
  if (middle.textContent !== words[0]) middle.textContent = words[0];
  if (small.textContent !== words[1]) small.textContent = words[1];
  const said = `${there.length} islands. ${words.join(", ")}`;
  if (title.textContent !== said) title.textContent = said;
}

function middleWords(model) {
  if (!model.run) return ["", ""];
  if (model.run.is_complete) return ["done", `${model.run.rounds} rounds`];
  const [round] = model.open;
  if (!round) return [model.run.committed ? `state ${model.run.committed}` : "state 0", "waiting"];
  const words = { train: "inner steps", exchange: "exchange", reduce: "forming the mean" };
  return [`round ${round.round}`, words[round.phase]];
}

function drawIsland({ number, x, y, angle, land, isSmall }, model) {
  const peer = number === HOST ? { doing: "host", name: "host", progress: 0 } : model.peers[number];
  let parts = drawn.get(number);
  if (!parts || parts.isSmall !== isSmall) {
    parts = { isSmall, group: svg("g", { class: "island" }, [svg("circle", { class: "land" }), svg("title")]) };
    if (!isSmall) parts.group.append(svg("circle", { class: "rim" }), svg("path", { class: "done" }), svg("text"));
    drawn.set(number, parts);
  }
  const [shape, title, rim, done, name] = parts.group.children;
  const key = `${x} ${y} ${land} ${peer.doing} ${isSmall ? "" : peer.progress} ${peer.name}`;
  if (parts.key === key) return parts.group;
  parts.key = key;
  set(parts.group, { "data-doing": peer.doing });
  set(shape, { cx: x.toFixed(1), cy: y.toFixed(1), r: land.toFixed(1) });
  if (isSmall) {
    title.textContent = `${peer.name}: ${peer.doing}`;
    return parts.group;
  }
  title.textContent = `${peer.name}: ${peer.doing}${peer.doing === "training" ? `, ${percent(peer.progress)}` : ""}`;
  set(rim, { cx: x.toFixed(1), cy: y.toFixed(1), r: (land + 5).toFixed(1) });
  set(done, { d: arc(x, y, land + 5, peer.progress) });
  const out = land + 21;
  set(name, { x: (x + out * Math.cos(angle) * 1.15).toFixed(1), y: (y + out * Math.sin(angle) + 4).toFixed(1) });
  const short = peer.name.length > 14 ? `${peer.name.slice(0, 13)}…` : peer.name;
  if (name.textContent !== short) name.textContent = short;
  return parts.group;
}

function arc(x, y, radius, part) {
  if (part <= 0) return "";
  if (part > 0.99) return `${arc(x, y, radius, 0.5)}A${radius} ${radius} 0 0 1 ${x.toFixed(1)} ${(y - radius).toFixed(1)}`;
  const end = 2 * Math.PI * part - Math.PI / 2;
  const to = `${(x + radius * Math.cos(end)).toFixed(1)} ${(y + radius * Math.sin(end)).toFixed(1)}`;
  return `M${x.toFixed(1)} ${(y - radius).toFixed(1)}A${radius} ${radius} 0 ${part > 0.5 ? 1 : 0} 1 ${to}`;
}

function drawFlow(path, from, to, kind) {
  const line = path ?? svg("path");
  const pull = 0.45; // towards the middle of the lagoon
  const [cx, cy] = [200 + (from.x + to.x - 400) * 0.5 * (1 - pull), 200 + (from.y + to.y - 400) * 0.5 * (1 - pull)];
  set(line, { class: kind === "update" ? "flow update" : "flow", d: `M${from.x.toFixed(1)} ${from.y.toFixed(1)}Q${cx.toFixed(1)} ${cy.toFixed(1)} ${to.x.toFixed(1)} ${to.y.toFixed(1)}` });
  return line;
}

// --- curves -----------------------------------------------------------------------------------

export function drawChart(place, points, { name, fromZero, nothing, x: sayX, y: sayY, say, others = [] }) {
  const width = place.clientWidth || 600;
  const height = place.clientHeight || 200;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, [svg("title")]);
  if (!points.length) {
    picture.firstChild.textContent = `${name}: nothing yet`;
    picture.append(svg("line", { class: "grid", x1: 0, x2: width, y1: height - 24, y2: height - 24 }), svg("text", { class: "nothing", x: width / 2, y: height / 2 }, [nothing]));
    place.replaceChildren(picture);
    return;
  }
  const box = { width, height, left: 46, bottom: 24, top: 10, fromZero, others };
  const plot = plotted(points, box);
  const last = points[points.length - 1];
  picture.firstChild.textContent = `${name}: from ${say(points[0])} to ${say(last)}`;
  for (const value of ticks(plot.y0, plot.y1, height / 48)) {
    const at = plot.y(value).toFixed(1);
    picture.append(svg("line", { class: "grid", x1: box.left, x2: width - 14, y1: at, y2: at }), svg("text", { class: "tick", x: box.left - 8, y: Number(at) + 4, "text-anchor": "end" }, [sayY(value)]));
  }
  for (const value of ticks(plot.x0, plot.x1, width / 110)) {
    picture.append(svg("text", { class: "tick", x: plot.x(value).toFixed(1), y: height - 5, "text-anchor": "middle" }, [sayX(value)]));
  }
  picture.append(svg("path", { class: "area", d: plot.area }), svg("path", { class: "curve", d: plot.path }),
    svg("circle", { class: "tip", cx: plot.x(last[0]).toFixed(1), cy: plot.y(last[1]).toFixed(1), r: 5 }));
  if (others.length) picture.append(svg("path", { class: "others", d: plot.line(others) }));
  for (const [x, y] of others) picture.append(svg("circle", { class: "other", cx: plot.x(x).toFixed(1), cy: plot.y(y).toFixed(1), r: 3 }));
  addHair(picture, points, plot, { box, say });
  place.replaceChildren(picture);
}

/** A line that follows the pointer, and says what the point there is. */
function addHair(picture, points, plot, { box, say }) {
  const hair = svg("line", { class: "hair", y1: box.top, y2: box.height - box.bottom, visibility: "hidden" });
  const said = svg("text", { class: "said", y: box.top + 4, visibility: "hidden" });
  picture.append(hair, said);
  picture.addEventListener("pointermove", (event) => {
    const bounds = picture.getBoundingClientRect();
    const at = ((event.clientX - bounds.left) / bounds.width) * box.width;
    const nearest = points.reduce((best, point) => (Math.abs(plot.x(point[0]) - at) < Math.abs(plot.x(best[0]) - at) ? point : best));
    const x = plot.x(nearest[0]);
    const isRight = x > box.width * 0.6;
    set(hair, { x1: x, x2: x, visibility: "visible" });
    set(said, { x: x + (isRight ? -8 : 8), "text-anchor": isRight ? "end" : "start", visibility: "visible" });
    said.textContent = say(nearest);
  });
  picture.addEventListener("pointerleave", () => {
    set(hair, { visibility: "hidden" });
    set(said, { visibility: "hidden" });
  });
}
