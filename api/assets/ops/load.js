// Synthetic load, to see the pipeline run: this browser places orders as any client would, at most
// so many a second and for at most so long. They are real orders of the catalogue's products.

import { html, nothing } from "../lib/html.js";
import { get, post } from "../lib/api.js";
import { redraw } from "../lib/page.js";
import { count, duration, number } from "../lib/format.js";

const RATES = [1, 5, 20, 50];
const SECONDS = [10, 60, 300];
/** Requests at a time: a browser has six connections, and the console needs one. */
const AT_ONCE = 4;

let perSecond = 20;
let seconds = 60;
let running;
let told;

const pick = (from) => from[Math.floor(Math.random() * from.length)];

async function place({ customers, products }) {
  const line = { productId: pick(products).productId, quantity: 1 + Math.floor(Math.random() * 2) };
  const token = Math.random() < 0.05 ? "tok_declined" : "tok_ok";
  const body = { customerId: pick(customers).customerId, lines: [line], payment: { method: "card", token } };
  const start = performance.now();
  try {
    await post("/v1/orders", body, { headers: { "Idempotency-Key": crypto.randomUUID() } });
    told.accepted += 1;
    told.times.push(performance.now() - start);
  } catch {
    told.refused += 1;
  }
}

async function begin() {
  told = { accepted: 0, refused: 0, skipped: 0, times: [], began: performance.now() };
  running = { stop: false };
  const mine = running;
  redraw();
  try {
    const [customers, products] = await Promise.all([
      get("/v1/trial/customers"), get("/v1/products?active=true&inStock=true&limit=100")]);
    const shop = { customers: customers.items, products: products.items };
    if (!shop.customers.length || !shop.products.length) throw new Error("There are no customers, or nothing is in stock.");
    let under = 0;
    const end = performance.now() + seconds * 1000;
    let due = performance.now();
    while (!mine.stop && performance.now() < end) {
      for (; due <= performance.now(); due += 1000 / perSecond) {
        // What cannot be sent in time is left out, and told.
        if (under >= AT_ONCE) {
          told.skipped += 1;
          continue;
        }
        under += 1;
        place(shop).finally(() => { under -= 1; });
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
      redraw();
    }
  } catch (error) {
    told.failure = error.message;
  }
  running = undefined;
  redraw();
}

function stop() {
  running.stop = true;
}

const middle = (times) => times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)];

function choice(name, values, value, show, choose) {
  return html`<label>${name} <select aria-label=${name} ?disabled=${Boolean(running)} @change=${(event) => choose(Number(event.target.value))}>
    ${values.map((it) => html`<option value=${it} ?selected=${it === value}>${show(it)}</option>`)}</select></label>`;
}

export const load = () => html`
  <section class="card load" aria-label="Synthetic load">
    <h2>Synthetic load</h2>
    <p class="muted">This browser places orders of one product by card, one of twenty with a card that is declined.</p>
    <div class="row">
      ${choice("Orders a second", RATES, perSecond, (it) => it, (it) => { perSecond = it; })}
      ${choice("For how long", SECONDS, seconds, (it) => count(it, "second"), (it) => { seconds = it; })}
      ${running ? html`<button type="button" class="button danger" @click=${stop}>Stop</button>`
        : html`<button type="button" class="button" @click=${begin}>Start</button>`}
      <p role="status" id="load-says">${told ? html`${number(told.accepted)} accepted${told.refused ? `, ${number(told.refused)} refused` : ""}${
        told.skipped ? `, ${number(told.skipped)} not sent in time` : ""}${told.times.length ? `; acknowledged after ${duration(middle(told.times))} (median)` : ""}` : nothing}</p>
    </div>
    ${told?.failure ? html`<p class="warn" role="alert">${told.failure}</p>` : nothing}
  </section>`;
