// What the page knows, and what follows from it. No DOM in here: tests run this file by itself.

export const QUIET_S = 15; // without a word for so long, the connection is dead

/** What is known before the host has said anything. */
export function emptyModel() {
  return { seq: 0, run: null, peers: [], rounds: new Map(), open: [], curve: [], checks: [], news: [], health: [] };
}

/** Take over an event of the stream; return which parts have changed, or null: something was missed. */
export function apply(model, kind, message) {
  if (kind === "snapshot") {
    Object.assign(model, message, { rounds: new Map(message.rounds.map((line) => [line.round, line])) });
    return new Set(["run", "peers", "rounds", "open", "curve", "checks", "news", "health"]);
  }
  if (kind !== "delta") return new Set();
  if (message.seq !== model.seq + 1) return null;
  model.seq = message.seq;
  const parts = new Set(Object.keys(message));
  parts.delete("seq");
  if (message.run) Object.assign(model.run, message.run);
  for (const line of message.rounds ?? []) model.rounds.set(line.round, line);
  for (const oldest of [...model.rounds.keys()].slice(0, -200)) model.rounds.delete(oldest);
  if (message.checks) model.checks = message.checks;
  if (message.open) model.open = message.open;
  if (message.health) model.health = message.health;
  if (message.news) model.news = [...model.news, ...message.news].slice(-200);
  if (message.curve) model.curve = message.curve.all ?? model.curve.concat(message.curve.add);
  for (const [number, changes] of Object.entries(message.peers ?? {})) {
    model.peers[number] = { ...model.peers[number], ...changes };
  }
  return parts;
}

/** How long to wait before looking for the host again, in seconds. */
export function retryDelay(attempt, chance) {
  return Math.min(15, 2 ** Math.min(attempt, 4)) * (0.75 + 0.5 * chance);
}

// --- how a person reads numbers ---------------------------------------------------------------

export function count(value) {
  for (const unit of ["", " k", " M"]) {
    if (Math.abs(value) < 999.95) return unit ? value.toFixed(1) + unit : value.toFixed(0);
    value /= 1000;
  }
  return value.toFixed(1) + " B";
}

/** The same for an axis: 400 k, not 400.0 k. */
export function short(value) {
  return count(value).replace(".0 ", " ");
}

export function bytes(value) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (Math.abs(value) < 999.95) return (unit === "B" ? value.toFixed(0) : value.toFixed(1)) + " " + unit;
    value /= 1000;
  }
  return value.toFixed(1) + " TB";
}

export function duration(seconds) {
  if (seconds < 59.95) return seconds.toFixed(1) + " s";
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 100 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function percent(part) {
  return part > 0 && part < 0.01 ? "< 1 %" : `${Math.round(100 * part)} %`;
}

export function plural(number, one, many = one + "s") {
  return `${number} ${number === 1 ? one : many}`;
}

export function clock(at) {
  return new Date(1000 * at).toLocaleTimeString([], { hour12: false });
}

// --- what the page says in words --------------------------------------------------------------

/** The two lines at the top: what is going on, as one would say it. */
export function story(model) {
  const { run, open } = model;
  if (!run) return ["Connecting to the run", ""];
  if (run.is_complete) {
    return ["The run is complete", `${plural(run.rounds, "round")}, ${count(run.num_tokens)} tokens, by ${plural(run.num_ever, "peer")}.`];
  }
  if (!open.length && run.is_paused) {
    return [`Paused after round ${run.committed}`, "The operator lets no new round begin. What was committed is safe."];
  }
  if (!open.length) {
    const some = run.num_in ? `${plural(run.num_in, "peer is", "peers are")} here` : "Nobody is here yet";
    const more = run.num_in < run.min_peers ? `a round begins with ${run.min_peers}` : "the next round begins in a moment";
    return [run.committed ? `Between rounds ${run.committed} and ${run.committed + 1}` : "Waiting for the first round", `${some}; ${more}.`];
  }
  const [round] = open;
  const here = plural(run.num_in - (doings(model.peers).get("paused") ?? 0), "peer trains", "peers train");
  switch (round.phase) {
    case "train":
      return [`Round ${round.round}: ${here}`, `Each makes its own inner steps. ${percent(meanProgress(model))} of them are done.`];
    case "exchange":
      return [`Round ${round.round}: work comes in`, round.num_waited_for ? `${plural(round.num_waited_for, "peer has", "peers have")} not delivered all yet.` : "All have delivered."];
    default:
      return [`Round ${round.round}: one new model`, `The mean is formed: ${round.num_formed} of ${plural(round.num_slices, "slice")}.`];
  }
}

export function meanProgress(model) {
  const present = model.peers.filter((peer) => peer.in && peer.doing !== "paused");
  return present.length ? present.reduce((sum, peer) => sum + peer.progress, 0) / present.length : 0;
}

/** The figures beside it: [name, figure, unit]. */
export function figures(model) {
  const { run, curve } = model;
  if (!run) return [];
  const loss = curve.length ? curve[curve.length - 1][2].toFixed(3) : "–";
  const sent = bytes(run.bytes_sent).split(" ");
  return [
    ["Loss", loss, ""],
    ["Tokens trained on", ...unit(count(run.num_tokens))],
    ["Tokens per second", ...unit(count(run.tokens_per_s))],
    ["Peers in", String(run.num_in), `of ${run.num_ever}`],
    ["Exchanged", sent[0], sent[1]],
    ["Parameters", ...unit(count(run.num_parameters))],
  ];
}

function unit(text) {
  const [figure, scale = ""] = text.split(" ");
  return [figure, scale];
}

const NAMED_MISSING = 6; // in a table; the details name them all

/** Who is missing from a round, in words. */
export function missingText(line, peers) {
  const names = line.missing.slice(0, NAMED_MISSING).map((number) => peers[number]?.name ?? "a peer");
  const rest = line.num_missing - names.length;
  return names.join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}

/** A journal record in a few words. */
export function recordText(record, names) {
  const who = (peer) => names.get(peer) ?? peer.slice(0, 8);
  switch (record.kind) {
    case "genesis": return "the run begins";
    case "led": return `epoch ${record.epoch}: the host leads`;
    case "invite_made": return `an invite for ${plural(record.uses, "machine")}`;
    case "admitted": return `${record.name} may take part`;
    case "planned": return `round ${record.round} waits for ${plural(record.peers.length, "peer")}`;
    case "leased": return `${who(record.peer)} trains on ${plural(record.leases.reduce((sum, lease) => sum + lease.stop - lease.start, 0), "sample")}`;
    case "released": return `${plural(record.leases.length, "lease")} of ${who(record.peer)} ${record.leases.length === 1 ? "is" : "are"} free: ${record.reason}`;
    case "committed": return `round ${record.round}: ${plural(record.roster.length, "contributor")}, ${plural(record.updates.length, "slice")}`;
    case "agreed": return `state ${record.round} is ${record.state.slice(0, 24)} on ${plural(record.peers.length, "member")}`;
    case "evaluated": return `state ${record.round}: validation loss ${record.loss.toFixed(3)}, says ${who(record.peer)}`;
    case "paused": return "by the operator";
    case "resumed": return "by the operator";
    case "removed": return `${who(record.peer)} is out of the run: ${record.reason || "no reason given"}`;
    case "reducers_chosen": return record.peers.length ? `only ${record.peers.map(who).join(", ")}` : "all that can";
    case "moved": return "bytes that members moved since";
    default: return "";
  }
}

/** The body of an operator's request, and what is wrong with what was typed. */
export function adminBody(action, wanted, peers) {
  const ids = [];
  for (const text of wanted) {
    const found = peers.filter((peer) => peer.name === text || peer.id.startsWith(text));
    if (found.length !== 1) return [null, `${found.length || "No"} peers are called ${text}: give the start of the id.`];
    ids.push(found[0].id);
  }
  if (action === "remove") return ids.length === 1 ? [{ peer: ids[0] }, ""] : [null, "Name the one peer to remove."];
  if (action === "reducers") return [{ peers: ids }, ""];
  return [{}, ""];
}

// --- tables -----------------------------------------------------------------------------------

/** The numbers of the rows to show, sorted by a key; those who are there before those who are gone. */
export function sortedRows(peers, { key, descending, filter }) {
  const wanted = filter.trim().toLowerCase();
  const numbers = peers.flatMap((peer, number) =>
    !wanted || `${peer.name} ${peer.device} ${peer.place} ${peer.id} ${peer.doing}`.toLowerCase().includes(wanted) ? [number] : []);
  const sign = descending ? -1 : 1;
  return numbers.sort((a, b) => {
    const [one, other] = [peers[a], peers[b]];
    if (one.in !== other.in) return one.in ? -1 : 1;
    const [left, right] = [one[key] ?? -1, other[key] ?? -1];
    return (left < right ? -sign : left > right ? sign : 0) || a - b;
  });
}

/** Those who have given most: [number, share of the first]. */
export function leaders(peers, most = 10) {
  const numbers = peers.map((_, number) => number).filter((number) => peers[number].tokens > 0);
  numbers.sort((a, b) => peers[b].tokens - peers[a].tokens || a - b);
  const top = numbers.length ? peers[numbers[0]].tokens : 1;
  return numbers.slice(0, most).map((number) => [number, peers[number].tokens / top]);
}

/** How long a round trained and exchanged so far, in seconds; `now` is the host's clock. */
export function phases(line, now) {
  const end = line.committed_at || Math.max(now, line.planned_at);
  const whole = line.planned_at ? Math.max(0, end - line.planned_at) : 0;
  const exchange = line.committed_at ? Math.min(line.exchange_s, whole) : 0;
  return { train: whole - exchange, exchange, whole, isOpen: !line.committed_at };
}

/** Tokens per second of each committed round: [round, tokens/s]. */
export function speeds(rounds) {
  const lines = [...rounds.values()].filter((line) => line.committed_at).sort((a, b) => a.round - b.round);
  return lines.flatMap((line, index) => {
    const before = lines[index - 1];
    const follows = before && before.round === line.round - 1;
    const seconds = line.committed_at - (follows ? before.committed_at : line.planned_at || line.committed_at);
    return seconds > 0 ? [[line.round, line.tokens / seconds]] : [];
  });
}

// --- the ring ---------------------------------------------------------------------------------

export const HOST = -1; // the built-in member, as a row
export const MOST_NAMED = 40; // islands with a name; more are dots
const MOST_FLOWS = 160;

/** Where each island lies, in a square of 400: the ones that are there, and those just cut off. */
export function islands(model) {
  const numbers = model.peers.flatMap((peer, number) => (peer.in || peer.doing === "away" ? [number] : []));
  if (model.open[0]?.built_in_reduces) numbers.push(HOST);
  const isSmall = numbers.length > MOST_NAMED;
  const numRings = isSmall ? Math.min(5, Math.ceil(numbers.length / 220)) : 1;
  return numbers.map((number, index) => {
    const ring = index % numRings;
    const angle = (2 * Math.PI * index) / numbers.length - Math.PI / 2;
    const radius = isSmall ? 186 - 13 * ring : 150;
    const land = isSmall ? Math.max(2.2, 5 - numbers.length / 300) : 9 + 13 * Math.sqrt(model.peers[number]?.share ?? 0);
    return { number, x: 200 + radius * Math.cos(angle), y: 200 + radius * Math.sin(angle), angle, land, isSmall };
  });
}

/** Who sends to whom now: [from, to, kind]. A picture of the plan and of what has arrived. */
export function flows(model, present) {
  const [round] = model.open;
  if (!round || round.phase === "train") return [];
  const reducers = present.filter((number) => number === HOST ? round.built_in_reduces : model.peers[number].reduces > 0);
  const found = [];
  for (const number of present) {
    if (number === HOST) continue;
    const peer = model.peers[number];
    const isSending = round.phase === "exchange" && peer.doing === "exchanging" && peer.arrived < 1;
    for (const reducer of reducers) {
      if (reducer === number) continue;
      if (isSending) found.push([number, reducer, "contribution"]);
      else if (round.phase === "reduce") found.push([reducer, number, "update"]);
    }
  }
  const every = Math.ceil(found.length / MOST_FLOWS) || 1;
  return found.filter((_, index) => index % every === 0);
}

/** How many are doing what, of those who are there. */
export function doings(peers) {
  const counts = new Map();
  for (const peer of peers) if (peer.in || peer.doing === "away") counts.set(peer.doing, (counts.get(peer.doing) ?? 0) + 1);
  return counts;
}

// --- charts -----------------------------------------------------------------------------------

/** Round values that cover a range: at least two, at most about `wanted`. */
export function ticks(least, most, wanted) {
  if (!(most > least)) return [least];
  const rough = (most - least) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let k = Math.ceil(least / step - 1e-9); k * step <= most + step * 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

/** The points of a chart in a box: path, area, and the functions that place a value; it has room for others, too. */
export function plotted(points, { width, height, left, bottom, top, fromZero, others = [] }) {
  const xs = [...points, ...others].map((point) => point[0]);
  const ys = [...points, ...others].map((point) => point[1]);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [fromZero ? 0 : Math.min(...ys), Math.max(...ys)];
  if (!fromZero) [y0, y1] = [y0 - 0.06 * (y1 - y0 || 1), y1 + 0.06 * (y1 - y0 || 1)];
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - 14);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0 || 1)) * (height - bottom - top);
  const line = (some) => "M" + some.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join("L");
  const path = line(points);
  const floor = height - bottom;
  const [first, last] = [points[0][0], points[points.length - 1][0]];
  const area = `${path}L${x(last).toFixed(1)},${floor}L${x(first).toFixed(1)},${floor}Z`;
  return { path, area, line, x, y, x0, x1, y0, y1 };
}
