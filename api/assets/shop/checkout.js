// Buying. The idempotency key of the order, and so its id, is made when the checkout is opened and
// kept by the browser until the outcome is known: a double-click, a reload and a request that is sent
// again all mean the same one order.

import { html, nothing } from "../lib/html.js";
import { NoAnswer, Refused, post } from "../lib/api.js";
import { go, link, redraw } from "../lib/page.js";
import { count, money } from "../lib/format.js";
import { attempt, bought, underway } from "./attempt.js";
import { empty, lines, pieces, sums, totals } from "./cart.js";
import { connected, customer } from "./customer.js";
import { picture } from "./picture.js";
import { CARDS } from "./words.js";

const SOONEST = 500;
const LATEST = 8_000;

let method = "card";
let token = CARDS[0].token;
let sending = false;
let again = 0;
let failure;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function order() {
  return {
    customerId: customer().customerId,
    // The price that was shown: if it is not the catalogue's any more, the order is rejected.
    lines: lines().map(({ productId, quantity, price }) => ({ productId, quantity, unitPrice: price })),
    payment: method === "card" ? { method, token } : { method },
  };
}

function buy(event) {
  event.preventDefault();
  if (sending || underway() || !customer() || !lines().length) return;
  failure = undefined;
  // Kept before it is sent: whatever happens now, the same order is sent again.
  attempt.set({ key: attempt.get()?.key ?? crypto.randomUUID(), body: order() });
  send();
}

/** Sends the order until it is known what became of it. */
async function send() {
  if (sending) return;
  sending = true;
  for (let wait = SOONEST; underway(); wait = Math.min(wait * 2, LATEST)) {
    const { key, body } = attempt.get();
    redraw();
    try {
      const { orderId } = await post("/v1/orders", body, { headers: { "Idempotency-Key": key } });
      done(orderId);
    } catch (error) {
      refused(error);
      const least = (error.retryAfter ?? 0) * 1000;
      if (underway()) {
        again += 1;
        redraw();
        await pause(Math.max(wait, least) * (0.75 + Math.random() / 2));
      }
    }
  }
  sending = false;
  again = 0;
  redraw();
}

function done(orderId) {
  // In this order: another tab that sees the attempt at its end has seen that the cart is empty.
  empty();
  attempt.set({ orderId });
  go(`order/${orderId}`);
}

function refused(error) {
  if (error instanceof NoAnswer || (error instanceof Refused && (error.unknown || error.status === 500))) {
    attempt.set({ ...attempt.get(), unknown: true });
    return;
  }
  if (error instanceof Refused) {
    // Sent again after an answer was lost, and decided meanwhile.
    if (error.problem.orderId && error.problem.reason !== "idempotency_key_reused") return done(error.problem.orderId);
    // The shop has too much to do and has done nothing.
    if (error.status === 503) return;
  }
  failure = error;
  // The next try is another order.
  attempt.set(null);
}

/** Takes an order back that the shop has never taken. */
function giveUp() {
  attempt.set(null);
  go("cart");
}

function waiting() {
  const { body, unknown } = attempt.get();
  const says = unknown
    ? html`<p><strong>Not known yet</strong> whether the shop has your order: it is asked again, with the same
        order. Whatever you do now, it is bought and charged once at the most.</p>
      <p class="muted">You may close this page; the next time you come, it goes on asking.</p>`
    : again
      ? html`<p><strong>The shop is too busy.</strong> Nothing was ordered and nothing was charged. It is tried again.</p>
        <button type="button" class="button plain" @click=${giveUp}>Rather not</button>`
      : html`<p>Your order is on its way. Nothing has been charged yet.</p>`;
  return html`
    <h1>Buying</h1>
    <div class="card status" role="status">
      <div class="spin" aria-hidden="true"></div>
      <div>${says}<p class="muted">${count(body.lines.length, "product")}, ${body.payment.method === "card" ? "by card" : "on account"}</p></div>
    </div>`;
}

function methods() {
  const left = customer().creditAvailable;
  const [sum] = totals();
  const little = left && (left.currency !== sum.currency || left.amount < sum.amount);
  const choose = (next) => () => {
    method = next;
    redraw();
  };
  return html`
    <fieldset class="card choices">
      <legend>Payment</legend>
      <label class="choice"><input type="radio" name="method" value="card" .checked=${method === "card"} @change=${choose("card")}>
        <span><strong>Card</strong><br><span class="muted">One of the sandbox's test cards</span></span></label>
      ${method === "card" ? html`
        <div class="cards" role="radiogroup" aria-label="Test card">
          ${CARDS.map((card) => html`
            <label class="choice"><input type="radio" name="token" value=${card.token} .checked=${token === card.token}
              @change=${() => { token = card.token; redraw(); }}>
              <span>${card.name} <span class="muted">· ${card.detail}</span></span></label>`)}
        </div>` : nothing}
      <label class="choice"><input type="radio" name="method" value="account" ?disabled=${!left} .checked=${method === "account"} @change=${choose("account")}>
        <span><strong>On account</strong><br><span class="muted">${left
          ? `${money(left)} of your limit of ${money(customer().creditLimit)} are left`
          : "You have no credit limit"}</span></span></label>
      ${method === "account" && little ? html`<p class="warn">This is more than what is left of your credit limit: the order would be rejected.</p>` : nothing}
    </fieldset>`;
}

const row = ({ productId, quantity, name, price }) => html`
  <li>${picture(productId, 40)} <span>${quantity} × ${name}</span>
    <span class="line-sum">${money({ amount: price.amount * quantity, currency: price.currency })}</span></li>`;

export default {
  title: () => "Checkout",
  show() {
    failure = undefined;
    if (underway()) send();
    // Bought just when the page was loaded again.
    else if (bought() && !lines().length) go(`order/${bought()}`);
    else if (!attempt.get()?.key) attempt.set({ key: crypto.randomUUID() });
  },
  view() {
    if (underway()) return waiting();
    if (!lines().length) {
      return html`<h1>Checkout</h1><div class="empty"><p>Your cart is empty.</p>
        ${bought() ? html`<a href=${link(`order/${bought()}`)}>Your last order</a>` : nothing}<a class="button" href=${link("")}>To the catalogue</a></div>`;
    }
    if (!customer()) {
      return html`<h1>Checkout</h1><div class="empty"><p>Who is buying?</p><a class="button" href=${link("account", [["then", "checkout"]])}>Choose a customer</a></div>`;
    }
    return html`
      <h1>Checkout</h1>
      ${failure ? html`<p class="notice bad" role="alert">The shop has refused: ${failure.message} Nothing was ordered and nothing was charged.</p>` : nothing}
      <form class="two" @submit=${buy}>
        ${methods()}
        <section class="card summary" aria-label="Your order">
          <p>For <strong>${customer().name}</strong> <a class="quiet" href=${link("account", [["then", "checkout"]])}>someone else?</a></p>
          <ul class="bought">${lines().map(row)}</ul>
          ${sums()}
          <button class="button wide" ?disabled=${sending || totals().length > 1}>Buy ${count(pieces(), "piece")}</button>
          ${connected() ? nothing : html`<p class="warn">The shop cannot be reached now. If you buy, the order is sent until it arrives, and counts once.</p>`}
        </section>
      </form>`;
  },
};
