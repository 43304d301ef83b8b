// The shop: its views and what surrounds them.

import { html, nothing } from "../lib/html.js";
import { go, link, place, run } from "../lib/page.js";
import { money } from "../lib/format.js";
import account from "./account.js";
import { underway } from "./attempt.js";
import cart, { pieces } from "./cart.js";
import catalogue from "./catalogue.js";
import checkout from "./checkout.js";
import { connected, customer } from "./customer.js";
import order from "./order.js";
import orders from "./orders.js";
import product from "./product.js";

const views = { "": catalogue, product, cart, checkout, orders, order, account };

function nav() {
  const at = place().name;
  const item = (name, content, label = nothing, kind = nothing) => html`
    <a class=${kind} href=${link(name)} aria-label=${label} aria-current=${at === name ? "page" : nothing}>${content}</a>`;
  const who = customer();
  const left = who?.creditAvailable;
  const inCart = pieces();
  return html`
    ${item("", "Catalogue", nothing, "wide-only")}
    ${item("orders", "Orders")}
    ${item("cart", html`Cart <span class="badge" ?data-empty=${!inCart}>${inCart}</span>`, `Cart, ${inCart} pieces`)}
    <a class="who" href=${link("account")} aria-current=${at === "account" ? "page" : nothing}>
      <span class="who-name">${who ? who.name : "Who are you?"}</span>
      <span class="who-credit">${left ? `${money(left)} credit left` : who ? "pays by card" : "choose a customer"}</span>
    </a>`;
}

function notice() {
  if (underway() && place().name !== "checkout") {
    return html`<p class="notice" role="status">An order is on its way and its outcome is not known yet.
      <a href=${link("checkout")}>See how it stands</a></p>`;
  }
  if (!connected()) {
    return html`<p class="notice" role="status">The connection to the shop is lost. It is tried again; what
      you have ordered goes on without it.</p>`;
  }
  return nothing;
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});

run(views, [
  { view: nav, into: document.getElementById("nav") },
  { view: notice, into: document.getElementById("notice") },
], "Millrace");

// A reload in the middle of buying goes on with that very order.
if (underway()) go("checkout");
