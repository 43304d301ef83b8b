// Orders: the newest of all customers, and the whole story of one.

import { html, nothing, repeat } from "../lib/html.js";
import { get } from "../lib/api.js";
import { go, link, redraw } from "../lib/page.js";
import { clock, duration, money, when } from "../lib/format.js";

const TONES = {
  paid: "good", shipped: "good", delivered: "good", rejected: "bad", expired: "off", cancelled: "off",
  refunded: "off", payment_unknown: "warn", refunding: "warn", validated: "wait", pending: "wait",
};

let id;
let story;
let newest;
let failure;

const tag = (status) => html`<span class="tag ${TONES[status] ?? ""}">${status.replace("_", " ")}</span>`;

async function load() {
  const wanted = id;
  try {
    if (wanted) {
      const found = await get(`/v1/orders/${encodeURIComponent(wanted)}/explain`);
      if (wanted === id) story = found;
    } else {
      newest = (await get("/v1/orders?limit=25")).items;
    }
  } catch (error) {
    if (wanted === id) failure = error;
  }
  redraw();
}

function find(event) {
  event.preventDefault();
  const wanted = new FormData(event.target).get("id").trim();
  if (wanted === id) load();
  else go(`order/${encodeURIComponent(wanted)}`);
}

const moment = (it) => html`
  <li class="moment ${it.kind}">
    <time datetime=${it.at}>${clock(it.at)}</time>
    <span class="tag">${it.kind}</span>
    <div><p><strong>${it.what}</strong> ${it.version ? html`<span class="muted">version ${it.version}</span>` : nothing}</p>
      <p>${it.detail}</p>
      ${it.cause ? html`<p class="muted mono">because of ${it.cause}</p>` : nothing}</div>
  </li>`;

/** How long the order was in each status, as parts of one bar. */
function stays(steps) {
  const timed = steps.filter((step) => step.milliseconds !== undefined);
  return html`<ol class="stays">${timed.map((step) => html`
    <li>${tag(step.status)} <strong>${duration(step.milliseconds)}</strong></li>`)}</ol>`;
}

function told() {
  const { holds } = story;
  return html`
    <section class="card" aria-label="The order">
      <div class="row"><h2 class="mono">${story.orderId}</h2>${tag(story.status)}<strong>${money(story.total)}</strong></div>
      <p class="muted">Of ${story.customerId}, by ${story.paymentMethod}, version ${story.version}${holds
        ? html`. Holds stock: ${holds.stock}${holds.credit ? `, credit: ${holds.credit}` : ""}` : nothing}</p>
      ${stays(story.steps)}
      ${story.missing.length ? html`<p class="warn">${story.missing.join("; ")}</p>` : nothing}
    </section>
    <section class="card" aria-label="What happened"><h2>What happened, ${when(story.timeline[0]?.at ?? Date.now())}</h2>
      <ol class="moments">${story.timeline.map(moment)}</ol></section>`;
}

const row = (order) => html`
  <li><a class="order-row" href=${link(`order/${order.orderId}`)}>
    <span class="mono">${order.orderId}</span><span class="grow">${order.customerId}</span>
    <span class="muted">${when(order.placedAt)}</span><span>${money(order.total)}</span>${tag(order.status)}</a></li>`;

export default {
  title: () => (id ? "Order" : "Orders"),
  show([wanted]) {
    [id, story, failure] = [wanted, undefined, undefined];
    load();
  },
  view: () => html`
    <h1>${id ? "An order's story" : "Orders"}</h1>
    <form class="row" role="search" @submit=${find}>
      <label class="hidden" for="order">Order id</label>
      <input id="order" name="id" class="mono grow" placeholder="Order id" required maxlength="64" autocomplete="off" spellcheck="false" .value=${id ?? ""}>
      <button class="button">Find</button>
    </form>
    ${failure ? html`<p class="notice bad" role="alert">${failure.status === 404 || failure.status === 400
      ? "There is no such order, or it is not decided yet." : failure.message}</p>` : nothing}
    ${id ? (story ? told() : failure ? nothing : html`<p class="loading">Reading its story …</p>`)
      : newest ? html`<ul class="card order-rows">${repeat(newest, (it) => it.orderId, row)}</ul>` : html`<p class="loading">Reading …</p>`}`,
};
