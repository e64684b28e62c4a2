// Where peers say that they are, as regions of a map. Nobody is asked: the page knows the countries. No DOM in here.

import { COUNTRIES, SIZE, x, y } from "./world.js";

const POSITION = /^(?:(.*?)[\s,;@(]+)?(-?\d{1,2}(?:\.\d+)?)\s*,\s*(-?\d{1,3}(?:\.\d+)?)\s*\)?$/;
const MOST_LABELS = 14;
const [LETTER, LINE] = [6.1, 13]; // of a label, in units of the picture

const plain = (text) => text.toLowerCase().replace(/[^\p{L}\p{N} ]/gu, "").replace(/\s+/g, " ").trim();
const codes = new Map(Object.entries(COUNTRIES).flatMap(([code, [, , , names]]) => names.map((name) => [name, code])));
const known = new Map(); // a place's words -> what they mean: there are few, and rows change all the time

/** What a peer's words mean: {key, name, at}; `at` is [latitude, longitude], or null: they name no place of the map. */
export function located(place) {
  if (!known.has(place)) known.set(place, read(place.trim()));
  return known.get(place);
}

function read(place) {
  const [, words = "", lat, lon] = POSITION.exec(place) ?? [];
  if (lat !== undefined && Math.abs(lat) <= 90 && Math.abs(lon) <= 180) {
    const at = [Number(lat), Number(lon)];
    return { key: at.map((degrees) => degrees.toFixed(1)).join(), name: words || position(at), at };
  }
  const code = country(place);
  if (!code) return { key: plain(place), name: place, at: null };
  const [name, ...at] = COUNTRIES[code];
  return { key: code, name, at: at.slice(0, 2) };
}

/** The code of the country that the words end with: "Lisbon, PT", "Lisbon, Portugal", "new zealand"; or undefined. */
function country(place) {
  const last = plain(place.split(",").pop());
  if (Object.hasOwn(COUNTRIES, last)) return last;
  const words = last.split(" ");
  for (let first = 0; first < words.length; first += 1) {
    const code = codes.get(words.slice(first).join(" "));
    if (code) return code;
  }
  return undefined;
}

function position([lat, lon]) {
  return `${Math.abs(lat).toFixed(1)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(1)}° ${lon < 0 ? "W" : "E"}`;
}

/** Whoever says the same, together; those who have given most first, those who say nothing last. */
export function regions(peers) {
  const found = new Map();
  for (const peer of peers) {
    const { key, name, at } = located(peer.place);
    let region = found.get(key);
    if (!region) found.set(key, (region = { key, name, at, said: new Set(), numIn: 0, numEver: 0, tokens: 0 }));
    region.said.add(peer.place);
    region.numEver += 1;
    region.tokens += peer.tokens;
    if (peer.in) region.numIn += 1;
  }
  const all = [...found.values()].reduce((sum, region) => sum + region.tokens, 0);
  return [...found.values()].map(({ said, ...region }) => ({
    ...region, name: said.size === 1 && region.at ? named([...said][0], region.name) : region.name, share: all ? region.tokens / all : 0,
  })).sort((a, b) => !a.key - !b.key || b.tokens - a.tokens || b.numIn - a.numIn || (a.name < b.name ? -1 : 1));
}

/** One's own words, where nobody else says the same with others: "Lisbon, PT", not "Portugal". */
function named(place, name) {
  return POSITION.test(place.trim()) ? name : place.trim();
}

/** The dots of a map, large ones first: {region, x, y, r}; then labels that have room: {text, x, y, isLeft}. */
export function mapped(found) {
  const dots = found.filter((region) => region.at).map((region) => {
    const [lat, lon] = region.at;
    return { region, x: x(lon), y: Math.min(y(lat), SIZE[1] - 4), r: 4 + 10 * Math.sqrt(region.share) };
  });
  const taken = dots.map((dot) => [dot.x - dot.r, dot.y - dot.r, dot.x + dot.r, dot.y + dot.r]);
  const labels = [];
  for (const [index, dot] of dots.entries()) {
    const text = dot.region.name.length > 24 ? `${dot.region.name.slice(0, 23)}…` : dot.region.name;
    const label = [false, true].map((isLeft) => labelled(dot, text, isLeft)).find(({ box }) => isFree(box, taken, index));
    if (!label || labels.length >= MOST_LABELS) continue;
    taken.push(label.box);
    labels.push(label);
  }
  return { dots: dots.sort((a, b) => b.r - a.r), labels };
}

function labelled(dot, text, isLeft) {
  const [width, away] = [LETTER * text.length, dot.r + 4];
  const left = isLeft ? dot.x - away - width : dot.x + away;
  return { text, isLeft, x: isLeft ? dot.x - away : dot.x + away, y: dot.y + 4, box: [left, dot.y - LINE / 2, left + width, dot.y + LINE / 2] };
}

/** Whether a label lies in the picture, and on nothing but its own dot. */
function isFree([left, top, right, bottom], taken, own) {
  const isInside = left >= 0 && right <= SIZE[0];
  return isInside && taken.every(([l, t, r, b], index) => index === own || right < l || left > r || bottom < t || top > b);
}
