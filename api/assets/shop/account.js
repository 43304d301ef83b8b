// Who am I: signing in, where the server asks for it (`sign-in`); else choosing a customer or
// registering one. Where it does not let one choose (`trial`), one has to know a customer's id.

import { html, nothing, repeat } from "../lib/html.js";
import { call, get } from "../lib/api.js";
import { go, link, offers, redraw } from "../lib/page.js";
import { minor, money } from "../lib/format.js";
import { form, leave, says, token } from "../lib/sign-in.js";
import { become, customer, find } from "./customer.js";

let then;
let others;
let failure;
let busy = false;
let key;

async function load() {
  if (!offers("trial")) return;
  try {
    others = (await get("/v1/trial/customers")).items;
  } catch {
    others = [];
  }
  redraw();
}

function choose(chosen) {
  failure = undefined;
  become(chosen);
  if (then) go(then);
}

async function attempt(work) {
  if (busy) return;
  [busy, failure] = [true, undefined];
  redraw();
  try {
    choose(await work());
  } catch (error) {
    const fields = (error.problem?.errors ?? []).map((it) => `${it.field} ${it.detail}`).join("; ");
    failure = error.status === 404 ? "There is no such customer." : fields || error.message;
  }
  busy = false;
  redraw();
}

function enter(event) {
  event.preventDefault();
  const id = new FormData(event.target).get("id").trim();
  attempt(() => find(id));
}

function register(event) {
  event.preventDefault();
  const form = new FormData(event.target);
  const amount = minor(form.get("limit") || "0", "USD");
  attempt(async () => {
    if (amount === undefined) throw new Error("The credit limit is no amount.");
    const body = { name: form.get("name").trim() };
    body.customerId = `${body.name.normalize("NFKD").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "customer"}-${key}`;
    if (amount > 0) body.creditLimit = { amount, currency: "USD" };
    const headers = { Prefer: "wait=10", "Idempotency-Key": `register-${body.customerId}` };
    const made = await call("POST", "/v1/customers", { body, headers });
    // Not decided in time: it will be.
    return made.name ? made : { ...body, version: 0 };
  });
}

function credit(who) {
  if (!who.creditLimit) return html`<p class="muted">No credit limit: orders are paid by card.</p>`;
  const { creditLimit: limit, creditUsed: used, creditAvailable: left } = who;
  return html`
    <p class="credit"><strong id="credit-left">${money(left)}</strong> left of a credit limit of <span id="credit-limit">${money(limit)}</span></p>
    <progress max=${limit.amount || 1} value=${used.amount} aria-label="Credit in use"></progress>
    <p class="muted">${money(used)} are in use for orders that are not given back.</p>`;
}

const other = (it) => html`
  <li><button type="button" class="person" aria-pressed=${customer()?.customerId === it.customerId} @click=${() => choose(it)}>
    <span class="initials" aria-hidden="true">${initials(it.name)}</span>
    <span class="person-text"><span>${it.name}</span><span class="muted">${it.creditAvailable ? `${money(it.creditAvailable)} credit left` : "by card only"}</span></span>
  </button></li>`;

function door() {
  if (!token()) return form("a customer");
  if (customer()) return leave();
  return html`<div class="card"><p class="notice bad" role="alert">This token is not a customer's: its role is
    ${says().role ?? "that of an API key"}. The shop is for customers.</p><p>${leave()}</p></div>`;
}

const initials = (name) => name.split(/\s+/).map((word) => word[0]).slice(0, 2).join("").toUpperCase();

export default {
  title: () => "Account",
  show(_, query) {
    then = query.get("then");
    failure = undefined;
    key = crypto.randomUUID().slice(0, 6);
    load();
  },
  view() {
    const who = customer();
    return html`
      <h1>${who ? who.name : "Who are you?"}</h1>
      ${who ? html`<section class="card" aria-label="Credit"><p class="muted">Customer ${who.customerId}</p>${credit(who)}
        <p><a href=${link("orders")}>Your orders</a></p></section>` : nothing}
      ${failure ? html`<p class="notice bad" role="alert">${failure}</p>` : nothing}
      ${offers("trial") ? html`
        <section aria-label="Choose a customer"><h2>${who ? "Be someone else" : "Choose a customer"}</h2>
          <p class="muted">This shop is there to be tried out: be whom you like.</p>
          <ul class="people">${others ? repeat(others, (it) => it.customerId, other) : html`<li class="loading">Reading …</li>`}</ul>
        </section>` : nothing}
      ${offers("sign-in") ? html`<div class="two even">${door()}</div>` : html`<div class="two even">
        <form class="card form" @submit=${register}>
          <h2>Register</h2>
          <label>Name <input name="name" required maxlength="80" autocomplete="name"></label>
          ${offers("trial") ? html`
            <label>Credit limit in US dollars (may be left out) <input name="limit" inputmode="decimal" placeholder="500.00"></label>` : nothing}
          <button class="button" ?disabled=${busy}>Register</button>
        </form>
        <form class="card form" @submit=${enter}>
          <h2>I am registered</h2>
          <label>Customer id <input name="id" required maxlength="64" autocomplete="username" autocapitalize="none" spellcheck="false"></label>
          <button class="button" ?disabled=${busy}>Go on</button>
        </form>
      </div>`}`;
  },
};
