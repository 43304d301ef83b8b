// Publishes a command with nats.js, as any NATS client may.
//
// Arguments: the subject, the payload, and headers as NAME=VALUE. Address, user and password come
// from the environment. Prints the stream sequence of the publish ack.

import { connect, headers } from "@nats-io/transport-node";

const [subject, payload, ...given] = process.argv.slice(2);
const connection = await connect({
  servers: process.env.NATS_URL,
  user: process.env.NATS_USER,
  pass: process.env.NATS_PASSWORD,
  reconnect: false,
});
const options = { timeout: 10_000 };
if (given.length > 0) {
  options.headers = headers();
  for (const header of given) {
    const at = header.indexOf("=");
    options.headers.set(header.slice(0, at), header.slice(at + 1));
  }
}
const answer = await connection.request(subject, payload, options);
const ack = answer.json();
if (ack.error) throw new Error(ack.error.description);
console.log(ack.seq);
await connection.close();
