// The map of regions, and the list beside it.

import { mapped, regions } from "./regions.js";
import { LAND, SIZE } from "./world.js";
import { percent, plural } from "./model.js";
import { el, find, put, svg } from "./dom.js";

const MOST_ROWS = 10;
let drawn = "";

export function drawMap(model) {
  const found = regions(model.peers);
  const key = JSON.stringify(found);
  if (key === drawn) return;
  drawn = key;
  const said = found.filter((region) => region.key);
  find("map-empty").hidden = said.length > 0;
  find("map-body").hidden = !said.length;
  put(find("map-text"), said.length ? `${plural(said.length, "place")}, as they say themselves` : "");
  const { dots, labels } = mapped(found);
  drawPicture(find("map"), dots, labels);
  drawList(find("places"), said, found.find((region) => !region.key));
}

function drawPicture(place, dots, labels) {
  if (!place.firstChild) {
    place.append(svg("svg", { viewBox: `0 0 ${SIZE.join(" ")}`, role: "img" }, [svg("title"), svg("path", { class: "continents", d: LAND }), svg("g"), svg("g")]));
  }
  const [title, , spots, words] = place.firstChild.children;
  put(title, `A map of the world: peers in ${plural(dots.length, "place")}`);
  spots.replaceChildren(...dots.map(({ region, x, y, r }) =>
    svg("circle", { class: region.numIn ? "spot" : "spot left", cx: x.toFixed(1), cy: y.toFixed(1), r: r.toFixed(1) }, [svg("title", {}, [`${region.name}: ${inWords(region)}`])])));
  words.replaceChildren(...labels.map(({ text, x, y, isLeft }) =>
    svg("text", { x: x.toFixed(1), y: y.toFixed(1), "text-anchor": isLeft ? "end" : "start" }, [text])));
}

function drawList(list, said, silent) {
  const shown = said.slice(0, MOST_ROWS);
  const rest = said.length - shown.length;
  const rows = shown.map((region) => row(region.name, region));
  if (rest > 0) rows.push(el("li", { class: "rest" }, [`and ${plural(rest, "more place", "more places")}`]));
  if (silent) rows.push(row("they do not say where", silent, "rest"));
  list.replaceChildren(...rows);
}

function row(name, region, kind = "") {
  return el("li", { class: region.numIn ? kind : `${kind} left` }, [el("span", { class: "who", title: name }, [name]), el("span", {}, [inWords(region)])]);
}

function inWords({ numIn, numEver, share }) {
  const who = numIn ? plural(numIn, "peer") : `${numEver} left`;
  return share ? `${who}, ${percent(share)}` : who;
}
