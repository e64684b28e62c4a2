// The page: it listens to the host, keeps the model, and draws what has changed.

import * as m from "./model.js";
import { drawChart, drawRing } from "./draw.js";
import { drawMap } from "./map.js";
import { startOperating } from "./operate.js";
import { el, fill, find, put, setText } from "./dom.js";

const model = m.emptyModel();
const view = { key: "tokens", descending: true, filter: "", peers: 25, rounds: 10, opened: new Set() };
let hostClock = 0; // the host's wall clock minus ours, in seconds
const now = () => Date.now() / 1000 + hostClock;

// --- the connection ---------------------------------------------------------------------------

let source = null;
let attempt = 0;
let watchdog = 0;

function connect() {
  source?.close();
  source = new EventSource("/api/v1/stream");
  for (const kind of ["snapshot", "delta", "beat", "end"]) source.addEventListener(kind, (event) => hear(kind, event));
  source.onerror = () => lose("reconnecting");
  watch();
}

function hear(kind, event) {
  watch();
  if (kind === "end") return lose("the host has stopped; looking for it");
  attempt = 0;
  say("live", "live");
  const parts = m.apply(model, kind, JSON.parse(event.data));
  if (parts === null) return connect(); // something was missed: begin with a new snapshot
  if (parts.size) schedule(parts);
}

function lose(words) {
  source.close();
  clearTimeout(watchdog);
  say("lost", words);
  watchdog = setTimeout(connect, 1000 * m.retryDelay(attempt, Math.random()));
  attempt += 1;
}

function watch() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => lose("reconnecting"), 1000 * m.QUIET_S);
}

function say(state, words) {
  const place = find("connection");
  if (place.dataset.state === state && find("connection-text").textContent === words) return;
  place.dataset.state = state;
  find("connection-text").textContent = words;
}

// --- drawing ----------------------------------------------------------------------------------

const stale = new Set();
let isScheduled = false;

function schedule(parts) {
  for (const part of parts) stale.add(part);
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    const began = performance.now();
    const changed = new Set(stale);
    stale.clear();
    draw(changed);
    document.documentElement.dataset.drawn = String(Number(document.documentElement.dataset.drawn ?? 0) + 1);
    const took = performance.now() - began;
    document.documentElement.dataset.drawMs = took.toFixed(1);
    document.documentElement.dataset.mostMs = Math.max(took, Number(document.documentElement.dataset.mostMs ?? 0)).toFixed(1);
  });
}

function draw(parts) {
  const any = (...names) => names.some((name) => parts.has(name));
  if (any("run", "open", "curve", "peers")) drawHero();
  if (any("health")) drawHealth();
  if (any("peers", "open")) drawTheRing();
  if (any("curve", "checks", "run")) drawLoss();
  if (any("rounds")) drawSpeed();
  if (any("rounds", "peers", "open")) drawRounds();
  if (any("peers", "rows")) drawPeers(parts.has("rows"));
  if (any("peers")) drawLeaders();
  if (any("peers")) drawMap(model);
  if (any("news")) drawNews();
  if (any("run")) noteJournal();
}

function drawHero() {
  const { run } = model;
  const [title, more] = m.story(model);
  setText("status-line", title);
  setText("status-more", more);
  if (!run) return;
  document.title = `${run.name} · round ${run.committed} of ${run.rounds}`;
  setText("name", run.name);
  setText("version", `atoll ${run.version}.`);
  const part = run.committed / run.rounds;
  find("progress-bar").style.width = `${100 * part}%`;
  find("progress").setAttribute("aria-valuenow", String(Math.round(100 * part)));
  setText("progress-text", `${run.committed} of ${m.plural(run.rounds, "round")} committed`);
  const list = find("figures");
  for (const [index, [name, figure, unit]] of m.figures(model).entries()) {
    const cell = list.children[index] ?? list.appendChild(el("div", {}, [el("dt"), el("dd", {}, ["", el("small")])]));
    if (cell.firstChild.textContent !== name) cell.firstChild.textContent = name;
    const [text, small] = cell.lastChild.childNodes;
    if (text.data !== figure + " ") text.data = figure + " ";
    if (small.textContent !== unit) small.textContent = unit;
  }
}

function drawHealth() {
  find("health").hidden = !model.health.length;
  fill(find("health-list"), model.health.map(({ severity, text, hint }) =>
    el("li", { "data-severity": severity }, [text, " ", el("span", {}, [hint])])));
}

function drawTheRing() {
  drawRing(find("ring"), model);
  const doing = m.doings(model.peers);
  setText("ring-text", model.run?.is_complete ? "complete" : [...doing].map(([what, number]) => `${number} ${what}`).join(", "));
  const legend = find("ring-legend");
  if (!legend.children.length) {
    for (const [kind, words] of [["training", "trains"], ["exchanging", "sends its work"], ["delivered", "has delivered"], ["update", "mean on its way"], ["paused", "paused"], ["gone", "cut off"]]) {
      legend.append(el("li", { class: kind }, [words]));
    }
  }
}

function drawLoss() {
  const points = model.curve.map(([, tokens, loss]) => [tokens, loss]);
  const last = points[points.length - 1];
  const check = model.checks[model.checks.length - 1];
  setText("loss-text", (last ? `${last[1].toFixed(3)} after ${m.count(last[0])} tokens` : "") + (check ? `; dashed: ${check[2].toFixed(3)} held out` : ""));
  setText("sample", model.run?.sample ?? "");
  find("sample").hidden = !model.run?.sample;
  drawChart(find("loss"), points, {
    name: "Mean loss of each round over committed tokens", fromZero: false,
    nothing: "The loss of the first round will be the first point.",
    x: (value) => m.short(value), y: (value) => value.toFixed(2),
    say: (point) => `${point[1].toFixed(3)} at ${m.count(point[0])} tokens`,
    others: model.checks.map(([, tokens, loss]) => [tokens, loss]),
  });
}

function drawSpeed() {
  const points = m.speeds(model.rounds);
  const last = points[points.length - 1];
  setText("speed-text", last ? `${m.count(last[1])} tokens/s in round ${last[0]}` : "");
  drawChart(find("speed"), points, {
    name: "Committed tokens per second, round by round", fromZero: true,
    nothing: "Tokens per second, once a round is committed.",
    x: (value) => (Number.isInteger(value) ? String(value) : ""), y: (value) => m.short(value),
    say: (point) => `${m.count(point[1])} tokens/s in round ${point[0]}`,
  });
}

// --- rounds -----------------------------------------------------------------------------------

function drawRounds() {
  const lines = [...model.rounds.values()].sort((a, b) => b.round - a.round);
  const shown = lines.slice(0, view.rounds);
  find("rounds-empty").hidden = lines.length > 0;
  find("rounds-table").hidden = !lines.length;
  find("rounds-more").hidden = lines.length <= view.rounds;
  const longest = Math.max(1e-3, ...shown.map((line) => m.phases(line, now()).whole));
  const body = find("rounds-table").tBodies[0];
  const known = new Map([...body.querySelectorAll("tr[data-round]")].map((row) => [Number(row.dataset.round), row]));
  const rows = [];
  for (const line of shown) {
    const row = known.get(line.round) ?? roundRow(line);
    drawRound(row, line, longest);
    rows.push(row);
    if (row.nextDetails) rows.push(row.nextDetails);
  }
  fill(body, rows);
}

function roundRow(line) {
  const button = el("button", { type: "button", "aria-expanded": "false", "aria-label": `Details of round ${line.round}` }, ["details"]);
  const bar = el("div", { class: "bar" }, [el("span", { class: "train" }), el("span", { class: "exchange" })]);
  const cells = [el("th", { scope: "row" }, [String(line.round)]), el("td", { class: "wide" }, [bar]), el("td", { class: "num" }),
    el("td", { class: "num" }), el("td", { class: "late" }), el("td", { class: "num" }), el("td", {}, [button])];
  const row = el("tr", { "data-round": line.round }, cells);
  button.addEventListener("click", () => toggleDetails(row, button, line.round));
  return row;
}

function drawRound(row, line, longest) {
  const { train, exchange, whole, isOpen } = m.phases(line, now());
  const [, time, took, inside, late, loss] = row.cells;
  const bar = time.firstChild;
  bar.classList.toggle("is-open", isOpen);
  bar.firstChild.style.width = `${(100 * train) / longest}%`;
  bar.lastChild.style.width = `${(100 * exchange) / longest}%`;
  time.title = isOpen ? `open for ${m.duration(whole)}` : `${m.duration(train)} of inner steps, ${m.duration(exchange)} of exchange`;
  put(took, whole ? m.duration(whole) : "–");
  put(inside, line.num_in ? `${line.num_in}` : `${line.waited} at work`);
  put(late, m.missingText(line, model.peers));
  put(loss, line.num_in ? line.loss.toFixed(3) : "–");
}

async function toggleDetails(row, button, round) {
  if (row.nextDetails) {
    row.nextDetails.remove();
    row.nextDetails = null;
    button.setAttribute("aria-expanded", "false");
    return;
  }
  const cell = el("td", { colspan: 7 }, ["asking the host…"]);
  row.nextDetails = el("tr", { class: "details" }, [cell]);
  row.after(row.nextDetails);
  button.setAttribute("aria-expanded", "true");
  const answer = await ask(`/api/v1/rounds/${round}`);
  fill(cell, answer.error ? [answer.error] : roundDetails(answer));
}

function roundDetails(line) {
  const names = new Map(model.peers.map((peer) => [peer.id, peer.name]));
  const name = (peer) => names.get(peer) ?? (peer.slice(0, 8));
  const said = [];
  if (line.close_reason) said.push(el("p", {}, [`Closed: ${line.close_reason}.`]));
  for (const note of line.notes) said.push(el("p", {}, [`${m.clock(note.at)}: planned anew, ${note.text}.`]));
  if (line.missing.length) said.push(el("p", {}, [`Waited for, and not in it: ${line.missing.map(name).join(", ")}.`]));
  if (line.reducers.length) said.push(el("p", {}, [`Averaged by ${line.reducers.map(name).join(", ")}.`]));
  if (line.state) said.push(el("p", {}, ["State ", el("span", { class: "mono" }, [line.state])]));
  const entries = line.roster.map((entry) => el("li", {}, [`${name(entry.peer)}: ${m.percent(entry.share)}, ${m.count(entry.num_tokens)} tokens, loss ${entry.mean_loss.toFixed(3)}`]));
  if (entries.length) said.push(el("ul", {}, entries));
  return said.length ? said : ["It is open."];
}

// --- peers ------------------------------------------------------------------------------------

const COLUMNS = [
  ["name", "Name", (peer) => el("span", { class: "who", title: peer.id }, [peer.name])],
  ["doing", "Doing", (peer) => el("span", { class: `tag ${peer.doing.replace(" ", "-")}` }, [peer.doing])],
  ["device", "Device", (peer) => machineCell(peer)],
  ["tps", "Tokens/s", (peer) => (peer.in && peer.tps ? m.count(peer.tps) : "–"), "num"],
  ["mfu", "MFU", (peer) => (peer.in && peer.tps && peer.mfu !== null ? m.percent(peer.mfu) : "–"), "num"],
  ["tokens", "Tokens", (peer) => m.count(peer.tokens), "num"],
  ["share", "Share", (peer) => m.percent(peer.share), "num"],
  ["utilisation", "Busy", (peer) => (peer.in && peer.utilisation !== null ? m.percent(peer.utilisation) : "–"), "num"],
  ["loss", "Loss", (peer) => (peer.rounds ? peer.loss.toFixed(3) : "–"), "num"],
  ["rounds", "Rounds", (peer) => (peer.missed ? `${peer.rounds} (${peer.missed} late)` : String(peer.rounds)), "num"],
  ["sent", "Sent", (peer) => m.bytes(peer.sent), "num"],
  ["received", "Received", (peer) => m.bytes(peer.received), "num"],
  ["reduces", "Averages", (peer) => (peer.reduces ? m.plural(peer.reduces, "slice") : peer.reachable ? "may" : "no")],
  ["state", "State", (peer) => stateCell(peer)],
];

function machineCell(peer) {
  const words = [peer.device, peer.place].filter(Boolean).join(" · ") || "–";
  return el("span", { class: "machine", title: words }, [words]);
}

function stateCell(peer) {
  if (!peer.in) return peer.left ? el("span", {}, [peer.left]) : "–";
  if (peer.differs) return el("span", { class: "tag bad" }, ["differs"]);
  if (peer.state === null) return "–";
  return peer.agrees ? `${peer.state} agrees` : `${peer.state}`;
}

const rowsShown = new Map(); // row number -> {row, texts}

function peersHead() {
  const head = find("peers-table").tHead.rows[0];
  for (const [key, title, , kind] of COLUMNS) {
    const button = el("button", { type: "button" }, [title]);
    const cell = el("th", { scope: "col", class: kind ?? "" }, [button]);
    button.addEventListener("click", () => {
      view.descending = view.key === key ? !view.descending : kind === "num";
      view.key = key;
      schedule(["rows"]);
    });
    cell.dataset.key = key;
    head.append(cell);
  }
}

const RESORT_MS = 3000; // rows that change places all the time cannot be read
const order = { numbers: [], at: -Infinity, numPeers: 0 };

function sortedRows(isAsked) {
  const at = performance.now();
  if (isAsked || order.numPeers !== model.peers.length || at - order.at > RESORT_MS) {
    Object.assign(order, { numbers: m.sortedRows(model.peers, view), at, numPeers: model.peers.length });
  }
  return order.numbers;
}

function drawPeers(isAsked) {
  const { peers } = model;
  find("peers-empty").hidden = peers.length > 0;
  find("peers-table").hidden = !peers.length;
  for (const cell of find("peers-table").tHead.rows[0].cells) {
    const sort = cell.dataset.key === view.key ? (view.descending ? "descending" : "ascending") : "none";
    if (cell.getAttribute("aria-sort") !== sort) cell.setAttribute("aria-sort", sort);
  }
  const numbers = sortedRows(isAsked);
  const more = find("peers-more");
  more.hidden = numbers.length <= view.peers;
  put(more, `Show more peers (${numbers.length - Math.min(numbers.length, view.peers)} more)`);
  const rows = numbers.slice(0, view.peers).map(peerRow);
  fill(find("peers-table").tBodies[0], rows);
}

function peerRow(number) {
  const peer = model.peers[number];
  let shown = rowsShown.get(number);
  if (!shown) {
    const cells = COLUMNS.map(([, , , kind], index) => el(index ? "td" : "th", index ? { class: kind ?? "" } : { scope: "row" }));
    shown = { row: el("tr", {}, cells), peer: null };
    rowsShown.set(number, shown);
  }
  if (shown.peer === peer) return shown.row;
  shown.row.classList.toggle("is-gone", !peer.in);
  for (const [index, [key, , cell]] of COLUMNS.entries()) {
    const value = cell(peer);
    const signature = typeof value === "string" ? value : `${key} ${value.className} ${value.textContent}`;
    const place = shown.row.cells[index];
    if (place.signature !== signature) {
      place.signature = signature;
      place.replaceChildren(value);
    }
  }
  shown.peer = peer;
  return shown.row;
}

function drawLeaders() {
  const found = m.leaders(model.peers);
  find("board-empty").hidden = found.length > 0;
  const list = find("leaders");
  while (list.children.length > found.length) list.lastChild.remove();
  for (const [index, [number, part]] of found.entries()) {
    const item = list.children[index] ?? list.appendChild(el("li", {}, [el("span", { class: "place" }), el("span", { class: "who" }), el("span", { class: "amount", "aria-hidden": "true" }), el("span")]));
    const [place, who, amount, tokens] = item.children;
    put(place, `${index + 1}.`);
    put(who, model.peers[number].name);
    amount.style.width = `${100 * part}%`;
    put(tokens, m.count(model.peers[number].tokens));
  }
}

function drawNews() {
  find("news-empty").hidden = model.news.length > 0;
  const list = find("news");
  const newest = Number(list.firstChild?.dataset.id ?? 0);
  for (const { id, at, tone, text } of model.news) {
    if (id <= newest) continue;
    const time = el("time", { datetime: new Date(1000 * at).toISOString() }, [m.clock(at)]);
    list.prepend(el("li", { "data-id": id, "data-tone": tone }, [time, el("span", {}, [text])]));
  }
  while (list.children.length > 100) list.lastChild.remove();
}

// --- journal and config -----------------------------------------------------------------------

const JOURNAL_MS = 3000; // a page that is looked at asks no more often
const journal = { shown: new Map(), oldest: Infinity, isAsking: false, isSeen: false, numRead: -1, readAt: -Infinity };

function noteJournal() {
  const number = model.run?.num_entries ?? 0;
  setText("journal-text", m.plural(number, "entry", "entries"));
  if (!journal.isSeen || number === journal.numRead || performance.now() - journal.readAt < JOURNAL_MS) return;
  Object.assign(journal, { numRead: number, readAt: performance.now() });
  readJournal();
}

new IntersectionObserver(([entry]) => {
  journal.isSeen = entry.isIntersecting;
  if (model.run) noteJournal();
}).observe(find("journal"));

async function readJournal(start) {
  if (journal.isAsking) return;
  journal.isAsking = true;
  const answer = await ask(start === undefined ? "/api/v1/journal?limit=12" : `/api/v1/journal?start=${start}&limit=25`);
  journal.isAsking = false;
  if (answer.error) return;
  const names = new Map(model.peers.map((peer) => [peer.id, peer.name]));
  for (const { seq, hash, record } of answer.entries) {
    journal.oldest = Math.min(journal.oldest, seq);
    if (!journal.shown.has(seq)) {
      journal.shown.set(seq, el("tr", {}, [el("td", { class: "num" }, [String(seq)]), el("td", {}, [record.kind.replace("_", " ")]),
        el("td", {}, [m.recordText(record, names)]), el("td", { class: "mono", title: hash }, [hash.slice(0, 16)])]));
    }
  }
  const seqs = [...journal.shown.keys()].sort((a, b) => b - a);
  for (const seq of seqs.splice(400)) journal.shown.delete(seq);
  fill(find("journal-table").tBodies[0], seqs.map((seq) => journal.shown.get(seq)));
  find("journal-older").hidden = journal.oldest <= 0;
}

async function readConfig() {
  const config = await ask("/api/v1/config");
  if (config.error) return setTimeout(readConfig, 5000);
  const groups = Object.entries(config).filter(([, value]) => value && typeof value === "object" && !Array.isArray(value));
  const single = Object.entries(config).filter(([, value]) => !value || typeof value !== "object");
  fill(find("config-groups"), [["run", Object.fromEntries(single)], ...groups].map(([name, keys]) =>
    el("section", {}, [el("h3", {}, [name]), el("dl", {}, Object.entries(keys).flatMap(([key, value]) =>
      [el("dt", {}, [key]), el("dd", {}, [typeof value === "object" ? JSON.stringify(value) : String(value)])]))])));
  setText("config-digest", model.run?.run.slice(0, 24) ?? "");
}

async function ask(path) {
  try {
    const answer = await fetch(path);
    const host = Date.parse(answer.headers.get("date") ?? "");
    if (host) hostClock = Math.abs(host - Date.now()) > 2000 ? (host - Date.now()) / 1000 : 0;
    return await answer.json();
  } catch {
    return { error: "the host does not answer" };
  }
}

// --- small things -----------------------------------------------------------------------------

function changeTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
find("theme").addEventListener("click", changeTheme);
find("filter").addEventListener("input", (event) => {
  view.filter = event.target.value;
  schedule(["rows"]);
});
find("peers-more").addEventListener("click", () => {
  view.peers += 200;
  schedule(["rows"]);
});
find("rounds-more").addEventListener("click", () => {
  view.rounds += 30;
  schedule(["rounds"]);
});
find("journal-older").addEventListener("click", () => readJournal(Math.max(0, journal.oldest - 25)));
addEventListener("resize", () => schedule(["curve", "rounds"]));
setInterval(() => schedule(model.open.length ? ["open", "run"] : ["run"]), 1000); // the open round grows

peersHead();
startOperating(model);
drawTheRing();
drawLoss();
drawSpeed();
connect();
readConfig();
