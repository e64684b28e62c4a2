// What the operator can do: requests that the token signs, and does not leave the page with.

import { adminBody } from "./model.js";
import { el, fill, find, put, setText } from "./dom.js";

const SURE = { remove: "Remove this peer for good?", stop: "Stop the host? Peers wait until it is started again." };

async function operate(action, peers) {
  const token = find("token").value.trim();
  const wanted = find("target").value.split(",").map((text) => text.trim()).filter(Boolean);
  const [body, problem] = adminBody(action, wanted, peers);
  if (!token) return setText("operate-answer", "Paste the operator's token first.");
  if (problem) return setText("operate-answer", problem);
  if (SURE[action] && !confirm(SURE[action])) return undefined;
  setText("operate-answer", "asking the host…");
  const answer = await postSigned(`/api/v1/admin/${action}`, JSON.stringify(body), token);
  setText("operate-answer", answer.error ? `Not done: ${answer.error}` : answer.done);
  find("operate-invite").hidden = !answer.invite;
  put(find("operate-invite").firstChild, answer.invite ? `atoll join ${answer.invite}` : "");
  return undefined;
}

/** Ask for a nonce, then ask again with the signature: the token itself is not sent. */
async function postSigned(path, body, token) {
  const options = { method: "POST", body, headers: { "content-type": "application/json" } };
  try {
    const asked = await fetch(path, options);
    const nonce = (asked.headers.get("www-authenticate") ?? "").match(/nonce=([0-9a-f]{64})/)?.[1] ?? "";
    const bytes = new TextEncoder();
    const key = await crypto.subtle.importKey("raw", bytes.encode(token), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    const mac = new Uint8Array(await crypto.subtle.sign("HMAC", key, bytes.encode(`POST\n${path}\n${nonce}\n${body}`)));
    const hex = [...mac].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    options.headers.authorization = `Atoll nonce=${nonce}, mac=${hex}`;
    return await (await fetch(path, options)).json();
  } catch {
    return { error: "the host does not answer" };
  }
}

/** Let the form do what it says; `model` is what the page knows. */
export function startOperating(model) {
  find("operate-insecure").hidden = isSecureContext;
  find("operate-form").hidden = !isSecureContext;
  find("operate-form").addEventListener("submit", (event) => event.preventDefault());
  for (const button of find("operate-form").querySelectorAll("button")) button.addEventListener("click", () => operate(button.dataset.action, model.peers));
  find("target").addEventListener("focus", () => fill(find("peer-names"), model.peers.filter((peer) => peer.in).slice(0, 200).map((peer) => el("option", { value: peer.name }))));
}
