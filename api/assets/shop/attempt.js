// The order that is being bought: kept by the browser from the moment at which the checkout is opened
// until its outcome has been seen.

import { stored } from "../lib/stored.js";

/**
 * `{key}`: the idempotency key that it will have; `{key, body, unknown?}`: sent, `unknown` if one may
 * have arrived; `{orderId}`: the shop has it.
 */
export const attempt = stored("checkout", null);

/** Whether an order was sent whose outcome is not known. */
export const underway = () => Boolean(attempt.get()?.body);

/** The order that was bought last. */
export const bought = () => attempt.get()?.orderId;
