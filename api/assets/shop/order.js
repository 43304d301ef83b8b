// One order, as it goes on.

import { html, nothing } from "../lib/html.js";
import { get, post } from "../lib/api.js";
import { follow } from "../lib/live.js";
import { announce, go, link, redraw } from "../lib/page.js";
import { hour, money, when } from "../lib/format.js";
import { put } from "./cart.js";
import { picture } from "./picture.js";
import { STATUS, moneySays, reason } from "./words.js";

const OVER = ["rejected", "refunded"];
const CANCELLABLE = ["validated", "payment_unknown", "paid"];
const WAY = ["pending", "validated", "paid", "shipped", "delivered"];

let id;
let order;
let failure;
let ending;
let live = true;
let cancelling = false;
let refusal;

function take(next) {
  // A step that was passed over at once tells only its status; the whole order comes right after it.
  if (!next.lines && next.version > 0) return;
  if (order && next.version < order.version) return;
  const news = order && order.status !== next.status;
  order = next;
  failure = undefined;
  if (news) announce(`${STATUS[order.status].name}. ${moneySays(order)}`);
  if (OVER.includes(order.status)) stop();
  redraw();
}

function stop() {
  ending?.();
  ending = undefined;
}

async function load() {
  const wanted = id;
  const path = `/v1/orders/${encodeURIComponent(wanted)}`;
  try {
    // It may have been placed just now.
    const found = await get(`${path}?minVersion=0&waitMs=5000`);
    if (wanted !== id) return;
    take(found);
  } catch (error) {
    if (wanted !== id) return;
    failure = error;
    redraw();
    if (error.status === 404 || error.status === 400) return;
  }
  if (order && OVER.includes(order.status)) return;
  stop();
  ending = follow(`${path}/stream`, take, (connection) => {
    live = connection;
    redraw();
  });
}

async function cancel() {
  [cancelling, refusal] = [true, undefined];
  redraw();
  // Made from the order, so that asking twice is asking once.
  const headers = { "Idempotency-Key": `cancel-${id}`, Prefer: "wait=10" };
  try {
    await post(`/v1/orders/${encodeURIComponent(id)}/cancel`, {}, { headers });
  } catch (error) {
    refusal = error.status ? error.message : "No answer came: it is not known yet whether the order is cancelled. Ask again, or wait.";
  }
  cancelling = false;
  redraw();
}

function again() {
  for (const line of order.lines) {
    if (line.unitPrice) put({ ...line, price: line.unitPrice }, line.quantity);
  }
  go("cart");
}

/** The way of an order that goes well, and where this one is on it. */
function way() {
  const times = new Map((order.timeline ?? []).map((step) => [step.status, step.at]));
  const placed = order.placedAt;
  if (placed) times.set("pending", placed);
  const taken = order.timeline?.map((step) => step.status) ?? [];
  const off = taken.filter((status) => !WAY.includes(status));
  const steps = off.length ? ["pending", ...taken] : WAY;
  return html`
    <ol class="way">${steps.map((status) => {
      const done = status === "pending" || taken.includes(status);
      return html`
        <li class=${done ? `done ${STATUS[status].tone}` : ""} aria-current=${status === order.status ? "step" : nothing}>
          <span class="dot" aria-hidden="true"></span><span class="way-name">${STATUS[status].name}</span>
          <span class="muted">${done && times.get(status) ? hour(times.get(status)) : html`&nbsp;`}</span></li>`;
    })}</ol>`;
}

const line = (it) => html`
  <li class="line">
    <a href=${link(`product/${it.productId}`)} tabindex="-1" aria-hidden="true">${picture(it.productId, 72)}</a>
    <div class="line-text"><a class="line-name" href=${link(`product/${it.productId}`)}>${it.name ?? it.productId}</a>
      <p class="muted">${it.quantity} × ${money(it.unitPrice)}</p></div>
    <p class="line-sum">${money(it.lineTotal)}</p>
  </li>`;

function shown() {
  const { name, tone } = STATUS[order.status];
  const why = order.status === "rejected" ? reason(order.reason, order.detail) : order.detail;
  return html`
    <p class="muted"><a href=${link("orders")}>Your orders</a></p>
    <h1>Order <span class="id">${id.slice(0, 8)}</span> <span class="tag ${tone}" id="status">${name}</span></h1>
    <div class="two">
      <div>
        <section class="card" aria-label="Progress">
          ${way()}
          <p class="money ${tone}" id="money">${moneySays(order)}</p>
          ${order.status === "rejected" ? html`<p id="reason">It was rejected: ${why}.</p>` : nothing}
          ${order.shipment ? html`<p>With ${order.shipment.carrier}, parcel ${order.shipment.trackingNumber}</p>` : nothing}
          ${live || OVER.includes(order.status) ? nothing : html`<p class="warn">The connection is lost; it is tried again. Your order goes on without it.</p>`}
        </section>
        <ul class="lines">${(order.lines ?? []).map(line)}</ul>
      </div>
      <section class="card summary" aria-label="Summary">
        <dl class="sums"><div><dt>Total</dt><dd>${money(order.total)}</dd></div></dl>
        <p class="muted">${order.placedAt ? html`Placed ${when(order.placedAt)}` : "Just placed"}<br>
          ${order.payment ? (order.payment.method === "card" ? "Paid by card" : "On account") : nothing}</p>
        ${CANCELLABLE.includes(order.status) ? html`
          <button type="button" class="button plain wide" ?disabled=${cancelling} @click=${cancel}>${cancelling ? "Cancelling …" : "Cancel the order"}</button>` : nothing}
        ${refusal ? html`<p class="warn" role="alert">${refusal}</p>` : nothing}
        ${["rejected", "cancelled", "expired", "refunded"].includes(order.status) ? html`
          <button type="button" class="button wide" @click=${again}>Put it into the cart again</button>` : nothing}
      </section>
    </div>`;
}

export default {
  title: () => "Order",
  show([wanted]) {
    [id, order, failure, refusal, live] = [wanted, undefined, undefined, undefined, true];
    load();
  },
  hide: stop,
  view() {
    if (order) return shown();
    if (!failure) return html`<p class="loading">Looking for your order …</p>`;
    const text = failure.status === 404 ? "There is no such order." : `${failure.message} It is tried again.`;
    return html`<div class="empty" role="alert"><h1>Order</h1><p>${text}</p><a class="button" href=${link("orders")}>Your orders</a></div>`;
  },
};
