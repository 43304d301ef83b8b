// The pipeline as a picture: where messages are, how fast they go on, who works on them.

import { html, nothing } from "../lib/html.js";
import { link, offers } from "../lib/page.js";
import { duration, number, short } from "../lib/format.js";
import { lineChart, spark } from "./chart.js";
import { load } from "./load.js";
import { history, sample } from "./samples.js";

const RATE = 0;
const LAG = 1;
const OLDEST = 2;
const P50 = 3;
const P99 = 4;
/** What a worker does, in a few words; those of EVENTS in the order in which they are shown. */
const DOES = {
  validation: "decides: stock, credit, steps",
  payment: "charges and refunds",
  persistence: "writes the journal",
  projection: "keeps the views",
  reservations: "gives stock and credit back",
};
/** A backlog that is older than this is worth a look. */
const LATE = 5_000;

const rate = (value) => (value === null || value === undefined ? "–" : `${short(value)}/s`);
const points = (name, which) => history().map((point) => [point.at, point.workers[name]?.[which] ?? null]);
const flow = (name) => history().map((point) => [point.at, point.streams[name] ?? null]);

function stream(name, what) {
  const it = sample()?.streams.find((found) => found.name === name);
  return html`
    <div class="node stream ${it?.perSecond > 0 ? "flows" : ""}">
      <h2>${name.toUpperCase()}</h2>
      <div class="pace"><p class="big">${rate(it?.perSecond)}</p>${spark(flow(name), `${name}: messages a second`)}</div>
      <p class="muted">${it ? html`${short(it.messages)} messages, ${short(it.bytes)}B` : what}</p>
    </div>`;
}

const fact = (name, value, tone = "") => html`<div class=${tone}><dt>${name}</dt><dd>${value}</dd></div>`;

function worker(name) {
  const it = sample()?.workers.find((found) => found.name === name);
  const waiting = it ? it.pending + it.inFlight : 0;
  const dead = it && it.replicas === 0;
  const late = it?.oldestMs > LATE;
  return html`
    <div class="node worker ${it?.perSecond > 0 ? "flows" : ""} ${dead ? "dead" : late ? "late" : ""}">
      <h2>${name} <span class="tag ${dead ? "bad" : late ? "warn" : "good"}">${it ? `${it.replicas} alive` : "…"}</span></h2>
      <p class="muted does">${DOES[name]}</p>
      <div class="pace"><p class="big">${rate(it?.perSecond)}</p>${spark(points(name, RATE), `${name}: messages a second`)}</div>
      <dl class="facts">
        ${fact("p50 / p99", it?.p50Ms ? html`${duration(it.p50Ms)} / ${duration(it.p99Ms)}` : "–", "all")}
        ${fact("oldest", it?.oldestMs === null || !it ? "–" : duration(it.oldestMs), late ? "all warn" : "all")}
        ${fact("waiting", it ? short(it.pending) : "–", waiting > 1_000 ? "warn" : "")}
        ${fact("in flight", it ? short(it.inFlight) : "–")}
        ${fact("retried", it ? short(it.redeliveredTotal) : "–")}
        ${fact("failed", it ? short(it.failed) : "–", it?.failed ? "warn" : "")}
      </dl>
    </div>`;
}

function edge() {
  const now = sample();
  const commands = now?.streams.find((found) => found.name === "commands");
  return html`
    <div class="node edge ${commands?.perSecond > 0 ? "flows" : ""}">
      <h2>api <span class="tag good">${now ? `${now.edges} alive` : "…"}</span></h2>
      <p class="muted does">takes commands, shows views</p>
    </div>`;
}

function health() {
  const servers = sample()?.health ?? ["NATS", "PostgreSQL", "Redis"].map((name) => ({ name }));
  return html`
    <ul class="health" aria-label="Servers">${servers.map((it) => html`
      <li><span class="lamp ${it.up === undefined ? "" : it.up ? "good" : "bad"}" aria-hidden="true"></span>
        <strong>${it.name}</strong> <span class="muted">${it.up === undefined ? "…" : it.up ? `answers in ${duration(Math.max(1, it.answeredMs))}` : "does not answer"}</span></li>`)}</ul>`;
}

function parkedBox() {
  const many = sample()?.streams.find((found) => found.name === "parked")?.messages;
  return html`
    <a class="node parked ${many ? "late" : ""}" href=${link("parked")}>
      <h2>PARKED</h2><p class="big">${many === undefined ? "–" : number(many)}</p>
      <p class="muted">${many ? "messages wait for an operator" : "nothing waits"}</p></a>`;
}

const lines = (names, which) => names.map((name) => ({ name, points: points(name, which) }));

export default {
  title: () => "Pipeline",
  view: () => html`
    <h1 class="hidden">Pipeline</h1>
    ${health()}
    <section class="picture-of" aria-label="The way of a message">
      <div class="column">${edge()}</div>
      <div class="arrow" aria-hidden="true"></div>
      <div class="column">${stream("commands", "what clients ask for")}</div>
      <div class="arrow" aria-hidden="true"></div>
      <div class="column">${worker("validation")}</div>
      <div class="arrow" aria-hidden="true"></div>
      <div class="column">${stream("events", "what has happened")}</div>
      <div class="arrow" aria-hidden="true"></div>
      <div class="column fan">${Object.keys(DOES).slice(1).map(worker)}${parkedBox()}</div>
    </section>
    <section class="charts" aria-label="The last quarter of an hour">
      ${lineChart({ title: "Messages a second", show: rate, lines: [
        { name: "commands", points: flow("commands") }, { name: "events", points: flow("events") }] })}
      ${lineChart({ title: "Waiting and in flight", show: (it) => (it === null ? "–" : short(it)),
        lines: lines(["validation", "payment", "persistence", "projection"], LAG) })}
      ${lineChart({ title: "Visible after (p50, p99)", show: duration, lines: [
        { name: "p50", points: points("projection", P50) }, { name: "p99", points: points("projection", P99) }] })}
      ${lineChart({ title: "Age of the oldest message", show: duration,
        lines: lines(["validation", "payment", "persistence", "projection"], OLDEST) })}
    </section>
    ${offers("trial") ? load() : nothing}`,
};
