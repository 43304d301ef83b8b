// Requests to the server that has sent the page.

import { refused, signed } from "./sign-in.js";

const PATIENCE = 15_000;

/** The server has refused. `problem` is its problem document (RFC 9457). */
export class Refused extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail || problem.title || `The server answered ${status}.`);
    this.status = status;
    this.problem = problem;
    this.retryAfter = retryAfter;
  }

  /** Whether it is not known if what was asked for has been done. */
  get unknown() {
    return this.problem.type === "/problems/outcome-unknown";
  }
}

/** No answer came: the request may have arrived, or not. */
export class NoAnswer extends Error {}

/**
 * Sends a request and reads the answer.
 * @returns {Promise<any>} the answer's JSON
 * @throws {Refused | NoAnswer | DOMException} a DOMException if `signal` has ended it
 */
export async function call(method, path, { body, headers = {}, signal, patience = PATIENCE } = {}) {
  const late = AbortSignal.timeout(patience);
  const init = { method, headers: { ...signed(), ...headers }, cache: "no-cache" };
  init.signal = signal ? AbortSignal.any([signal, late]) : late;
  if (body !== undefined) {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(body);
  }
  let response;
  let text;
  try {
    response = await fetch(path, init);
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new NoAnswer("The shop cannot be reached.", { cause: error });
  }
  if (response.status === 401) refused();
  const json = text ? read(text) : null;
  if (!response.ok) {
    throw new Refused(response.status, json ?? {}, Number(response.headers.get("Retry-After")) || 0);
  }
  return json;
}

const read = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
};

export const get = (path, options) => call("GET", path, options);
export const post = (path, body, options) => call("POST", path, { body, ...options });

/** A request that is asked again and again while a user types: only the last one's answer counts. */
export class Latest {
  #ending;

  /** @returns {Promise<any>} never settles if another one was begun meanwhile */
  async get(path) {
    this.#ending?.abort();
    const ending = new AbortController();
    this.#ending = ending;
    try {
      const answer = await get(path, { signal: ending.signal });
      if (!ending.signal.aborted) return answer;
    } catch (error) {
      if (!ending.signal.aborted) throw error;
    }
    return new Promise(() => {});
  }
}
