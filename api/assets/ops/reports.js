// Reports: sales over time, what sells best, how payments go.

import { html, nothing } from "../lib/html.js";
import { get } from "../lib/api.js";
import { redraw } from "../lib/page.js";
import { duration, hour, money, number } from "../lib/format.js";
import { barChart } from "./chart.js";

const SPANS = {
  minute: { name: "Last half hour", ms: 30 * 60_000 },
  hour: { name: "Last day", ms: 24 * 3_600_000 },
  day: { name: "Last month", ms: 30 * 86_400_000 },
};
const AGAIN = 10_000;

let by = "minute";
let found;
let failure;
let timer;

async function load() {
  clearTimeout(timer);
  const wanted = by;
  const from = encodeURIComponent(new Date(Date.now() - SPANS[by].ms).toISOString());
  try {
    const [sales, payments, statuses, top, times] = await Promise.all([
      get(`/v1/reports/sales?by=${by}&from=${from}`),
      get(`/v1/reports/payments?by=${by}&from=${from}`),
      get("/v1/reports/status"),
      get(`/v1/reports/top-products?from=${from}&limit=8`),
      get(`/v1/reports/time-to-paid?from=${from}`),
    ]);
    if (wanted === by) [found, failure] = [{ sales, payments, statuses, top, times }, undefined];
  } catch (error) {
    failure = error;
  }
  redraw();
  timer = setTimeout(load, AGAIN);
}

const choose = (next) => () => {
  by = next;
  load();
};

const label = (bucket) => (by === "day" ? bucket.from.slice(5, 10) : hour(bucket.from));

const rateOf = ({ successRate }) => (successRate === null || successRate === undefined ? "–" : `${(successRate * 100).toFixed(1)} %`);

function tiles() {
  const { sales, payments, times } = found;
  const tile = (name, value, more = "") => html`<div class="card tile"><p class="muted">${name}</p><p class="big">${value}</p><p class="muted">${more}</p></div>`;
  const totals = sales.total.currencies;
  return html`
    <div class="tiles">
      ${totals.length ? totals.map((it) => tile("Net sales", money(it.net), `${number(it.orders)} orders, ${number(it.units)} pieces, ${number(it.refunds)} refunds`))
        : tile("Net sales", "–", "nothing was sold")}
      ${tile("Card payments that went well", rateOf(payments.total.card), `${number(payments.total.declined)} declined`)}
      ${tile("Paid after", duration(times.p50Ms), `half of them; 99 of 100 within ${duration(times.p99Ms)}`)}
    </div>`;
}

function charts() {
  const { sales } = found;
  const { currencies } = sales.total;
  if (!currencies.length) return nothing;
  return currencies.map(({ currency }) => barChart({
    title: `Sales in ${currency}`, name: label,
    bars: sales.buckets.map((bucket) => ({ ...bucket, value: bucket.currencies.find((it) => it.currency === currency)?.gross.amount ?? 0 })),
    show: (amount) => money({ amount, currency }),
  }));
}

const best = ({ currency, items }) => html`
  <section class="card" aria-label="Best products in ${currency}">
    <h2>What sells best</h2>
    <table><thead><tr><th scope="col">Product</th><th scope="col" class="right">Pieces</th><th scope="col" class="right">Amount</th></tr></thead>
      <tbody>${items.map((it) => html`<tr><td>${it.name ?? it.productId} <span class="muted">${it.brand}</span></td>
        <td class="right">${number(it.units)}</td><td class="right">${money(it.amount)}</td></tr>`)}</tbody></table>
  </section>`;

const statuses = () => html`
  <section class="card" aria-label="Orders by status"><h2>All ${number(found.statuses.orders)} orders</h2>
    <table><thead><tr><th scope="col">Status</th><th scope="col" class="right">Orders</th></tr></thead>
      <tbody>${found.statuses.statuses.filter((it) => it.orders).map((it) => html`
        <tr><td>${it.status.replace("_", " ")} <span class="muted">${(it.reasons ?? []).map((why) => `${why.reason.replaceAll("_", " ")} ${number(why.orders)}`).join(", ")}</span></td>
          <td class="right">${number(it.orders)}</td></tr>`)}</tbody></table></section>`;

export default {
  title: () => "Reports",
  show: load,
  hide() {
    clearTimeout(timer);
  },
  view: () => html`
    <h1>Reports</h1>
    <div class="tabs" role="group" aria-label="Time">${Object.entries(SPANS).map(([value, { name }]) => html`
      <button type="button" aria-pressed=${by === value} @click=${choose(value)}>${name}</button>`)}</div>
    ${failure ? html`<p class="notice bad" role="alert">The reports cannot be read now: ${failure.message}</p>` : nothing}
    ${found ? html`${tiles()}<div class="charts">${charts()}</div><div class="charts">${found.top.currencies.map(best)}${statuses()}</div>`
      : failure ? nothing : html`<p class="loading">Adding up …</p>`}`,
};
