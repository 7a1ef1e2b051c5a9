// A worker in Node: the test service of protocol-spec/3-calls.md, and the words of a text, counted.
//
// Python: async with forkwire.open_worker(command=["node", "worker.mjs"]) as worker: ...

import { serve } from "./forkwire.mjs";

const methods = {
  /** How often each word occurs in a text. */
  wordcount(call, text) {
    const counts = new Map();
    for (const [word] of text.toLowerCase().matchAll(/\p{L}+/gu)) counts.set(word, (counts.get(word) ?? 0) + 1);
    return counts;
  },

  // The test service.
  echo: (call, value) => value,
  add: (call, a, b) => a + b,
  async *count(call, n) {
    for (let i = 0; i < n; i++) yield i;
  },
  fail(call, message) {
    throw new RangeError(message);
  },
  nap: (call, ignored = null) =>
    new Promise((resolve, reject) => {
      call.signal.addEventListener("abort", () => reject(call.signal.reason));
    }),
  async total(call, items) {
    let sum = 0;
    for await (const item of items) sum += item;
    return sum;
  },
  async first(call, items) {
    for await (const item of items) return item;
    return null;
  },
  callback: (call, name, value) => call.host(name, value),
  progress(call, n) {
    for (let done = 1; done <= n; done++) call.progress(done, n, "");
    return n;
  },
  unsendable: () => () => {},
};

process.exit(await serve(methods, "test"));
