// The cart: kept by the browser, so it survives reloads.

import { html, nothing, repeat } from "../lib/html.js";
import { get } from "../lib/api.js";
import { announce, link, redraw } from "../lib/page.js";
import { money } from "../lib/format.js";
import { stored } from "../lib/stored.js";
import { picture } from "./picture.js";

const NOTHING = [];
const cart = stored("cart", NOTHING);
const MOST = 999;

/** The lines: what was put in, at the price that was shown then. */
export const lines = () => cart.get();
export const pieces = () => lines().reduce((sum, line) => sum + line.quantity, 0);
export const empty = () => cart.set(NOTHING);

/** The sums, one for each currency. */
export function totals(of = lines()) {
  const sums = new Map();
  for (const { price, quantity } of of) {
    sums.set(price.currency, (sums.get(price.currency) ?? 0) + price.amount * quantity);
  }
  return [...sums].map(([currency, amount]) => ({ amount, currency }));
}

/** Puts pieces of a product in, besides those that are there. */
export function put({ productId, name, brand, price }, quantity) {
  const there = lines().find((line) => line.productId === productId);
  if (there) set(productId, there.quantity + quantity);
  else cart.set([...lines(), { productId, name, brand, price, quantity }]);
  announce(`${name} is in the cart`);
}

function set(productId, quantity) {
  const within = Math.min(Math.max(quantity, 0), MOST);
  const changed = lines().map((line) => (line.productId === productId ? { ...line, quantity: within } : line));
  const left = changed.filter((line) => line.quantity > 0);
  cart.set(left.length ? left : NOTHING);
}

/** Products as they are now, by id; to compare with what was put in. */
let current = new Map();

async function look() {
  const asked = lines();
  const found = await Promise.allSettled(asked.map((line) => get(`/v1/products/${line.productId}`)));
  current = new Map(found.filter((it) => it.value).map(({ value }) => [value.productId, value]));
  // What the shop does not know any more.
  found.forEach(({ reason }, at) => {
    if (reason?.status === 404) current.set(asked[at].productId, { active: false });
  });
  redraw();
}

const renewed = ({ price, ...line }) => ({ ...line, price: current.get(line.productId)?.price ?? price });

/** Takes the prices that hold now. */
const acceptPrices = () => cart.set(lines().map(renewed));

function problem(line) {
  const product = current.get(line.productId);
  if (!product) return nothing;
  if (!product.active) return html`<p class="warn">Not sold any more</p>`;
  if (product.price.amount !== line.price.amount || product.price.currency !== line.price.currency) {
    return html`<p class="warn">Costs ${money(product.price)} now</p>`;
  }
  if (product.stock.available < line.quantity) {
    return html`<p class="warn">Only ${product.stock.available} left</p>`;
  }
  return nothing;
}

const differs = () => lines().some((line) => {
  const price = current.get(line.productId)?.price;
  return price && (price.amount !== line.price.amount || price.currency !== line.price.currency);
});

const row = (line) => html`
  <li class="line">
    <a href=${link(`product/${line.productId}`)} tabindex="-1" aria-hidden="true">${picture(line.productId, 72)}</a>
    <div class="line-text">
      <a class="line-name" href=${link(`product/${line.productId}`)}>${line.name}</a>
      <p class="muted">${line.brand} · ${money(line.price)}</p>
      ${problem(line)}
    </div>
    <div class="steps" role="group" aria-label="Pieces of ${line.name}">
      <button type="button" class="icon" aria-label="One less" @click=${() => set(line.productId, line.quantity - 1)}>−</button>
      <output aria-label="Pieces">${line.quantity}</output>
      <button type="button" class="icon" aria-label="One more" ?disabled=${line.quantity >= MOST} @click=${() => set(line.productId, line.quantity + 1)}>+</button>
    </div>
    <p class="line-sum">${money({ amount: line.price.amount * line.quantity, currency: line.price.currency })}</p>
  </li>`;

/** The sums of lines, as a list. */
export const sums = (of = lines()) => html`
  <dl class="sums">${totals(of).map((sum) => html`<div><dt>Total</dt><dd>${money(sum)}</dd></div>`)}</dl>`;

export default {
  title: () => "Cart",
  show() {
    look().catch(() => {});
  },
  view() {
    if (!lines().length) {
      return html`<h1>Your cart</h1>
        <div class="empty"><p>There is nothing in it yet.</p><a class="button" href=${link("")}>To the catalogue</a></div>`;
    }
    const mixed = totals().length > 1;
    return html`
      <h1>Your cart</h1>
      <div class="two">
        <ul class="lines">${repeat(lines(), (line) => line.productId, row)}</ul>
        <section class="card summary" aria-label="Summary">
          ${sums()}
          ${mixed ? html`<p class="warn">One order has one currency: take out what is priced in another.</p>` : nothing}
          ${differs() ? html`<p class="warn">Prices have changed.</p>
            <button type="button" class="button plain" @click=${acceptPrices}>Take the new prices</button>` : nothing}
          ${mixed
            ? html`<button type="button" class="button wide" disabled>To the checkout</button>`
            : html`<a class="button wide" href=${link("checkout")}>To the checkout</a>`}
          <a class="quiet" href=${link("")}>Go on looking</a>
        </section>
      </div>`;
  },
};
