// What the api sees of the pipeline: the newest sample, and those of the last quarter of an hour.

import { get } from "../lib/api.js";
import { follow } from "../lib/live.js";
import { redraw } from "../lib/page.js";
import { signedOut } from "../lib/sign-in.js";

const KEPT = 15 * 60_000;

let now;
let points = [];
let live = true;

export const sample = () => now;
export const history = () => points;
export const connected = () => live;
export const parkedNow = () => now?.streams.find((it) => it.name === "parked")?.messages ?? 0;

const keep = (point) => ({ ...point, at: Date.parse(point.at) });

/** A sample as a point of the charts, in the form in which the server keeps it. */
const pointOf = (it) => keep({
  at: it.at,
  streams: Object.fromEntries(it.streams.map(({ name, perSecond }) => [name, perSecond])),
  workers: Object.fromEntries(it.workers.map((worker) => [worker.name,
    [worker.perSecond, worker.pending + worker.inFlight, worker.oldestMs, worker.p50Ms, worker.p99Ms]])),
});

async function load() {
  try {
    const { history: found } = await get("/v1/ops/pipeline");
    const last = Date.parse(found.at(-1)?.at ?? 0);
    points = [...found.map(keep), ...points.filter((point) => point.at > last)];
    redraw();
  } catch {
    // The stream brings what comes from now on.
  }
}

follow("/v1/ops/pipeline/stream", (next) => {
  now = next;
  const point = pointOf(next);
  if (!points.length || point.at > points.at(-1).at) points.push(point);
  while (points[0].at < point.at - KEPT) points.shift();
  redraw();
}, (connection) => {
  // After a break there is a gap that the server can fill.
  if (connection && !live) load();
  live = connection;
  redraw();
});
if (!signedOut()) load();
