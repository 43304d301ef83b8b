// Parked messages: what could not be processed, and what to do with it.

import { html, nothing, repeat } from "../lib/html.js";
import { get, post } from "../lib/api.js";
import { announce, link, redraw } from "../lib/page.js";
import { count, when } from "../lib/format.js";
import { parkedNow } from "./samples.js";

let items;
let next;
let failure;
let says;
let busy = false;
let shown;
let seen;
const chosen = new Set();

async function load(cursor) {
  try {
    const page = await get(`/v1/ops/parked?limit=50${cursor ? `&cursor=${cursor}` : ""}`);
    items = cursor ? [...items, ...page.items] : page.items;
    [next, failure] = [page.nextCursor, undefined];
    for (const sequence of chosen) if (!items.some((it) => it.sequence === sequence)) chosen.delete(sequence);
  } catch (error) {
    failure = error;
  }
  seen = parkedNow();
  redraw();
}

const RESULTS = {
  replayed: "replayed", stillFailing: "failing still", waiting: "asked for, its worker has not come to it yet",
  discarded: "discarded", gone: "no longer parked",
};

async function act(path, body) {
  if (busy) return;
  [busy, says, failure] = [true, undefined, undefined];
  redraw();
  try {
    const { results } = await post(path, body, { patience: 40_000, headers: { Prefer: "wait=15" } });
    const sums = new Map();
    for (const { result } of results) sums.set(result, (sums.get(result) ?? 0) + 1);
    says = [...sums].map(([result, many]) => `${many} ${RESULTS[result] ?? result}`).join(", ");
    announce(says);
  } catch (error) {
    failure = error;
  }
  [busy, shown] = [false, undefined];
  chosen.clear();
  await load();
}

const replay = (sequences) => act("/v1/ops/parked/replay", { sequences });

function discard(event) {
  event.preventDefault();
  act("/v1/ops/parked/discard", { sequences: [...chosen], why: new FormData(event.target).get("why") });
}

async function show(sequence) {
  if (shown?.sequence === sequence) shown = undefined;
  else {
    try {
      shown = await get(`/v1/ops/parked/${sequence}`);
    } catch (error) {
      failure = error;
    }
  }
  redraw();
}

const pretty = (text) => {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
};

function choose(sequence) {
  if (!chosen.delete(sequence)) chosen.add(sequence);
  redraw();
}

/** The order that a message is about, if it is about one. */
const orderOf = (it) => /\.evt\.order\.([^.]+)\./.exec(it.subject)?.[1];

const detail = (it) => html`
  <div class="parked-detail">
    <dl class="facts"><div><dt>stream</dt><dd>${it.stream} ${it.originalSequence}</dd></div>
      <div><dt>first seen</dt><dd>${when(it.firstSeen)}</dd></div>
      ${Object.entries(it.headers ?? {}).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <pre tabindex="0" aria-label="Payload">${it.payload === undefined ? it.payloadBase64 : it.payload === null ? "Its payload is not there any more." : pretty(it.payload)}</pre>
  </div>`;

const row = (it) => html`
  <li class="card parked-row">
    <input type="checkbox" aria-label="Choose message ${it.sequence}" .checked=${chosen.has(it.sequence)} @change=${() => choose(it.sequence)}>
    <div class="parked-text">
      <p><strong>${it.worker}</strong> <span class="mono">${it.subject}</span></p>
      <p class="reason">${it.reason}</p>
      <p class="muted">${count(it.attempts, "attempt")} · ${when(it.lastSeen)}${orderOf(it) ? html` · <a href=${link(`order/${orderOf(it)}`)}>the order's story</a>` : nothing}</p>
    </div>
    <div class="row">
      <button type="button" class="button plain small" aria-expanded=${shown?.sequence === it.sequence} @click=${() => show(it.sequence)}>Show</button>
      <button type="button" class="button small" ?disabled=${busy} @click=${() => replay([it.sequence])}>Replay</button>
    </div>
    ${shown?.sequence === it.sequence ? detail(shown) : nothing}
  </li>`;

const actions = () => html`
  <div class="row" role="group" aria-label="All that are chosen">
    <button type="button" class="button plain small" @click=${() => { items.forEach((it) => chosen.add(it.sequence)); redraw(); }}>Choose all</button>
    <button type="button" class="button small" ?disabled=${busy || !chosen.size} @click=${() => replay([...chosen])}>Replay ${chosen.size || ""}</button>
    <form class="row" @submit=${discard}>
      <label class="hidden" for="why">Why they are discarded</label>
      <input id="why" name="why" placeholder="Why they are discarded" required maxlength="500">
      <button class="button danger small" ?disabled=${busy || !chosen.size}>Discard ${chosen.size || ""}</button>
    </form>
  </div>`;

export default {
  title: () => "Parked",
  show() {
    says = undefined;
    load();
  },
  view() {
    // What has come or gone meanwhile.
    if (items && !busy && seen !== parkedNow()) {
      seen = parkedNow();
      queueMicrotask(load);
    }
    return html`
      <h1>Parked messages</h1>
      <p class="muted">What a worker could not process. It holds back only its own order, and nothing of it is lost.</p>
      ${says ? html`<p class="notice" role="status" id="says">${says}</p>` : nothing}
      ${failure ? html`<p class="notice bad" role="alert">${failure.message}</p>` : nothing}
      ${items?.length ? actions() : nothing}
      ${!items ? html`<p class="loading">Reading …</p>`
        : items.length ? html`<ul class="rows">${repeat(items, (it) => it.sequence, row)}</ul>`
          : html`<div class="empty"><p>Nothing is parked.</p></div>`}
      ${next ? html`<div class="more"><button type="button" class="button plain" @click=${() => load(next)}>Show more</button></div>` : nothing}`;
  },
};
