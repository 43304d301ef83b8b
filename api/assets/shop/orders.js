// The orders of the customer, newest first, as they change.

import { html, nothing, repeat } from "../lib/html.js";
import { get } from "../lib/api.js";
import { link, redraw } from "../lib/page.js";
import { count, money, when } from "../lib/format.js";
import { customer, onOrder } from "./customer.js";
import { picture } from "./picture.js";
import { STATUS } from "./words.js";

const FILTERS = {
  "": "All",
  "pending,validated,payment_unknown,paid,shipped,refunding": "Under way",
  delivered: "Delivered",
  "cancelled,refunded,expired,rejected": "Ended otherwise",
};

let of;
let filter = "";
let items;
let next;
let failure;
let ending;
// The list is read anew by whatever changes it, and the newest reading counts: an answer that was
// overtaken is older than what is known.
let turn = 0;
let reading = false;

async function load(cursor) {
  const mine = ++turn;
  reading = false;
  if (!customer()) return;
  const id = customer().customerId;
  const query = new URLSearchParams({ limit: "20" });
  if (filter) query.set("status", filter);
  if (cursor) query.set("cursor", cursor);
  reading = true;
  try {
    const page = await get(`/v1/customers/${encodeURIComponent(id)}/orders?${query}`);
    if (mine !== turn) return;
    items = cursor ? [...items, ...page.items] : page.items;
    [next, of, failure] = [page.nextCursor, id, undefined];
  } catch (error) {
    if (mine !== turn) return;
    failure = error;
  }
  reading = false;
  redraw();
}

/** An order has changed: in its place if it is shown, else the list is read again. */
function changed(order) {
  const at = order && items ? items.findIndex((it) => it.orderId === order.orderId) : -1;
  // What is being read now may have been looked up before the change.
  if (at < 0 || filter || reading) return load();
  if (order.version >= items[at].version) items = items.with(at, { ...items[at], ...order });
  redraw();
}

const choose = (value) => () => {
  filter = value;
  load();
};

function item(order) {
  const { name, tone } = STATUS[order.status];
  const lines = order.lines ?? [];
  const names = lines.map((line) => line.name ?? line.productId).join(", ");
  return html`
    <li class="card order">
      <a class="order-link" href=${link(`order/${order.orderId}`)}>
        <span class="order-pictures" aria-hidden="true">${lines.slice(0, 3).map((line) => picture(line.productId, 56))}</span>
        <span class="order-text">
          <span class="order-name">${names || "Being checked …"}</span>
          <span class="muted">${when(order.placedAt)} · ${order.orderId.slice(0, 8)}</span>
        </span>
        <span class="order-sum">${order.total ? money(order.total) : nothing}</span>
        <span class="tag ${tone}">${name}</span>
      </a>
    </li>`;
}

function list() {
  if (failure) return html`<div class="empty" role="alert"><p>Your orders cannot be read now: ${failure.message}</p>
    <button type="button" class="button" @click=${() => load()}>Try again</button></div>`;
  if (!items) return html`<p class="loading">Reading your orders …</p>`;
  if (!items.length) return html`<div class="empty"><p>There are none.</p><a class="button" href=${link("")}>To the catalogue</a></div>`;
  return html`
    <p class="hidden" role="status">${count(items.length, "order")} shown</p>
    <ul class="orders">${repeat(items, (order) => order.orderId, item)}</ul>
    ${next ? html`<div class="more"><button type="button" class="button plain" @click=${() => load(next)}>Show more</button></div>` : nothing}`;
}

export default {
  title: () => "Orders",
  show() {
    if (of !== customer()?.customerId) items = undefined;
    ending = onOrder(changed);
    load();
  },
  hide() {
    ending?.();
  },
  view() {
    if (!customer()) {
      return html`<h1>Your orders</h1><div class="empty"><p>Whose orders?</p><a class="button" href=${link("account", [["then", "orders"]])}>Choose a customer</a></div>`;
    }
    return html`
      <h1>Your orders</h1>
      <div class="tabs" role="group" aria-label="Which orders">${Object.entries(FILTERS).map(([value, name]) => html`
        <button type="button" aria-pressed=${filter === value} @click=${choose(value)}>${name}</button>`)}</div>
      ${list()}`;
  },
};
