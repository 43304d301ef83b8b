// The catalogue: search as you type, filters with counts, sorting, pages. What is asked for stands in
// the address, so that it can be kept, sent and gone back to.

import { html, live, nothing, repeat } from "../lib/html.js";
import { Latest } from "../lib/api.js";
import { announce, link, redraw, stay } from "../lib/page.js";
import { count, money, number } from "../lib/format.js";
import { put } from "./cart.js";
import { picture } from "./picture.js";

const TYPING = 150;
const PAGE = 24;
const SHOWN = 10;
const SORTS = { relevance: "Best match", price: "Cheapest first", "-price": "Dearest first", newest: "Newest" };
const LISTS = ["category", "brand"];
const SINGLES = ["q", "sort", "inStock", "currency", "minPrice", "maxPrice"];

let asked = {};
let found;
let failure;
let loading = false;
let answered;
let timer;
const opened = new Set();
const search = new Latest();

const values = (name) => asked[name] ?? [];

/** What is asked for as pairs, as they stand in the address and in the request. */
const pairs = () => [
  ...SINGLES.filter((name) => asked[name]).map((name) => [name, asked[name]]),
  ...LISTS.flatMap((name) => values(name).map((value) => [name, value])),
];

function parse(query) {
  const lists = LISTS.map((name) => [name, query.getAll(name)]);
  const singles = SINGLES.filter((name) => query.get(name)).map((name) => [name, query.get(name)]);
  return Object.fromEntries([...singles, ...lists]);
}

async function load(cursor) {
  const request = new URLSearchParams(pairs());
  const wanted = request.toString();
  if (!cursor && wanted === answered) return;
  request.set("active", "true");
  request.set("limit", PAGE);
  if (cursor) request.set("cursor", cursor);
  loading = true;
  redraw();
  try {
    const answer = await search.get(`/v1/products?${request}`);
    const before = cursor ? found.items : [];
    found = { ...answer, items: [...before, ...answer.items] };
    answered = wanted;
    failure = undefined;
    announce(`${count(found.total, "product")} found`);
  } catch (error) {
    failure = error;
  }
  loading = false;
  redraw();
}

function ask(change, patience = 0) {
  asked = { ...asked, ...change };
  stay("", pairs());
  redraw();
  clearTimeout(timer);
  timer = setTimeout(load, patience);
}

const toggle = (name, value) => {
  const has = values(name).includes(value);
  ask({ [name]: has ? values(name).filter((it) => it !== value) : [...values(name), value] });
};

function facet(name, title, facets) {
  if (!facets) return nothing;
  const chosen = values(name).filter((value) => !facets.values.some((it) => it.value === value));
  const all = [...chosen.map((value) => ({ value, count: 0 })), ...facets.values];
  const shown = opened.has(name) ? all : all.filter((it, at) => at < SHOWN || values(name).includes(it.value));
  const more = () => {
    opened.add(name);
    redraw();
  };
  return html`
    <fieldset class="facet">
      <legend>${title}</legend>
      ${repeat(shown, (it) => it.value, (it) => html`
        <label><input type="checkbox" .checked=${live(values(name).includes(it.value))}
          @change=${() => toggle(name, it.value)}><span>${it.value}</span><span class="count">${number(it.count)}</span></label>`)}
      ${shown.length < all.length
        ? html`<button type="button" class="quiet" @click=${more}>${all.length - shown.length} more</button>` : nothing}
    </fieldset>`;
}

function prices(facets) {
  const most = facets?.prices.toSorted((a, b) => b.count - a.count)[0];
  if (!most) return nothing;
  const { currency } = most;
  const is = (band) => asked.minPrice === String(band.min) && asked.maxPrice === String(band.max);
  const choose = (band) => ask(is(band)
    ? { currency: "", minPrice: "", maxPrice: "" }
    : { currency, minPrice: String(band.min), maxPrice: String(band.max) });
  const name = (band) => `${money({ amount: band.min, currency })} – ${money({ amount: band.max, currency })}`;
  return html`
    <fieldset class="facet">
      <legend>Price</legend>
      ${most.bands.filter((band) => band.count || is(band)).map((band) => html`
        <label><input type="checkbox" .checked=${live(is(band))} @change=${() => choose(band)}>
          <span>${name(band)}</span><span class="count">${number(band.count)}</span></label>`)}
    </fieldset>`;
}

const filters = () => LISTS.reduce((sum, name) => sum + values(name).length, 0)
  + (asked.minPrice ? 1 : 0) + (asked.inStock ? 1 : 0);

const clear = () => ask({ category: [], brand: [], currency: "", minPrice: "", maxPrice: "", inStock: "" });

function stock({ available }) {
  if (available <= 0) return html`<p class="stock bad">Sold out</p>`;
  return available < 10 ? html`<p class="stock warn">Only ${available} left</p>` : html`<p class="stock muted">In stock</p>`;
}

const card = (product) => html`
  <li class="product">
    <a class="product-link" href=${link(`product/${product.productId}`)}>
      ${picture(product.productId, 240)}
      <span class="product-name">${product.name}</span>
    </a>
    <p class="muted">${product.brand}</p>
    ${stock(product.stock)}
    <div class="product-foot">
      <span class="price">${money(product.price)}</span>
      <button type="button" class="button small" ?disabled=${product.stock.available <= 0}
        aria-label="Put ${product.name} into the cart" @click=${() => put(product, 1)}>Add</button>
    </div>
  </li>`;

const waiting = () => html`<li class="product waiting" aria-hidden="true"><div class="picture"></div><p></p><p></p></li>`;

function results() {
  if (failure && !loading) {
    return html`<div class="empty" role="alert"><p>The catalogue cannot be read now: ${failure.message}</p>
      <button type="button" class="button" @click=${() => load()}>Try again</button></div>`;
  }
  if (!found) return html`<ul class="grid">${Array.from({ length: 12 }, waiting)}</ul>`;
  if (!found.items.length) {
    return html`<div class="empty"><p>Nothing fits${asked.q ? html` “${asked.q}”` : nothing}.</p>
      ${filters() ? html`<button type="button" class="button" @click=${clear}>Without the filters</button>` : nothing}</div>`;
  }
  return html`
    <ul class="grid" aria-busy=${loading}>${repeat(found.items, (it) => it.productId, card)}</ul>
    ${found.nextCursor ? html`<div class="more"><button type="button" class="button plain" ?disabled=${loading}
      @click=${() => load(found.nextCursor)}>Show more</button></div>` : nothing}`;
}

export default {
  show(_, query) {
    asked = parse(query);
    load();
  },
  view: () => html`
    <h1 class="hidden">Catalogue</h1>
    <form class="search" role="search" @submit=${(event) => event.preventDefault()}>
      <label class="hidden" for="q">Search the catalogue</label>
      <input id="q" type="search" autocomplete="off" placeholder="Search: tent, espresso, lamp …" maxlength="100"
        .value=${live(asked.q ?? "")} @input=${(event) => ask({ q: event.target.value.trimStart() }, TYPING)}>
    </form>
    <div class="catalogue">
      <details class="filters" ?open=${innerWidth > 800}>
        <summary>Filters ${filters() ? html`<span class="badge">${filters()}</span>` : nothing}</summary>
        ${facet("category", "Category", found?.facets.categories)}
        ${prices(found?.facets)}
        ${facet("brand", "Brand", found?.facets.brands)}
        ${found ? html`<fieldset class="facet"><legend>Stock</legend>
          <label><input type="checkbox" .checked=${live(Boolean(asked.inStock))}
            @change=${() => ask({ inStock: asked.inStock ? "" : "true" })}><span>Only what is there</span></label></fieldset>` : nothing}
        ${filters() ? html`<button type="button" class="quiet" @click=${clear}>Clear filters</button>` : nothing}
      </details>
      <section class="results" aria-label="Products">
        <div class="results-top">
          <p class="muted" id="total">${found ? count(found.total, "product") : "…"}</p>
          <label class="sort">Sort <select @change=${(event) => ask({ sort: event.target.value })}>
            ${Object.entries(SORTS).map(([value, name]) => html`
              <option value=${value} ?selected=${(asked.sort ?? "relevance") === value}>${name}</option>`)}
          </select></label>
        </div>
        ${results()}
      </section>
    </div>`,
};
