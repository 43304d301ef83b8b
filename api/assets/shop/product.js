// One product.

import { html, nothing } from "../lib/html.js";
import { get } from "../lib/api.js";
import { link, redraw } from "../lib/page.js";
import { money, number } from "../lib/format.js";
import { lines, put } from "./cart.js";
import { picture } from "./picture.js";

let id;
let product;
let failure;
let quantity = 1;

async function load() {
  const wanted = id;
  try {
    const answer = await get(`/v1/products/${encodeURIComponent(wanted)}`);
    if (wanted === id) product = answer;
  } catch (error) {
    if (wanted === id) failure = error;
  }
  redraw();
}

function buy(event) {
  event.preventDefault();
  put(product, quantity);
}

function details() {
  const { available } = product.stock;
  const gone = !product.active || available <= 0;
  const inCart = lines().find((line) => line.productId === id)?.quantity;
  return html`
    <div class="detail">
      <div class="detail-picture">${picture(id, 480)}</div>
      <div>
        <p class="muted">${product.brand} · <a href=${link("", [["category", product.category]])}>${product.category}</a></p>
        <h1>${product.name}</h1>
        <p class="price large">${money(product.price)}</p>
        <p class=${gone ? "stock bad" : "stock muted"}>${gone
          ? product.active ? "Sold out" : "Not sold any more"
          : `${number(available)} in stock`}</p>
        <form class="buy" @submit=${buy}>
          <label>Pieces <input type="number" min="1" max=${Math.max(1, Math.min(available, 99))} .value=${String(quantity)} ?disabled=${gone}
            @input=${(event) => { quantity = Math.max(1, Number(event.target.value) || 1); }}></label>
          <button class="button" ?disabled=${gone}>Put into the cart</button>
        </form>
        ${inCart ? html`<p class="muted"><a href=${link("cart")}>${inCart} in the cart</a></p>` : nothing}
      </div>
    </div>`;
}

export default {
  title: () => product?.name ?? "Product",
  show([wanted]) {
    if (wanted !== id) product = undefined;
    [id, failure, quantity] = [wanted, undefined, 1];
    load();
  },
  view() {
    if (product) return details();
    if (!failure) return html`<p class="loading">Opening …</p>`;
    const text = failure.status === 404 ? "There is no such product." : failure.message;
    return html`<div class="empty" role="alert"><h1>Product</h1><p>${text}</p><a class="button" href=${link("")}>To the catalogue</a></div>`;
  },
};
